"""Losses of the affine-invariant point map, over the whole image and over patches (MoGe-1 section 3, supplement)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moge_core.alignment import align_points_scale_xyz_shift, align_points_scale_z_shift
from moge_core.errors import InputError
from moge_core.geometry import masked_nearest_resize
from moge_core.losses.anchors import draw_anchors
from moge_core.losses.common import (
    LossAndMetrics,
    Metrics,
    check_point_maps,
    in_full_precision,
    masked_mean,
    smooth_l1,
)

# A patch of fewer valid pixels says too little about its own scale and shift.
_MIN_PATCH_PIXELS = 32
# Local scales outside this range of the global one come from an alignment that went astray.
_MIN_RELATIVE_SCALE, _MAX_RELATIVE_SCALE = 0.1, 10.0
# Pixels of patches that are worked on at once; about 100 bytes each.
_CHUNK_PIXELS = 2**19


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
    _check_options(align_resolution, beta)
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
        loss = loss / (_share(valid) / _share(sampled).clamp(min=1e-7) + 1e-7)

    with torch.no_grad():
        relative = error.norm(dim=-1) / depth.clamp(min=1e-5)
        empty = ~valid.flatten(1).any(1)
        metrics = {
            "truncated_error": masked_mean(relative.clamp(max=1), valid).masked_fill(empty, math.nan),
            "delta": masked_mean((relative < 1).to(relative.dtype), valid).masked_fill(empty, math.nan),
        }
    return loss, metrics, scale.detach()


@in_full_precision
def affine_invariant_local_loss(
    pred_points: Tensor,
    gt_points: Tensor,
    focal: Tensor | float,
    global_scale: Tensor | None,
    level: int,
    align_resolution: int = 32,
    num_patches: int = 16,
    beta: float = 0.0,
    trunc: float = 1.0,
    sparsity_aware: bool = False,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    anchors: Tensor | None = None,
) -> LossAndMetrics:
    """Depth-weighted L1 error of random patches, each after its own best scale and shift.

    A patch holds the valid pixels of a square around its anchor that lie within a ball around the anchor's true point:
    the ball's diameter looks as large as 1 / level of the image diagonal.

    Args:
        pred_points: (B, H, W, 3), up to scale and shift.
        gt_points: (B, H, W, 3), not finite where unknown.
        focal: (B,) or a number, focal length relative to the image diagonal, 1 / sqrt(1 / fx^2 + 1 / fy^2) of
            normalised intrinsics.
        global_scale: (B,), the scale that the global loss returned. A patch whose scale is not between 0.1 and 10
            times that is dropped, and so are all patches where it is not positive. None keeps all scales > 0.
        level: how many patches span the diagonal; MoGe uses 4, 16 and 64.
        align_resolution: side of the grid of samples that a patch's alignment uses.
        num_patches: patches per instance.
        beta, trunc: as in the global loss.
        sparsity_aware: as in the global loss, for each patch.
        generator: source of the random anchors: one, or one per instance; None for torch's own.
        anchors: (B, P, 2) rows and columns that replace the drawing and num_patches.

    Returns:
        loss (B,): sum over an instance's patches divided by their intended number; 0 where no patch is left.
        metrics: `truncated_error` (B,) and `delta` (B,), over the pixels of all patches that were kept, errors relative
            to the radius of the patch's ball; NaN where no patch is left.
    """
    check_point_maps(pred_points, gt_points, "pred_points")
    _check_options(align_resolution, beta)
    batch_size, height, width = gt_points.shape[:3]
    focal = torch.as_tensor(focal, dtype=gt_points.dtype, device=gt_points.device).expand(batch_size)
    if level <= 0 or num_patches <= 0:
        raise InputError("level and num_patches", "must be positive", found=f"{level} and {num_patches}")
    if anchors is not None:
        _check_anchors(anchors, batch_size, height, width)

    radius_2d = math.ceil(0.5 / level * math.hypot(width, height))
    radius_3d = (0.5 / level) / focal[:, None, None] * gt_points[..., 2]
    if anchors is None:
        anchors = draw_anchors(gt_points, radius_3d, radius_2d, num_patches, generator)
    num_patches = anchors.shape[1]
    anchors = anchors.to(gt_points.device)

    valid = gt_points.isfinite().all(-1)
    true_flat = torch.where(valid[..., None], gt_points, math.nan).reshape(-1, 3)
    pred_flat = torch.where(valid[..., None], pred_points, 0).reshape(-1, 3)
    inverse_depth = 1 / (torch.where(valid, gt_points[..., 2], 0) + 1e-7)
    nearest = 0.1 / (masked_mean(inverse_depth, valid) + 1e-7)  # a tenth of the harmonic mean depth
    global_scale = None if global_scale is None else global_scale.detach()

    loss = pred_points.new_zeros(batch_size) + pred_flat[:0].sum()  # belongs to the graph even if no patch is left
    pooled = pred_points.new_zeros(batch_size, 4)  # sums of truncated error, of delta, of valid pixels, of all pixels
    patch_instance = torch.arange(batch_size, device=anchors.device).repeat_interleave(num_patches)
    rows = max(1, _CHUNK_PIXELS // (2 * radius_2d + 1) ** 2)
    chunks = zip(torch.split(patch_instance, rows), torch.split(anchors.reshape(-1, 2), rows), strict=True)
    for chunk in chunks:
        instance, pixel, member, radius = _patch_pixels(*chunk, true_flat, radius_3d, radius_2d)
        if len(instance) == 0:
            continue
        pred = torch.where(member[..., None], pred_flat[pixel], 0)
        true = torch.where(member[..., None], true_flat[pixel], 0)

        pred_samples, true_samples, sampled = masked_nearest_resize(
            pred, true, mask=member, size=(align_resolution, align_resolution)
        )
        sample_weight = sampled / (radius + 1e-7)[:, None, None]
        scale, shift = align_points_scale_xyz_shift(
            pred_samples.flatten(1, 2), true_samples.flatten(1, 2), sample_weight.flatten(1), trunc
        )
        failed = _scale_failed(scale, None if global_scale is None else global_scale[instance])

        weight = torch.where(member, 1 / true[..., 2].maximum(nearest[instance][:, None, None]), 0)
        weight = weight.masked_fill(failed[:, None, None], 0)
        error = scale[:, None, None, None] * pred + shift[:, None, None] - true
        patch_loss = smooth_l1(error.abs() * weight[..., None], beta).mean((1, 2, 3))
        if sparsity_aware:
            patch_loss = patch_loss / (_share(member) / _share(sampled) + 1e-7)
        loss = loss.index_add(0, instance, patch_loss / num_patches)
        pooled.index_add_(0, instance, _pool_errors(error.detach(), member, radius, failed))

    with torch.no_grad():
        truncated_error, delta, count, total = pooled.unbind(1)
        # An instance without patches has 0 / 0 here, which is the NaN that says so.
        share = count / total + 1e-7
        metrics = {"truncated_error": truncated_error / total / share, "delta": delta / total / share}
    return loss, metrics


def _patch_pixels(
    instance: Tensor, anchor: Tensor, true_flat: Tensor, radius_3d: Tensor, radius_2d: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The squares around anchors (N, 2) and which of their pixels belong to the patch; M <= N patches have enough.

    Args:
        true_flat: (B * H * W, 3), NaN where unknown.
        radius_3d: (B, H, W).

    Returns:
        With S = 2 radius_2d + 1: instance (M,), pixel (M, S, S) indices into `true_flat`, member (M, S, S) bool,
        radius (M,).
    """
    _, height, width = radius_3d.shape
    offsets = torch.arange(-radius_2d, radius_2d + 1, device=anchor.device)
    rows, columns = anchor[:, :1] + offsets, anchor[:, 1:] + offsets
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    image_row = instance[:, None] * height + rows.clamp(0, height - 1)
    pixel = image_row[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    centre = pixel[:, radius_2d, radius_2d]
    radius = radius_3d.flatten()[centre]
    distance = (true_flat[pixel] - true_flat[centre][:, None, None]).norm(dim=-1)
    member = inside & (distance <= radius[:, None, None])  # false where the truth is NaN
    enough = member.sum((1, 2)) >= _MIN_PATCH_PIXELS
    return instance[enough], pixel[enough], member[enough], radius[enough]


def _scale_failed(scale: Tensor, global_scale: Tensor | None) -> Tensor:
    """Whether patches (M,) are dropped for their scale. NaN is not: it has to reach the loss."""
    if global_scale is None:
        return scale <= 0
    relative = scale / global_scale
    return (relative <= _MIN_RELATIVE_SCALE) | (relative >= _MAX_RELATIVE_SCALE) | (global_scale <= 0)


def _pool_errors(error: Tensor, member: Tensor, radius: Tensor, failed: Tensor) -> Tensor:
    """Per patch (M, 4): sums of truncated error, delta and valid pixels, and the number of all; 0 if it failed."""
    relative = torch.where(member, error.norm(dim=-1) / radius[:, None, None], 0)
    within = member & (relative < 1)
    sums = torch.stack([relative.clamp(max=1).sum((1, 2)), within.sum((1, 2)), member.sum((1, 2))], dim=1)
    total = torch.full_like(sums[:, :1], member[0].numel())
    return torch.cat([sums, total], dim=1).masked_fill(failed[:, None], 0)


def _share(mask: Tensor) -> Tensor:
    """Share (N,) of true pixels of masks (N, ...)."""
    return mask.flatten(1).float().mean(1)


def _check_options(align_resolution: int, beta: float) -> None:
    if align_resolution < 1:
        raise InputError("align_resolution", "must be at least 1", found=align_resolution)
    if beta < 0:
        raise InputError("beta", "must be >= 0", found=beta)


def _check_anchors(anchors: Tensor, batch_size: int, height: int, width: int) -> None:
    if anchors.dim() != 3 or anchors.shape[0] != batch_size or anchors.shape[2] != 2 or anchors.is_floating_point():
        found = f"{anchors.dtype} {tuple(anchors.shape)}"
        raise InputError("anchors", f"must be integers of shape ({batch_size}, P, 2)", found=found)
    size = torch.tensor([height, width], device=anchors.device)
    if ((anchors < 0) | (anchors >= size)).any():
        raise InputError("anchors", f"must be rows below {height} and columns below {width}, from 0")
