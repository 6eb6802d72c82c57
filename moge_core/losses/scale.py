"""Loss of the metric scale (MoGe-2, arXiv 2507.02546, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from moge_core.errors import InputError
from moge_core.losses.common import LossAndMetrics, in_full_precision


@in_full_precision
def metric_scale_loss(scale_pred: Tensor, scale_gt: Tensor) -> LossAndMetrics:
    """Squared difference of the logarithms, 0 where the true scale is unknown.

    Args:
        scale_pred: (B,) predicted scale, > 0.
        scale_gt: (B,) scale that aligns the predicted points with metric truth, as the global loss returns it; an
            alignment that failed, or truth that is not metric, is written as 0.

    Returns:
        loss (B,), no metrics.
    """
    if scale_pred.dim() != 1 or scale_gt.shape != scale_pred.shape:
        found = f"{tuple(scale_pred.shape)} and {tuple(scale_gt.shape)}"
        raise InputError("scale_pred and scale_gt", "must both be (B,)", found=found)
    known = scale_gt > 0
    pred = torch.where(known, scale_pred, 1)
    true = torch.where(known, scale_gt, 1)
    return (pred.log() - true.log()).square(), {}
