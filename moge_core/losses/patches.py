"""Loss of the affine-invariant point map over patches (MoGe-1 section 3.2 and its supplement)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from moge_core.accelerators import is_accelerator
from moge_core.alignment import align_points_scale_xyz_shift
from moge_core.errors import InputError
from moge_core.geometry import masked_nearest_resize
from moge_core.losses.anchors import draw_anchors
from moge_core.losses.common import (
    LossAndMetrics,
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

# A patch of fewer valid pixels says too little about its own scale and shift.
_MIN_PATCH_PIXELS = 32
# Local scales outside this range of the global one come from an alignment that went astray.
_MIN_RELATIVE_SCALE, _MAX_RELATIVE_SCALE = 0.1, 10.0
# Pixels of patches that are worked on at once: what a CPU's cache holds, or some hundred MB of an accelerator.
_CHUNK_PIXELS_CPU, _CHUNK_PIXELS = 2**16, 2**21


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
    method: str = "search",
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
        method: as in the global loss.

    Returns:
        loss (B,): sum over an instance's patches divided by their intended number; 0 where no patch is left.
        metrics: `truncated_error` (B,) and `delta` (B,), over the pixels of all patches that were kept, errors relative
            to the radius of the patch's ball; NaN where no patch is left.
    """
    check_point_maps(pred_points, gt_points, "pred_points")
    check_alignment_options(align_resolution, beta)
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
    anchors = anchors.to(gt_points.device, non_blocking=True)

    with torch.no_grad():
        images = _Images(pred_points, gt_points, radius_3d, radius_2d)
        patches = _sample_patches(images, anchors, align_resolution)
        pred_samples = patches.pred.requires_grad_(pred_points.requires_grad)
        with torch.enable_grad():
            aligned = align_points_scale_xyz_shift(pred_samples, patches.true, patches.weight, trunc, method=method)
        scale, shift = (v.detach() for v in aligned)
        kept = patches.enough & ~_scale_failed(
            scale, None if global_scale is None else global_scale.detach()[patches.instance]
        )
        factor = kept / (anchors.shape[1] * 3 * images.side**2)
        if sparsity_aware:
            factor = factor / (share_of_true(patches.member) / share_of_true(patches.weight > 0) + 1e-7)

        loss = pred_points.new_zeros(batch_size)
        pooled = pred_points.new_zeros(batch_size, 4)
        by_scale, by_shift = torch.zeros_like(scale), torch.zeros_like(shift)
        gradient = torch.zeros_like(images.pred).flatten(1) if pred_points.requires_grad else None
        for rows in _chunks(images, len(scale)):
            part = patches.part(rows)
            error = _Error(images, part, scale[rows], shift[rows])
            loss.index_add_(0, part.instance, error.loss(beta, factor[rows]).masked_fill_(~kept[rows], 0))
            pooled.index_add_(0, part.instance, error.pooled().masked_fill_(~kept[rows, None], 0))
            if gradient is not None:
                by_scale[rows], by_shift[rows] = error.add_gradient(beta, factor[rows], gradient)
        if gradient is not None:
            (by_samples,) = torch.autograd.grad(aligned, [pred_samples], [by_scale, by_shift])
            images.add(gradient, patches.sample_pixels, by_samples.movedim(-1, 0))
            gradient = images.unpadded(gradient)
    return with_gradient(pred_points, loss, gradient), _pooled_metrics(pooled)


