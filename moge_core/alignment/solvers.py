"""Optimal scale and shift between point maps or depth maps.

A prediction that is right up to an affine transform is compared with the truth after the best such transform, best in
the weighted, optionally truncated L1 sense of MoGe-1 (arXiv 2410.19115, section 3 and its supplement). Per coordinate:

    min over scale a and shift t of  sum_i min(trunc, w_i |a p_i + t - q_i|)

The truncated problem is not convex, yet it can be solved exactly. With the shift fixed, the objective is a piecewise
linear function of the scale that is concave between the zeros of its residuals, so one of these zeros is optimal:
`align` sorts the breakpoints and sweeps over them. Shifts are found by trying every point as an anchor, which fixes the
shift such that the anchor's own residual vanishes and leaves a scale problem.

Conventions of every solver here:
- Arguments are `(source, target, weight, trunc=None)`, batch dimensions first and any number of them.
- Weights may have any shape that broadcasts to that of the values: (N,) or (1, N) where these are (B, N).
- A point takes part where its weight is > 0. Whatever stands at other points (NaN included) has no influence and gets
  no gradient.
- A problem whose weights are all zero has scale 0 and shift 0. A value that is not finite under a positive weight makes
  the problem's result NaN, so that the caller sees it.
- Scales may be negative; the losses treat scales <= 0 as a failed alignment.
- The search runs in float64 without gradients. The result is recomputed from the points that determine it, in the dtype
  of the arguments; gradients flow through these points only.
- `method` names the search of anchors: "exhaustive" tries every one, in time that grows with the square of their
  number; "search" (default) looks over scales instead and misses the optimum by more than 0.1 % in less than one
  problem of a thousand (docs/benchmarks.md). Solvers without a choice of anchor are exact with either.
- `InputError` is raised for shapes that do not fit, a truncation that is not positive, or an unknown method.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moge_core.alignment.exhaustive import search_anchors_exhaustively
from moge_core.alignment.lines import best_elements
from moge_core.alignment.search import search_anchors
from moge_core.errors import InputError

__all__ = [
    "align",
    "align_affine_lstsq",
    "align_depth_affine",
    "align_depth_scale",
    "align_points_scale",
    "align_points_scale_xyz_shift",
    "align_points_scale_z_shift",
    "align_points_xyz_shift",
    "align_points_z_shift",
]

METHODS = ("search", "exhaustive")


def align(
    x: Tensor, y: Tensor, w: Tensor, trunc: float | None = None, *, method: str = "search"
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale that minimises `sum_i min(trunc, w_i |a x_i - y_i|)`.

    Args:
        x: (..., N) source values.
        y: (..., N) target values.
        w: (..., N) weights.
        trunc: bound on each weighted residual; None for none, which makes the solution a weighted median.

    Returns:
        a (...): the scale, `y / x` at the chosen element; 0 where no element of positive weight has x != 0.
        loss (...): the objective at that scale, elements with x = 0 included.
        index (...): the chosen element; 0 where there is none.
    """
    w = _checked_weight("x", x.shape, y.shape, w, trunc, method)
    x, y, w, broken = _mask_unweighted(x, y, w)
    shape, size = w.shape[:-1], w.shape[-1]
    with torch.no_grad():
        flat_x, flat_y, flat_w = (v.detach().reshape(-1, size).double() for v in (x, y, w))
        index, _ = best_elements(flat_x, flat_y, flat_w, trunc, rounding=torch.result_type(x, y))
        index = index.reshape(shape)
    a = _ratio(_take(y, index), _take(x, index))
    residual = w * (a[..., None] * x - y).abs()
    loss = (residual if trunc is None else residual.clamp(max=trunc)).sum(-1)
    return a.masked_fill(broken, math.nan), loss.masked_fill(broken, math.nan), index


def align_depth_scale(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None = None, *, method: str = "search"
) -> Tensor:
    """Scale from depth to depth: minimises over a the objective with `a source - target`.

    Args:
        source, target, weight: (..., N).

    Returns:
        scale (...).
    """
    return align(source, target, weight, trunc, method=method)[0]


