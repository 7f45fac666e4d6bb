"""A session as ordinary files: MP4 per camera, FLAC or WAV per microphone, a table per other topic."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from perception.messages import AudioBlock, CameraFrame, Message
from perception.session import tables
from perception.session.reader import Session, matches
from perception.session.tracks import SoundFile, VideoFile, image


def write(
    session: Session, target: Path, topics: Sequence[str] = ("*",), *, kind: tables.Kind = "parquet"
) -> Iterator[str]:
    """Write a session into the new folder `target`; yield what came of it, in lines.

    `session.json` there says at which stamp each file begins, so that they can be laid over each other.
    """
    target.mkdir(parents=True)
    names = [topic for topic in session.counts if matches(topic, topics)]
    films = [name for name in names if name.startswith("camera/")]
    sounds = [name for name in names if name.startswith("microphone/")]
    media = _Media(target)
    try:
        for message in session.messages([*films, *sounds]) if films or sounds else ():
            media.add(message)
    finally:
        media.close()
    begins: dict[str, Any] = media.begins
    for name in names:
        if name not in films and name not in sounds:
            path = target / f"{_stem(name)}.{kind}"
            columns = tables.columns_of(session.messages([name]))
            count = tables.write(path, kind, session.messages([name]), columns)
            yield f"{path.name}: {count} rows, {len(columns)} columns"
    notes = {"files": begins, "metadata": session.metadata, "log_times_ns": session.times_ns}
    (target / "session.json").write_text(json.dumps(notes, indent=1, ensure_ascii=False) + "\n", "utf-8")
    yield from (f"{path}: begins at {begin['start_ns']}" for path, begin in begins.items())
    yield from (f"{text} ({count} times)" for text, count in media.refused.items())


class _Media:
    """The open files of all cameras and microphones."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._films: dict[str, tuple[VideoFile, int]] = {}
        self._sounds: dict[str, SoundFile] = {}
        self._parts: Counter[str] = Counter()
        self.begins: dict[str, Any] = {}
        """By file name: topic and the stamp of its first frame or sample."""
        self.refused: Counter[str] = Counter()

    def add(self, message: Message[Any]) -> None:
        if isinstance(message.header, CameraFrame):
            self._add_frame(message)
        elif isinstance(message.header, AudioBlock):
            self._add_block(message)

    def close(self) -> None:
        for film, _ in self._films.values():
            film.close()
        for sound in self._sounds.values():
            sound.close()

    def _add_frame(self, message: Message[CameraFrame]) -> None:
        topic, header = message.topic, message.header
        picture = image(message)
        if picture is None:
            self.refused[f"{topic}: left out: a JPEG that cannot be decoded"] += 1
            return
        if topic not in self._films:
            height, width = picture.shape[:2]
            film = VideoFile(self._target / f"{_stem(topic)}.mp4", width, height)
            self._films[topic] = film, header.stamp_ns
            self.begins[film.path.name] = {"topic": topic, "start_ns": header.stamp_ns}
        film, start_ns = self._films[topic]
        if not film.write(picture, header.stamp_ns - start_ns):
            self.refused[f"{topic}: left out: a frame that is not later than the one before"] += 1

    def _add_block(self, message: Message[AudioBlock]) -> None:
        topic = message.topic
        sound = self._sounds.get(topic)
        if sound is None or not sound.write(message):
            if sound is not None:
                sound.close()
            self._parts[topic] += 1
            part = f"-{self._parts[topic]}" if self._parts[topic] > 1 else ""
            sound = self._sounds[topic] = SoundFile(self._target / f"{_stem(topic)}{part}", message)
            self.begins[sound.path.name] = {"topic": topic, "start_ns": sound.timeline.start_ns}
            sound.write(message)


def _stem(topic: str) -> str:
    return topic.replace("/", "-")
