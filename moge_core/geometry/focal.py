"""Focal length and z-shift of an affine-invariant point map (MoGe, arXiv 2410.19115, section 3.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from moge_core.errors import InputError
from moge_core.geometry._backend import (
    Array,
    array_namespace,
    as_floating,
    cast_like,
    check_between,
    check_map,
    check_mask,
    is_on_host,
)
from moge_core.geometry.uv import normalized_view_plane_uv

# The published solver's settings; stopping where it stops matters, because a poor point map has a long flat valley.
_RELATIVE_TOLERANCE = 1e-3
_STEP_TOLERANCE = 1e-8
_GRADIENT_TOLERANCE = 1e-8
_FIRST_RADIUS = 100.0
_MAX_ITERATIONS = 40


def recover_focal_shift(
    points: Array, mask: Array | None = None, focal: Any = None, downsample_size: tuple[int, int] = (64, 64)
) -> tuple[Array, Array]:
    """Focal length f and shift t for which the points (x, y, z + t) project onto their own pixels.

    Minimises sum || f (x, y) / (z + t) - uv ||^2 over t by Levenberg-Marquardt from t = 0, with f in closed form for
    every t; uv is `normalized_view_plane_uv`. All maps are solved at once, on their own device. No gradient flows.

    Args:
        points: (..., H, W, 3), affine-invariant, OpenCV axes.
        mask: (..., H, W) boolean, pixels to use; points that are not finite or have z = 0 are never used.
        focal: number, array or tensor (...); keeps this focal length and seeks only the shift.
        downsample_size: (rows, columns) of the sampling: pixels floor(i H / rows), floor(j W / columns).

    Returns:
        focal: (...), relative to half the image diagonal.
        shift: (...), to be added to z. Where fewer than two points count, or all lie on the optical axis, the shift is
        0 and the focal length 1 or the given one.

    Raises:
        InputError: shapes or types that do not fit, or a focal length that is not positive.
    """
    xp = array_namespace(points=points, mask=mask)
    points = as_floating("points", points)
    check_map("points", points, channels=3)
    batch = tuple(points.shape[:-3])
    if mask is not None:
        check_mask(mask, tuple(points.shape[:-1]), "points")
    if min(downsample_size) < 1:
        raise InputError("downsample_size", "must be at least (1, 1)", found=tuple(downsample_size))
    if xp is np:
        focals, shifts = _recover(xp, points, mask, _given_focal(xp, focal, points, batch), downsample_size)
    else:
        with xp.no_grad():
            focals, shifts = _recover(xp, points, mask, _given_focal(xp, focal, points, batch), downsample_size)
    return focals.reshape(batch), shifts.reshape(batch)


def _given_focal(xp: Any, focal: Any, points: Any, batch: tuple[int, ...]) -> Any:
    """The given focal length as (B, 1) in double precision, or None."""
    if focal is None:
        return None
    check_between("focal", focal, math.inf)
    focal = _double(xp, np.asarray(focal) if xp is np else xp.as_tensor(focal, device=points.device))
    if tuple(focal.shape) not in ((), batch):
        raise InputError("focal", f"must be a number or have the shape {batch}", found=tuple(focal.shape))
    return xp.broadcast_to(focal, batch).reshape(-1, 1)


def _double(xp: Any, value: Any) -> Any:
    if xp is np:
        return value.astype(np.float64)
    return value.to(xp.float32 if value.device.type == "mps" else xp.float64)  # Apple's devices have no float64.


def _recover(xp: Any, points: Any, mask: Any, focal: Any, downsample_size: tuple[int, int]) -> tuple[Any, Any]:
    height, width = points.shape[-3:-1]
    rows = np.arange(downsample_size[0])[:, None] * height // downsample_size[0]
    columns = np.arange(downsample_size[1]) * width // downsample_size[1]
    grid = normalized_view_plane_uv(width, height)[rows, columns].reshape(-1, 2)
    if xp is not np:
        grid, rows, columns = (
            xp.from_numpy(value).to(points.device, non_blocking=True) for value in (grid, rows, columns)
        )
    samples = _double(xp, points[..., rows, columns, :]).reshape(-1, grid.shape[0], 3)
    counts = xp.isfinite(samples).all(-1) & (samples[..., 2] != 0)
    if mask is not None:
        counts = counts & mask[..., rows, columns].reshape(counts.shape)
    # Samples that do not count become points on the axis that land where they should: they add nothing to any sum.
    xy = xp.where(counts[..., None], samples[..., :2], 0)
    z = xp.where(counts, samples[..., 2], 1)
    uv = xp.where(counts[..., None], _double(xp, grid), 0)
    problem = _Problem(xp, xy, z, uv, counts, focal)

    with np.errstate(all="ignore"):
        focals, shifts = (cast_like(xp, values, points) for values in _levenberg_marquardt(problem))
    solved = (counts.sum(-1) >= 2) & xp.isfinite(focals) & xp.isfinite(shifts)
    fallback = xp.ones_like(focals) if focal is None else cast_like(xp, focal[:, 0], points)
    return xp.where(solved, focals, fallback), xp.where(solved, shifts, 0)


@dataclass
class _Problem:
    """B one-dimensional least-squares problems: residuals f xy / (z + t) - uv of N samples each."""

    xp: Any
    xy: Any  # (B, N, 2)
    z: Any  # (B, N)
    uv: Any  # (B, N, 2)
    counts: Any  # (B, N)
    focal: Any  # (B, 1) or None

    def at(self, shift: Any) -> _Evaluation:
        """Focal length, cost and derivatives at the shifts (B,)."""
        inverse = self.xp.where(self.counts, 1 / (self.z + shift[:, None]), 1)[..., None]
        projected = self.xy * inverse
        slope = -projected * inverse
        if self.focal is None:
            power = _sum(projected * projected)
            focal = _sum(projected * self.uv) / power
            # The focal length follows the shift, so its derivative belongs to the residual's.
            focal_slope = (_sum(slope * self.uv) - 2 * focal * _sum(projected * slope)) / power
        else:
            focal = self.focal[:, 0]
            focal_slope = 0 * focal
        residual = focal[:, None, None] * projected - self.uv
        jacobian = focal_slope[:, None, None] * projected + focal[:, None, None] * slope
        return _Evaluation(focal, _sum(residual**2), _sum(jacobian * residual), _sum(jacobian**2))


def _sum(values: Any) -> Any:
    return values.sum(-1).sum(-1)


@dataclass
class _Evaluation:
    focal: Any  # (B,) each
    cost: Any  # |r|^2
    gradient: Any  # J . r
    curvature: Any  # J . J

    def where(self, xp: Any, condition: Any, other: _Evaluation) -> _Evaluation:
        """This evaluation where `condition (B,)` holds and `other` elsewhere."""
        names = [field.name for field in fields(self)]
        return _Evaluation(*(xp.where(condition, getattr(self, name), getattr(other, name)) for name in names))


def _levenberg_marquardt(problem: _Problem) -> tuple[Any, Any]:
    """Focal lengths and shifts (B,), from shift 0 by More's trust region (MINPACK, 1978), here for one unknown.

    Steps are measured in units of `scale`, the largest |J| seen, so that the radius means the same for every problem.
    """
    xp = problem.xp
    shift = xp.zeros_like(problem.z[:, 0])
    now = problem.at(shift)
    scale, damping, radius = shift, shift, xp.full_like(shift, _FIRST_RADIUS)
    done = shift != 0
    for iteration in range(_MAX_ITERATIONS):
        done = done | ~(abs(now.gradient) > _GRADIENT_TOLERANCE * (now.curvature * now.cost) ** 0.5)
        if is_on_host(done) and bool(done.all()):
            break
        scale = xp.maximum(scale, now.curvature**0.5)
        gradient, curvature = now.gradient / scale, now.curvature / scale**2
        damping = _damping_within(xp, abs(gradient), curvature, radius, damping)
        step = -gradient / (curvature + damping)
        length = abs(step)
        if iteration == 0:
            radius = xp.minimum(radius, length)
        then = problem.at(shift + step / scale)

        # Relative decrease of the cost: what came, what the linear model promised, and the cost's slope along the step.
        is_sane = 0.01 * then.cost < now.cost
        came = xp.where(is_sane, 1 - then.cost / now.cost, -1)
        promised = (curvature + 2 * damping) * length**2 / now.cost
        slope = -(curvature + damping) * length**2 / now.cost
        ratio = came / promised

        is_accepted = (ratio >= 1e-4) & ~done
        shift = xp.where(is_accepted, shift + step / scale, shift)
        now = then.where(xp, is_accepted, now)

        is_poor = ~(ratio > 0.25)
        is_good = ~is_poor & ((damping == 0) | (ratio >= 0.75))
        shrink = xp.where(came >= 0, 0.5, 0.5 * slope / (slope + 0.5 * came))
        shrink = xp.where(is_sane & (shrink >= 0.1), shrink, 0.1)
        radius = xp.where(is_poor, shrink * xp.minimum(radius, 10 * length), xp.where(is_good, 2 * length, radius))
        damping = xp.where(is_poor, damping / shrink, xp.where(is_good, damping / 2, damping))

        done = done | ((abs(came) <= _RELATIVE_TOLERANCE) & (promised <= _RELATIVE_TOLERANCE) & (ratio <= 2))
        done = done | (radius <= _STEP_TOLERANCE * abs(shift) * scale)
    return now.focal, shift


def _damping_within(xp: Any, gradient: Any, curvature: Any, radius: Any, damping: Any) -> Any:
    """The least damping whose step, gradient / (curvature + damping), stays within the radius.

    A tenth of slack is allowed either way: a step that fits needs none, and the last damping is kept while it serves.
    """
    exact = gradient / radius - curvature
    is_kept = (damping > exact) & (gradient / (curvature + damping) >= 0.9 * radius)
    damping = xp.where(is_kept, damping, exact)
    return xp.where(gradient / curvature <= 1.1 * radius, 0, damping)