def align_depth_affine(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None = None, *, method: str = "search"
) -> tuple[Tensor, Tensor]:
    """Scale and shift from depth to depth: minimises the objective with `scale source + shift - target`.

    Args:
        source, target, weight: (..., N).

    Returns:
        scale (...), shift (...).
    """
    weight = _checked_weight("source", source.shape, target.shape, weight, trunc, method)
    scale, shift = _align_anchored(source[..., None], target[..., None], weight, trunc, num_fixed=0, method=method)
    return scale, shift[..., 0]


def align_points_scale(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None = None, *, method: str = "search"
) -> Tensor:
    """Scale from points to points about the origin.

    Args:
        source, target: (..., N, 3).
        weight: (..., N).

    Returns:
        scale (...).
    """
    weight = _checked_points(source, target, weight, trunc, method)
    weight = weight[..., None].expand(source.shape)
    return align(source.flatten(-2), target.flatten(-2), weight.flatten(-2), trunc)[0]


def align_points_scale_z_shift(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None = None, *, method: str = "search"
) -> tuple[Tensor, Tensor]:
    """Scale and z shift from points to points, the alignment of MoGe's global loss.

    Args:
        source, target: (..., N, 3).
        weight: (..., N).

    Returns:
        scale (...), shift (..., 3) with x and y zero.
    """
    weight = _checked_points(source, target, weight, trunc, method)
    return _align_anchored(source, target, weight, trunc, num_fixed=2, method=method)


def align_points_scale_xyz_shift(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None = None, *, method: str = "search"
) -> tuple[Tensor, Tensor]:
    """Scale and shift from points to points, the alignment of MoGe's local loss. Shifts go through an anchor point.

    Args:
        source, target: (..., N, 3).
        weight: (..., N).

    Returns:
        scale (...), shift (..., 3).
    """
    weight = _checked_points(source, target, weight, trunc, method)
    return _align_anchored(source, target, weight, trunc, num_fixed=0, method=method)


def align_points_z_shift(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None = None, *, method: str = "search"
) -> Tensor:
    """Shift along z from points to points at scale 1.

    Args:
        source, target: (..., N, 3).
        weight: (..., N).

    Returns:
        shift (..., 3) with x and y zero.
    """
    weight = _checked_points(source, target, weight, trunc, method)
    shift = align(torch.ones_like(weight), target[..., 2] - source[..., 2], weight, trunc)[0]
    return torch.stack([torch.zeros_like(shift), torch.zeros_like(shift), shift], dim=-1)


def align_points_xyz_shift(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None = None, *, method: str = "search"
) -> Tensor:
    """Shift from points to points at scale 1.

    Args:
        source, target: (..., N, 3).
        weight: (..., N).

    Returns:
        shift (..., 3).
    """
    weight = _checked_points(source, target, weight, trunc, method)
    difference = (target - source).transpose(-1, -2)
    weight = weight[..., None, :].expand(difference.shape)
    return align(torch.ones_like(difference), difference, weight, trunc)[0]


