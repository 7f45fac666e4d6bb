"""Replacement of absent branches, and modality dropout, which trains a head for them.

A strategy takes the concatenated standardised features of all branches, zero where absent, and returns them
with the absent ones replaced.
"""

from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import nn

SUSPECT_SHARE: Final = 0.1
"""Share of inputs that training makes suspect, for a head that is given conditions."""
MissingName = Literal["drop", "zero", "mean", "predict", "token"]


def columns(dims: Sequence[int]) -> torch.Tensor:
    """Return which branch each of the D features belongs to, (D,): `present[:, columns]` is (B, D)."""
    return torch.arange(len(dims)).repeat_interleave(torch.tensor(dims))


class Missing(nn.Module):
    """Base of the strategies: an absent branch stays zero.

    Args:
        dims: features per branch, in the order of the columns.
    """

    columns: torch.Tensor

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("columns", columns(dims), persistent=False)
        self.inputs = torch.arange(len(dims))
        """(M,) int64, the input that each branch reads; training sets it."""

    def forward(self, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Return x (B, D), zero where absent by presence (B, M) bool, with absent branches replaced."""
        return x

    def auxiliary_loss(self, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Return the loss that training adds to the head's; zero if the strategy has none."""
        return x.new_zeros(())


class Zero(Missing):
    """An absent branch is zero, which after standardisation is its mean."""


class Drop(Missing):
    """Absent branches are zero; the others are multiplied by sqrt(D / D_present).

    Standardised features have unit variance, so the expected norm of the head's input stays sqrt(D).
    """

    def forward(self, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """See Missing."""
        share = present.index_select(1, self.columns).to(x.dtype).mean(dim=1, keepdim=True)  # (B, 1)
        return x * share.clamp_min(1 / x.shape[1]).rsqrt()


class Mean(Missing):
    """An absent branch is its running mean over all rows of the training."""

    mean: torch.Tensor
    count: torch.Tensor

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__(dims)
        self.register_buffer("mean", torch.zeros(sum(dims)))
        self.register_buffer("count", torch.zeros(sum(dims)))

    def forward(self, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """See Missing; in training mode the batch first updates the mean."""
        mask = present.index_select(1, self.columns)
        if self.training:
            with torch.no_grad():
                seen = mask.sum(dim=0)
                self.count += seen
                self.mean += ((x - self.mean) * mask).sum(dim=0) / self.count.clamp_min(1)
        return torch.where(mask, x, self.mean)


class Predict(Missing):
    """An absent branch is regressed linearly from the present ones of other inputs.

    A lost camera loses all its branches, so none of them is predicted from another of the same camera. The
    regressors start as the mean of their branch.
    """

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__(dims)
        width = sum(dims) + len(dims)
        self.regressors = nn.ModuleList(nn.Linear(width, dim) for dim in dims)
        for weight in self.parameters():
            nn.init.zeros_(weight)  # those from the same input are never trained, and have to stay zero

    def forward(self, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """See Missing; the regressors are trained by their own loss alone, not by the head's."""
        predicted = self._predict(x, present).detach()
        return torch.where(present.index_select(1, self.columns), x, predicted)

    def auxiliary_loss(self, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error of each present branch as predicted from the other inputs."""
        mask = present.index_select(1, self.columns)
        error = ((self._predict(x, present) - x).square() * mask).sum()
        return error / mask.sum().clamp_min(1)

    def _predict(self, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Predict every branch from those of other inputs: (B, D)."""
        predictions = []
        inputs = self.inputs.to(present.device)
        for index, regressor in enumerate(self.regressors):
            others = present & (inputs != inputs[index])
            known = torch.where(others.index_select(1, self.columns), x, 0.0)
            predictions.append(regressor(torch.cat([known, others.to(x.dtype)], dim=1)))
        return torch.cat(predictions, dim=1)


class Token(Missing):
    """An absent branch is a trained vector, which starts as its mean."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__(dims)
        self.token = nn.Parameter(torch.zeros(sum(dims)))

    def forward(self, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """See Missing."""
        return torch.where(present.index_select(1, self.columns), x, self.token)


MISSING: Final[dict[MissingName, type[Missing]]] = {
    "drop": Drop,
    "zero": Zero,
    "mean": Mean,
    "predict": Predict,
    "token": Token,
}


class Distortion(nn.Module):
    """Make inputs suspect while training: each with a probability, blended with those of another row.

    So a head learns how much an input that it receives as suspect can still be used. Over several ticks
    (B, K, D) an input is suspect in all of them.

    Args:
        dims: features per branch, in the order of the columns.
        p: the probability.
    """

    columns: torch.Tensor

    def __init__(self, dims: Sequence[int], p: float = SUSPECT_SHARE) -> None:
        super().__init__()
        self.register_buffer("columns", columns(dims), persistent=False)
        self.p = p
        self.inputs = torch.arange(len(dims))
        """(M,) int64, the input that each branch reads; training sets it."""

    def forward(
        self, x: torch.Tensor, present: torch.Tensor, suspect: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (B, D) and suspect (B, M) with some inputs distorted; unchanged outside training.

        `present` (B, M): an absent branch stays as it is.
        """
        if not self.training:
            return x, suspect
        inputs = self.inputs.to(x.device)
        count = int(inputs.max()) + 1
        drawn = (torch.rand(len(x), count, device=x.device) < self.p)[:, inputs]
        share = torch.rand(len(x), count, device=x.device)[:, inputs]
        if x.ndim == 3:
            drawn, share = drawn[:, None], share[:, None]
        drawn = drawn & present
        blend = torch.where(drawn, share, 0.0).index_select(-1, self.columns)
        other = x[torch.randperm(len(x), device=x.device)]
        return x + blend * (other - x), suspect | drawn


class ModalityDropout(nn.Module):
    """Hide each present input, all its branches, with probability `p` while training, but never all of them.

    Over several ticks (B, K, M) an input is hidden in all of them; those of the last one decide.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"modality dropout of {p}: expected 0 <= p < 1")
        self.p = p
        self.inputs: torch.Tensor | None = None
        """(M,) int64, the input that each branch reads; without it each has its own."""

    def forward(self, present: torch.Tensor) -> torch.Tensor:
        """Return a presence mask (B, M) with some inputs hidden; unchanged outside training."""
        if not self.training or self.p == 0:
            return present
        now = present if present.ndim == 2 else present[:, -1]
        inputs = torch.arange(now.shape[1]) if self.inputs is None else self.inputs
        of_input = nn.functional.one_hot(inputs.to(now.device)).bool()  # (M, inputs)
        there = (now[:, :, None] & of_input).any(dim=1)
        draw = torch.rand(there.shape, device=present.device)
        best = torch.where(there, draw, -1.0).argmax(dim=1, keepdim=True)
        kept = (draw >= self.p).scatter(1, best, True)[:, inputs]
        return present & (kept if present.ndim == 2 else kept[:, None])
