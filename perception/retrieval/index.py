"""The index beside a session: what was seen, heard and said as unit vectors, each with its time.

`kitchen.mcap` has `kitchen.index/`, one safetensors file per topic, model and configuration, written
whole or not at all: an interrupted run goes on with the topic it was at, other weights or another step
make a new file, and nothing is computed twice. The folder may be removed at any time.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from perception.errors import SessionError
from perception.fusion.core import Counts
from perception.messages import Header, Label, Message, TextCommand
from perception.models.embedders import PictureEmbedder, SentenceEmbedder, SoundEmbedder, Vectors
from perception.session.cutting import account
from perception.session.moments import Moments, inputs_of
from perception.session.reader import Session
from perception.training.cache import Cache, key

Times = npt.NDArray[np.int64]
Embedder = PictureEmbedder | SoundEmbedder | SentenceEmbedder
KINDS: Final = {"frames": ("camera",), "sounds": ("microphone",), "commands": ("text", "label")}
"""What can be found, and the prefixes of its topics."""
_BATCH: Final = 16
_PROBE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Step:
    """What of continuous streams is embedded: a frame every so often, sounds that overlap by half."""

    every_s: float = 0.5
    sound_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Stream:
    """What can be found in one topic of a session: n frames, sounds or texts."""

    path: Path
    start_ns: int
    """Stamp from which the session's seconds count."""
    topic: str
    stamps_ns: Times
    """(n,) when it happened; of a sound the middle."""
    received_ns: Times
    """(n,) arrival of the newest message it was made of: where it lies in the file."""
    texts: tuple[str, ...] = ()
    """What the n commands or labels say; empty for frames and sounds."""
    vectors: Vectors | None = None
    """(n, dim), mapped from the file; None where texts are compared by their words."""
    lost: tuple[str, ...] = ()
    """What of the topic did not go in, in lines."""

    def __len__(self) -> int:
        return len(self.stamps_ns)


@dataclass(frozen=True, slots=True)
class _Item:
    stamp_ns: int
    received_ns: int
    data: Any


def streams(
    path: Path,
    kind: str,
    embedder: Embedder | None,
    step: Step,
    folder: Path | None = None,
    on_item: Callable[[], object] = lambda: None,
) -> list[Stream]:
    """Return the streams of one kind in a session, empty ones too, embedding what is not in the index yet.

    Args:
        path: the session.
        kind: of KINDS.
        embedder: for that kind; None for commands that are compared by their words.
        step: what of continuous streams goes in.
        folder: of the index; default: beside the session.
        on_item: called for each thing that is embedded.

    Raises:
        SessionError: the session cannot be read, or the index not be written.
    """
    cache = None if embedder is None else _cache(folder or path.with_suffix(".index"))
    source = fingerprint(path)
    found = []
    with Session(path) as session:
        start_ns = session.zero.stamp_ns
        for topic in _topics(session, kind):
            counts: Counts = defaultdict(Counter)
            items = _items(session, kind, topic, step, counts)
            texts: tuple[str, ...] = ()
            if kind == "commands":
                items = list(items)
                texts = tuple(item.data for item in items)
            if cache is None or embedder is None:
                stored = _times(list(items))
            else:
                name = key(source, embedder.hash, {"topic": topic, **_decisive(kind, step)})
                if (cached := cache.get(name)) is None:
                    cached = _embedded(iter(items), embedder, on_item)
                    cache.put(name, cached, counts)
                stored, counts = cached, cache.counts(name)
            arrays = {entry: tensor.numpy() for entry, tensor in stored.items()}
            found.append(Stream(path, start_ns, topic, texts=texts, lost=tuple(account(counts)), **arrays))
    return found


def topics(path: Path, kind: str) -> list[str]:
    """Return the topics of one kind in a session; SessionError if it cannot be read."""
    with Session(path) as session:
        return _topics(session, kind)


