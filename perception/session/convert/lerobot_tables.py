"""Write the Parquet files of a LeRobot dataset v3.0 in the form that its loader expects."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

_BATCH: Final = 256
_TYPES: Final = {"float32": pa.float32(), "int64": pa.int64()}
Vector = npt.NDArray[np.float64]


@dataclass(slots=True)
class Statistics:
    """Running minimum, maximum, mean and deviation of a vector."""

    count: int = 0
    low: Vector = field(default_factory=lambda: np.array(np.inf))
    high: Vector = field(default_factory=lambda: np.array(-np.inf))
    total: Vector = field(default_factory=lambda: np.array(0.0))
    squares: Vector = field(default_factory=lambda: np.array(0.0))

    def add(self, rows: Vector) -> None:
        """Add rows, shape (n, length)."""
        self.count += len(rows)
        self.low = np.minimum(self.low, rows.min(axis=0))
        self.high = np.maximum(self.high, rows.max(axis=0))
        self.total = self.total + rows.sum(axis=0)
        self.squares = self.squares + np.square(rows).sum(axis=0)

    def summary(self, frames: int, shape: tuple[int, ...]) -> dict[str, Any]:
        """Return the entry of a feature in `stats.json`, each value of `shape`."""
        mean = self.total / self.count
        deviation = np.sqrt(np.maximum(self.squares / self.count - np.square(mean), 0.0))
        values = {"min": self.low, "max": self.high, "mean": mean, "std": deviation}
        return {name: value.reshape(shape).tolist() for name, value in values.items()} | {"count": [frames]}


class TableFile:
    """Writes the rows of all frames, in batches."""

    def __init__(self, path: Path, features: Mapping[str, Any]) -> None:
        columns = {name: one for name, one in features.items() if one["dtype"] in _TYPES}
        self._schema = pa.schema([(name, _type(one)) for name, one in columns.items()])
        self._writer = pq.ParquetWriter(path, self._schema)
        self._rows: list[dict[str, Any]] = []

    def write(self, row: dict[str, Any]) -> None:
        """Append one frame."""
        self._rows.append(row)
        if len(self._rows) >= _BATCH:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, self._schema))
        self._rows.clear()


def write_tasks(path: Path, tasks: Mapping[str, int]) -> None:
    """Write the task indices; pandas reads the text as index of the data frame."""
    index = "__index_level_0__"

    def column(name: str | None, field_name: str, kind: str, dtype: str) -> dict[str, Any]:
        return {
            "name": name,
            "field_name": field_name,
            "pandas_type": kind,
            "numpy_type": dtype,
            "metadata": None,
        }

    described = {
        "index_columns": [index],
        "column_indexes": [
            column(None, "None", "unicode", "object")
            | {"field_name": None, "metadata": {"encoding": "UTF-8"}}
        ],
        "columns": [
            column("task_index", "task_index", "int64", "int64"),
            column(None, index, "unicode", "object"),
        ],
        "pandas_version": "2.2.0",
    }
    table = pa.table(
        {"task_index": pa.array(tasks.values(), pa.int64()), index: pa.array(tasks, pa.string())}
    )
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(described)}), path)


@dataclass(frozen=True, slots=True)
class Episode:
    """Place of an episode in the files of the dataset."""

    begin: int
    """Its first frame."""
    end: int
    """The frame after its last one."""
    tasks: list[str]


def write_episodes(path: Path, episodes: Sequence[Episode], fps: int, films: Sequence[str]) -> None:
    """Write the places of all episodes."""
    rows = []
    for number, episode in enumerate(episodes):
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": episode.tasks,
            "length": episode.end - episode.begin,
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": episode.begin,
            "dataset_to_index": episode.end,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for key in films:
            row |= {
                f"videos/{key}/chunk_index": 0,
                f"videos/{key}/file_index": 0,
                f"videos/{key}/from_timestamp": episode.begin / fps,
                f"videos/{key}/to_timestamp": episode.end / fps,
            }
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows), path)


def _type(feature: Mapping[str, Any]) -> Any:
    (length,) = feature["shape"]
    kind = _TYPES[feature["dtype"]]
    return pa.list_(kind, length) if length > 1 else kind
