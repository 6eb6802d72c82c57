"""From a validated configuration to a model."""

from __future__ import annotations

from typing import Any

from moge_core.models.base import MoGeModel
from moge_core.models.config import ModelConfig, ModelConfigV1, parse_model_config
from moge_core.models.v1 import MoGeModelV1
from moge_core.models.v2 import MoGeModelV2


def build_model(version: str, **model_config: Any) -> MoGeModel:
    """A model with random weights.

    Args:
        version: "v1" (MoGe-1) or "v2" (MoGe-2).
        **model_config: the keys of a training configuration's `model` section, e.g. `encoder="dinov2_vits14"`.

    Raises:
        ModelError: there is no such version.
        ConfigError: a key is unknown, missing or out of range, or widths do not fit together.
    """
    return model_of(parse_model_config(version, model_config))


def model_of(config: ModelConfig) -> MoGeModel:
    """The model that a validated configuration describes, with random weights."""
    return MoGeModelV1(config) if isinstance(config, ModelConfigV1) else MoGeModelV2(config)
