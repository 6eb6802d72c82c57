"""Losses by the names that configurations use. Imports without torch, so that configurations are checked without it."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from moge_core.errors import ConfigError

_ALIGNED = frozenset({"align_resolution", "beta", "trunc", "sparsity_aware", "method"})

ENTRY_POINT_GROUP = "moge.losses"
"""Packages announce losses of their own under this group of entry points."""

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


@functools.lru_cache
def get_loss(name: str) -> Callable[..., Any]:
    """The loss function of that name; imports torch.

    Args:
        name: one of this package, one that an installed package announces as an entry point, or `module:function`.
            A configuration allows modules in `loss_modules`; whoever calls this with a path has to do so too.

    Raises:
        ConfigError: no loss has that name, or it can not be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        if name in LOSS_MODULES:
            function = getattr(importlib.import_module(LOSS_MODULES[name]), name)
        elif name in announced_losses():
            function = announced_losses()[name].load()
        elif attribute:
            function = getattr(importlib.import_module(module), attribute)
        else:
            fix = f"Known: {', '.join((*LOSS_MODULES, *announced_losses()))}; or give module:function."
            raise ConfigError("function", "must name a loss", found=repr(name), fix=fix)
    except (ImportError, AttributeError) as error:
        raise ConfigError("function", f"{name!r} could not be imported: {error}") from error
    if not callable(function):
        raise ConfigError("function", f"{name!r} must be a function", found=type(function).__name__)
    return function  # type: ignore[no-any-return]


def announced_losses() -> dict[str, importlib.metadata.EntryPoint]:
    """Losses of installed packages, by name; none is imported. Names of this package's own losses do not count."""
    points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    return {point.name: point for point in points if point.name not in LOSS_MODULES}
