"""Encoders per modality and their fusion; torch is imported here and in the engine only."""

from perception.models.checkpoint import build_head, check_branches, config_hash, load_head, weights_hash
from perception.models.fusion import FeatureFusion, ModelFusion
from perception.models.pooling import LogLinearPool
from perception.models.registry import build_encoder

__all__ = [
    "FeatureFusion",
    "LogLinearPool",
    "ModelFusion",
    "build_encoder",
    "build_head",
    "check_branches",
    "config_hash",
    "load_head",
    "weights_hash",
]
