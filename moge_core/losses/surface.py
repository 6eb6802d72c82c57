"""Losses of surface orientation: point-map normals (MoGe-1), point-map edges and normal maps (MoGe-2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from moge_core.accelerators import is_accelerator
from moge_core.losses.common import (
    LossAndMetrics,
    check_point_maps,
    in_full_precision,
    smooth_l1,
    with_gradient,
)
from moge_core.tensors import dot_of_planes, is_finite, length_of_planes, planes_of, zero_unless_

_HUBER_BETA = math.radians(3)
_RIGHT_ANGLE = math.radians(90)
_LEAST_SINE = 1e-12
# Pixels whose normals are compared at once on a CPU.
_BAND_PIXELS = 2**16


@in_full_precision
def normal_loss(points: Tensor, gt_points: Tensor) -> LossAndMetrics:
    """Angle between predicted and true normals at the corners of 2x2 blocks (MoGe-1 section 3, its normal loss).

    At each corner of a block the normal is the cross product of the edges to the two neighbouring corners. Angles below
    one degree count as one, so a perfect prediction does not quite reach 0, and those above 90 degrees as 90.

    Args:
        points: (B, H, W, 3) predicted, up to scale.
        gt_points: (B, H, W, 3), not finite where unknown.

    Returns:
        loss (B,): sum over the four corners of the mean over all blocks, divided by 4 max(H, W). No metrics.
    """
    check_point_maps(points, gt_points, "points")
    batch_size, height, width = points.shape[:3]
    share = 1 / (4 * max(height, width) * max((height - 1) * (width - 1), 1))
    with torch.no_grad():
        loss = points.new_zeros(batch_size)
        gradient = torch.zeros_like(points) if points.requires_grad else None
        # Bands of blocks, as wide as a CPU's cache; they share a row of pixels with the next one.
        step = max(height, 1) if is_accelerator(points.device) else max(1, _BAND_PIXELS // (batch_size * width))
        for first in range(0, height - 1, step):
            band = slice(first, first + step + 1)
            valid = is_finite(gt_points[:, band])
            predicted, true = _Edges(points[:, band], valid), _Edges(gt_points[:, band], valid)
            loss += _corner_losses(predicted, true, valid, share, needs_gradient=gradient is not None)
            if gradient is not None:
                gradient[:, band] += predicted.gradient()
    return with_gradient(points, loss, gradient), {}


def _corner_losses(predicted: _Edges, true: _Edges, valid: Tensor, share: float, *, needs_gradient: bool) -> Tensor:
    """`share` of the sum (B,) over all blocks and corners; adds the gradient to that of the predicted edges."""
    loss = predicted.down.new_zeros(len(valid))
    first, last = slice(None, -1), slice(1, None)
    for row, column, other_row, other_column in (
        (first, first, last, last),
        (first, last, last, first),
        (last, last, first, first),
        (last, first, first, last),
    ):
        # The edges of the block that meet in the corner. Truth and prediction are treated alike, so it does not matter
        # that some edges point away from their corner.
        down, across = (..., column), (..., row, slice(None))
        known = valid[:, row, column] & valid[:, other_row, column] & valid[:, row, other_column]
        normal = _cross(predicted.down[down], predicted.across[across])
        true_normal = _cross(true.down[down], true.across[across])
        term, slope = _angle_loss(normal, true_normal, known, math.radians(1), share)
        loss = loss + term
        if needs_gradient:
            predicted.by_down[down] += _cross(predicted.across[across], slope)
            predicted.by_across[across] += _cross(slope, predicted.down[down])
    return loss


@in_full_precision
def edge_loss(points: Tensor, gt_points: Tensor) -> LossAndMetrics:
    """Angle between the directions from pixels to their right and lower neighbours (MoGe-2 section 3).

    Angles are clamped to 0.1..90 degrees.

    Args:
        points: (B, H, W, 3) predicted, up to scale and shift.
        gt_points: (B, H, W, 3), not finite where unknown.

    Returns:
        loss (B,): mean over all horizontal plus mean over all vertical pairs, divided by 2 max(H, W). No metrics.
    """
    check_point_maps(points, gt_points, "points")
    with torch.no_grad():
        valid = is_finite(gt_points)
        height, width = valid.shape[1:]
        predicted, true = _Edges(points, valid), _Edges(gt_points, valid)
        loss = points.new_zeros(len(points))
        for name, known in (("across", valid[..., 1:] & valid[..., :-1]), ("down", valid[:, 1:] & valid[:, :-1])):
            share = 1 / (2 * max(height, width) * max(known[0].numel(), 1))
            edges = getattr(predicted, name), getattr(true, name)
            term, slope = _angle_loss(*edges, known, math.radians(0.1), share)
            loss += term
            if points.requires_grad:
                setattr(predicted, f"by_{name}", slope)
        gradient = predicted.gradient() if points.requires_grad else None
    return with_gradient(points, loss, gradient), {}


@in_full_precision
def normal_map_loss(pred_normal: Tensor, gt_normal: Tensor) -> LossAndMetrics:
    """Squared angle in radians between predicted and true normal maps (MoGe-2 section 3).

    Args:
        pred_normal: (B, H, W, 3), of any length.
        gt_normal: (B, H, W, 3), of any length, not finite where unknown.

    Returns:
        loss (B,): mean over all pixels, 0 where the truth is unknown. No metrics.
    """
    check_point_maps(pred_normal, gt_normal, "pred_normal")
    valid = is_finite(gt_normal)
    pred, true = (F.normalize(_known(normal, valid), dim=-1) for normal in (pred_normal, gt_normal))
    cosine = (pred * true).sum(-1)
    # Two sines, each exact for one way of losing unit length to rounding; the smaller is the truer.
    sine = torch.minimum(_length(true - pred * cosine[..., None]), _length(pred - true * cosine[..., None]))
    # A zero vector has no direction: a right angle, without the gradient of its normalisation, which would be huge.
    vanishing = (pred == 0).all(-1)
    angle = torch.where(vanishing, _RIGHT_ANGLE, torch.atan2(sine + 1e-8, torch.where(vanishing, 1, cosine)))
    return _mean_over_map(torch.where(valid, angle.square(), 0)), {}


class _Edges:
    """Directions from pixels to their right and lower neighbours, as planes, and the gradient of a loss by them.

    Directions have unit length, so that angles do not depend on the scale of the scene. An angle does not change along
    a direction, so its gradient does not either: the length is a constant.

    Attributes:
        across, by_across: (3, B, H, W - 1).
        down, by_down: (3, B, H - 1, W).
    """

    def __init__(self, points: Tensor, valid: Tensor) -> None:
        planes = planes_of(points, valid)
        self.across, self._across_length = _unit(planes.diff(dim=3))
        self.down, self._down_length = _unit(planes.diff(dim=2))
        self.by_across, self.by_down = torch.zeros_like(self.across), torch.zeros_like(self.down)

    def gradient(self) -> Tensor:
        """By the points, (B, H, W, 3)."""
        by_across, by_down = self.by_across / self._across_length, self.by_down / self._down_length
        gradient = F.pad(by_across, (1, 0)) - F.pad(by_across, (0, 1))
        gradient[:, :, 1:] += by_down
        gradient[:, :, :-1] -= by_down
        return gradient.movedim(0, -1).contiguous()


def _unit(v: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (3, ...) brought to unit length, and their length (...); the shortest stay shorter."""
    length = length_of_planes(v).clamp_(min=1e-18)
    return v / length, length


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """Cross product of vectors (3, ...)."""
    product = torch.empty_like(a)
    for axis in range(3):
        after, before = (axis + 1) % 3, (axis + 2) % 3
        torch.mul(a[after], b[before], out=product[axis]).addcmul_(a[before], b[after], value=-1)
    return product


