"""Inputs of the head at the last ticks: all that a head with a memory depends on."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch

from perception.models.memory import MAX_TICKS

HeadInputs = tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]
"""Of a head: features (1, dim) by encoder, presence (1, M), ages (1, M) in seconds, suspect (1, M)."""


class Recent:
    """Inputs of the head at the last MAX_TICKS ticks. Pure."""

    def __init__(self, dims: Mapping[str, int]) -> None:
        self._dims = dict(dims)
        self._inputs: deque[tuple[int, HeadInputs]] = deque(maxlen=MAX_TICKS)

    def add(self, tick: int, inputs: HeadInputs) -> None:
        """Add the inputs of a tick, later than all before."""
        self._inputs.append((tick, inputs))

    def clear(self) -> None:
        """Drop all inputs, as at the start of a fusion."""
        self._inputs.clear()

    def last(self, ticks: int) -> tuple[Any, ...]:
        """Return the arguments of a head that uses so many ticks, (1, ticks, ...) if more than one."""
        now, inputs = self._inputs[-1]
        if ticks == 1:
            features, present, ages_s, suspect = inputs
            return features, present, ages_s, None, suspect
        by_tick = dict(self._inputs)
        rows = [by_tick.get(tick) for tick in range(now - ticks + 1, now + 1)]
        present = inputs[1]
        none = torch.zeros_like(present)
        nothing: HeadInputs = {}, none, torch.zeros_like(inputs[2]), none
        empty = {name: torch.zeros(1, dim, device=present.device) for name, dim in self._dims.items()}
        filled = [nothing if row is None else row for row in rows]
        features = {
            name: torch.stack([row[0].get(name, empty[name]) for row in filled], dim=1) for name in self._dims
        }
        known = torch.tensor([[row is not None for row in rows]], device=present.device)
        ages_s = torch.stack([row[2] for row in filled], dim=1)
        shown = torch.stack([row[1] for row in filled], dim=1)
        suspect = torch.stack([row[3] for row in filled], dim=1)
        return features, shown, ages_s, known, suspect
