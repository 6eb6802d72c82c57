"""Losses of the affine-invariant point map, over the whole image and over patches (MoGe-1 section 3, supplement)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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
    with_gradient,
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
    anchors = anchors.to(gt_points.device, non_blocking=True)
    alignment = _Alignment(align_resolution, trunc, None if global_scale is None else global_scale.detach())

    with torch.no_grad():
        images = _Images(pred_points, gt_points, radius_3d, radius_2d)
        loss = pred_points.new_zeros(batch_size)
        pooled = pred_points.new_zeros(batch_size, 4)  # sums of truncated error, delta, valid pixels, all pixels
        gradient = images.empty_gradient() if pred_points.requires_grad else None
        instance = torch.arange(batch_size, device=anchors.device)[:, None].expand(batch_size, num_patches).flatten()
        count = _even_chunks(len(instance), images.side**2)
        for patch in zip(torch.split(instance, count), torch.split(anchors.reshape(-1, 2), count), strict=True):
            patches = _Patches(images, *patch)
            if len(patches.instance) == 0:
                continue
            failed = patches.align(alignment)
            patch_loss = patches.loss(beta, failed, sparsity_aware, 1 / num_patches, gradient)
            loss.index_add_(0, patches.instance, patch_loss)
            pooled.index_add_(0, patches.instance, patches.pooled_errors(failed))

        truncated_error, delta, known, total = pooled.unbind(1)
        # An instance without patches has 0 / 0 here, which is the NaN that says so.
        share = known / total + 1e-7
        metrics = {"truncated_error": truncated_error / total / share, "delta": delta / total / share}
        if gradient is not None:
            gradient = images.unpadded(gradient)
    return with_gradient(pred_points, loss, gradient), metrics


@dataclass(frozen=True)
class _Alignment:
    """How patches are aligned: side of the grid of samples, truncation, and the global scales (B,) or None."""

    resolution: int
    trunc: float | None
    global_scale: Tensor | None


class _Images:
    """The point maps of a batch as planes, padded so that every square around a pixel lies inside.

    Attributes:
        pred, true: (B, 3, H + 2 r, W + 2 r); 0 and NaN where the truth is unknown or outside.
        radius: (B, H, W) reach of a patch around each pixel.
        least_depth: (B,) a tenth of the harmonic mean depth.
        margin: r, half the side of a square.
        side: 2 r + 1.
    """

    def __init__(self, pred: Tensor, true: Tensor, radius: Tensor, margin: int) -> None:
        valid = true.isfinite().all(-1)
        pred, true = (
            torch.where(valid[:, None], points.permute(0, 3, 1, 2), unknown)
            for points, unknown in ((pred, 0), (true, math.nan))
        )
        pad = [margin] * 4
        self.pred, self.true = F.pad(pred, pad).contiguous(), F.pad(true, pad, value=math.nan).contiguous()
        self.radius = radius
        inverse_depth = 1 / (torch.where(valid, true[:, 2], 0) + 1e-7)
        self.least_depth = 0.1 / (masked_mean(inverse_depth, valid) + 1e-7)
        self.margin, self.side = margin, 2 * margin + 1

    def squares(self, planes: Tensor, instance: Tensor, anchor: Tensor) -> Tensor:
        """Copies (M, 3, S, S) of the squares around anchors (M, 2)."""
        batch_size, _, height, width = planes.shape
        shape = (batch_size, 3, height - self.side + 1, width - self.side + 1, self.side, self.side)
        plane = height * width
        every_square = planes.as_strided(shape, (3 * plane, plane, width, 1, width, 1))
        return every_square[instance, :, anchor[:, 0], anchor[:, 1]]

    def pixels(self, instance: Tensor, anchor: Tensor) -> Tensor:
        """Places (M, S, S) of the squares' pixels in a flat padded plane (B * H' * W')."""
        height, width = self.pred.shape[2:]
        offset = torch.arange(self.side, device=anchor.device)
        corner = (instance * height + anchor[:, 0]) * width + anchor[:, 1]
        return corner[:, None, None] + offset[:, None] * width + offset

    def empty_gradient(self) -> Tensor:
        """Zeros (3, B * H' * W')."""
        return self.pred.new_zeros(3, self.pred[:, 0].numel())

    def unpadded(self, gradient: Tensor) -> Tensor:
        """The inner part (B, H, W, 3) of a gradient of padded planes."""
        batch_size, _, height, width = self.pred.shape
        inner = slice(self.margin, -self.margin)
        return gradient.view(3, batch_size, height, width)[:, :, inner, inner].permute(1, 2, 3, 0).contiguous()


