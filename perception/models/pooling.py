"""Calibrated log-linear pool of class scores.

    log p(y|x) = sum_m w_m log p_m(y|x_m) - (sum_m w_m - 1) log p(y) + c

Each branch has a temperature (Guo et al. 2017, "On Calibration of Modern Neural Networks") and a
weight; a missing branch weighs 0, and the class prior, which every branch has learned, counts once.
With all weights 1 this is Bayes' rule for conditionally independent branches.
"""

import math
from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

MAX_ITERATIONS: Final = 200
PULL: Final = 0.5
"""Pull of log-temperatures to 0 and weights to 1, as a unit Gaussian prior in the sum of all rows' NLL: it
fades as rows grow in number. Without it, validation data that the branches separate perfectly would send
both to infinity, or a branch that is not needed there to weight 0."""


class LogLinearPool(nn.Module):
    """Combine M branches' scores over C classes; its numbers are fitted, not trained."""

    temperature: torch.Tensor
    weight: torch.Tensor
    log_prior: torch.Tensor

    def __init__(self, branches: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(branches))
        self.register_buffer("weight", torch.ones(branches))
        self.register_buffer("log_prior", torch.full((classes,), 1 / classes).log())

    def calibrated(self, logits: torch.Tensor) -> torch.Tensor:
        """Return each branch's log-probabilities at its temperature, (B, M, C)."""
        return F.log_softmax(logits / self.temperature[:, None], dim=-1)

    def forward(self, logits: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Pool logits (B, M, C) of the branches present (B, M) into log-probabilities (B, C).

        What stands at absent branches does not matter; with none present the result is the prior.
        """
        return self._pool(self.calibrated(_known(logits, present)), present, self.weight)

    def fit_temperatures(self, logits: torch.Tensor, present: torch.Tensor, labels: torch.Tensor) -> None:
        """Minimise each branch's own NLL on validation logits (N, M, C); labels (N,) int64."""
        for branch in range(logits.shape[1]):
            rows = present[:, branch]
            if not rows.any():
                continue
            own, targets = logits[rows, branch].double().detach(), labels[rows]

            def nll(log_t: torch.Tensor, own: torch.Tensor = own, to: torch.Tensor = targets) -> torch.Tensor:
                return F.cross_entropy(own / log_t.exp(), to) + PULL / len(to) * log_t.square()

            self.temperature[branch] = _minimise(nll, own.new_zeros(())).exp()

    def fit_weights(self, logits: torch.Tensor, present: torch.Tensor, labels: torch.Tensor) -> None:
        """Minimise the pool's NLL over non-negative weights, temperatures as they are."""
        log_p = self.calibrated(_known(logits, present)).double().detach()

        def nll(raw: torch.Tensor) -> torch.Tensor:
            weight = F.softplus(raw)
            pull = PULL / len(labels) * (weight - 1).square().sum()
            return F.nll_loss(self._pool(log_p, present, weight), labels) + pull

        start = log_p.new_ones(len(self.weight)).expm1().log()  # softplus of this is 1
        self.weight.copy_(F.softplus(_minimise(nll, start)))

    def _pool(self, log_p: torch.Tensor, present: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        w = present.to(log_p.dtype) * weight.to(log_p.dtype)  # (B, M)
        excess = w.sum(dim=1, keepdim=True) - 1  # (B, 1)
        prior = self.log_prior.to(log_p.dtype)
        return F.log_softmax((w[:, :, None] * log_p).sum(dim=1) - excess * prior, dim=-1)


def _known(logits: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    return torch.where(present[:, :, None], logits, 0.0)


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


class ReliabilityPool(nn.Module):
    """Log-linear pool whose weights depend on how reliable each branch looks in this very window.

        w = softplus(gate(q))

    q are quality figures: how sure each branch is, how far its input lies from what it was trained on,
    how loud the noise is. A branch that is confident for no reason loses its weight by these, where one
    fixed weight would have to be too low for good windows or too high for bad ones.

    Args:
        branches: M.
        qualities: Q, figures per window.
        classes: C.
        hidden: width of the gate's hidden layer; 0 for a linear gate.
        doubt: probability with which a branch is taken to know nothing; it bounds what one branch, sure of
            itself where it was never trained, can do even at a small weight.
    """

    mean: torch.Tensor
    std: torch.Tensor
    log_prior: torch.Tensor

    def __init__(
        self, branches: int, qualities: int, classes: int, hidden: int = 0, doubt: float = 0.0
    ) -> None:
        super().__init__()
        self.doubt = doubt
        last = nn.Linear(hidden or qualities, branches)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, math.log(math.expm1(1.0)))  # softplus of this is 1
        inner = [nn.Linear(qualities, hidden), nn.Tanh()] if hidden else []
        self.gate = nn.Sequential(*inner, last)
        self.register_buffer("mean", torch.zeros(qualities))
        self.register_buffer("std", torch.ones(qualities))
        self.register_buffer("log_prior", torch.full((classes,), 1 / classes).log())

    def weights(self, quality: torch.Tensor) -> torch.Tensor:
        """Return each branch's weight (B, M) by quality figures (B, Q)."""
        return F.softplus(self.gate((quality - self.mean) / self.std))

    def forward(self, logits: torch.Tensor, present: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
        """Pool logits (B, M, C) of the branches present (B, M) into log-probabilities (B, C)."""
        log_p = F.log_softmax(_known(logits, present), dim=-1)
        if self.doubt:
            log_p = torch.logaddexp(log_p + math.log1p(-self.doubt), self.log_prior + math.log(self.doubt))
        w = self.weights(quality) * present.to(log_p.dtype)
        excess = w.sum(dim=1, keepdim=True) - 1
        return F.log_softmax((w[:, :, None] * log_p).sum(dim=1) - excess * self.log_prior, dim=-1)

    def fit(
        self,
        logits: torch.Tensor,
        present: torch.Tensor,
        quality: torch.Tensor,
        labels: torch.Tensor,
        independent: int | None = None,
    ) -> None:
        """Minimise the NLL on rows that no branch was trained on, good and bad windows among them.

        `independent` is how many of the rows tell something new, where one clip stands in many of them under
        different disturbances; all by default.
        """
        self.mean.copy_(quality.mean(dim=0))
        self.std.copy_(quality.std(dim=0).clamp_min(1e-6))
        shapes = {name: value.shape for name, value in self.named_parameters()}
        start = nn.utils.parameters_to_vector(self.parameters()).detach().double()
        buffers = {name: value.double() for name, value in self.named_buffers()}
        data = logits.double(), present, quality.double()

        def nll(point: torch.Tensor) -> torch.Tensor:
            parts = torch.split(point, [shape.numel() for shape in shapes.values()])
            given = {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
            told = torch.func.functional_call(self, given | buffers, data)
            pull = PULL / (independent or len(labels)) * (point - start).square().sum()
            return F.nll_loss(told, labels) + pull

        with torch.no_grad():
            nn.utils.vector_to_parameters(_minimise(nll, start).to(self.mean.dtype), self.parameters())
