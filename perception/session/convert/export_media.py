"""Export a session as files: MP4 per camera, FLAC or WAV per microphone, a table per other topic."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from perception.io.beside import beside
from perception.messages import AudioBlock, CameraFrame, Message
from perception.session.convert import tables
from perception.session.convert.film import SoundFormat, VideoFile
from perception.session.convert.media_tracks import SoundFile, image
from perception.session.file.reader import Session, matches, nothing_to_export
from perception.session.file.zero import Zero
from perception.units.arrays import RawSamples


def write(
    session: Session, target: Path | str, topics: Sequence[str] = ("*",), *, kind: tables.Kind = "parquet"
) -> Iterator[str]:
    """Write a session into the new folder `target`; yield lines about the result.

    A film has the sound of the microphone with the name of its camera, else of the first one. Sound and
    pictures begin at the zero of the session, so that labels made on them are valid for the session; tables
    have the second in `at_s`. `session.json` holds the zero, and the stamp and second at which each file
    begins.

    Raises:
        SessionError: there is nothing to export, `target` exists or cannot be written.
    """
    zero = session.zero
    names = [topic for topic, count in session.counts.items() if count and matches(topic, topics)]
    if not names:
        raise nothing_to_export(session, topics)
    films = [name for name in names if name.startswith("camera/")]
    sounds = [name for name in names if name.startswith("microphone/")]
    lines = []
    with beside(target) as folder:
        folder.mkdir()
        media = _Media(folder, zero, _films(session, films, sounds, folder))
        try:
            for message in session.messages([*films, *sounds]) if films or sounds else ():
                media.add(message)
        finally:
            media.close()
        for name in names:
            if name not in films and name not in sounds:
                lines.append(_write_table(session, name, folder, kind))
        notes = {
            "zero": zero.as_metadata(),
            "files": media.begins,
            "metadata": session.metadata,
            "log_times_ns": session.times_ns,
        }
        (folder / "session.json").write_text(json.dumps(notes, indent=1, ensure_ascii=False) + "\n", "utf-8")
    yield from lines
    yield from (f"{path}: begins at second {begin['start_s']:.3f}" for path, begin in media.begins.items())
    yield from (f"{text} ({count} times)" for text, count in media.refused.items())


def _write_table(session: Session, topic: str, folder: Path, kind: tables.Kind) -> str:
    """Write the messages of one topic as a table; return a line on it."""
    path = folder / f"{_stem(topic)}.{kind}"
    columns = tables.columns_of(session.messages([topic]), session.zero)
    count = tables.write(path, kind, session.messages([topic]), columns, session.zero)
    return f"{path.name}: {count} rows, {len(columns)} columns"


def _films(
    session: Session, cameras: Sequence[str], microphones: Sequence[str], folder: Path
) -> dict[str, tuple[VideoFile, str | None]]:
    """Open a film for every camera with a picture that can be decoded; return film and microphone of each."""
    films = {}
    for camera in cameras:
        messages: Iterator[Message[Any]] = session.messages([camera])
        picture = next((found for found in map(image, messages) if found is not None), None)
        if picture is None:
            continue
        own = camera.replace("camera/", "microphone/", 1)
        microphone = own if own in microphones else next(iter(microphones), None)
        block: Any = None if microphone is None else next(session.messages([microphone]), None)
        sound = None if block is None else SoundFormat(block.header.rate_hz, block.header.channels)
        height, width = picture.shape[:2]
        film = VideoFile(folder / f"{_stem(camera)}.mp4", width, height, sound=sound)
        films[camera] = film, microphone if sound else None
    return films


class _Media:
    """The open files of all cameras and microphones."""

    def __init__(self, target: Path, zero: Zero, films: dict[str, tuple[VideoFile, str | None]]) -> None:
        self._target = target
        self._zero = zero
        self._films = films
        self._sounds: dict[str, SoundFile] = {}
        self._parts: Counter[str] = Counter()
        at = {"start_ns": zero.stamp_ns, "start_s": 0.0}
        self.begins: dict[str, Any] = {
            film.path.name: {"topic": topic, "sound": microphone, **at}
            for topic, (film, microphone) in films.items()
        }
        """By file name: topic, and the stamp and second of the session at which the file begins."""
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
        film, _ = self._films[topic]
        self.begins[film.path.name].setdefault("first_frame_ns", header.stamp_ns)
        # a frame from before the zero is shown at the zero
        if not film.write(picture, max(header.stamp_ns - self._zero.stamp_ns, 0)):
            self.refused[f"{topic}: left out: a frame that is not later than the one before"] += 1

    def _add_block(self, message: Message[AudioBlock]) -> None:
        topic = message.topic
        sound = self._sounds.get(topic)
        if sound is None or not sound.timeline.fits(message.header):
            if sound is not None:
                self._finish(sound)
            self._parts[topic] += 1
            part = f"-{self._parts[topic]}" if self._parts[topic] > 1 else ""
            sound = self._sounds[topic] = SoundFile(
                self._target / f"{_stem(topic)}{part}", message, self._zero
            )
            self.begins[sound.path.name] = {"topic": topic}
        sound.write(message, also=lambda piece: self._write_sound(topic, sound, piece))

    def _write_sound(self, topic: str, sound: SoundFile, piece: RawSamples) -> None:
        """Add sound to the films of this microphone, if it has their format and begins at the zero."""
        for film, microphone in self._films.values():
            if microphone != topic:
                continue
            if self._parts[topic] == 1 and sound.timeline.start_ns == self._zero.stamp_ns:
                film.write_sound(piece)
            else:
                self.refused[
                    f"{film.path.name}: without a part of {topic}, which is in {sound.path.name}"
                ] += 1


def _stem(topic: str) -> str:
    return topic.replace("/", "-")
