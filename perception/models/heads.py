"""Heads: the branches' filled features (B, D), context (B, K) and presence (B, M) -> logits (B, C)."""

from typing import Final, Literal

import torch
from torch import nn

HeadName = Literal["linear", "mlp", "gated"]


def mlp(width: int, hidden: int, out: int, dropout: float) -> nn.Sequential:
    """Return one hidden layer with ReLU and dropout."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, out))


class ConcatHead(nn.Module):
    """Linear or MLP head over features and context side by side."""

    def __init__(
        self, dims: tuple[int, ...], context: int, classes: int, hidden: int | None, dropout: float
    ) -> None:
        super().__init__()
        width = sum(dims) + context
        self.layers = nn.Linear(width, classes) if hidden is None else mlp(width, hidden, classes, dropout)

    def forward(self, x: torch.Tensor, context: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Return logits (B, C)."""
        logits: torch.Tensor = self.layers(torch.cat([x, context], dim=1))
        return logits


class LinearHead(ConcatHead):
    """Head without a hidden layer."""

    def __init__(
        self, dims: tuple[int, ...], context: int, classes: int, hidden: int, dropout: float
    ) -> None:
        super().__init__(dims, context, classes, None, dropout)


class GatedHead(nn.Module):
    """Each branch is projected; gates that sum to one over the present branches mix the projections."""

    def __init__(
        self, dims: tuple[int, ...], context: int, classes: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.dims = dims
        self.projections = nn.ModuleList(nn.Linear(dim, hidden) for dim in dims)
        self.gate = nn.Linear(sum(dims) + context, len(dims))
        self.out = nn.Sequential(nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes))

    def forward(self, x: torch.Tensor, context: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Return logits (B, C)."""
        parts = torch.split(x, list(self.dims), dim=1)
        projected = torch.stack(
            [project(part) for project, part in zip(self.projections, parts, strict=True)], dim=1
        )  # (B, M, H)
        # Finite, not -inf: with no branch present a softmax over -inf is NaN, also in the gradient.
        scores = self.gate(torch.cat([x, context], dim=1)).masked_fill(~present, -1e9)
        mixed = (scores.softmax(dim=1)[:, :, None] * projected).sum(dim=1)
        logits: torch.Tensor = self.out(mixed)
        return logits


HEADS: Final[dict[HeadName, type[ConcatHead] | type[GatedHead]]] = {
    "linear": LinearHead,
    "mlp": ConcatHead,
    "gated": GatedHead,
}
