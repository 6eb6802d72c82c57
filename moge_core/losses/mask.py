"""Losses of the validity mask: which pixels have a finite depth, which are infinitely far (MoGe-1 section 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from moge_core.errors import InputError
from moge_core.losses.common import LossAndMetrics, in_full_precision


@in_full_precision
def mask_l2_loss(pred_mask: Tensor, gt_mask_pos: Tensor, gt_mask_neg: Tensor) -> LossAndMetrics:
    """Squared error of the mask, 1 at finite and 0 at infinite depth; other pixels say nothing but count in the mean.

    Args:
        pred_mask: (B, H, W), any real number (MoGe-1's raw mask).
        gt_mask_pos: (B, H, W) bool, finite depth.
        gt_mask_neg: (B, H, W) bool, infinite depth.

    Returns:
        loss (B,), no metrics.
    """
    _check_masks(pred_mask, gt_mask_pos, gt_mask_neg)
    error = gt_mask_neg * pred_mask.square() + gt_mask_pos * (1 - pred_mask).square()
    return error.mean((-2, -1)), {}


@in_full_precision
def mask_bce_loss(pred_mask: Tensor, gt_mask_pos: Tensor, gt_mask_neg: Tensor) -> LossAndMetrics:
    """Binary cross entropy of the mask; pixels of neither kind say nothing but count in the mean.

    Args:
        pred_mask: (B, H, W) probabilities in 0..1 (MoGe-2's mask after its sigmoid).
        gt_mask_pos: (B, H, W) bool, finite depth.
        gt_mask_neg: (B, H, W) bool, infinite depth.

    Returns:
        loss (B,), no metrics.
    """
    _check_masks(pred_mask, gt_mask_pos, gt_mask_neg)
    entropy = F.binary_cross_entropy(pred_mask, gt_mask_pos.to(pred_mask.dtype), reduction="none")
    return ((gt_mask_pos | gt_mask_neg) * entropy).mean((-2, -1)), {}


def _check_masks(pred_mask: Tensor, gt_mask_pos: Tensor, gt_mask_neg: Tensor) -> None:
    if pred_mask.dim() != 3:
        raise InputError("pred_mask", "must be (B, H, W)", found=tuple(pred_mask.shape))
    for name, mask in (("gt_mask_pos", gt_mask_pos), ("gt_mask_neg", gt_mask_neg)):
        if mask.shape != pred_mask.shape or mask.is_floating_point():
            found = f"{mask.dtype} {tuple(mask.shape)}"
            raise InputError(name, f"must be a bool mask of shape {tuple(pred_mask.shape)}", found=found)
