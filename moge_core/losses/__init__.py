"""Training losses of MoGe-1 and MoGe-2, batched: each returns `(loss (B,), metrics {name: (B,)})`.

They compute in float32 whatever autocast does, give an instance without valid truth loss 0 with zero gradient, and
report as NaN what is undefined for an instance. A prediction that is not finite where it counts gives a loss that is
not finite.

Names are resolved on first use: `moge_core.losses.registry` serves configurations without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moge_core.losses.registry import LOSS_MODULES, LOSS_PARAMETERS, get_loss

if TYPE_CHECKING:
    from moge_core.losses.mask import mask_bce_loss as mask_bce_loss
    from moge_core.losses.mask import mask_l2_loss as mask_l2_loss
    from moge_core.losses.patches import affine_invariant_local_loss as affine_invariant_local_loss
    from moge_core.losses.points import affine_invariant_global_loss as affine_invariant_global_loss
    from moge_core.losses.scale import metric_scale_loss as metric_scale_loss
    from moge_core.losses.surface import edge_loss as edge_loss
    from moge_core.losses.surface import normal_loss as normal_loss
    from moge_core.losses.surface import normal_map_loss as normal_map_loss

__all__ = ["LOSS_PARAMETERS", "get_loss", *LOSS_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in LOSS_MODULES:
        return get_loss(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
