"""Units and types that every part of the package shares; `arrays` has those that need numpy."""

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Final, TypeAlias

SECOND_NS: Final = 1_000_000_000
MILLISECOND_NS: Final = 1_000_000

Clock: TypeAlias = Callable[[], int]
"""Returns a time in ns: of the host clock where nothing else is said."""

Counts: TypeAlias = defaultdict[str, Counter[str]]
"""What was refused, late or repaired: topic -> reason -> count."""
