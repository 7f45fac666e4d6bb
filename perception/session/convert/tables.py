"""Write messages as tables: one row each, one column per value, as Parquet or CSV."""

import csv
import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import structs, to_builtins

from perception.messages import Fused, Header, Message, Model
from perception.session.file.zero import Zero

_BATCH: Final = 4096
_TYPES: Final = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}

Scalar = bool | int | float | str
Kind = Literal["parquet", "csv"]


def row(message: Message[Header], zero: Zero) -> dict[str, Scalar]:
    """Return a message as one row: dotted names, probabilities under their class, lists of maps as JSON.

    `at_s` is its stamp in seconds of the session.
    """
    at_s = zero.seconds(message.header.stamp_ns)
    values: dict[str, Scalar] = {"at_s": at_s, "received_ns": message.received_ns}
    for name, value in structs.asdict(message.header).items():
        values |= _columns(name, value)
    return values


def write(
    path: Path, kind: Kind, messages: Iterable[Message[Header]], columns: Mapping[str, type], zero: Zero
) -> int:
    """Write a table and return its number of rows; memory is that of some thousand rows.

    Args:
        path: file to write.
        kind: type of the file.
        messages: of one topic.
        columns: as returned by `columns_of` for the same messages.
        zero: of the session.
    """
    rows, count = (row(message, zero) for message in messages), 0
    if kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            for values in rows:
                writer.writerow(values)
                count += 1
        return count
    schema = pa.schema([(name, _TYPES[kind]) for name, kind in columns.items()])
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(islice(rows, _BATCH)):
            writer.write_batch(
                pa.RecordBatch.from_pylist([_cast(values, columns) for values in batch], schema)
            )
            count += len(batch)
    return count


def columns_of(messages: Iterable[Message[Header]], zero: Zero) -> dict[str, type]:
    """Return all columns of the rows, each with a type that fits all its values."""
    found: dict[str, type] = {}
    for message in messages:
        for name, value in row(message, zero).items():
            found[name] = _wider(found.get(name, type(value)), type(value))
    return found


def _columns(name: str, value: Any) -> dict[str, Scalar]:
    if value is None:
        return {}
    if isinstance(value, Fused):
        scalars = {"label": value.label, "confidence": value.confidence, "entropy": value.entropy}
        probabilities = dict(zip(value.classes, value.probabilities, strict=False))
        return _columns(name, scalars | {"probability": probabilities})
    if isinstance(value, Model):
        value = structs.asdict(value)
    if isinstance(value, dict):
        return {
            column: scalar
            for key, item in value.items()
            for column, scalar in _columns(f"{name}.{key}", item).items()
        }
    if isinstance(value, tuple):
        return {name: json.dumps(to_builtins(value), ensure_ascii=False)}
    return {name: value}


def _wider(one: type, other: type) -> type:
    if one is other:
        return one
    return float if {one, other} == {int, float} else str


def _cast(values: Mapping[str, Scalar], columns: Mapping[str, type]) -> dict[str, Scalar]:
    return {name: columns[name](value) for name, value in values.items()}
