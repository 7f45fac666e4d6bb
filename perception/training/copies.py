"""Perturbed copies of sources to learn from: augmentation for frozen encoders, whose features are cached.

A copy is cut and encoded by what cuts and encodes its original, from perturbed messages. Its labels are those
of the original at their true times, and it belongs to the original's group: where that is not learned from,
neither is its copy.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Final

import torch
from pydantic import AfterValidator, Field, model_validator

from perception.errors import ProfileError
from perception.messages import Header, Message
from perception.profile import FusionConfig, Section
from perception.session.labels import Span
from perception.session.recompute import perturb
from perception.session.recompute.perturb import Perturbation, Perturbed
from perception.topics import kind_of
from perception.training.examples import Examples
from perception.training.sources import DataSource

_ABOUT: Final = {
    "noise_snr_db": "microphone",
    "gain_db": "microphone",
    "shift_ms": "microphone",
    "typos": "text",
    "word_drops": "text",
}


def _input(topic: str) -> str:
    if kind_of(topic) not in ("camera", "microphone", "text"):
        raise ValueError("expected camera, microphone or text, or one topic such as camera/front")
    return topic


Input = Annotated[str, AfterValidator(_input)]
Share = Annotated[float, Field(ge=0, le=1)]


class CopyPlan(Section):
    """`[[copies]]`: every session to learn from once more, perturbed; what is not given stays as it was."""

    seed: Annotated[int, Field(ge=0, description="of noise, typos and losses, together with the session")] = 0
    noise_snr_db: Annotated[float | None, Field(ge=-60, le=120, description="white noise in the sound")] = (
        None
    )
    gain_db: Annotated[
        float, Field(ge=-60, le=60, description="louder, or softer if negative; it may clip")
    ] = 0.0
    shift_ms: Annotated[float, Field(description="sound later, or earlier if negative")] = 0.0
    typos: Annotated[Share, Field(description="share of the letters of text")] = 0.0
    word_drops: Annotated[Share, Field(description="share of the words of text")] = 0.0
    lost: dict[Input, Share] = Field({}, description="share of messages by input: what is left is stale")
    late_ms: dict[Input, Annotated[float, Field(ge=0)]] = Field({}, description="later arrival by input")

    @model_validator(mode="after")
    def _changes_something(self) -> "CopyPlan":
        if not self.perturbations(""):
            raise ValueError(f"perturbs nothing; give one of {', '.join((*_ABOUT, 'lost', 'late_ms'))}")
        return self

    def perturbations(self, source: str) -> list[Perturbation]:
        """Return them for a source, told by its fingerprint: no two sources get the same noise."""
        seed = zlib.crc32(f"{self.seed} {source}".encode())
        chosen = []
        if self.noise_snr_db is not None:
            chosen.append(perturb.noise(self.noise_snr_db, seed))
        if self.gain_db:
            chosen.append(perturb.gain(self.gain_db))
        if self.shift_ms:
            chosen.append(perturb.shift(self.shift_ms))
        if self.typos or self.word_drops:
            chosen.append(perturb.typos(self.typos, seed, self.word_drops))
        chosen += [perturb.drop(rate, seed, topic) for topic, rate in self.lost.items() if rate]
        chosen += [perturb.delay(topic, ms) for topic, ms in self.late_ms.items() if ms]
        return chosen

    def inputs(self) -> Iterator[tuple[str, str]]:
        """Yield each key that is given, and the input it is about."""
        for key in sorted(self.changed() & _ABOUT.keys()):
            yield key, _ABOUT[key]
        for key in ("lost", "late_ms"):
            yield from ((f"{key}.{topic}", topic) for topic in getattr(self, key))


def check(file: Path, copies: Sequence[CopyPlan], fusion: FusionConfig) -> None:
    """Raise ProfileError if a copy perturbs what the fusion does not take in: it would be no other."""
    topics = sorted({item.topic for item in fusion.inputs.values()})
    for number, copy in enumerate(copies):
        for key, wanted in copy.inputs():
            if not any(_meets(wanted, topic) for topic in topics):
                raise ProfileError(
                    f"{file}: copies.{number}.{key}: no input of the profile; it takes in {', '.join(topics)}"
                )


def _meets(wanted: str, topic: str) -> bool:
    """Whether two of a kind, a topic or a pattern have a topic in common."""
    kind = kind_of(topic)
    return wanted == kind or fnmatchcase(topic, wanted) or fnmatchcase(wanted, topic)


@dataclass(frozen=True)
class Copied:
    """A source with its messages perturbed."""

    original: DataSource
    plan: CopyPlan

    @property
    def name(self) -> str:
        """The original's."""
        return self.original.name

    def fingerprint(self) -> str:
        """Return that of the original with what is done to it."""
        original = self.original.fingerprint()
        return f"{original} {'; '.join(map(str, self.plan.perturbations(original)))}"

    def origin(self) -> str:
        """Return the original's."""
        return self.original.origin()

    def messages(self) -> Iterator[Message[Header]]:
        """Yield the perturbed messages in order of arrival."""
        return iter(self._perturbed())

    def recording(self) -> Iterable[Message[Header]]:
        """Return its messages, to be gone through once where the original's are."""
        if isinstance(self.original.recording(), Iterator):
            return self.messages()
        return self._perturbed()

    def spans(self) -> list[Span]:
        """Return the labels of the original: what was true then stays true."""
        return self.original.spans()

    def _perturbed(self) -> Perturbed:
        # a plan is for all sources: one that lacks a stream of it is learned from with what it has
        perturbations = self.plan.perturbations(self.original.fingerprint())
        return Perturbed(_Played(self.original), *perturbations, strict=False)


@dataclass(frozen=True)
class _Played:
    """The messages of a source, as often as they are gone through."""

    source: DataSource

    def __iter__(self) -> Iterator[Message[Header]]:
        return iter(self.source.messages())


def copied(sources: Sequence[DataSource], plan: CopyPlan) -> list[Copied]:
    """Return a copy of each source, in their order: examples of both number their sources alike."""
    return [Copied(source, plan) for source in sources]


def joined(train: Examples, copies: Sequence[Examples]) -> Examples:
    """Return the rows to learn from, then those of each copy that are of the same sources.

    Raises:
        ValueError: a copy is of other sources than the examples that `train` was split off.
    """
    if any(copy.names != train.names for copy in copies):
        raise ValueError("copies of other sources than those that are trained on")
    if not copies:
        return train
    own = torch.unique(train.sources)
    parts = [train, *(copy.rows(torch.isin(copy.sources, own)) for copy in copies)]
    rows = Examples.concatenate(parts)
    return replace(
        rows,
        sources=torch.cat([part.sources for part in parts]),
        names=train.names,
        origins=train.origins,
        empty=train.empty,
    )
