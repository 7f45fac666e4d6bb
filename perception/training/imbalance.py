"""Remedies for classes that are rarer than others, each usable alone.

Class weights and oversampling change the share of each class in the loss: oversampling repeats the rows of
every class until it has as many as the largest, so an epoch is longer, and no row is left out. Focal loss
(Lin et al. 2017, "Focal Loss for Dense Object Detection") changes the weight of easy examples. Logit
adjustment (Menon et al. 2021, "Long-Tail Learning via Logit Adjustment") trains on logits + tau log p(y); the
plain logits are then those for equally common classes.

All but focal loss change the class prior of the logits. Every other use of a prior takes the same one: the
state with nothing present, the pool of a model-level head and its calibration, the validation loss that
chooses the epoch.
"""

from typing import Annotated, Final, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from perception.profile import Section

RemedyName = Literal["none", "weights", "oversample", "focal", "logit-adjustment"]
REMEDIES: Final[tuple[RemedyName, ...]] = ("none", "weights", "oversample", "focal", "logit-adjustment")


class Imbalance(Section):
    """`[training.imbalance]`."""

    remedy: RemedyName = "none"
    gamma: Annotated[float, Field(ge=0, description="focal: 0 is plain cross-entropy")] = 2.0
    tau: Annotated[float, Field(ge=0, description="logit adjustment: strength")] = 1.0
    smoothing: Annotated[float, Field(ge=0, lt=1, description="label smoothing")] = 0.0


def class_counts(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Return how often each class occurs (C,), at least 1, float32."""
    return torch.bincount(labels, minlength=classes).clamp_min(1).float()


def balanced_weights(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Return weights (C,) under which every class weighs the same in total; their mean over rows is 1."""
    counts = class_counts(labels, classes)
    return counts.sum() / (len(counts) * counts)


def remedied_prior(config: Imbalance, log_prior: torch.Tensor) -> torch.Tensor:
    """Return the prior log p(y) (C,) of the logits after the remedy, given that of the training set."""
    match config.remedy:
        case "weights" | "oversample":
            return torch.zeros_like(log_prior).log_softmax(0)
        case "logit-adjustment":
            return ((1 - config.tau) * log_prior).log_softmax(0)
        case _:
            return log_prior


def prior_weights(config: Imbalance, labels: torch.Tensor, log_prior: torch.Tensor) -> torch.Tensor | None:
    """Return weights (C,) that make classes in `labels` as common as `log_prior`; None if not needed."""
    if config.remedy in ("none", "focal"):
        return None
    return log_prior.exp().cpu() * balanced_weights(labels.cpu(), len(log_prior)) * len(log_prior)


class ClassificationLoss:
    """The loss of one training run; called with logits (B, C) and labels (B,)."""

    def __init__(self, config: Imbalance, labels: torch.Tensor, classes: int) -> None:
        """`labels` are those of the whole training set."""
        self._config = config
        counts = class_counts(labels, classes)
        self._weights = balanced_weights(labels, classes) if config.remedy == "weights" else None
        prior = (counts / counts.sum()).log()
        self._shift = config.tau * prior if config.remedy == "logit-adjustment" else None

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss."""
        smoothing = self._config.smoothing
        if self._shift is not None:
            logits = logits + self._shift.to(logits.device)
        if self._config.remedy == "focal":
            nll = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
            p = logits.softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
            return ((1 - p) ** self._config.gamma * nll).mean()
        weights = None if self._weights is None else self._weights.to(logits.device)
        return F.cross_entropy(logits, labels, weights, label_smoothing=smoothing)


def epoch_length(config: Imbalance, labels: torch.Tensor) -> int:
    """Return how many rows an epoch over these labels (N,) has; oversampling makes it longer."""
    counts = labels.bincount()
    return int(counts.max() * (counts > 0).sum()) if config.remedy == "oversample" else len(labels)


def epoch_order(config: Imbalance, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return the rows of one epoch over these labels (N,) in random order."""
    order = torch.randperm(len(labels), generator=generator)
    if config.remedy != "oversample":
        return order
    counts = labels.bincount()
    largest = int(counts.max())
    classes = (order[labels[order] == label] for label in counts.nonzero())
    filled = torch.cat([rows.repeat(-(-largest // len(rows)))[:largest] for rows in classes])
    return filled[torch.randperm(len(filled), generator=generator)]


def long_tail(labels: torch.Tensor, classes: int, ratio: float, generator: torch.Generator) -> torch.Tensor:
    """Return rows (sorted) whose class sizes fall exponentially, the last `ratio` times rarer than the first.

    The classes keep their order, so the same `ratio` leaves the same class rare in every run.
    """
    kept = []
    for index in range(classes):
        rows = torch.nonzero(labels == index).squeeze(1)
        share = ratio ** (-index / max(1, classes - 1))
        count = max(1, round(len(rows) * share))
        kept.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    return torch.cat(kept).sort().values
