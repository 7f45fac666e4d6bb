"""A session as a LeRobot dataset, format v3.0: one episode, with its sound.

LeRobot has no audio yet, so sound is there twice: as a vector of samples per frame, which every loader of
today takes, and as whole FLAC files under `audio/`, which it passes over. The text in force is the task, the
fused probabilities are `observation.state`. `meta/session.json` says the session's zero and at which second
the first frame lies; the sound under `audio/` begins at the zero.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from perception.messages import AudioBlock, CameraFrame, FusedState, Header
from perception.session.lerobot_tables import Statistics, TableFile, write_episodes, write_tasks
from perception.session.moments import Moment, inputs_of, moments
from perception.session.reader import Session
from perception.session.tracks import SoundFile, VideoFile
from perception.session.zero import Zero

FILE: Final = "chunk-000/file-000"
_PATTERN: Final = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_NO_TASK: Final = "no command"
_STATISTICS_EVERY: Final = 10
_SECOND_NS: Final = 1_000_000_000
_SCALARS: Final = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


@dataclass(frozen=True, slots=True)
class _Layout:
    """What every frame of the dataset has; keys are LeRobot's."""

    fps: int
    films: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """Topic, height and width by key."""
    sounds: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """Topic, sample rate and samples per frame by key."""
    classes: tuple[str, ...] = ()

    def features(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            name: {"dtype": kind, "shape": [1], "names": None} for name, kind in _SCALARS.items()
        }
        if self.classes:
            found["observation.state"] = _vector(len(self.classes), list(self.classes))
        for key, (_, rate_hz, samples) in self.sounds.items():
            found[key] = _vector(samples, None) | {
                "info": {"audio.sample_rate": rate_hz, "audio.channels": 1}
            }
        for key, (_, height, width) in self.films.items():
            found[key] = {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
                "info": {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": "h264",
                    "video.pix_fmt": "yuv420p",
                    "video.is_depth_map": False,
                    "video.fps": self.fps,
                    "video.channels": 3,
                    "has_audio": False,
                },
            }
        return found


