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
    slope_of_smooth_l1,
    smooth_l1,
    with_gradient,
)
from moge_core.tensors import is_finite, length_of_planes, planes_of, zero_unless_


@in_full_precision
def affine_invariant_global_loss(
    pred_points: Tensor,
    gt_points: Tensor,
    align_resolution: int = 64,
    beta: float = 0.0,
    trunc: float = 1.0,
    sparsity_aware: bool = False,
    method: str = "search",
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
        method: search of the alignment, "search" or "exhaustive".

    Returns:
        loss (B,): 0 where the truth is empty or the best scale is not positive.
        metrics: `truncated_error` (B,), the mean of min(1, |error| / z), and `delta` (B,), the share of |error| < z;
            of the prediction at 0 where the alignment failed, NaN where the truth is empty.
        scale (B,): the alignment's scale, detached; 0 where it failed.
    """
    check_point_maps(pred_points, gt_points, "pred_points")
    check_alignment_options(align_resolution, beta)
    height, width = gt_points.shape[1:3]
    with torch.no_grad():
        valid = is_finite(gt_points)
        pred, true = planes_of(pred_points, valid), planes_of(gt_points, valid)
        depth = true[2]

        resolution = (align_resolution, align_resolution)
        sampled, (row, column) = masked_nearest_resize(mask=valid, size=resolution, return_index=True)
        sample_pixels = (row * width + column).flatten(1).expand(3, -1, -1)
        pred_samples, true_samples = (v.flatten(2).gather(2, sample_pixels).movedim(0, -1) for v in (pred, true))
        sample_weight = torch.where(sampled.flatten(1), 1 / true_samples[..., 2].clamp(min=0.01), 0)
        pred_samples.requires_grad_(pred_points.requires_grad)
        with torch.enable_grad():
            aligned = align_points_scale_z_shift(pred_samples, true_samples, sample_weight, trunc, method=method)
        failed = aligned[0] <= 0  # not true of NaN, which has to reach the loss
        scale, shift = aligned[0].masked_fill(failed, 0), aligned[1].masked_fill(failed[:, None], 0)

        weight = zero_unless_(1 / depth.clamp(min=1e-5), valid)
        weight = weight.minimum(10 * masked_mean(weight, valid)[:, None, None])
        error = torch.addcmul(shift.T[..., None, None], pred, scale[:, None, None]).sub_(true)
        factor = ~failed / (3 * height * width)
        if sparsity_aware:
            factor = factor / (share_of_true(valid) / share_of_true(sampled).clamp(min=1e-7) + 1e-7)
        loss = smooth_l1(error.abs().mul_(weight), beta).flatten(2).sum(-1).sum(0) * factor

        relative = length_of_planes(error).div_(depth.clamp(min=1e-5))
        empty = ~valid.flatten(1).any(1)
        metrics = {
            "truncated_error": masked_mean(relative.clamp(max=1), valid).masked_fill(empty, math.nan),
            "delta": masked_mean((relative < 1).to(relative.dtype), valid).masked_fill(empty, math.nan),
        }

        gradient = None
        if pred_points.requires_grad:
            slope = slope_of_smooth_l1(error, weight, beta).mul_(factor[:, None, None])
            by_scale, by_shift = (slope * pred).flatten(2).sum(-1).sum(0), slope.flatten(2).sum(-1).T
            (by_samples,) = torch.autograd.grad(aligned, [pred_samples], [by_scale, by_shift])
            gradient = slope.mul_(scale[:, None, None])
            gradient.flatten(2).scatter_add_(2, sample_pixels, by_samples.movedim(-1, 0))
            gradient = gradient.movedim(0, -1).contiguous()
    return with_gradient(pred_points, loss, gradient), metrics, scale
