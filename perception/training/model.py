"""The model that is trained: a fusion head, with the encoders that are trained with it."""

from collections.abc import Mapping
from typing import Final, Self

import torch
from torch import nn

from perception.models.checkpoint import Head
from perception.models.fusion import ModelFusion
from perception.training.examples import Examples

Features = Mapping[str, torch.Tensor]
EVALUATION_BATCH: Final = 1024
STATISTICS_ROWS: Final = 1 << 16
"""Largest number of rows for means and deviations, at even distances: they must fit in memory."""


class FusionModel(nn.Module):
    """A fusion head, and before it the encoders that are trained with it, by branch.

    The inputs of branches without an encoder here are features.
    """

    def __init__(self, head: Head, encoders: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.head = head
        self.encoders = nn.ModuleDict(dict(encoders or {}))

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen layers of encoders stay in evaluation mode: batch norm, dropout."""
        super().train(mode)
        for layer in self.encoders.modules():
            weights = list(layer.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                layer.eval()
        return self

    def encode(self, inputs: Features, present: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the features of every branch, (B, dim) float32; absent rows (B, M) are not encoded."""
        columns = dict(zip(self.head.branches, present.unbind(-1), strict=True))
        return {
            name: self._encoded(name, x, columns[name]) if name in self.encoders else x
            for name, x in inputs.items()
        }

    def _encoded(self, name: str, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        features = torch.zeros(*present.shape, self.head.dims[name], device=x.device)
        if present.any():
            shown = x[present]
            shown = shown.float() if shown.is_floating_point() else shown  # bytes are text
            features[present] = self.encoders[name](shown).float()
        return features

    def forward(
        self,
        inputs: Features,
        present: torch.Tensor,
        ages_s: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
        suspect: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return logits (B, C); arguments as for the head."""
        logits: torch.Tensor = self.head(self.encode(inputs, present), present, ages_s, known, suspect)
        return logits


@torch.no_grad()
def predict(model: FusionModel, data: Examples, present: torch.Tensor | None = None) -> torch.Tensor:
    """Return logits (N, C) on the CPU for the rows that have a label, in evaluation mode.

    With `present` (N, M), other inputs of a row are absent, at all ticks of a head with a memory.
    """
    model.eval()
    device = next(model.parameters()).device
    ticks = model.head.ticks
    parts = []
    for rows in torch.split(data.labelled, EVALUATION_BATCH):
        batch = data.context(rows, ticks).to(device)
        shown = batch.present
        if present is not None:
            mask = present[rows].to(device)
            shown = shown & (mask if ticks == 1 else mask[:, None])
        parts.append(model(batch.features, shown, batch.ages_s, batch.known, batch.suspect).float().cpu())
    return torch.cat(parts)


@torch.no_grad()
def fit_statistics(model: FusionModel, labelled: Examples) -> None:
    """Fit means, deviations and prior of the head, without the features of encoders in training."""
    device = next(model.parameters()).device
    count = min(len(labelled), STATISTICS_ROWS)
    rows = labelled.rows(torch.arange(count) * len(labelled) // count)
    frozen = [name not in model.encoders for name in labelled.branches]
    there = rows.select([name for name, one in zip(labelled.branches, frozen, strict=True) if one]).to(device)
    present = (rows.present & torch.tensor(frozen)).to(device)
    model.head.fit_statistics(there.features, present, there.labels)


def calibrate(model: FusionModel, validation: Examples, balance: torch.Tensor | None = None) -> None:
    """Fit temperatures and pooling weights of a model-level head on labelled validation rows.

    `balance` (C,) weighs the classes; see `ModelFusion.calibrate`.
    """
    head = model.head
    assert isinstance(head, ModelFusion)
    device = next(model.parameters()).device
    parts = []
    validation = validation.rows(validation.labelled)
    for rows in torch.split(torch.arange(len(validation)), EVALUATION_BATCH):
        batch = validation.context(rows).to(device)
        parts.append(model.encode(batch.features, batch.present))
    features = {name: torch.cat([part[name] for part in parts]) for name in head.branches}
    present, labels = validation.present.to(device), validation.labels.to(device)
    head.calibrate(features, present, labels, balance=balance)
