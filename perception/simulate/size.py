"""How much an object holds: items of containers, bytes of payloads. Pure."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import msgspec
import numpy as np


def size_of(roots: Iterable[Any]) -> tuple[int, int]:
    """Return the number of items in all containers that are reached from `roots`, and bytes of data in them.

    Objects of this package's classes are entered; all others count as one item.
    """
    items = size = 0
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        one = waiting.pop()
        if isinstance(one, int | float | str | None.__class__) or id(one) in seen:
            continue
        seen.add(id(one))
        parts: Iterable[Any] = ()
        if isinstance(one, bytes | bytearray | memoryview):
            size += len(one)
        elif isinstance(one, np.ndarray):
            size += one.nbytes
        elif isinstance(one, Mapping):
            parts = [*one.keys(), *one.values()]
            items += len(one)
        elif isinstance(one, msgspec.Struct):
            parts = [getattr(one, name) for name in one.__struct_fields__]
        elif isinstance(one, Iterable) and hasattr(one, "__len__"):
            parts = list(one)
            items += len(parts)
        if hasattr(one, "__dict__") and _is_own(one.__class__):
            parts = [*parts, *vars(one).values()]
        waiting += parts
    return items, size


@cache
def _is_own(kind: type) -> bool:
    return any(base.__module__.startswith("perception.") for base in kind.__mro__)
