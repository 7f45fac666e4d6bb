"""Export sessions as a LeRobot dataset, format v3.0: one episode each, with sound.

LeRobot has no audio yet, so that sound is stored twice: as a vector of samples per frame, which present
loaders read, and as FLAC files under `audio/`, which they ignore. The current text command is the task, the
fused probabilities are `observation.state`. `meta/session.json` holds the zero of each session and the second
of its first frame; the sound under `audio/` begins at the zero.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from perception.errors import SessionError
from perception.io.beside import beside
from perception.messages import AudioBlock, CameraFrame, FusedState, Header
from perception.session.convert.film import VideoFile, fitted
from perception.session.convert.lerobot_layout import CONDITION_NAMES, CONDITIONS, Layout
from perception.session.convert.lerobot_tables import (
    Episode,
    Statistics,
    TableFile,
    write_episodes,
    write_tasks,
)
from perception.session.convert.media_tracks import SoundFile
from perception.session.convert.samples import Sample, Samples, inputs_of
from perception.session.file.reader import Session
from perception.session.file.zero import Zero
from perception.topics import name_of
from perception.units import SECOND_NS

FILE: Final = "chunk-000/file-000"
_NO_TASK: Final = "no command"
_STATISTICS_EVERY: Final = 10
_KEY_EVERY: Final = 2
"""Distance of key frames, as set by LeRobot's own encoder: its loader reads frames in random order."""


def write(
    session: Session, target: Path | str, topics: Sequence[str] = ("*",), *, rate_hz: float = 10.0
) -> Iterator[str]:
    """Write a session as a dataset of one episode; see `write_all`."""
    yield from write_all([session], target, topics, rate_hz=rate_hz)


def write_all(
    sessions: Sequence[Session], target: Path | str, topics: Sequence[str] = ("*",), *, rate_hz: float = 10.0
) -> Iterator[str]:
    """Write sessions as the episodes of the new dataset `target`; yield lines about the result.

    Args:
        sessions: to export; all must have the cameras, microphones and classes of the first.
        target: folder of the dataset.
        topics: names or patterns of the topics to export.
        rate_hz: frames per second, rounded; a missing frame is black.

    Raises:
        SessionError: there is nothing to export, the sessions differ, `target` exists or cannot be written.
    """
    fps = max(round(rate_hz), 1)
    layout = _layout(sessions[0], topics, fps)
    for session in sessions[1:]:
        if difference := layout.difference(_layout(session, topics, fps)):
            raise SessionError(f"{session.path}: differs from {sessions[0].path}: {difference}")
    with beside(target) as folder:
        with closing(_Dataset(folder, layout)) as dataset:
            for session in sessions:
                dataset.add(session, topics)
        dataset.describe()
    yield f"{dataset.frames} frames at {fps} Hz in {len(sessions)} episodes, {len(dataset.tasks)} tasks"
    yield f"features: {', '.join(layout.features())}"
    yield from dataset.notes


