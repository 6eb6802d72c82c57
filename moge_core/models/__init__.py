"""MoGe models: MoGe-1 and MoGe-2 on our own DINOv2, with the published checkpoints' keys.

`ModelConfigV1`, `ModelConfigV2` and `parse_model_config` need no torch; everything else imports it at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from moge_core.models.config import ModelConfigV1, ModelConfigV2, parse_model_config

if TYPE_CHECKING:
    from moge_core.models.base import MoGeModel
    from moge_core.models.build import build_model
    from moge_core.models.checkpoint import check_version, load_model, save_model
    from moge_core.models.weights import init_backbone, load_weights

__all__ = [
    "MoGeModel",
    "ModelConfigV1",
    "ModelConfigV2",
    "build_model",
    "check_version",
    "init_backbone",
    "load_model",
    "load_weights",
    "parse_model_config",
    "save_model",
]

_HOMES = {
    "MoGeModel": "base",
    "build_model": "build",
    "check_version": "checkpoint",
    "init_backbone": "weights",
    "load_model": "checkpoint",
    "load_weights": "weights",
    "save_model": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