class _Images:
    """The point maps of a batch as planes, padded so that every square around a pixel lies inside.

    Attributes:
        pred, true: (3, B, H + 2 r, W + 2 r), 0 and NaN outside; pred is 0 where the truth is unknown.
        radius: (B, H, W) reach of a patch around each pixel, NaN where the truth is unknown.
        least_depth: (B,) a tenth of the harmonic mean depth.
        margin: r, half the side of a square.
        side: 2 r + 1.
    """

    def __init__(self, pred: Tensor, true: Tensor, radius: Tensor, margin: int) -> None:
        valid = is_finite(true)
        size = 3, len(true), true.shape[1] + 2 * margin, true.shape[2] + 2 * margin
        self.pred, self.true = true.new_zeros(size), true.new_full(size, math.nan)
        inner = slice(margin, -margin)
        self.pred[..., inner, inner] = planes_of(pred, valid)
        self.true[..., inner, inner] = true.movedim(-1, 0)
        self.radius = torch.where(valid, radius, math.nan)  # nothing is within reach of an unknown pixel
        inverse_depth = 1 / (torch.where(valid, true[..., 2], 0) + 1e-7)
        self.least_depth = 0.1 / (masked_mean(inverse_depth, valid) + 1e-7)
        self.margin, self.side = margin, 2 * margin + 1

    def squares(self, planes: Tensor, instance: Tensor, anchor: Tensor) -> Tensor:
        """Copies (3, M, S, S) of the squares around anchors (M, 2)."""
        _, batch_size, height, width = planes.shape
        shape = (3, batch_size, height - self.side + 1, width - self.side + 1, self.side, self.side)
        plane = height * width
        every_square = planes.as_strided(shape, (batch_size * plane, plane, width, 1, width, 1))
        return every_square[:, instance, anchor[:, 0], anchor[:, 1]]

    def pixels(self, instance: Tensor, anchor: Tensor) -> Tensor:
        """Places (M, S, S) of the squares' pixels in a flat padded plane (B * H' * W')."""
        height, width = self.pred.shape[2:]
        offset = torch.arange(self.side, device=anchor.device)
        corner = (instance * height + anchor[:, 0]) * width + anchor[:, 1]
        return corner[:, None, None] + offset[:, None] * width + offset

    def add(self, gradient: Tensor, pixels: Tensor, values: Tensor) -> None:
        """Add values (3, M, ...) to a gradient (3, B * H' * W') at pixels (M, ...)."""
        for plane, value in zip(gradient, values, strict=True):
            plane.scatter_add_(0, pixels.flatten(), value.flatten())

    def unpadded(self, gradient: Tensor) -> Tensor:
        """The inner part (B, H, W, 3) of a gradient of padded planes."""
        inner = slice(self.margin, -self.margin)
        return gradient.view(self.pred.shape)[..., inner, inner].movedim(0, -1).contiguous()


@dataclass(frozen=True)
class _Patches:
    """M patches, and the N samples of each that its alignment uses.

    Attributes:
        instance: (M,) which instance a patch is of.
        anchor: (M, 2) row and column.
        radius: (M,) reach.
        enough: (M,) whether the patch has enough pixels.
        member: (M, S, S) bool, the square's pixels that belong to the patch.
        pred, true: (M, N, 3).
        weight: (M, N).
        sample_pixels: (M, N) places in a flat padded plane.
    """

    instance: Tensor
    anchor: Tensor
    radius: Tensor
    enough: Tensor
    member: Tensor
    pred: Tensor
    true: Tensor
    weight: Tensor
    sample_pixels: Tensor

    def part(self, rows: slice | Tensor) -> _Patches:
        """Some of the patches."""
        return _Patches(*(getattr(self, field.name)[rows] for field in fields(self)))


def _sample_patches(images: _Images, anchors: Tensor, resolution: int) -> _Patches:
    """Look at the patches of anchors (B, P, 2) and take their samples, at most resolution squared of each."""
    batch_size, num_patches = anchors.shape[:2]
    all_instances = torch.arange(batch_size, device=anchors.device)[:, None].expand(batch_size, num_patches).flatten()
    parts = []
    for rows in _chunks(images, len(all_instances)):
        instance, anchor = all_instances[rows], anchors.reshape(-1, 2)[rows]
        radius = images.radius[instance, anchor[:, 0], anchor[:, 1]]
        true = images.squares(images.true, instance, anchor)
        centre = true[:, :, images.margin, images.margin, None, None]
        member = length_of_planes(true - centre) <= radius[:, None, None]  # false where the truth is NaN
        sampled, (row, column) = masked_nearest_resize(mask=member, size=(resolution, resolution), return_index=True)
        at = (row * images.side + column).flatten(1)
        pixels = images.pixels(instance, anchor).flatten(1).gather(1, at)
        parts.append(
            _Patches(
                instance=instance,
                anchor=anchor,
                radius=radius,
                enough=member.flatten(1).sum(-1) >= _MIN_PATCH_PIXELS,
                member=member,
                pred=torch.stack([plane.flatten()[pixels] for plane in images.pred], -1),
                true=true.flatten(2).gather(2, at.expand(3, -1, -1)).movedim(0, -1),
                weight=(sampled / (radius + 1e-7)[:, None, None]).flatten(1),
                sample_pixels=pixels,
            )
        )
    patches = _Patches(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(_Patches)))
    if not is_accelerator(anchors.device):  # an accelerator would have to wait for the answer how many there are
        patches = patches.part(patches.enough.nonzero()[:, 0])
    return patches