def write(
    session: Session, target: Path, topics: Sequence[str] = ("*",), *, rate_hz: float = 10.0
) -> Iterator[str]:
    """Write a session into the new folder `target`; yield what came of it, in lines.

    Args:
        session: to be exported.
        target: folder of the dataset.
        topics: names or patterns of what to export.
        rate_hz: frames per second, rounded: the session is cut at this rate; a missing frame is black.

    Raises:
        SessionError: there is no camera, microphone or text to export.
    """
    layout = _layout(session, topics, max(round(rate_hz), 1))
    cut = moments(session, topics, rate_hz=layout.fps, sound_ms=1000 / layout.fps)
    tasks: dict[str, int] = {}
    statistics = {key: Statistics() for key in layout.features()}
    frames = first_ns = 0
    zero = session.zero
    with ExitStack() as files:
        films = {
            key: files.enter_context(
                VideoFile(_path(target, f"videos/{key}", ".mp4"), width, height, layout.fps)
            )
            for key, (_, height, width) in layout.films.items()
        }
        table = files.enter_context(TableFile(_path(target, "data", ".parquet"), layout.features()))
        for moment in cut:
            first_ns = first_ns or moment.window.end_ns
            row = _row(moment, layout, frames, tasks)
            table.write(row)
            for key, value in row.items():
                statistics[key].add(np.atleast_2d(np.asarray(value, np.float64)))
            for key, film in films.items():
                picture = _picture(moment, *layout.films[key])
                film.write(picture, frames * _SECOND_NS // layout.fps)
                if frames % _STATISTICS_EVERY == 0:
                    statistics[key].add(picture.reshape(-1, 3)[:, ::-1] / 255.0)
            frames += 1
    _write_meta(target, layout, tasks, statistics, frames)
    notes = {"zero": zero.as_metadata(), "first_frame_s": zero.seconds(first_ns)}
    (target / "meta" / "session.json").write_text(json.dumps(notes, indent=1), "utf-8")
    for key, (topic, _, _) in layout.sounds.items():
        _write_sound(session, topic, target / "audio" / key, zero)
    yield f"{frames} frames at {layout.fps} Hz, {len(tasks)} tasks"
    yield f"features: {', '.join(layout.features())}"


def _layout(session: Session, topics: Sequence[str], fps: int) -> _Layout:
    films, sounds = {}, {}
    for topic in inputs_of(session, topics, "camera"):
        header = _first(session, topic)
        if isinstance(header, CameraFrame):
            # The encoder takes even sizes only.
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
    return _Layout(fps, films, sounds, classes)


def _first(session: Session, topic: str) -> Header | None:
    """Return the first message of a topic that is intact."""
    message = next(session.messages([topic]), None)
    return None if message is None else message.header


def _row(moment: Moment, layout: _Layout, number: int, tasks: dict[str, int]) -> dict[str, Any]:
    task = tasks.setdefault(moment.text or _NO_TASK, len(tasks))
    row: dict[str, Any] = {
        "timestamp": number / layout.fps,
        "frame_index": number,
        "episode_index": 0,
        "index": number,
        "task_index": task,
    }
    if layout.classes:
        fused = moment.state.fused if moment.state is not None else None
        known = dict(zip(fused.classes, fused.probabilities, strict=False)) if fused is not None else {}
        row["observation.state"] = [known.get(name, 0.0) for name in layout.classes]
    for key, (topic, _, count) in layout.sounds.items():
        sound = moment.sound(topic)
        samples = np.zeros(0, np.float32) if sound is None else sound.samples[-count:]
        row[key] = np.pad(samples, (count - len(samples), 0)).tolist()
    return row


def _picture(moment: Moment, topic: str, height: int, width: int) -> npt.NDArray[np.uint8]:
    picture = moment.picture(topic)
    if picture is None or picture.shape[0] < height or picture.shape[1] < width:
        return np.zeros((height, width, 3), np.uint8)
    return picture[:height, :width]


def _write_meta(
    target: Path, layout: _Layout, tasks: dict[str, int], statistics: dict[str, Statistics], frames: int
) -> None:
    write_tasks(_path(target, "meta", ".parquet", "tasks"), tasks)
    features = layout.features()
    write_episodes(
        _path(target, "meta/episodes", ".parquet"), list(tasks), frames, layout.fps, list(layout.films)
    )
    summaries = {
        key: statistics[key].summary(frames, (3, 1, 1) if key in layout.films else (-1,))
        for key in features
        if statistics[key].count
    }
    info = {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": 1,
        "total_frames": frames,
        "total_tasks": len(tasks),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 500,
        "fps": layout.fps,
        "splits": {"train": "0:1"},
        "data_path": f"data/{_PATTERN}.parquet",
        "video_path": f"videos/{{video_key}}/{_PATTERN}.mp4" if layout.films else None,
        "audio_path": f"audio/{{audio_key}}/{_PATTERN}.flac" if layout.sounds else None,
        "features": features,
    }
    for name, value in (("info", info), ("stats", summaries)):
        (target / "meta" / f"{name}.json").write_text(
            json.dumps(value, indent=1, ensure_ascii=False), "utf-8"
        )


def _write_sound(session: Session, topic: str, folder: Path, zero: Zero) -> None:
    sound: SoundFile | None = None
    for message in session.messages([topic]):
        if isinstance(message.header, AudioBlock):
            block: Any = message
            if sound is None:
                stem = folder / FILE
                stem.parent.mkdir(parents=True)
                sound = SoundFile(stem, block, zero)
            sound.write(block)
    if sound is not None:
        sound.close()


def _path(target: Path, folder: str, suffix: str, name: str = FILE) -> Path:
    path = target / folder / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _vector(length: int, names: list[str] | None) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [length], "names": names}


def _name(topic: str) -> str:
    # LeRobot allows no slash in the name of a feature.
    return topic.partition("/")[2].replace("/", "_")
