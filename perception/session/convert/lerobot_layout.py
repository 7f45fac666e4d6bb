"""The features of a LeRobot dataset, and its `info.json`. Pure."""

from dataclasses import dataclass, field
from typing import Any, Final, get_args

from perception.messages import ConditionName

_PATTERN: Final = "chunk-{chunk_index:03d}/file-{file_index:03d}"
CONDITIONS: Final = "observation.conditions"
"""Number of each input's condition in `CONDITION_NAMES`, -1 if it was not judged or is of a later version."""
CONDITION_NAMES: Final[tuple[str, ...]] = get_args(ConditionName)
_SCALARS: Final = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """Features of every frame of the dataset; keys are those of LeRobot."""

    fps: int
    films: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """Topic, height and width by key."""
    sounds: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """Topic, sample rate and samples per frame by key."""
    classes: tuple[str, ...] = ()

    @property
    def inputs(self) -> list[str]:
        """Topics of cameras and microphones, in the order of `observation.conditions`."""
        return [topic for topic, *_ in (*self.films.values(), *self.sounds.values())]

    def features(self) -> dict[str, Any]:
        """Return type and shape of every feature by its key."""
        found: dict[str, Any] = {
            name: {"dtype": kind, "shape": [1], "names": None} for name, kind in _SCALARS.items()
        }
        if self.classes:
            found["observation.state"] = _vector(len(self.classes), list(self.classes))
        found[CONDITIONS] = {"dtype": "int64", "shape": [len(self.inputs)], "names": self.inputs}
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

    def info(self, frames: int, episodes: int, tasks: int) -> dict[str, Any]:
        """Return the content of `info.json`."""
        return {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": episodes,
            "total_frames": frames,
            "total_tasks": tasks,
            "chunks_size": 1000,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 500,
            "fps": self.fps,
            "splits": {"train": f"0:{episodes}"},
            "data_path": f"data/{_PATTERN}.parquet",
            "video_path": f"videos/{{video_key}}/{_PATTERN}.mp4" if self.films else None,
            "audio_path": f"audio/{{audio_key}}/{_PATTERN}.flac" if self.sounds else None,
            "features": self.features(),
        }

    def difference(self, other: "Layout") -> str:
        """Return how the layout of another session differs, empty if it is equal."""
        for mine, theirs in ((self.films, other.films), (self.sounds, other.sounds)):
            for key in sorted(mine.keys() | theirs.keys()):
                if mine.get(key) != theirs.get(key):
                    return f"{key} is {_shape(theirs.get(key))}, not {_shape(mine.get(key))}"
        if self.classes != other.classes:
            return f"its classes are {', '.join(other.classes)}, not {', '.join(self.classes)}"
        return ""


def _shape(part: tuple[str, int, int] | None) -> str:
    return "missing" if part is None else f"{part[0]} ({part[1]}, {part[2]})"


def _vector(length: int, names: list[str] | None) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [length], "names": names}
