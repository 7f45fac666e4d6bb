"""Messages without their measured fields, and the first difference of two. Pure.

Which fields are measured is declared with the message: `perception.messages.measured`.
"""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeVar, get_args

from msgspec import structs
from msgspec.msgpack import decode, encode

from perception.messages import Header, Model, is_measured

HeaderT = TypeVar("HeaderT", bound=Header)


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that differs."""

    path: str
    """Dotted, such as `fused.probabilities.2`; empty for the whole."""
    expected: Any
    actual: Any

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected!r}, actual {self.actual!r}"


MISSING: Final = "(nothing)"
"""Placeholder for a missing value."""


def unmeasured_fields(header: Model) -> dict[str, Any]:
    """Return the fields of a message without those declared as measured, at any depth."""
    return {name: _plain(getattr(header, name)) for name in _unmeasured(type(header))}


def without_measured(header: HeaderT) -> HeaderT:
    """Return the message with its measured fields at their defaults."""
    return decode(unmeasured_bytes(header), type=type(header))


def unmeasured_bytes(header: Model) -> bytes:
    """Return the encoded message, its measured fields at their defaults; equal bytes mean equal messages."""
    defaults = _measured_defaults(type(header))
    return encode(unmeasured_fields(header) if defaults is None else structs.replace(header, **defaults))


def first_difference(expected: Any, actual: Any, tolerance: float = 0.0, path: str = "") -> Difference | None:
    """Return where two plain values differ first, None if they are the same.

    Args:
        expected: maps, sequences, strings, numbers.
        actual: likewise. The order of a map's keys does not matter.
        tolerance: how far two floats may be apart; 0 means equal in every bit.
        path: of the values themselves.
    """
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        pairs = [
            (key, expected.get(key, MISSING), actual.get(key, MISSING)) for key in {**expected, **actual}
        ]
    elif _is_sequence(expected) and _is_sequence(actual):
        length = max(len(expected), len(actual))
        pairs = [(str(i), *(_at(values, i) for values in (expected, actual))) for i in range(length)]
    else:
        return None if _same(expected, actual, tolerance) else Difference(path, expected, actual)
    for key, one, other in pairs:
        found = first_difference(one, other, tolerance, f"{path}.{key}" if path else str(key))
        if found is not None:
            return found
    return None


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _at(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else MISSING


def _same(expected: Any, actual: Any, tolerance: float) -> bool:
    if isinstance(expected, float) and isinstance(actual, float):
        if tolerance:
            return math.isclose(expected, actual, rel_tol=0.0, abs_tol=tolerance)
        return struct.pack("d", expected) == struct.pack("d", actual)
    return type(expected) is type(actual) and bool(expected == actual)


def _plain(value: Any) -> Any:
    if isinstance(value, Model):
        return unmeasured_fields(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


@cache
def _measured_defaults(model: type[Model]) -> dict[str, Any] | None:
    """Return the defaults of the measured fields of a model, None if one of its parts may have some too."""
    fields = structs.fields(model)
    kept = [field.type for field in fields if not is_measured(field)]
    if any(_has_measured(part) for annotation in kept for part in _models(annotation)):
        return None
    return {field.name: field.default for field in fields if is_measured(field)}


def _models(annotation: Any) -> Iterator[type[Model]]:
    """Yield the models that a type names, such as two for `dict[str, Box | Label]`."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


@cache
def _has_measured(model: type[Model]) -> bool:
    fields = structs.fields(model)
    return any(is_measured(one) or any(map(_has_measured, _models(one.type))) for one in fields)


@cache
def _unmeasured(model: type[Model]) -> tuple[str, ...]:
    return tuple(field.name for field in structs.fields(model) if not is_measured(field))
