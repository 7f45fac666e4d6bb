"""What a head knows of the ticks before: a GRU that runs anew over the last few of them, every tick.

Its state depends on those ticks alone and not on when it was started, so a replay can begin anywhere.
"""

from typing import Final

import torch
from torch import nn

MAX_TICKS: Final = 128
"""An engine keeps what it showed for so many ticks, whatever head it has."""


class TickMemory(nn.Module):
    """Gated recurrent unit (Cho et al. 2014) over K consecutive ticks, the last of which is now.

    Args:
        width: of what is shown at one tick.
        hidden: of the state.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, hidden)

    def forward(self, x: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Return the state (B, hidden) after x (B, K, width); a tick that is not known (B, K) resets it."""
        state = x.new_zeros(len(x), self.cell.hidden_size)
        for tick in range(x.shape[1]):
            state = torch.where(known[:, tick, None], self.cell(x[:, tick], state), 0.0)
        return state