class _Error:
    """Aligned predicted minus true points (3, M, S, S) of some patches, 0 where a pixel does not belong."""

    def __init__(self, images: _Images, patches: _Patches, scale: Tensor, shift: Tensor) -> None:
        self.images, self.patches, self.scale = images, patches, scale[:, None, None]
        true = images.squares(images.true, patches.instance, patches.anchor)
        self.pred = zero_unless_(images.squares(images.pred, patches.instance, patches.anchor), patches.member)
        error = torch.addcmul(shift.T[..., None, None], self.pred, self.scale).sub_(true)
        self.error = zero_unless_(error, patches.member)
        depth = true[2].maximum(images.least_depth[patches.instance][:, None, None])
        self.weight = zero_unless_(depth.reciprocal_(), patches.member)

    def loss(self, beta: float, factor: Tensor) -> Tensor:
        """Loss (M,) of each patch, a `factor` (M,) of the sum over its square."""
        return smooth_l1(self.error.abs().mul_(self.weight), beta).flatten(2).sum(-1).sum(0) * factor

    def pooled(self) -> Tensor:
        """Sums (M, 4) of truncated error, delta, pixels that belong, and all pixels."""
        relative = length_of_planes(self.error).div_(self.patches.radius[:, None, None])
        within = self.patches.member & (relative < 1)
        sums = [v.flatten(1).sum(-1) for v in (relative.clamp_(max=1), within, self.patches.member)]
        return torch.stack([*sums, torch.full_like(sums[0], self.images.side**2)], dim=1)

    def add_gradient(self, beta: float, factor: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Add the direct gradient by the predicted points; returns that by scale (M,) and shift (M, 3)."""
        slope = slope_of_smooth_l1(self.error, self.weight, beta).mul_(factor[:, None, None])
        by_shift = slope.flatten(2).sum(-1).T
        by_scale = (self.pred * slope).flatten(2).sum(-1).sum(0)
        pixels = self.images.pixels(self.patches.instance, self.patches.anchor)
        self.images.add(gradient, pixels, slope.mul_(self.scale))
        return by_scale, by_shift


def _pooled_metrics(pooled: Tensor) -> Metrics:
    """Metrics of instances from the sums (B, 4) over their patches; without patches 0 / 0, the NaN that says so."""
    truncated_error, delta, known, total = pooled.unbind(1)
    share = known / total + 1e-7
    return {"truncated_error": truncated_error / total / share, "delta": delta / total / share}


def _chunks(images: _Images, number: int) -> Iterator[slice]:
    """Slices of that many patches, of nearly equal length; one empty slice of none."""
    chunk_pixels = _CHUNK_PIXELS if is_accelerator(images.pred.device) else _CHUNK_PIXELS_CPU
    num_chunks = max(1, round(number * images.side**2 / chunk_pixels))
    length = max(1, math.ceil(number / num_chunks))
    return (slice(start, start + length) for start in range(0, max(number, 1), length))


def _scale_failed(scale: Tensor, global_scale: Tensor | None) -> Tensor:
    """Whether patches (M,) are dropped for their scale. NaN is not: it has to reach the loss."""
    if global_scale is None:
        return scale <= 0
    relative = scale / global_scale
    return (relative <= _MIN_RELATIVE_SCALE) | (relative >= _MAX_RELATIVE_SCALE) | (global_scale <= 0)


def _check_anchors(anchors: Tensor, batch_size: int, height: int, width: int) -> None:
    if anchors.dim() != 3 or anchors.shape[0] != batch_size or anchors.shape[2] != 2 or anchors.is_floating_point():
        found = f"{anchors.dtype} {tuple(anchors.shape)}"
        raise InputError("anchors", f"must be integers of shape ({batch_size}, P, 2)", found=found)
    if is_accelerator(anchors.device):
        return  # an accelerator would have to wait for the answer
    if ((anchors < 0) | (anchors >= torch.tensor([height, width]))).any():
        raise InputError("anchors", f"must be rows below {height} and columns below {width}, from 0")
