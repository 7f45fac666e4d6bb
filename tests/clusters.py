"""A small problem for the tests of training: three clusters, which each input alone separates."""

import torch

from perception.models.fusion import FeatureFusion
from perception.training.examples import Examples
from perception.training.fit import fit
from perception.training.fit_config import TrainingConfig
from perception.training.model import FusionModel

CLASSES = ("a", "b", "c")
INPUTS = {"eye": "camera", "ear": "microphone"}
QUICK = TrainingConfig(epochs=25, batch=64, learning_rate=1e-2, input_dropout=0)


def clusters(count: int = 240, seed: int = 0, spread: float = 0.6) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    features = {
        name: centres[labels] + spread * torch.randn(count, 2, generator=generator) for name in INPUTS
    }
    return Examples.of(features, labels, CLASSES, torch.arange(count) // 12)


def trained(config: TrainingConfig = QUICK, **options: float) -> FusionModel:
    torch.manual_seed(0)
    model = FusionModel(FeatureFusion({"eye": 2, "ear": 2}, CLASSES, **options))  # type: ignore[arg-type]
    fit(model, clusters(), clusters(seed=1), config)
    return model
