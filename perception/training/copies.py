"""Perturbed copies of sources to train on: augmentation for frozen encoders, whose features are cached.

A copy is cut and encoded as its original, from perturbed messages. Its labels are those of the original, at
their true times. It is in the group of the original: it is trained on only where the original is.
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
    """`[[copies]]`: one perturbed copy of every training session; only the given keys change it."""

    seed: Annotated[int, Field(ge=0, description="of noise, typos and losses, combined with the session")] = 0
    noise_snr_db: Annotated[
        float | None, Field(ge=-60, le=120, description="white noise added to the sound")
    ] = None
    gain_db: Annotated[
        float, Field(ge=-60, le=60, description="louder, or softer if negative; samples may clip")
    ] = 0.0
    shift_ms: Annotated[float, Field(description="sound later, or earlier if negative")] = 0.0
    typos: Annotated[Share, Field(description="share of the letters of text")] = 0.0
    word_drops: Annotated[Share, Field(description="share of the words of text")] = 0.0
    lost: dict[Input, Share] = Field(
        {}, description="share of messages lost, by input; the last one before is stale"
    )
    late_ms: dict[Input, Annotated[float, Field(ge=0)]] = Field({}, description="delay of arrival, by input")

    @model_validator(mode="after")
    def _changes_something(self) -> "CopyPlan":
        if not self.perturbations(""):
            raise ValueError(f"perturbs nothing; give one of {', '.join((*_ABOUT, 'lost', 'late_ms'))}")
        return self

    def perturbations(self, source: str) -> list[Perturbation]:
        """Return the perturbations of a source, given its fingerprint; no two sources get the same noise."""
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
        """Yield each given key, and the input that it perturbs."""
        for key in sorted(self.changed() & _ABOUT.keys()):
            yield key, _ABOUT[key]
        for key in ("lost", "late_ms"):
            yield from ((f"{key}.{topic}", topic) for topic in getattr(self, key))


def check(file: Path, copies: Sequence[CopyPlan], fusion: FusionConfig) -> None:
    """Raise ProfileError if a copy perturbs an input that the fusion does not have: nothing would change."""
    topics = sorted({item.topic for item in fusion.inputs.values()})
    for number, copy in enumerate(copies):
        for key, wanted in copy.inputs():
            if not any(_meets(wanted, topic) for topic in topics):
                raise ProfileError(
                    f"{file}: copies.{number}.{key}: no input of the profile; there are {', '.join(topics)}"
                )


def _meets(wanted: str, topic: str) -> bool:
    """Return whether two modalities, topics or patterns have a topic in common."""
    kind = kind_of(topic)
    return wanted == kind or fnmatchcase(topic, wanted) or fnmatchcase(wanted, topic)


@dataclass(frozen=True)
class Copied:
    """A source with its messages perturbed."""

    original: DataSource
    plan: CopyPlan

    @property
    def name(self) -> str:
        """The name of the original."""
        return self.original.name

    def fingerprint(self) -> str:
        """Return the fingerprint of the original with the perturbations."""
        original = self.original.fingerprint()
        return f"{original} {'; '.join(map(str, self.plan.perturbations(original)))}"

    def origin(self) -> str:
        """Return the origin of the original."""
        return self.original.origin()

    def messages(self) -> Iterator[Message[Header]]:
        """Yield the perturbed messages in order of arrival."""
        return iter(self._perturbed())

    def recording(self) -> Iterable[Message[Header]]:
        """Return its messages; an iterator if those of the original are one."""
        if isinstance(self.original.recording(), Iterator):
            return self.messages()
        return self._perturbed()

    def spans(self) -> list[Span]:
        """Return the labels of the original."""
        return self.original.spans()

    def _perturbed(self) -> Perturbed:
        # a plan is for all sources; a source without one of its streams is perturbed in the others
        perturbations = self.plan.perturbations(self.original.fingerprint())
        return Perturbed(_Played(self.original), *perturbations, strict=False)


@dataclass(frozen=True)
class _Played:
    """The messages of a source; every iteration reads them again."""

    source: DataSource

    def __iter__(self) -> Iterator[Message[Header]]:
        return iter(self.source.messages())


def copied(sources: Sequence[DataSource], plan: CopyPlan) -> list[Copied]:
    """Return a copy of each source, in the same order, so that the numbers of sources are equal."""
    return [Copied(source, plan) for source in sources]


def joined(train: Examples, copies: Sequence[Examples]) -> Examples:
    """Return the training rows, then the rows of each copy of the same sources.

    Raises:
        ValueError: copies have other sources than the examples that `train` was split from.
    """
    if any(copy.names != train.names for copy in copies):
        raise ValueError("copies of other sources than the training sources")
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
