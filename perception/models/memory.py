"""Memory of a head: a GRU that runs over the last few ticks again at every tick.

Its state depends on those ticks alone and not on when it was started, so a recompute can start anywhere.
"""

from typing import Final

import torch
from torch import nn

MAX_TICKS: Final = 128
"""Ticks of which an engine stores the head's inputs, for every head."""


class TickMemory(nn.Module):
    """Gated recurrent unit (Cho et al. 2014) over K consecutive ticks, the current one last.

    Args:
        width: inputs per tick.
        hidden: size of the state.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, hidden, batch_first=True)

    def forward(self, x: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Return the state (B, hidden) after x (B, K, width); a tick that is not known (B, K) resets it."""
        count, ticks, _ = x.shape
        # ticks before the last gap must not count, so those after it are moved to the front
        length = known.flip(1).long().cumprod(dim=1).sum(dim=1)
        tick = (torch.arange(ticks, device=x.device) + (ticks - length)[:, None]) % ticks  # (B, K)
        row = torch.arange(count, device=x.device)
        moved = x.flatten(0, 1).index_select(0, (tick + ticks * row[:, None]).flatten()).view(x.shape)
        states, _ = self.gru(moved)
        last: torch.Tensor = states[row, (length - 1).clamp_min(0)]
        return torch.where(length[:, None] > 0, last, 0.0)