class _Dataset:
    """The open files of a dataset; each holds all episodes in order."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder = folder
        self._layout = layout
        self._episodes: list[Episode] = []
        self._sessions: list[dict[str, Any]] = []
        self._statistics = {key: Statistics() for key in layout.features()}
        self.tasks: dict[str, int] = {}
        self.frames = 0
        self.notes: list[str] = []
        """Lines on messages that are in no frame."""
        self._files = ExitStack()
        self._films = {
            key: self._files.enter_context(
                VideoFile(
                    _path(folder, f"videos/{key}", ".mp4"), width, height, layout.fps, key_every=_KEY_EVERY
                )
            )
            for key, (_, height, width) in layout.films.items()
        }
        self._table = self._files.enter_context(
            TableFile(_path(folder, "data", ".parquet"), layout.features())
        )

    def close(self) -> None:
        """Close videos and table."""
        self._files.close()

    def add(self, session: Session, topics: Sequence[str]) -> None:
        """Append a session as the next episode."""
        number, before, first_ns = len(self._episodes), self.frames, 0
        tasks: dict[str, None] = {}
        cut = Samples(session, topics, rate_hz=self._layout.fps, sound_ms=1000 / self._layout.fps)
        for sample in cut:
            first_ns = first_ns or sample.window.end_ns
            tasks[sample.text or _NO_TASK] = None
            self._append(sample, number, self.frames - before)
        self.notes += [f"{session.path.name}: {line}" for line in cut.notes()]
        self._episodes.append(Episode(before, self.frames, list(tasks)))
        zero = session.zero
        self._sessions.append(
            {
                "file": session.path.name,
                "zero": zero.as_metadata(),
                "first_frame_s": zero.seconds(first_ns),
            }
        )
        for key, (topic, _, _) in self._layout.sounds.items():
            _write_sound(session, topic, self._folder / "audio" / key / f"{FILE[:-3]}{number:03d}", zero)

    def _append(self, sample: Sample, episode: int, number: int) -> None:
        layout = self._layout
        row = _row(sample, layout, number, self.tasks) | {"episode_index": episode, "index": self.frames}
        self._table.write(row)
        for key, value in row.items():
            self._statistics[key].add(np.atleast_2d(np.asarray(value, np.float64)))
        for key, film in self._films.items():
            picture = _picture(sample, *layout.films[key])
            film.write(picture, self.frames * SECOND_NS // layout.fps)
            if self.frames % _STATISTICS_EVERY == 0:
                self._statistics[key].add(picture.reshape(-1, 3)[:, ::-1] / 255.0)
        self.frames += 1

    def describe(self) -> None:
        """Write the metadata files of the dataset."""
        folder, layout = self._folder, self._layout
        write_tasks(_path(folder, "meta", ".parquet", "tasks"), self.tasks)
        write_episodes(
            _path(folder, "meta/episodes", ".parquet"), self._episodes, layout.fps, list(layout.films)
        )
        statistics = {
            key: found.summary(self.frames, (3, 1, 1) if key in layout.films else (-1,))
            for key, found in self._statistics.items()
            if found.count
        }
        notes = self._sessions[0] | {"episodes": self._sessions, "conditions": CONDITION_NAMES}
        info = layout.info(self.frames, len(self._episodes), len(self.tasks))
        for name, value in (("info", info), ("stats", statistics), ("session", notes)):
            text = json.dumps(value, indent=1, ensure_ascii=False)
            (folder / "meta" / f"{name}.json").write_text(text, "utf-8")


def _layout(session: Session, topics: Sequence[str], fps: int) -> Layout:
    films, sounds = {}, {}
    for topic in inputs_of(session, topics, "camera"):
        header = _first(session, topic)
        if isinstance(header, CameraFrame):
            # The encoder accepts even sizes only.
            size = (max(header.height & ~1, 2), max(header.width & ~1, 2))
            films[f"observation.images.{_name(topic)}"] = (topic, *size)
    for topic in inputs_of(session, topics, "microphone"):
        header = _first(session, topic)
        if isinstance(header, AudioBlock):
            sounds[f"observation.audio.{_name(topic)}"] = (topic, header.rate_hz, header.rate_hz // fps)
    classes: tuple[str, ...] = ()
    for topic in inputs_of(session, topics, "state")[:1]:
        header = _first(session, topic)
        classes = header.fused.classes if isinstance(header, FusedState) else ()
    return Layout(fps, films, sounds, classes)


def _first(session: Session, topic: str) -> Header | None:
    """Return the header of the first intact message of a topic."""
    message = next(session.messages([topic]), None)
    return None if message is None else message.header


def _row(sample: Sample, layout: Layout, number: int, tasks: dict[str, int]) -> dict[str, Any]:
    task = tasks.setdefault(sample.text or _NO_TASK, len(tasks))
    row: dict[str, Any] = {
        "timestamp": number / layout.fps,
        "frame_index": number,
        "task_index": task,
    }
    if layout.classes:
        fused = sample.state.fused if sample.state is not None else None
        known = dict(zip(fused.classes, fused.probabilities, strict=False)) if fused is not None else {}
        row["observation.state"] = [known.get(name, 0.0) for name in layout.classes]
    numbers = [_condition(sample, topic) for topic in layout.inputs]
    row[CONDITIONS] = numbers[0] if len(numbers) == 1 else numbers
    for key, (topic, _, count) in layout.sounds.items():
        sound = sample.sound(topic)
        samples = np.zeros(0, np.float32) if sound is None else sound.samples[-count:]
        row[key] = np.pad(samples, (count - len(samples), 0)).tolist()
    return row


def _condition(sample: Sample, topic: str) -> int:
    condition = sample.window.inputs[topic].condition
    return CONDITION_NAMES.index(condition) if condition in CONDITION_NAMES else -1


def _picture(sample: Sample, topic: str, height: int, width: int) -> npt.NDArray[np.uint8]:
    picture = sample.picture(topic)
    return np.zeros((height, width, 3), np.uint8) if picture is None else fitted(picture, width, height)


def _write_sound(session: Session, topic: str, stem: Path, zero: Zero) -> None:
    sound: SoundFile | None = None
    for message in session.messages([topic]):
        if isinstance(message.header, AudioBlock):
            block: Any = message
            if sound is None:
                stem.parent.mkdir(parents=True, exist_ok=True)
                sound = SoundFile(stem, block, zero)
            sound.write(block)
    if sound is not None:
        sound.close()


def _path(target: Path, folder: str, suffix: str, name: str = FILE) -> Path:
    path = target / folder / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _name(topic: str) -> str:
    # LeRobot allows no slash in the name of a feature.
    return name_of(topic).replace("/", "_")
