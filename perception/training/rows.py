"""Rows of features that stay in the files they are mapped from until a batch is read."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch

PACKED_BYTES: Final = 1 << 28
"""Features up to this size are copied to memory: a batch is read faster from one array than from many."""


class Rows:
    """Rows of several arrays in order, in place of one tensor (N, ...).

    Indexing returns other rows and reads nothing.
    """

    def __init__(self, parts: Sequence[npt.NDArray[Any]], numbers: torch.Tensor | None = None) -> None:
        """Hold all rows of the parts, which differ only in length, or the rows with these numbers."""
        self._parts = tuple(parts)
        self._bounds = [0, *accumulate(map(len, self._parts))]
        self._numbers = torch.arange(self._bounds[-1]) if numbers is None else numbers

    @classmethod
    def joined(cls, values: Sequence["torch.Tensor | Rows"]) -> Self:
        """Return the rows of all, in order."""
        each = [value if isinstance(value, Rows) else cls([value.numpy()]) for value in values]
        offsets = accumulate((one._bounds[-1] for one in each[:-1]), initial=0)
        numbers = [one._numbers + offset for one, offset in zip(each, offsets, strict=True)]
        return cls([part for one in each for part in one._parts], torch.cat(numbers))

    def packed(self, limit_bytes: int = PACKED_BYTES) -> Self:
        """Return the same rows in memory, as one array, if they are few."""
        size = self._parts[0].dtype.itemsize * self.shape.numel()
        return self if len(self._parts) == 1 or size > limit_bytes else type(self)([self.read().numpy()])

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor."""
        return self._numbers.shape + torch.Size(self._parts[0].shape[1:])

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: torch.Tensor | slice) -> Self:
        return type(self)(self._parts, self._numbers[index])

    def read(self) -> torch.Tensor:
        """Return the tensor, in memory."""
        numbers = self._numbers.flatten().numpy()
        order = numbers.argsort()
        ascending = numbers[order]
        cuts = np.searchsorted(ascending, self._bounds).tolist()
        rows = np.empty((len(numbers), *self._parts[0].shape[1:]), self._parts[0].dtype)
        for part, first, (begin, end) in zip(self._parts, self._bounds, pairwise(cuts), strict=False):
            if begin < end:
                rows[order[begin:end]] = part[ascending[begin:end] - first]
        return torch.from_numpy(rows).view(self.shape)


def read(values: torch.Tensor | Rows) -> torch.Tensor:
    """Return a tensor, or `Rows` in place of one, in memory."""
    return values.read() if isinstance(values, Rows) else values
