"""Fusion heads of avMNIST: strategies, remedies for imbalance, and how they are trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight

from perception.models.checkpoint import Head
from perception.models.fusion import FeatureFusion, ModelFusion
from perception.models.missing import MISSING
from perception.reproduce.avmnist_data import CLASSES
from perception.reproduce.avmnist_recipes import DIM
from perception.training.examples import Examples
from perception.training.fit import fit
from perception.training.fit_config import TrainingConfig
from perception.training.imbalance import REMEDIES, Imbalance
from perception.training.model import FusionModel
from perception.training.scores import Labels, Probabilities, metrics

HEAD: Final = TrainingConfig(
    epochs=150, batch=128, learning_rate=2e-3, weight_decay=5e-2, patience=20, select="nll", input_dropout=0
)
STRATEGIES: Final = (
    "drop rows",
    "drop",
    "zero",
    "mean",
    "predict",
    "token",
    "token + modality dropout",
    "predict + modality dropout",
    "gated token",
    "gated token + modality dropout",
    "model-level head",
    "model-level head + modality dropout",
    "model-level pool",
)
OVERSAMPLE: Final = Imbalance(remedy="oversample")
AS_LONG: Final = "none, as many steps as oversample"
"""Not a remedy: shows how much of the gain of the others is due to longer training."""


@dataclass(frozen=True, slots=True)
class Remedies:
    """Remedies of imbalance in the training of the encoders and of the head."""

    encoders: Imbalance
    head: Imbalance


REMEDIED: Final[Mapping[str, Remedies]] = {
    **{name: Remedies(Imbalance(remedy=name), Imbalance(remedy=name)) for name in REMEDIES},
    "oversample, head logit-adjustment": Remedies(OVERSAMPLE, Imbalance(remedy="logit-adjustment")),
    AS_LONG: Remedies(Imbalance(), Imbalance()),
}


def head_of(strategy: str) -> Head:
    """Return an untrained head by the name of its strategy.

    Raises:
        ValueError: there is no such strategy.
    """
    dims = {"audio": DIM, "image": DIM}
    level, _, dropout = strategy.partition(" + ")
    hidden = 0.5 if dropout else 0.0
    match level:
        case "model-level head":
            return ModelFusion(dims, CLASSES, combine="head", modality_dropout=hidden)
        case "model-level pool":
            return ModelFusion(dims, CLASSES, combine="pool", modality_dropout=hidden)
        case "gated token":
            return FeatureFusion(dims, CLASSES, "gated", dropout=0.2, modality_dropout=hidden)
        case "drop rows":
            return FeatureFusion(dims, CLASSES, "mlp", dropout=0.2, missing="zero")
    for missing in MISSING:
        if missing == level:
            return FeatureFusion(dims, CLASSES, "mlp", dropout=0.2, missing=missing, modality_dropout=hidden)
    raise ValueError(f"no strategy '{strategy}': expected one of {', '.join(STRATEGIES)}")


def train_head(strategy: str, train: Examples, validation: Examples, config: TrainingConfig) -> FusionModel:
    """Train one strategy on features."""
    torch.manual_seed(config.seed)
    model = FusionModel(head_of(strategy))
    if strategy == "drop rows":
        train, validation = (part.rows(part.present.all(dim=1)) for part in (train, validation))
    fit(model, train, validation, config)
    return model


def longer(config: TrainingConfig, times: float) -> TrainingConfig:
    """Return the configuration with epochs and patience times `times`."""
    epochs, patience = round(config.epochs * times), round(config.patience * times)
    return config.model_copy(update={"epochs": epochs, "patience": patience})


def balanced_merit(truth: Labels, p: Probabilities) -> tuple[float, float]:
    """Return macro recall, then, for equal recall, the negated NLL in which all classes weigh the same."""
    weights = compute_sample_weight("balanced", truth)
    nll = log_loss(truth, p.clip(1e-12), sample_weight=weights, labels=np.arange(p.shape[1]))
    return metrics(truth, p).macro_recall, -float(nll)