def _topics(session: Session, kind: str) -> list[str]:
    return [topic for prefix in KINDS[kind] for topic in inputs_of(session, ("*",), prefix)]


def fingerprint(path: Path) -> str:
    """Return a hash of a session's size, beginning and end, where a closed one has the index of its chunks.

    All of it is not read: of hours of video that would take longer than the search.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest = hashlib.sha256(f"{size} ".encode())
            for start in (0, max(0, size - _PROBE_BYTES)):
                file.seek(start)
                digest.update(file.read(_PROBE_BYTES))
    except OSError as error:
        raise SessionError(f"cannot open {path}: {error.strerror}") from error
    return digest.hexdigest()


def _cache(folder: Path) -> Cache:
    try:
        return Cache(folder)
    except OSError as error:
        raise SessionError(
            f"{folder}: no index can be kept there ({error.strerror}); give --index"
        ) from error


def _decisive(kind: str, step: Step) -> dict[str, float]:
    if kind == "frames":
        return {"every_s": step.every_s}
    return {"sound_s": step.sound_s} if kind == "sounds" else {}


def _items(session: Session, kind: str, topic: str, step: Step, counts: Counts) -> Iterable[_Item]:
    if kind == "frames":
        return _frames(Moments(session, [topic], rate_hz=1 / step.every_s, sound_ms=0, counts=counts), topic)
    if kind == "sounds":
        rate_hz, sound_ms = 2 / step.sound_s, step.sound_s * 1000
        heard = Moments(session, [topic], rate_hz=rate_hz, sound_ms=sound_ms, counts=counts)
        return _sounds(heard, topic, step.sound_s)
    return _texts(session, topic)


def _frames(moments: Moments, topic: str) -> Iterator[_Item]:
    last_ns = -1
    for moment in moments:
        frame = moment.frame(topic)
        if frame is None or frame.header.stamp_ns == last_ns:
            continue
        last_ns = frame.header.stamp_ns
        if (picture := moment.picture(topic)) is not None:
            yield _Item(last_ns, frame.received_ns, picture)


def _sounds(moments: Moments, topic: str, sound_s: float) -> Iterator[_Item]:
    for moment in moments:
        sound, received_ns = moment.sound(topic), moment.window.inputs[topic].received_ns
        if sound is not None and received_ns is not None:
            yield _Item(moment.window.end_ns - round(sound_s * 5e8), received_ns, sound)


def _texts(session: Session, topic: str) -> Iterator[_Item]:
    for message in session.messages([topic]):
        if words := _words(message):
            yield _Item(message.header.stamp_ns, message.received_ns, words)


def _words(message: Message[Header]) -> str:
    header = message.header
    if isinstance(header, Label):
        return header.name.replace("_", " ").strip()
    return header.text.strip() if isinstance(header, TextCommand) and header.final else ""


def _embedded(
    items: Iterator[_Item], embedder: Embedder, on_item: Callable[[], object]
) -> dict[str, torch.Tensor]:
    done: list[_Item] = []
    vectors: list[Vectors] = []
    while batch := list(islice(items, _BATCH)):
        vectors.append(_vectors([item.data for item in batch], embedder))
        for item in batch:
            done.append(replace(item, data=None))
            on_item()
    joined = torch.from_numpy(np.concatenate(vectors)) if vectors else torch.zeros(0, 1)
    return _times(done) | {"vectors": joined}


def _times(items: Sequence[_Item]) -> dict[str, torch.Tensor]:
    return {
        "stamps_ns": torch.tensor([item.stamp_ns for item in items], dtype=torch.int64),
        "received_ns": torch.tensor([item.received_ns for item in items], dtype=torch.int64),
    }


def _vectors(data: list[Any], embedder: Embedder) -> Vectors:
    if isinstance(embedder, PictureEmbedder):
        return embedder.pictures(data)
    if isinstance(embedder, SoundEmbedder):
        return np.concatenate([embedder.sound(sound.samples, sound.rate_hz) for sound in data])
    return embedder.texts(data)
