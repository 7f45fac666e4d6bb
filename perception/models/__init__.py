"""Encoders per modality and their fusion.

Importing this loads nothing until it is used; `options` and `head_config` do without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perception.models.checkpoint import build_head as build_head
    from perception.models.checkpoint import check_branches as check_branches
    from perception.models.checkpoint import config_hash as config_hash
    from perception.models.checkpoint import load_head as load_head
    from perception.models.fusion import FeatureFusion as FeatureFusion
    from perception.models.fusion import ModelFusion as ModelFusion
    from perception.models.pooling import LogLinearPool as LogLinearPool
    from perception.models.registry import build_encoder as build_encoder
    from perception.models.weights import weights_hash as weights_hash

_EXPORTS = {
    "FeatureFusion": "perception.models.fusion",
    "LogLinearPool": "perception.models.pooling",
    "ModelFusion": "perception.models.fusion",
    "build_encoder": "perception.models.registry",
    "build_head": "perception.models.checkpoint",
    "check_branches": "perception.models.checkpoint",
    "config_hash": "perception.models.checkpoint",
    "load_head": "perception.models.checkpoint",
    "weights_hash": "perception.models.weights",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'perception.models' has no attribute '{name}'")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
