"""Encoders per modality and their fusion.

Importing this loads nothing until it is used; `options` and `head_config` do without torch.
"""

from typing import TYPE_CHECKING

from perception.units.lazy import lazy_exports

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

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "checkpoint": "build_head check_branches config_hash load_head",
        "fusion": "FeatureFusion ModelFusion",
        "pooling": "LogLinearPool",
        "registry": "build_encoder",
        "weights": "weights_hash",
    },
)