class _Patches:
    """Squares of pixels around anchors, and which of their pixels belong to the patch.

    Attributes:
        instance: (M,) which instance a patch is of.
        pred, true: (M, 3, S, S), 0 where a pixel does not belong.
        member: (M, S, S) bool.
        radius: (M,) reach of the patch.
        scale, shift, sampled: results of `align`, (M,), (M, 3) and (M, R, R).
    """

    def __init__(self, images: _Images, instance: Tensor, anchor: Tensor) -> None:
        true = images.squares(images.true, instance, anchor)
        radius = images.radius[instance, anchor[:, 0], anchor[:, 1]]
        centre = true[:, :, images.margin, images.margin, None, None]
        # False where the truth is NaN.
        member = (true - centre).square_().sum(1).sqrt_() <= radius[:, None, None]
        self.enough = member.flatten(1).sum(-1) >= _MIN_PATCH_PIXELS
        if member.device.type == "cpu":  # an accelerator would have to wait for the answer how many there are
            kept = self.enough.nonzero()[:, 0]
            if len(kept) < len(member):
                instance, anchor, true, radius, member = (v[kept] for v in (instance, anchor, true, radius, member))
                self.enough = self.enough[kept]
        self.images, self.instance, self.anchor = images, instance, anchor
        self.member, self.radius = member, radius
        self.true = torch.where(member[:, None], true, 0)
        self.pred = torch.where(member[:, None], images.squares(images.pred, instance, anchor), 0)

    def align(self, alignment: _Alignment) -> Tensor:
        """Find each patch's scale and shift; returns which patches (M,) are dropped."""
        resolution = (alignment.resolution, alignment.resolution)
        self.sampled, (rows, columns) = masked_nearest_resize(mask=self.member, size=resolution, return_index=True)
        self.samples = (rows * self.images.side + columns).flatten(1)
        at_samples = self.samples[:, None].expand(-1, 3, -1)
        pred, true = (v.flatten(2).gather(2, at_samples).mT for v in (self.pred, self.true))
        weight = (self.sampled / (self.radius + 1e-7)[:, None, None]).flatten(1)
        self.pred_samples = pred.requires_grad_(pred.is_floating_point())
        with torch.enable_grad():
            self.scale, self.shift = align_points_scale_xyz_shift(pred, true, weight, alignment.trunc)
        global_scale = None if alignment.global_scale is None else alignment.global_scale[self.instance]
        return ~self.enough | _scale_failed(self.scale.detach(), global_scale)

    def loss(self, beta: float, failed: Tensor, sparsity_aware: bool, share: float, gradient: Tensor | None) -> Tensor:
        """`share` of each patch's loss (M,); adds its gradient by the predicted points to `gradient`."""
        scale, shift = self.scale.detach()[:, None, None, None], self.shift.detach()[:, :, None, None]
        self.error = torch.where(self.member[:, None], torch.addcmul(shift, scale, self.pred) - self.true, 0)
        least_depth = self.images.least_depth[self.instance][:, None, None]
        weight = torch.where(self.member, 1 / self.true[:, 2].maximum(least_depth), 0)
        factor = torch.where(failed, 0, share / self.error[0].numel())
        if sparsity_aware:
            factor = factor / (_share(self.member) / _share(self.sampled) + 1e-7)
        weighted = self.error.abs().mul_(weight[:, None])
        loss = smooth_l1(weighted, beta).flatten(1).sum(-1) * factor
        if gradient is not None:
            slope = self.error.sign().mul_(weight[:, None])
            if beta > 0:
                slope.mul_((weighted / beta).clamp_(max=1))
            self._add_gradient(slope.mul_(factor[:, None, None, None]), gradient)
        return loss.masked_fill(failed, 0)

    def _add_gradient(self, slope: Tensor, gradient: Tensor) -> None:
        """Chain rule from the aligned points (M, 3, S, S) to the predicted ones, directly and through the alignment."""
        by_scale, by_shift = (slope * self.pred).flatten(1).sum(-1), slope.flatten(2).sum(-1)
        (by_samples,) = torch.autograd.grad(
            [self.scale, self.shift], [self.pred_samples], [by_scale, by_shift], allow_unused=True
        )
        slope = slope.mul_(self.scale.detach()[:, None, None, None]).flatten(2)
        slope.scatter_add_(2, self.samples[:, None].expand(-1, 3, -1), by_samples.mT)
        pixel = self.images.pixels(self.instance, self.anchor).flatten()
        for plane, part in zip(gradient, slope.unbind(1), strict=True):
            plane.scatter_add_(0, pixel, part.flatten())

    def pooled_errors(self, failed: Tensor) -> Tensor:
        """Per patch (M, 4): sums of truncated error, delta and valid pixels, and the number of all; 0 if it failed."""
        relative = self.error.square().sum(1).sqrt_().div_(self.radius[:, None, None])
        within = self.member & (relative < 1)
        sums = [v.flatten(1).sum(-1) for v in (relative.clamp_(max=1), within, self.member)]
        total = torch.full_like(self.radius, self.member[0].numel())
        return torch.stack([*sums, total], dim=1).masked_fill(failed[:, None], 0)


def _even_chunks(number: int, size: int) -> int:
    """Items per chunk, for chunks of nearly equal length that hold about `_CHUNK_PIXELS` pixels, `size` an item."""
    chunks = max(1, round(number * size / _CHUNK_PIXELS))
    return max(1, math.ceil(number / chunks))


def _scale_failed(scale: Tensor, global_scale: Tensor | None) -> Tensor:
    """Whether patches (M,) are dropped for their scale. NaN is not: it has to reach the loss."""
    if global_scale is None:
        return scale <= 0
    relative = scale / global_scale
    return (relative <= _MIN_RELATIVE_SCALE) | (relative >= _MAX_RELATIVE_SCALE) | (global_scale <= 0)


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