def _angle_loss(a: Tensor, b: Tensor, known: Tensor, least: float, share: float) -> tuple[Tensor, Tensor]:
    """`share` of the sum of Huber losses of the angles between vectors (3, B, H, W), and its gradient by the first.

    Angles are clamped to `least` and a right angle, which is also the angle to a zero vector, without a gradient.

    Returns:
        loss (B,), gradient (3, B, H, W).
    """
    product = _cross(a, b)
    sine, cosine = length_of_planes(product), dot_of_planes(a, b)
    angle = torch.atan2(sine + _LEAST_SINE, cosine)
    loss = zero_unless_(smooth_l1(angle.clamp(least, _RIGHT_ANGLE), _HUBER_BETA), known)

    # The gradient of atan2(|a x b| + e, a . b) lies in the plane of a and b.
    moving = (known & (angle > least) & (angle < _RIGHT_ANGLE)).to(angle.dtype)
    huber = angle.div_(_HUBER_BETA).clamp_(max=1).mul_(share).mul_(moving)
    factor = huber.div_((sine + _LEAST_SINE).square_().addcmul_(cosine, cosine).clamp_(min=_LEAST_SINE**3))
    cosine_by_sine = cosine / sine.clamp(min=_LEAST_SINE**3)
    along_a = (factor * cosine_by_sine).mul_(dot_of_planes(b, b))
    along_b = cosine_by_sine.mul_(cosine).add_(sine).add_(_LEAST_SINE).mul_(factor)
    return loss.flatten(1).sum(-1) * share, (along_a * a).addcmul_(along_b, b, value=-1)


def _length(v: Tensor) -> Tensor:
    """Euclidean length (...) of vectors (..., 3), with gradient 0 at zero."""
    length: Tensor = torch.linalg.vector_norm(v, dim=-1)
    return length


def _known(v: Tensor, valid: Tensor) -> Tensor:
    """The map (B, H, W, 3) with zeros where the truth is unknown, so that nothing unknown enters the arithmetic."""
    return torch.where(valid[..., None], v, 0)


def _mean_over_map(v: Tensor) -> Tensor:
    """Mean (B,) over a map (B, h, w), 0 for one without pixels."""
    return v.sum((-2, -1)) / max(v.shape[-2] * v.shape[-1], 1)
