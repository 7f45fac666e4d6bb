"""The state file of a fit: written after each epoch, loaded by a fit that resumes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from perception.errors import PerceptionError, SessionError, first_line
from perception.models.checkpoint import config_hash, weights_hash
from perception.training.examples import Examples
from perception.training.fit_config import TrainingConfig
from perception.training.model import EVALUATION_BATCH, FusionModel

_DECISIVE: Final = ("labels", "sources", "ends_ns", "present", "ages_s", "suspects")


def identity_of(
    model: FusionModel, parts: Sequence[Examples], config: TrainingConfig, plan: Mapping[str, Any]
) -> str:
    """Return the hash of what a state belongs to; the number of epochs is not part of it."""
    rows = [
        weights_hash({**batch.features, **{f" {key}": getattr(batch, key) for key in _DECISIVE}})
        for part in parts
        for at in torch.split(torch.arange(len(part)), EVALUATION_BATCH)
        for batch in [part.rows(at).read()]
    ]
    shapes = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    decisive = config.model_dump(mode="json", exclude={"epochs"})
    setup = {"head": model.head.config, "shapes": shapes, "config": decisive, "plan": dict(plan)}
    return config_hash({"rows": rows, **setup})


def save(file: Path, state: Mapping[str, Any]) -> None:
    """Write or replace a state atomically; SessionError if it cannot be written."""
    part = file.with_suffix(".part")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.touch(mode=0o600)
        torch.save(dict(state), part)
        part.replace(file)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where the disk is full
        reason = getattr(error, "strerror", None) or first_line(error)
        raise SessionError(f"cannot write {file}: {reason}") from error
    finally:
        part.unlink(missing_ok=True)


def load(file: Path, identity: str) -> dict[str, Any]:
    """Return a stored state, on the CPU.

    Raises:
        PerceptionError: the file is damaged, or belongs to another training.
    """
    try:
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # the reader of a damaged archive raises errors of any type
        raise PerceptionError(f"{file}: damaged; remove it to start from the beginning") from error
    if state.get("of") != identity:
        raise PerceptionError(
            f"{file}: of a training with another configuration, head, copies or other sessions; go "
            "back to those, or remove it to start from the beginning"
        )
    return state
