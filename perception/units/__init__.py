"""Units and types that every part of the package shares; `arrays` holds those that need numpy."""

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Final, TypeAlias

SECOND_NS: Final = 1_000_000_000
MILLISECOND_NS: Final = 1_000_000

Clock: TypeAlias = Callable[[], int]
"""Returns a time in ns, of the host clock unless stated otherwise."""

Counts: TypeAlias = defaultdict[str, Counter[str]]
"""Counts of what was refused, late or repaired: topic -> reason -> count."""
