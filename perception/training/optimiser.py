"""The optimiser of a fit, and the schedule of its learning rate."""

from typing import Any

import torch

from perception.training.fit_config import TrainingConfig
from perception.training.model import FusionModel

Schedule = torch.optim.lr_scheduler.LRScheduler | torch.optim.lr_scheduler.ReduceLROnPlateau


def new_optimiser(model: FusionModel, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimiser of the head and, at their own rate, of the trained encoders."""
    rate, decay = config.learning_rate, config.weight_decay
    parameters: list[dict[str, Any]] = [{"params": model.head.parameters()}]
    if model.encoders:
        parameters.append({"params": model.encoders.parameters(), "lr": rate * config.encoder_rate})
    match config.optimiser:
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        case "sgd":
            return torch.optim.SGD(
                parameters, lr=rate, momentum=config.momentum, weight_decay=decay, nesterov=True
            )
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr=rate, momentum=config.momentum, weight_decay=decay)


def new_schedule(optimiser: torch.optim.Optimizer, config: TrainingConfig, steps: int) -> Schedule | None:
    """Return the schedule for a fit with so many steps per epoch; None if the rate is constant."""
    total = config.epochs * steps
    match config.schedule:
        case "constant":
            return None
        case "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)
        case "one-cycle":
            return torch.optim.lr_scheduler.OneCycleLR(
                optimiser, [group["lr"] for group in optimiser.param_groups], total_steps=total
            )
        case "plateau":
            return torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimiser, patience=max(1, config.patience // 3)
            )
