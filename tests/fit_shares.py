"""Fits the same two models in each of the processes it is started in, and stores what each ended with."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from perception.models.fusion import FeatureFusion
from perception.models.networks import ConvEncoder
from perception.training.examples import Examples
from perception.training.fit import fit
from perception.training.fit_config import TrainingConfig
from perception.training.model import FusionModel
from perception.training.processes import join

PLAN = TrainingConfig(
    epochs=3, batch=47, learning_rate=1e-2, input_dropout=0.3, late=0.2, schedule="cosine", device="cpu"
)


def problem(seed: int) -> Examples:
    """161 rows: neither batches nor shares come out even."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(161) % 3
    features = {name: labels[:, None] + torch.randn(161, 2, generator=generator) for name in ("ear", "eye")}
    return Examples.of(features, labels, ("a", "b", "c"), torch.arange(161) // 23)


def fit_features(state_file: Path | None = None, plan: TrainingConfig = PLAN) -> dict[str, torch.Tensor]:
    """Return the weights of a head on features."""
    torch.manual_seed(0)
    model = FusionModel(FeatureFusion({"ear": 2, "eye": 2}, ("a", "b", "c"), head="mlp", hidden=8))
    history = fit(model, problem(0), problem(1), plan, state_file=state_file)
    losses = {"training_loss": history.training_loss, "validation_loss": history.validation_loss}
    return model.state_dict() | {name: torch.tensor(values) for name, values in losses.items()}


def fit_encoder() -> dict[str, torch.Tensor]:
    """Return the weights of a head and an encoder with batch norm, which half of the rows leave unused."""
    torch.manual_seed(0)
    pictures = torch.randn(96, 1, 8, 8)
    data = Examples.of({"eye": pictures}, torch.arange(96) % 2, ("a", "b"))
    data.present[48:] = False
    model = FusionModel(FeatureFusion({"eye": 4}, ("a", "b")), {"eye": ConvEncoder(1, (4, 4), 4)})
    fit(model, data, data, PLAN.model_copy(update={"batch": 8, "late": 0.0}))
    return model.state_dict()


if __name__ == "__main__":
    out, rank = Path(sys.argv[1]), join(torch.device("cpu")).process_index
    save_file(fit_features(out / "fit.state"), out / f"features-{rank}.safetensors")
    save_file(fit_encoder(), out / f"encoder-{rank}.safetensors")
