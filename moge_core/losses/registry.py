"""Losses by the names that configurations use. Imports without torch, so that configurations are checked without it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from moge_core.errors import ConfigError

_ALIGNED = frozenset({"align_resolution", "beta", "trunc", "sparsity_aware"})

LOSS_PARAMETERS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "affine_invariant_global_loss": _ALIGNED,
        "affine_invariant_local_loss": _ALIGNED | {"level", "num_patches"},
        "normal_loss": frozenset(),
        "edge_loss": frozenset(),
        "normal_map_loss": frozenset(),
        "mask_l2_loss": frozenset(),
        "mask_bce_loss": frozenset(),
        "metric_scale_loss": frozenset(),
    }
)
"""Loss name -> keys that its `params` may have in a configuration. All other arguments come from the batch."""

LOSS_MODULES: Mapping[str, str] = MappingProxyType(
    {
        "affine_invariant_global_loss": "moge_core.losses.points",
        "affine_invariant_local_loss": "moge_core.losses.patches",
        "normal_loss": "moge_core.losses.surface",
        "edge_loss": "moge_core.losses.surface",
        "normal_map_loss": "moge_core.losses.surface",
        "mask_l2_loss": "moge_core.losses.mask",
        "mask_bce_loss": "moge_core.losses.mask",
        "metric_scale_loss": "moge_core.losses.scale",
    }
)
"""Loss name -> the module that defines it."""


def get_loss(name: str) -> Callable[..., Any]:
    """The loss function of that name; imports torch.

    Raises:
        ConfigError: no loss has that name.
    """
    if name not in LOSS_MODULES:
        raise ConfigError("function", "must name a loss", found=repr(name), fix=f"Known: {', '.join(LOSS_MODULES)}.")
    function: Callable[..., Any] = getattr(importlib.import_module(LOSS_MODULES[name]), name)
    return function
