"""Fusion heads on disk: a folder with `config.json` and `model.safetensors`, in the layout of the Hub."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from perception.errors import ProfileError, WeightsError
from perception.io.home import expanded
from perception.models.fusion import FeatureFusion, ModelFusion
from perception.models.head_config import (
    HEAD_WEIGHTS,
    check_random_head,
    check_sizes,
    head_folder,
    misfits,
    read_head_config,
    source_of,
)
from perception.models.weights import load_into, local_state, seeded, weights_hash
from perception.profile import FusionConfig, HeadConfig

__all__ = [
    "ENCODERS",
    "Head",
    "build_head",
    "check_branches",
    "check_classes",
    "config_hash",
    "head_folder",
    "head_hash",
    "load_head",
    "own_encoders",
    "weights_hash",
    "with_own_encoders",
]

Head = FeatureFusion | ModelFusion
ENCODERS: Final = "encoders"
"""Folder in a checkpoint with the encoders that were trained with the head, by name."""
KINDS: Final[dict[str, type[FeatureFusion] | type[ModelFusion]]] = {
    "feature": FeatureFusion,
    "model": ModelFusion,
}


def load_head(folder: Path | str) -> Head:
    """Load a head as `save_pretrained` wrote it, on the CPU, in evaluation mode.

    Raises:
        WeightsError: there is no checkpoint, or its configuration and weights do not fit each other.
    """
    path = expanded(folder)
    config = read_head_config(path)
    kind = config.pop("kind")
    weights = path / HEAD_WEIGHTS
    try:
        check_sizes(config, weights.stat().st_size if weights.is_file() else 0)
        head = KINDS[kind](**config)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise WeightsError(
            f"{path / 'config.json'}: not the configuration of a {kind} head: {error}"
        ) from error
    load_into(head, local_state(weights), path)
    return head.eval()


def build_head(config: HeadConfig, dims: Mapping[str, int], *, device: torch.device, seed: int) -> Head:
    """Return the head of a profile for encoders of these dims, on the device, for inference.

    A relative checkpoint folder is searched in the working directory, then beside the installed profiles.

    Raises:
        ProfileError: a random head has no classes, or the checkpoint's branches differ from the encoders.
        WeightsError: see load_head.
    """
    source, _ = source_of(config.weights)
    if not dims:
        raise ProfileError("fusion.encoders: a fusion needs at least one encoder")
    if source == "pretrained":
        raise ProfileError("fusion.head.weights: give a checkpoint folder or 'random'")
    if source == "random":
        check_random_head(config)
        with seeded(seed):
            head: Head = KINDS[config.kind](dict(dims), config.classes).eval()
    else:
        head = load_head(head_folder(config))
        check_branches(head, dims)
    return head.requires_grad_(False).to(device)


def own_encoders(folder: Path | str) -> dict[str, Path]:
    """Return the folders of the encoders that were trained with a head, by name; empty if none were."""
    return {place.name: place for place in sorted((Path(folder) / ENCODERS).glob("*/"))} if folder else {}


def with_own_encoders(config: FusionConfig, folder: Path | str | None = None) -> FusionConfig:
    """Return the fusion with the encoders that were trained with its head, or with the head of `folder`."""
    own = {
        name: config.encoders[name].model_copy(update={"weights": str(place)})
        for name, place in own_encoders(folder or head_folder(config.head)).items()
        if name in config.encoders
    }
    return config.model_copy(update={"encoders": {**config.encoders, **own}})


def head_hash(head: Head) -> str:
    """Return the hash of a head's configuration, classes included, and its weights."""
    return config_hash({"config": head.config, "weights": weights_hash(head.state_dict())})


def check_classes(head: Head, classes: Sequence[str]) -> None:
    """Raise ProfileError, which names both, unless these are the head's classes in its order."""
    if head.classes != tuple(classes):
        raise ProfileError(
            f"its classes are {', '.join(head.classes)}; expected {', '.join(classes)}, in this order"
        )


def check_branches(head: Head, dims: Mapping[str, int]) -> None:
    """Raise ProfileError, which names the differences, unless the head was trained on these encoders."""
    problems = misfits(head.dims, dims)
    if problems:
        raise ProfileError(f"fusion.head does not fit fusion.encoders: {'; '.join(problems)}")


def config_hash(config: Mapping[str, Any]) -> str:
    """Return the sha256 of plain configuration data as JSON with sorted keys."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
