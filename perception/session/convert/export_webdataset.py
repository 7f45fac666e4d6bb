"""Export a session as WebDataset shards: one sample per tick, as consecutive files in a tar.

A sample KEY has `KEY.front.jpg` for the camera `front` (PNG if its frames are not JPEG), `KEY.main.wav` for
the microphone `main`, `KEY.txt` for the current text command and `KEY.json` for inputs, labels and state; its
`at_s` is the second of the session at which the sample ends.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import cv2
import soundfile

from perception.io.beside import beside
from perception.messages import CameraFrame
from perception.session.convert.samples import Sample, Samples, inputs_of
from perception.session.file.reader import Session
from perception.session.recompute.compare import unmeasured_fields
from perception.topics import name_of

_SHARD_BYTES: Final = 500_000_000


def write(
    session: Session,
    target: Path | str,
    topics: Sequence[str] = ("*",),
    *,
    rate_hz: float = 10.0,
    sound_ms: float = 1000.0,
    shard_bytes: int = _SHARD_BYTES,
) -> Iterator[str]:
    """Write a session into the new folder `target`; yield lines about the result.

    Args:
        session: to export.
        target: folder of the shards, `shard-000000.tar` and so on.
        topics: names or patterns of the topics to export.
        rate_hz: samples per second.
        sound_ms: length of the sound of a sample, which ends with the sample.
        shard_bytes: size after which the next shard begins.

    Raises:
        SessionError: there is nothing to export, `target` exists or cannot be written.
    """
    cameras = inputs_of(session, topics, "camera")
    microphones = inputs_of(session, topics, "microphone")
    zero, count = session.zero, 0
    with beside(target) as folder, closing(_Shards(folder, shard_bytes)) as shards:
        cut = Samples(session, topics, rate_hz=rate_hz, sound_ms=sound_ms)
        for sample in cut:
            files = [*_pictures(sample, cameras), *_sounds(sample, microphones, sound_ms)]
            if sample.text:
                files.append(("txt", sample.text.encode()))
            facts = {"at_s": zero.seconds(sample.window.end_ns), **_facts(sample)}
            files.append(("json", json.dumps(facts, ensure_ascii=False).encode()))
            shards.add(f"{sample.window.end_ns:020d}", files)
            count += 1
        notes = cut.notes()
    yield f"{count} samples in {shards.number} shards"
    yield from notes


class _Shards:
    """Writes samples to consecutive tar files."""

    def __init__(self, target: Path, shard_bytes: int) -> None:
        self._target = target
        self._shard_bytes = shard_bytes
        self._tar: tarfile.TarFile | None = None
        self.number = 0

    def add(self, key: str, files: list[tuple[str, bytes]]) -> None:
        if self._tar is not None and self._tar.offset >= self._shard_bytes:
            self.close()
        if self._tar is None:
            self._target.mkdir(parents=True, exist_ok=True)
            self._tar = tarfile.TarFile(self._target / f"shard-{self.number:06d}.tar", "x")
            self.number += 1
        for name, data in files:
            entry = tarfile.TarInfo(f"{key}.{name}")
            entry.size = len(data)
            self._tar.addfile(entry, io.BytesIO(data))

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None


def _pictures(sample: Sample, cameras: list[str]) -> Iterator[tuple[str, bytes]]:
    for topic in cameras:
        frame = sample.frame(topic)
        if frame is None or not isinstance(frame.header, CameraFrame):
            continue
        name = _name(topic)
        if frame.header.encoding == "jpeg":
            yield f"{name}.jpg", bytes(frame.payload)
        elif (picture := sample.picture(topic)) is not None:
            yield f"{name}.png", cv2.imencode(".png", picture)[1].tobytes()


def _sounds(sample: Sample, microphones: list[str], sound_ms: float) -> Iterator[tuple[str, bytes]]:
    for topic in microphones:
        sound = sample.sound(topic)
        if sound is not None:
            file = io.BytesIO()
            samples = sound.samples[-round(sound_ms * sound.rate_hz / 1000) :]
            soundfile.write(file, samples, sound.rate_hz, format="WAV", subtype="FLOAT")
            yield f"{_name(topic)}.wav", file.getvalue()


def _name(topic: str) -> str:
    # The key ends at the first dot, and folders are part of the key.
    return re.sub(r"[./]", "_", name_of(topic))


def _facts(sample: Sample) -> dict[str, Any]:
    window = sample.window
    inputs = {
        topic: {
            "presence": item.presence,
            "reason": item.reason,
            "condition": item.condition,
            "age_ms": None if item.age_ns is None else item.age_ns / 1e6,
        }
        for topic, item in window.inputs.items()
    }
    return {
        "stamp_ns": window.end_ns,
        "inputs": inputs,
        "labels": {label.track: label.name for label in sample.labels},
        "state": None if sample.state is None else unmeasured_fields(sample.state),
    }
