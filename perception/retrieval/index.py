"""The index beside a session: frames, sounds and texts as unit vectors, each with its time.

`kitchen.mcap` has `kitchen.index/` with one safetensors file per topic, model and configuration. A file is
written atomically: an interrupted run resumes with the topic it had not finished. Other weights or another
step make a new file; nothing is computed twice. The folder may be removed at any time.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from perception.errors import SessionError
from perception.models.embedders import PictureEmbedder, SentenceEmbedder, SoundEmbedder, Vectors
from perception.models.feature_cache import Cache, key
from perception.retrieval.streams import Step, Stream, text_stream, topics
from perception.session.convert.samples import Samples
from perception.session.file.reader import Session
from perception.session.recompute.cutting import account
from perception.units import Counts

Embedder = PictureEmbedder | SoundEmbedder | SentenceEmbedder
_BATCH: Final = 16
_PROBE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Item:
    stamp_ns: int
    received_ns: int
    data: Any


def streams(
    path: Path,
    kind: str,
    embedder: Embedder,
    step: Step,
    folder: Path | None = None,
    on_item: Callable[[], object] = lambda: None,
) -> list[Stream]:
    """Return the streams of one kind in a session, empty ones too; embed what is not yet in the index.

    Args:
        path: the session.
        kind: frames, sounds or commands.
        embedder: for that kind.
        step: how often frames and sounds are embedded.
        folder: of the index; default: beside the session.
        on_item: called for each item that is embedded.

    Raises:
        SessionError: the session cannot be read, or the index cannot be written.
    """
    cache = Cache(folder or path.with_suffix(".index"), option="--index")
    source = fingerprint(path)
    found = []
    with Session(path) as session:
        for topic in topics(session, kind):
            counts: Counts = defaultdict(Counter)
            stream, items = _opened(session, kind, topic, step, counts)
            name = key(source, embedder.hash, {"topic": topic, **_decisive(kind, step)})
            if (stored := cache.get(name)) is None or not _is_index(stored):
                stored = _embedded(iter(items), embedder, on_item)
                cache.put(name, stored, counts)
            arrays: dict[str, Any] = {entry: tensor.numpy() for entry, tensor in stored.items()}
            left_out = (*stream.left_out, *account(cache.counts(name)))
            found.append(replace(stream, left_out=left_out, **arrays))
    return found


def _is_index(stored: Mapping[str, torch.Tensor]) -> bool:
    """Return whether what a file beside a session holds is an index: one vector and two times per item."""
    wanted = {"vectors": torch.float32, "stamps_ns": torch.int64, "received_ns": torch.int64}
    if stored.keys() != wanted.keys() or any(stored[one].dtype != kind for one, kind in wanted.items()):
        return False
    vectors, stamps_ns, received_ns = (stored[one] for one in wanted)
    return vectors.ndim == 2 and (len(vectors),) == tuple(stamps_ns.shape) == tuple(received_ns.shape)


def _opened(
    session: Session, kind: str, topic: str, step: Step, counts: Counts
) -> tuple[Stream, Iterable[_Item]]:
    """Return a stream without its vectors, and the items to embed."""
    if kind == "commands":
        texts = text_stream(session, topic)
        times = zip(texts.stamps_ns.tolist(), texts.received_ns.tolist(), texts.texts, strict=True)
        return texts, [_Item(*one) for one in times]
    none = np.zeros(0, np.int64)
    stream = Stream(session.path, session.zero.stamp_ns, topic, none, none)
    if kind == "frames":
        frames = Samples(session, [topic], rate_hz=1 / step.every_s, sound_ms=0, counts=counts)
        return stream, _frames(frames, topic)
    rate_hz, sound_ms = 2 / step.sound_s, step.sound_s * 1000
    sounds = Samples(session, [topic], rate_hz=rate_hz, sound_ms=sound_ms, counts=counts)
    return stream, _sounds(sounds, topic, step.sound_s)


def fingerprint(path: Path) -> str:
    """Return a hash of size, beginning and end of a session; the end holds the index of its chunks.

    The whole file is not read: with hours of video, that would take longer than the search.
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


def _decisive(kind: str, step: Step) -> dict[str, float]:
    if kind == "frames":
        return {"every_s": step.every_s}
    return {"sound_s": step.sound_s} if kind == "sounds" else {}


def _frames(samples: Samples, topic: str) -> Iterator[_Item]:
    last_ns = -1
    for sample in samples:
        frame = sample.frame(topic)
        if frame is None or frame.header.stamp_ns == last_ns:
            continue
        last_ns = frame.header.stamp_ns
        if (picture := sample.picture(topic)) is not None:
            yield _Item(last_ns, frame.received_ns, picture)


def _sounds(samples: Samples, topic: str, sound_s: float) -> Iterator[_Item]:
    for sample in samples:
        sound, received_ns = sample.sound(topic), sample.window.inputs[topic].received_ns
        if sound is not None and received_ns is not None:
            yield _Item(sample.window.end_ns - round(sound_s * 5e8), received_ns, sound)


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
