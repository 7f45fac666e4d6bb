"""Random loss of inputs for training: which are hidden in a row, and which are late."""

import torch


def hide_inputs(
    present: torch.Tensor, inputs: torch.Tensor, share: float, generator: torch.Generator
) -> torch.Tensor:
    """Return presence with whole inputs hidden in `share` of the rows, each with probability 1/2.

    A row in which that would leave nothing present stays unchanged.

    Args:
        present: (N, M) bool, or over ticks (N, K, M): then in all of a row's ticks alike.
        inputs: (M,) int64, the input each branch reads.
        share: of the rows.
        generator: draws which inputs are hidden.
    """
    count = int(inputs.max()) + 1
    hidden = torch.rand(len(present), count, generator=generator) < 0.5
    hidden &= ~hidden.all(dim=1, keepdim=True)
    hidden &= torch.rand(len(present), 1, generator=generator) < share
    shown = ~hidden[:, inputs].to(present.device)
    left = present & (shown if present.ndim == 2 else shown[:, None])
    emptied = ~left.flatten(1).any(dim=1).view(-1, *(1,) * (present.ndim - 1))
    return torch.where(emptied, present, left)


def draw_lags(
    rows: int, inputs: torch.Tensor, share: float, ticks: int, generator: torch.Generator
) -> torch.Tensor:
    """Return by how many ticks each branch is late, (rows, M): one input in `share` of the rows."""
    one = torch.randint(int(inputs.max()) + 1, (rows, 1), generator=generator) == inputs
    lag = torch.randint(1, ticks + 1, (rows, 1), generator=generator)
    return lag * one * (torch.rand(rows, 1, generator=generator) < share)
