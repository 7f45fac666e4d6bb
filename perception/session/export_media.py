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
from perception.session.zero import Zero


def write(
    session: Session, target: Path, topics: Sequence[str] = ("*",), *, kind: tables.Kind = "parquet"
) -> Iterator[str]:
    """Write a session into the new folder `target`; yield what came of it, in lines.

    Sound and pictures begin at the session's zero, so that a second of theirs is a second of the session and
    labels made on them can be read back; tables say the second in `at_s`. `session.json` there says the zero,
    and at which stamp and second each file begins.
    """
    target.mkdir(parents=True)
    zero = session.zero
    names = [topic for topic in session.counts if matches(topic, topics)]
    films = [name for name in names if name.startswith("camera/")]
    sounds = [name for name in names if name.startswith("microphone/")]
    media = _Media(target, zero)
    try:
        for message in session.messages([*films, *sounds]) if films or sounds else ():
            media.add(message)
    finally:
        media.close()
    begins: dict[str, Any] = media.begins
    for name in names:
        if name not in films and name not in sounds:
            path = target / f"{_stem(name)}.{kind}"
            columns = tables.columns_of(session.messages([name]), zero)
            count = tables.write(path, kind, session.messages([name]), columns, zero)
            yield f"{path.name}: {count} rows, {len(columns)} columns"
    notes = {
        "zero": zero.as_metadata(),
        "files": begins,
        "metadata": session.metadata,
        "log_times_ns": session.times_ns,
    }
    (target / "session.json").write_text(json.dumps(notes, indent=1, ensure_ascii=False) + "\n", "utf-8")
    yield from (f"{path}: begins at second {begin['start_s']:.3f}" for path, begin in begins.items())
    yield from (f"{text} ({count} times)" for text, count in media.refused.items())


class _Media:
    """The open files of all cameras and microphones."""

    def __init__(self, target: Path, zero: Zero) -> None:
        self._target = target
        self._zero = zero
        self._films: dict[str, VideoFile] = {}
        self._sounds: dict[str, SoundFile] = {}
        self._parts: Counter[str] = Counter()
        self.begins: dict[str, Any] = {}
        """By file name: topic, the stamp at which it begins and the session's second then."""
        self.refused: Counter[str] = Counter()

    def add(self, message: Message[Any]) -> None:
        if isinstance(message.header, CameraFrame):
            self._add_frame(message)
        elif isinstance(message.header, AudioBlock):
            self._add_block(message)

    def close(self) -> None:
        for film in self._films.values():
            film.close()
        for sound in self._sounds.values():
            self._finish(sound)

    def _finish(self, sound: SoundFile) -> None:
        sound.close()
        begins_ns, left_out = sound.timeline.start_ns, sound.timeline.left_out
        self.begins[sound.path.name] |= {"start_ns": begins_ns, "start_s": self._zero.seconds(begins_ns)}
        if left_out:
            self.refused[f"{sound.path.name}: left out: a sample from before the session's zero"] = left_out

    def _add_frame(self, message: Message[CameraFrame]) -> None:
        topic, header = message.topic, message.header
        picture = image(message)
        if picture is None:
            self.refused[f"{topic}: left out: a JPEG that cannot be decoded"] += 1
            return
        if topic not in self._films:
            height, width = picture.shape[:2]
            film = self._films[topic] = VideoFile(self._target / f"{_stem(topic)}.mp4", width, height)
            at = {"start_ns": self._zero.stamp_ns, "start_s": 0.0}
            self.begins[film.path.name] = {"topic": topic, **at, "first_frame_ns": header.stamp_ns}
        # what was seen just before the zero is what is in sight at the zero
        if not self._films[topic].write(picture, max(header.stamp_ns - self._zero.stamp_ns, 0)):
            self.refused[f"{topic}: left out: a frame that is not later than the one before"] += 1

    def _add_block(self, message: Message[AudioBlock]) -> None:
        topic = message.topic
        sound = self._sounds.get(topic)
        if sound is None or not sound.write(message):
            if sound is not None:
                self._finish(sound)
            self._parts[topic] += 1
            part = f"-{self._parts[topic]}" if self._parts[topic] > 1 else ""
            sound = self._sounds[topic] = SoundFile(
                self._target / f"{_stem(topic)}{part}", message, self._zero
            )
            self.begins[sound.path.name] = {"topic": topic}
            sound.write(message)


def _stem(topic: str) -> str:
    return topic.replace("/", "-")
