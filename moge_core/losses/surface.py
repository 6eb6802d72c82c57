"""Losses of surface orientation: point-map normals (MoGe-1), point-map edges and normal maps (MoGe-2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from moge_core.losses.common import LossAndMetrics, check_point_maps, in_full_precision, smooth_l1

_HUBER_BETA = math.radians(3)
_RIGHT_ANGLE = math.radians(90)


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
    valid = gt_points.isfinite().all(-1)
    angles = []
    for normals, true_normals, corner_valid in zip(
        _corner_normals(points, valid), _corner_normals(gt_points, valid), _corner_valid(valid), strict=True
    ):
        angle = _angle(normals, true_normals).clamp(math.radians(1), _RIGHT_ANGLE)
        angles.append(torch.where(corner_valid, smooth_l1(angle, _HUBER_BETA), 0))
    height, width = valid.shape[1:]
    loss = sum((_mean_over_map(angle) for angle in angles), points.new_zeros(len(points)))
    return loss / (4 * max(height, width)), {}


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
    valid = gt_points.isfinite().all(-1)
    height, width = valid.shape[1:]
    loss = points.new_zeros(len(points))
    for dim in (1, 2):
        pair_valid = valid.narrow(dim, 1, valid.shape[dim] - 1) & valid.narrow(dim, 0, valid.shape[dim] - 1)
        edge, true_edge = (_unit(_known(p, valid).diff(dim=dim)) for p in (points, gt_points))
        angle = _angle(edge, true_edge).clamp(math.radians(0.1), _RIGHT_ANGLE)
        loss = loss + _mean_over_map(torch.where(pair_valid, smooth_l1(angle, _HUBER_BETA), 0))
    return loss / (2 * max(height, width)), {}


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
    valid = gt_normal.isfinite().all(-1)
    pred, true = (F.normalize(_known(normal, valid), dim=-1) for normal in (pred_normal, gt_normal))
    cosine = (pred * true).sum(-1)
    # Two sines, each exact for one way of losing unit length to rounding; the smaller is the truer.
    sine = torch.minimum(_length(true - pred * cosine[..., None]), _length(pred - true * cosine[..., None]))
    # A zero vector has no direction: a right angle, without the gradient of its normalisation, which would be huge.
    vanishing = (pred == 0).all(-1)
    angle = torch.where(vanishing, _RIGHT_ANGLE, torch.atan2(sine + 1e-8, torch.where(vanishing, 1, cosine)))
    return _mean_over_map(torch.where(valid, angle.square(), 0)), {}


def _corner_normals(points: Tensor, valid: Tensor) -> list[Tensor]:
    """Normals (B, H-1, W-1, 3) at the top left, top right, bottom right and bottom left corner of each 2x2 block."""
    points = _known(points, valid)
    rightwards, downwards = _unit(points.diff(dim=2)), _unit(points.diff(dim=1))
    top, bottom = rightwards[:, :-1], rightwards[:, 1:]
    left, right = downwards[:, :, :-1], downwards[:, :, 1:]
    # Truth and prediction are treated alike, so it does not matter that some edges point away from their corner.
    return [
        torch.linalg.cross(left, top),
        torch.linalg.cross(right, top),
        torch.linalg.cross(right, bottom),
        torch.linalg.cross(left, bottom),
    ]


def _corner_valid(valid: Tensor) -> list[Tensor]:
    """Where a corner and its two neighbours are valid, (B, H-1, W-1) each, in the order of `_corner_normals`."""
    top_left, top_right = valid[:, :-1, :-1], valid[:, :-1, 1:]
    bottom_left, bottom_right = valid[:, 1:, :-1], valid[:, 1:, 1:]
    return [
        top_left & top_right & bottom_left,
        top_right & top_left & bottom_right,
        bottom_right & bottom_left & top_right,
        bottom_left & top_left & bottom_right,
    ]


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle (...) in radians between vectors (..., 3); a right angle, without gradient, where one of them is zero."""
    sine = _length(torch.linalg.cross(a, b)) + 1e-12
    cosine = (a * b).sum(-1)
    vanishing = (a == 0).all(-1) | (b == 0).all(-1)
    return torch.where(vanishing, _RIGHT_ANGLE, torch.atan2(sine, torch.where(vanishing, 1, cosine)))


def _unit(v: Tensor) -> Tensor:
    """Vectors (..., 3) brought to unit length, so that angles do not depend on the scale of the scene.

    The length is taken as a constant: an angle does not change along the vector, so its gradient is the same. Vectors
    too short to have a direction in float32 become zero.
    """
    length = _length(v.detach())[..., None]
    short = length < 1e-18
    return torch.where(short, 0, v / torch.where(short, 1, length))


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
