"""The searchable streams of a session, by topic; texts need no model.

Texts are commands, the names of labels, and the names in states: the fused class, and the labels and boxes of
each encoder. A name that consecutive states repeat is one item, with the time of the first state.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from perception.messages import FusedState, Label, TextCommand
from perception.session.file.reader import Session
from perception.units import SECOND_NS

Times = npt.NDArray[np.int64]
KINDS: Final = {
    "frames": ("camera",),
    "sounds": ("microphone",),
    "commands": ("text", "label"),
    "states": ("state",),
}
"""By kind, the prefixes of its topics."""
MIN_SCORE: Final = 0.3
"""A label or box of an encoder with a lower score is not an item."""
_PAUSE_NS: Final = SECOND_NS
"""A name that no state has had for so long is a new item when it occurs again."""


class Step(NamedTuple):
    """How often continuous streams are embedded: a frame every `every_s`, sounds that overlap by half."""

    every_s: float = 0.5
    sound_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Stream:
    """The items of one topic of a session: n frames, sounds or texts."""

    path: Path
    start_ns: int
    """Stamp of the zero of the session."""
    topic: str
    stamps_ns: Times
    """(n,) when the item happened or began; of a sound, its middle."""
    received_ns: Times
    """(n,) arrival of the newest message of the item: its place in the file."""
    texts: tuple[str, ...] = ()
    """(n,) texts of commands, labels or states; empty for frames and sounds."""
    notes: tuple[str, ...] = ()
    """(n,) about each text: what inferred it, its score, its duration; empty for frames and sounds."""
    confidence: npt.NDArray[np.float32] | None = None
    """(n,) score of each text in [0, 1], a factor of its similarity; None where all are 1."""
    vectors: npt.NDArray[np.float32] | None = None
    """(n, dim), mapped from the file; None where texts are compared by their words."""
    left_out: tuple[str, ...] = ()
    """Lines about messages of the topic that are not in the stream."""

    def __len__(self) -> int:
        return len(self.stamps_ns)


@dataclass(slots=True)
class Text:
    """One text of a session."""

    stamp_ns: int
    received_ns: int
    text: str
    note: str = ""
    confidence: float = 1.0


def topics(session: Session, kind: str) -> list[str]:
    """Return the topics of one kind in a session."""
    return [topic for prefix in KINDS[kind] for topic in session.counts if topic.startswith(f"{prefix}/")]


def has(path: Path, kind: str) -> bool:
    """Return whether a session has topics of a kind; SessionError if it cannot be read."""
    with Session(path) as session:
        return bool(topics(session, kind))


def text_streams(path: Path, kind: str) -> list[Stream]:
    """Return the streams of texts of one kind in a session; SessionError if it cannot be read."""
    with Session(path) as session:
        return [text_stream(session, topic) for topic in topics(session, kind)]


def text_stream(session: Session, topic: str) -> Stream:
    """Return the texts of one topic."""
    texts = list(_inferred(session, topic) if topic.startswith("state/") else _texts(session, topic))
    return Stream(
        session.path,
        session.zero.stamp_ns,
        topic,
        np.array([one.stamp_ns for one in texts], np.int64),
        np.array([one.received_ns for one in texts], np.int64),
        tuple(one.text for one in texts),
        tuple(one.note for one in texts),
        np.array([one.confidence for one in texts], np.float32),
    )


def _texts(session: Session, topic: str) -> Iterator[Text]:
    for message in session.messages([topic]):
        header = message.header
        if isinstance(header, Label):
            text, note = _words(header.name), f"{(header.end_ns - header.start_ns) / 1e9:.1f} s"
        elif isinstance(header, TextCommand) and header.final:
            text, note = header.text.strip(), ""
        else:
            continue
        if text:
            yield Text(header.stamp_ns, message.received_ns, text, note)


@dataclass(slots=True)
class _Run:
    """A name that states repeat."""

    first: Text
    last_ns: int
    best: float = field(default=0.0)

    def text(self, where: str) -> Text:
        seconds = (self.last_ns - self.first.stamp_ns) / 1e9
        self.first.note, self.first.confidence = f"{where} {self.best:.2f}, {seconds:.1f} s", self.best
        return self.first


def _inferred(session: Session, topic: str) -> list[Text]:
    runs: dict[tuple[str, str], _Run] = {}
    done: list[Text] = []
    for message in session.messages([topic]):
        state = message.header
        if not isinstance(state, FusedState):
            continue
        for where, name, score in _names(state):
            run = runs.get((where, name))
            if run is None or state.stamp_ns - run.last_ns > _PAUSE_NS:
                if run is not None:
                    done.append(run.text(where))
                first = Text(state.stamp_ns, message.received_ns, name)
                run = runs[where, name] = _Run(first, state.stamp_ns)
            run.last_ns, run.best = state.stamp_ns, max(run.best, score)
    done += [run.text(where) for (where, _), run in runs.items()]
    return sorted(done, key=lambda one: one.stamp_ns)


def _names(state: FusedState) -> Iterable[tuple[str, str, float]]:
    """Return (place, name, score in [0, 1]) of every name in a state."""
    found = {("fused", _words(state.fused.label)): state.fused.confidence}
    for source, modality in state.modalities.items():
        for encoder, branch in modality.branches.items():
            boxes = [(box.label, box.score) for box in branch.boxes]
            for label, score in [*zip(branch.labels, branch.scores, strict=False), *boxes]:
                # a number alone, such as that of a marker, has no words to search for
                name = label if any(map(str.isalpha, label)) else f"{encoder} {label}"
                place = f"{source}/{encoder}", _words(name)
                if score >= max(MIN_SCORE, found.get(place, 0.0)):
                    found[place] = min(float(score), 1.0)
    return [(where, name, score) for (where, name), score in found.items() if name]


def _words(name: str) -> str:
    return name.replace("_", " ").strip()
