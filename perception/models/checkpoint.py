"""Fusion heads on disk: a folder with `config.json` and `model.safetensors`, laid out as on the Hub."""

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
"""Folder in a checkpoint: by name, the encoders that were trained with the head."""
KINDS: Final[dict[str, type[FeatureFusion] | type[ModelFusion]]] = {
    "feature": FeatureFusion,
    "model": ModelFusion,
}


def load_head(folder: Path | str) -> Head:
    """Load a head as `save_pretrained` wrote it, on the CPU, in evaluation mode.

    Raises:
        WeightsError: no checkpoint there, or its configuration and its weights do not fit each other.
    """
    path = expanded(folder)
    config = read_head_config(path)
    kind = config.pop("kind")
    try:
        head = KINDS[kind](**config)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise WeightsError(
            f"{path / 'config.json'}: not the configuration of a {kind} head: {error}"
        ) from error
    load_into(head, local_state(path / HEAD_WEIGHTS), path)
    return head.eval()


def build_head(config: HeadConfig, dims: Mapping[str, int], *, device: torch.device, seed: int) -> Head:
    """Return the head a profile asks for, fitted to the encoders' dims, on its device, for inference.

    A relative checkpoint folder is looked for here, then beside the profiles that ship.

    Raises:
        ProfileError: a random head lacks its classes, or the checkpoint's branches are not the encoders.
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
    """Return the encoders that were trained with a head, as what `weights` may name; empty if none were."""
    return {place.name: place for place in sorted((Path(folder) / ENCODERS).glob("*/"))} if folder else {}


def with_own_encoders(config: FusionConfig, folder: Path | str | None = None) -> FusionConfig:
    """Return the fusion with the encoders that were trained with a head in place of those they began as.

    The head is the fusion's, or that of a folder.
    """
    own = {
        name: config.encoders[name].model_copy(update={"weights": str(place)})
        for name, place in own_encoders(folder or head_folder(config.head)).items()
        if name in config.encoders
    }
    return config.model_copy(update={"encoders": {**config.encoders, **own}})


def head_hash(head: Head) -> str:
    """Return what identifies a head: the hash of its configuration, classes included, and its weights."""
    return config_hash({"config": head.config, "weights": weights_hash(head.state_dict())})


def check_classes(head: Head, classes: Sequence[str]) -> None:
    """Raise ProfileError, naming both, unless these are the head's classes in its order."""
    if head.classes != tuple(classes):
        raise ProfileError(
            f"its classes are {', '.join(head.classes)}; expected {', '.join(classes)}, in this order"
        )


def check_branches(head: Head, dims: Mapping[str, int]) -> None:
    """Raise ProfileError, naming what differs, unless these encoders are the ones the head was trained on."""
    problems = misfits(head.dims, dims)
    if problems:
        raise ProfileError(f"fusion.head does not fit fusion.encoders: {'; '.join(problems)}")


def config_hash(config: Mapping[str, Any]) -> str:
    """Return the sha256 of plain configuration data as JSON with sorted keys."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