def align_affine_lstsq(source: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weighted least squares: minimises `sum_i w_i (a x_i + b - y_i)^2`.

    Args:
        source: (..., N) x.
        target: (..., N) y.
        weight: (..., N); None for equal weights.

    Returns:
        a (...), b (...). A source without spread leaves the slope open: a is then 0 and b the mean of the target.
    """
    if weight is None:
        weight = torch.ones_like(source)
    weight = _checked_weight("source", source.shape, target.shape, weight, None, "search")
    x, y, w, broken = _mask_unweighted(source, target, weight)
    w = w / w.sum(-1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
    mean_x, mean_y = (w * x).sum(-1, keepdim=True), (w * y).sum(-1, keepdim=True)
    covariance = (w * (x - mean_x) * (y - mean_y)).sum(-1)
    a = _ratio(covariance, (w * (x - mean_x).square()).sum(-1))
    b = mean_y[..., 0] - a * mean_x[..., 0]
    return a.masked_fill(broken, math.nan), b.masked_fill(broken, math.nan)


def _align_anchored(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None, num_fixed: int, method: str
) -> tuple[Tensor, Tensor]:
    """Scale (...) and shift (..., D) between points (..., N, D); the shift leaves the first coordinates as they are."""
    source, target, weight, broken = _mask_unweighted(source, target, weight)
    shape = weight.shape[:-1]
    size, dims = source.shape[-2:]
    source, target, weight = source.reshape(-1, size, dims), target.reshape(-1, size, dims), weight.reshape(-1, size)
    search = search_anchors_exhaustively if method == "exhaustive" else search_anchors
    anchor, element = search(source.detach(), target.detach(), weight.detach(), trunc, num_fixed)

    # The closed form, from the anchor and the one element whose residual vanishes besides the anchor's.
    problem = torch.arange(len(source), device=source.device)
    fixed, moving = source.new_zeros(len(source), num_fixed), slice(num_fixed, None)
    source_anchor, target_anchor = (torch.cat([fixed, v[problem, anchor, moving]], -1) for v in (source, target))
    point, coordinate = element // dims, element % dims
    scale = _ratio(
        target[problem, point, coordinate] - target_anchor[problem, coordinate],
        source[problem, point, coordinate] - source_anchor[problem, coordinate],
    )
    shift = target_anchor - scale[:, None] * source_anchor

    scale = scale.reshape(shape).masked_fill(broken, math.nan)
    shift = shift.reshape(*shape, dims).masked_fill(broken[..., None], math.nan)
    return scale, shift


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 with zero gradient where the denominator is 0."""
    usable = denominator != 0
    return torch.where(usable, numerator / torch.where(usable, denominator, 1), 0)


def _take(v: Tensor, index: Tensor) -> Tensor:
    """v (..., N) at index (...)."""
    return v.gather(-1, index[..., None])[..., 0]


def _mask_unweighted(source: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Zero the points (..., N[, D]) without weight; tell the problems (...) with a non-finite weighted value."""
    if weight.shape[-1] == 0:  # no point is like one point without weight
        dims = source.shape[weight.dim() :]
        source, target = (v.new_zeros((*weight.shape[:-1], 1, *dims)) for v in (source, target))
        weight = weight.new_zeros((*weight.shape[:-1], 1))
    used = weight > 0
    with torch.no_grad():
        finite = source.isfinite() & target.isfinite()
        if finite.dim() > weight.dim():
            finite = finite.all(-1)
        broken = (used & ~finite) | ~weight.isfinite()
    # A broken problem's result is NaN anyway; its search must still run on numbers.
    used = used & ~broken
    each = used if source.dim() == weight.dim() else used[..., None]
    source, target = torch.where(each, source, 0), torch.where(each, target, 0)
    return source, target, torch.where(used, weight, 0), broken.any(-1)


def _checked_points(source: Tensor, target: Tensor, weight: Tensor, trunc: float | None, method: str) -> Tensor:
    """The weight (..., N) of each of the points (..., N, 3)."""
    if source.dim() < 2 or source.shape[-1] != 3:
        raise InputError("source", "must be points (..., N, 3)", found=tuple(source.shape))
    if target.shape != source.shape:
        raise InputError("target", f"must have the shape of source, {tuple(source.shape)}", found=tuple(target.shape))
    return _checked_weight("source", source.shape[:-1], target.shape[:-1], weight, trunc, method)


def _checked_weight(
    name: str, source: torch.Size, target: torch.Size, weight: Tensor, trunc: float | None, method: str
) -> Tensor:
    """The weight of each value, in the shape of the source; what fits it by broadcasting is expanded, not copied."""
    if len(source) == 0:
        raise InputError(name, "must have at least the dimension of its N values", found=tuple(source))
    if target != source:
        raise InputError("target", f"must have shape {tuple(source)}, as {name}", found=tuple(target))
    if trunc is not None and not (trunc > 0 and math.isfinite(trunc)):
        raise InputError("trunc", "must be positive and finite, or None for no truncation", found=trunc)
    if method not in METHODS:
        raise InputError("method", f"must be one of {', '.join(METHODS)}", found=repr(method))
    try:
        return weight.expand(source)
    except RuntimeError:
        rule = f"must have shape {tuple(source)}, as {name}, or one that broadcasts to it"
        raise InputError("weight", rule, found=tuple(weight.shape)) from None
