"""Calibrated log-linear pool of class scores.

    log p(y|x) = sum_m w_m log p_m(y|x_m) - (sum_m w_m - 1) log p(y) + c

Each branch has a temperature (Guo et al. 2017, "On Calibration of Modern Neural Networks"), a doubt and
a weight; a missing branch has weight 0, and the class prior, which every branch has learned, counts once.
With all weights 1 this is Bayes' rule for conditionally independent branches. The doubt is the probability
that a branch has no information in this window and its scores are the prior: it bounds the effect of a
branch that is confident and wrong.
"""

import math
from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

MAX_ITERATIONS: Final = 200
PULL: Final = 0.5
"""Pull of log-temperatures to 0 and weights to 1, as a unit Gaussian prior in the sum of all rows' NLL: its
share falls with the number of rows that are not copies of each other. Without it, both would diverge on
validation data that the branches separate perfectly. Log-odds of a doubt are pulled likewise to those of
USUAL_DOUBT."""
EVEN_PULL: Final = 32.0
"""Pull of each weight to the mean of all, as a Gaussian prior of deviation 1/8: validation data in which no
branch fails does not show which one is reliable. With a weaker pull a head relied on one branch, and failed
when that was disturbed."""
USUAL_DOUBT: Final = 0.02


class LogLinearPool(nn.Module):
    """Combine M branches' scores over C classes; its numbers are fitted, not trained."""

    temperature: torch.Tensor
    doubt: torch.Tensor
    weight: torch.Tensor
    log_prior: torch.Tensor

    def __init__(self, branches: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(branches))
        self.register_buffer("doubt", torch.zeros(branches))
        self.register_buffer("weight", torch.ones(branches))
        self.register_buffer("log_prior", torch.full((classes,), 1 / classes).log())

    def reset(self) -> None:
        """Reset everything fitted except the prior: a product of experts without doubt."""
        self.temperature.fill_(1)
        self.doubt.fill_(0)
        self.weight.fill_(1)

    def calibrated(self, logits: torch.Tensor) -> torch.Tensor:
        """Return each branch's log-probabilities at its temperature and doubt, (B, M, C)."""
        return _calibrated(logits, self.temperature[:, None], self.doubt[:, None], self.log_prior)

    def forward(self, logits: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Pool logits (B, M, C) of the branches present (B, M) into log-probabilities (B, C).

        The logits of absent branches are ignored; with none present the result is the prior.
        """
        return self._pool(self.calibrated(_known(logits, present)), present, self.weight)

    def fit_temperatures(
        self,
        logits: torch.Tensor,
        present: torch.Tensor,
        labels: torch.Tensor,
        copies: int = 1,
        balance: torch.Tensor | None = None,
    ) -> None:
        """Minimise each branch's own NLL on validation logits (N, M, C); labels (N,) int64.

        Temperature and doubt are fitted together. `copies` of one observation, such as a clip with several
        disturbances, count as one row against the pull. `balance` (C,) are weights that make the classes as
        frequent as in the prior.
        """
        balance = None if balance is None else balance.to(logits.device).double()
        start = torch.tensor([0.0, math.log(USUAL_DOUBT / (1 - USUAL_DOUBT))], device=logits.device).double()
        for branch in range(logits.shape[1]):
            rows = present[:, branch]
            if not rows.any():
                continue
            own, targets = logits[rows, branch].double().detach(), labels[rows]

            def nll(point: torch.Tensor, own: torch.Tensor = own, to: torch.Tensor = targets) -> torch.Tensor:
                log_p = _calibrated(own, point[0].exp(), point[1].sigmoid(), self.log_prior.double())
                return (
                    F.nll_loss(log_p, to, balance) + PULL * copies / len(to) * (point - start).square().sum()
                )

            log_t, doubt = _minimise(nll, start)
            self.temperature[branch], self.doubt[branch] = log_t.exp(), doubt.sigmoid()

    def fit_weights(
        self,
        logits: torch.Tensor,
        present: torch.Tensor,
        labels: torch.Tensor,
        copies: int = 1,
        balance: torch.Tensor | None = None,
    ) -> None:
        """Minimise the pool's NLL over non-negative weights, temperatures fixed; see `fit_temperatures`."""
        balance = None if balance is None else balance.to(logits.device).double()
        log_p = self.calibrated(_known(logits, present)).double().detach()

        def nll(raw: torch.Tensor) -> torch.Tensor:
            weight = F.softplus(raw)
            uneven = EVEN_PULL * (weight - weight.mean()).square().sum()
            pull = copies / len(labels) * (PULL * (weight - 1).square().sum() + uneven)
            return F.nll_loss(self._pool(log_p, present, weight), labels, balance) + pull

        start = log_p.new_ones(len(self.weight)).expm1().log()  # softplus of this is 1
        self.weight.copy_(F.softplus(_minimise(nll, start)))

    def _pool(self, log_p: torch.Tensor, present: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        w = present.to(log_p.dtype) * weight.to(log_p.dtype)  # (B, M)
        excess = w.sum(dim=1, keepdim=True) - 1  # (B, 1)
        prior = self.log_prior.to(log_p.dtype)
        return F.log_softmax((w[:, :, None] * log_p).sum(dim=1) - excess * prior, dim=-1)


def _known(logits: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    return torch.where(present[:, :, None], logits, 0.0)


def _calibrated(
    logits: torch.Tensor, temperature: torch.Tensor, doubt: torch.Tensor, log_prior: torch.Tensor
) -> torch.Tensor:
    log_p = F.log_softmax(logits / temperature, dim=-1)
    return torch.logaddexp(log_p + torch.log1p(-doubt), log_prior + doubt.log())


def _minimise(loss: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor) -> torch.Tensor:
    point = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [point], max_iter=MAX_ITERATIONS, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = loss(point)
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    return point.detach()
