"""Splits by source: no source is on both sides of a split, nor are parts of one recording."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from perception.errors import SessionError
from perception.training.examples import Examples


def holdout(data: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Return the rest and about `share` of the sources; parts of one session are on one side.

    Raises:
        SessionError: there is only one source, or all are parts of one session.
    """
    from sklearn.model_selection import GroupShuffleSplit  # half of what this module takes to import

    _needs_sources(data, 2)
    count = len(set(data.groups.tolist()))
    taken = min(math.ceil(share * count), count - 1)
    splitter = GroupShuffleSplit(1, test_size=taken, random_state=seed)
    first, second = next(splitter.split(np.zeros(len(data)), groups=data.groups.numpy()))
    return data.rows(torch.from_numpy(first)), data.rows(torch.from_numpy(second))


def folds(data: Examples, count: int, seed: int) -> Iterator[tuple[Examples, Examples]]:
    """Yield `count` pairs of rest and fold; every source is in exactly one fold."""
    from sklearn.model_selection import GroupKFold

    _needs_sources(data, count)
    splitter = GroupKFold(count, shuffle=True, random_state=seed)
    for rest, fold in splitter.split(np.zeros(len(data)), groups=data.groups.numpy()):
        yield data.rows(torch.from_numpy(rest)), data.rows(torch.from_numpy(fold))


def _needs_sources(data: Examples, count: int) -> None:
    need(len(set(data.groups.tolist())), count)


def need(found: int, count: int) -> None:
    """Raise SessionError if fewer than `count` independent labelled sessions were found."""
    if found < count:
        raise SessionError(
            f"{found} labelled sessions cannot be split into {count} parts; record more: windows of one "
            "session are too similar to test on"
        )
