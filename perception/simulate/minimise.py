"""Cuts the faults of a failed scenario to the fewest that still fail: delta debugging (Zeller 2002). Pure."""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Final, TypeVar

ItemT = TypeVar("ItemT")
MAX_RUNS: Final = 200
"""Scenarios that one minimisation may run."""


def fewest(
    items: Sequence[ItemT], fails: Callable[[Sequence[ItemT]], bool], max_runs: int = MAX_RUNS
) -> list[ItemT]:
    """Return a part of `items`, in their order, that fails and of which no single item can be left out.

    After `max_runs` calls of `fails` the smallest part so far is returned.
    """
    kept, parts, runs = list(items), 2, 0
    while kept:
        for part in _without(kept, parts):
            runs += 1
            if runs > max_runs:
                return kept
            if fails(part):
                kept, parts = part, max(2, parts - 1)
                break
        else:
            if parts >= len(kept):
                return kept
            parts = min(len(kept), 2 * parts)
    return kept


def _without(items: list[ItemT], parts: int) -> list[list[ItemT]]:
    """Return `items` without each of `parts` successive parts."""
    size, rest = divmod(len(items), parts)
    bounds = [0, *accumulate(size + (number < rest) for number in range(parts))]
    return [items[:start] + items[stop:] for start, stop in pairwise(bounds) if stop > start]
