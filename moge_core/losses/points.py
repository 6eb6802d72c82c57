"""Loss of the affine-invariant point map over the whole image (MoGe-1 section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moge_core.alignment import align_points_scale_z_shift
from moge_core.geometry import masked_nearest_resize
from moge_core.losses.common import (
    Metrics,
    check_alignment_options,
    check_point_maps,
    in_full_precision,
    masked_mean,
    share_of_true,
    smooth_l1,
)


@in_full_precision
def affine_invariant_global_loss(
    pred_points: Tensor,
    gt_points: Tensor,
    align_resolution: int = 64,
    beta: float = 0.0,
    trunc: float = 1.0,
    sparsity_aware: bool = False,
) -> tuple[Tensor, Metrics, Tensor]:
    """Depth-weighted L1 error of the point map after the best scale and z shift.

    Args:
        pred_points: (B, H, W, 3), up to scale and z shift.
        gt_points: (B, H, W, 3), not finite where unknown.
        align_resolution: side of the grid of samples that the alignment uses.
        beta: width of the quadratic part of the weighted error; 0 for none.
        trunc: bound on each weighted residual within the alignment; None for none.
        sparsity_aware: divide by the share of valid pixels relative to the share of valid samples, which gives sparse
            truth (LiDAR) the weight of dense truth.

    Returns:
        loss (B,): 0 where the truth is empty or the best scale is not positive.
        metrics: `truncated_error` (B,), the mean of min(1, |error| / z), and `delta` (B,), the share of |error| < z;
            of the prediction at 0 where the alignment failed, NaN where the truth is empty.
        scale (B,): the alignment's scale, detached; 0 where it failed.
    """
    check_point_maps(pred_points, gt_points, "pred_points")
    check_alignment_options(align_resolution, beta)
    valid = gt_points.isfinite().all(-1)
    pred, true = (torch.where(valid[..., None], points, 0) for points in (pred_points, gt_points))
    depth = true[..., 2]

    pred_samples, true_samples, sampled = masked_nearest_resize(
        pred, true, mask=valid, size=(align_resolution, align_resolution)
    )
    sample_weight = torch.where(sampled, 1 / true_samples[..., 2].clamp(min=0.01), 0)
    scale, shift = align_points_scale_z_shift(
        pred_samples.flatten(1, 2), true_samples.flatten(1, 2), sample_weight.flatten(1), trunc
    )
    failed = scale <= 0  # not true of NaN, which has to reach the loss
    scale, shift = scale.masked_fill(failed, 0), shift.masked_fill(failed[:, None], 0)

    weight = torch.where(valid, 1 / depth.clamp(min=1e-5), 0)
    weight = weight.minimum(10 * masked_mean(weight, valid)[:, None, None])
    weight = weight.masked_fill(failed[:, None, None], 0)
    error = scale[:, None, None, None] * pred + shift[:, None, None] - true
    loss = smooth_l1(error.abs() * weight[..., None], beta).mean((1, 2, 3))
    if sparsity_aware:
        loss = loss / (share_of_true(valid) / share_of_true(sampled).clamp(min=1e-7) + 1e-7)

    with torch.no_grad():
        relative = error.norm(dim=-1) / depth.clamp(min=1e-5)
        empty = ~valid.flatten(1).any(1)
        metrics = {
            "truncated_error": masked_mean(relative.clamp(max=1), valid).masked_fill(empty, math.nan),
            "delta": masked_mean((relative < 1).to(relative.dtype), valid).masked_fill(empty, math.nan),
        }
    return loss, metrics, scale.detach()
