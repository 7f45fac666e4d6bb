"""What heads were shown at the last ticks: all that the state of a head with a memory depends on."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch

from perception.models.memory import MAX_TICKS

Shown = tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]
"""What a head takes: features (1, dim) by encoder, presence (1, M), ages (1, M) in seconds."""


class Recent:
    """What heads were shown at the last ticks. Pure."""

    def __init__(self, dims: Mapping[str, int]) -> None:
        self._dims = dict(dims)
        self._shown: deque[tuple[int, Shown]] = deque(maxlen=MAX_TICKS)

    def add(self, tick: int, shown: Shown) -> None:
        """Take what is shown at a tick, later than all before."""
        self._shown.append((tick, shown))

    def clear(self) -> None:
        """Forget, as a fusion that begins anew knows nothing."""
        self._shown.clear()

    def last(self, ticks: int) -> tuple[Any, ...]:
        """Return the arguments of a head that looks at so many ticks, (1, ticks, ...) if more than one."""
        now, shown = self._shown[-1]
        if ticks == 1:
            return shown
        by_tick = dict(self._shown)
        rows = [by_tick.get(tick) for tick in range(now - ticks + 1, now + 1)]
        present = shown[1]
        nothing: Shown = {}, torch.zeros_like(present), torch.zeros_like(shown[2])
        empty = {name: torch.zeros(1, dim, device=present.device) for name, dim in self._dims.items()}
        told = [nothing if row is None else row for row in rows]
        features = {
            name: torch.stack([row[0].get(name, empty[name]) for row in told], dim=1) for name in self._dims
        }
        known = torch.tensor([[row is not None for row in rows]], device=present.device)
        ages_s = torch.stack([row[2] for row in told], dim=1)
        return features, torch.stack([row[1] for row in told], dim=1), ages_s, known
