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
- A point takes part where its weight is > 0. Whatever stands at other points (NaN included) has no influence and gets
  no gradient.
- A problem whose weights are all zero has scale 0 and shift 0. A value that is not finite under a positive weight makes
  the problem's result NaN, so that the caller sees it.
- Scales may be negative; the losses treat scales <= 0 as a failed alignment.
- The search runs in float64 without gradients. The result is recomputed from the points that determine it, in the dtype
  of the arguments; gradients flow through these points only.
- `method` names the search: "exhaustive" tries every anchor, except that large problems without truncation leave out
  those that a bound proves worse than another.
- `InputError` is raised for shapes that do not fit, a truncation that is not positive, or an unknown method.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

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

# Breakpoints that are swept at once, about 100 bytes each: what a CPU's cache holds, or 200 MB of an accelerator.
_CHUNK_BREAKPOINTS_CPU = 2**17
_CHUNK_BREAKPOINTS = 2**21
# Untruncated problems of this many points are large enough for ruling out anchors to pay.
_MIN_POINTS_TO_ELIMINATE = 256


def align(
    x: Tensor, y: Tensor, w: Tensor, trunc: float | None = None, *, method: str = "exhaustive"
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
    _check_arguments("x", x.shape, y.shape, w.shape, trunc, method)
    x, y, w, broken = _mask_unweighted(x, y, w)
    shape, size = w.shape[:-1], w.shape[-1]
    with torch.no_grad():
        flat_x, flat_y, flat_w = (v.detach().reshape(-1, size).double() for v in (x, y, w))
        index, _ = _best_element(flat_x, flat_y, flat_w, trunc, rounding=torch.result_type(x, y))
        index = index.reshape(shape)
    a = _ratio(_take(y, index), _take(x, index))
    residual = w * (a[..., None] * x - y).abs()
    loss = (residual if trunc is None else residual.clamp(max=trunc)).sum(-1)
    return a.masked_fill(broken, math.nan), loss.masked_fill(broken, math.nan), index


def align_depth_scale(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None = None, *, method: str = "exhaustive"
) -> Tensor:
    """Scale from depth to depth: minimises over a the objective with `a source - target`.

    Args:
        source, target, weight: (..., N).

    Returns:
        scale (...).
    """
    return align(source, target, weight, trunc, method=method)[0]


def align_depth_affine(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None = None, *, method: str = "exhaustive"
) -> tuple[Tensor, Tensor]:
    """Scale and shift from depth to depth: minimises the objective with `scale source + shift - target`.

    Args:
        source, target, weight: (..., N).

    Returns:
        scale (...), shift (...).
    """
    _check_arguments("source", source.shape, target.shape, weight.shape, trunc, method)
    scale, shift = _align_anchored(source[..., None], target[..., None], weight, trunc, anchored=(True,))
    return scale, shift[..., 0]


def align_points_scale(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None = None, *, method: str = "exhaustive"
) -> Tensor:
    """Scale from points to points about the origin.

    Args:
        source, target: (..., N, 3).
        weight: (..., N).

    Returns:
        scale (...).
    """
    _check_points(source, target, weight, trunc, method)
    weight = weight[..., None].expand(source.shape)
    return align(source.flatten(-2), target.flatten(-2), weight.flatten(-2), trunc)[0]


def align_points_scale_z_shift(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None = None, *, method: str = "exhaustive"
) -> tuple[Tensor, Tensor]:
    """Scale and z shift from points to points, the alignment of MoGe's global loss.

    Args:
        source, target: (..., N, 3).
        weight: (..., N).

    Returns:
        scale (...), shift (..., 3) with x and y zero.
    """
    _check_points(source, target, weight, trunc, method)
    return _align_anchored(source, target, weight, trunc, anchored=(False, False, True))


def align_points_scale_xyz_shift(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None = None, *, method: str = "exhaustive"
) -> tuple[Tensor, Tensor]:
    """Scale and shift from points to points, the alignment of MoGe's local loss. Shifts go through an anchor point.

    Args:
        source, target: (..., N, 3).
        weight: (..., N).

    Returns:
        scale (...), shift (..., 3).
    """
    _check_points(source, target, weight, trunc, method)
    return _align_anchored(source, target, weight, trunc, anchored=(True, True, True))


def align_points_z_shift(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None = None, *, method: str = "exhaustive"
) -> Tensor:
    """Shift along z from points to points at scale 1.

    Args:
        source, target: (..., N, 3).
        weight: (..., N).

    Returns:
        shift (..., 3) with x and y zero.
    """
    _check_points(source, target, weight, trunc, method)
    shift = align(torch.ones_like(weight), target[..., 2] - source[..., 2], weight, trunc)[0]
    return torch.stack([torch.zeros_like(shift), torch.zeros_like(shift), shift], dim=-1)


def align_points_xyz_shift(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None = None, *, method: str = "exhaustive"
) -> Tensor:
    """Shift from points to points at scale 1.

    Args:
        source, target: (..., N, 3).
        weight: (..., N).

    Returns:
        shift (..., 3).
    """
    _check_points(source, target, weight, trunc, method)
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
    _check_arguments("source", source.shape, target.shape, weight.shape, None, "exhaustive")
    x, y, w, broken = _mask_unweighted(source, target, weight)
    w = w / w.sum(-1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
    mean_x, mean_y = (w * x).sum(-1, keepdim=True), (w * y).sum(-1, keepdim=True)
    covariance = (w * (x - mean_x) * (y - mean_y)).sum(-1)
    a = _ratio(covariance, (w * (x - mean_x).square()).sum(-1))
    b = mean_y[..., 0] - a * mean_x[..., 0]
    return a.masked_fill(broken, math.nan), b.masked_fill(broken, math.nan)


def _align_anchored(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None, anchored: tuple[bool, ...]
) -> tuple[Tensor, Tensor]:
    """Scale (...) and shift (..., D) between points (..., N, D); the shift acts on the anchored coordinates."""
    source, target, weight, broken = _mask_unweighted(source, target, weight)
    shape = weight.shape[:-1]
    size, dims = source.shape[-2:]
    source, target, weight = source.reshape(-1, size, dims), target.reshape(-1, size, dims), weight.reshape(-1, size)
    moves = torch.tensor(anchored, device=source.device)
    anchor, element = _search_anchors(source.detach(), target.detach(), weight.detach(), trunc, moves)

    # The closed form, from the anchor and the one element whose residual vanishes besides the anchor's.
    problem = torch.arange(len(source), device=source.device)
    source_anchor, target_anchor = source[problem, anchor], target[problem, anchor]
    point, coordinate = element // dims, element % dims
    source_offset = torch.where(moves, source_anchor, 0)[problem, coordinate]
    target_offset = torch.where(moves, target_anchor, 0)[problem, coordinate]
    scale = _ratio(
        target[problem, point, coordinate] - target_offset, source[problem, point, coordinate] - source_offset
    )
    shift = torch.where(moves, target_anchor - scale[:, None] * source_anchor, 0)

    scale = scale.reshape(shape).masked_fill(broken, math.nan)
    shift = shift.reshape(*shape, dims).masked_fill(broken[..., None], math.nan)
    return scale, shift


@torch.no_grad()
def _search_anchors(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None, moves: Tensor
) -> tuple[Tensor, Tensor]:
    """Best anchor (B,) in 0..N-1 and, with it, best element (B,) in 0..N*D-1 of points (B, N, D).

    Every point of weight > 0 is tried, unless a bound proves another one better. A problem without such points keeps
    anchor 0 and element 0, both masked to 0.
    """
    source, target, weight = source.double(), target.double(), weight.double()
    _, size, dims = source.shape
    best = torch.full(weight.shape, math.inf, dtype=torch.float64, device=weight.device)
    element = torch.zeros(weight.shape, dtype=torch.long, device=weight.device)
    tried = weight > 0
    if trunc is None and size >= _MIN_POINTS_TO_ELIMINATE:
        for number, used in enumerate(tried.clone()):
            own = source[number, used], target[number, used], weight[number, used]
            tried[number, used] = _anchors_worth_trying(*own, moves)
    problems, anchors = tried.nonzero(as_tuple=True)
    rows = _rows_per_chunk(weight.device, 3 * size * dims)
    for problem, anchor in zip(torch.split(problems, rows), torch.split(anchors, rows), strict=True):
        x = source[problem] - torch.where(moves, source[problem, anchor], 0)[:, None]
        y = target[problem] - torch.where(moves, target[problem, anchor], 0)[:, None]
        # Masked points were zero and became minus the anchor: their weight keeps them out.
        w = weight[problem, :, None].expand(x.shape)
        index, objective = _best_element_of_chunk(x.flatten(1), y.flatten(1), w.flatten(1), trunc, torch.float64)
        best[problem, anchor] = objective
        element[problem, anchor] = index
    anchor = best.argmin(-1)
    return anchor, _take(element, anchor)


def _anchors_worth_trying(source: Tensor, target: Tensor, weight: Tensor, moves: Tensor) -> Tensor:
    """Mask (N,) of the anchors that can be best in an untruncated problem of points (N, D) of positive weight.

    Without truncation the objective of each anchor is convex in the scale: between scales where it is known, its
    tangents bound it from below. Sorting the residuals at one scale gives the objectives of all anchors there. Anchors
    whose bound exceeds the best known objective are out; the range of scales shrinks to where the others can be best.
    """
    unit = (target.std(0).norm() / source.std(0).norm()).nan_to_num(1, 1).clamp(min=1e-30)
    scales = unit * torch.linspace(-1.5, 1.5, 33, dtype=source.dtype, device=source.device).tan()
    value, slope = _objectives_of_anchors(scales, source, target, weight, moves)
    best = value.min()
    rounding = 1e-12 * value.max()
    # An anchor that may be best beyond the widest range has no bound: it is tried in any case.
    unbounded = (slope[0] > 0) | (slope[-1] < 0)
    for _ in range(8):
        possible = _lower_bounds(scales, value, slope) <= best * (1 + 1e-9) + rounding
        bounded = possible.any(0)
        if bounded.sum() <= 64:
            break
        intervals = possible.any(1).nonzero()
        low, high = scales[intervals.min()], scales[intervals.max() + 1]
        scales = low + (high - low) * torch.linspace(0, 1, 17, dtype=scales.dtype, device=scales.device)
        value, slope = _objectives_of_anchors(scales, source, target, weight, moves)
        best = torch.minimum(best, value.min())
    return bounded | unbounded


def _objectives_of_anchors(
    scales: Tensor, source: Tensor, target: Tensor, weight: Tensor, moves: Tensor
) -> tuple[Tensor, Tensor]:
    """Untruncated objective and its slope (K, N) at scales (K,), for every point (N, D) as the anchor."""
    value = slope = torch.zeros(len(scales), len(weight), dtype=source.dtype, device=source.device)
    for coordinate in range(source.shape[-1]):
        p = source[:, coordinate]
        residual = scales[:, None] * p - target[:, coordinate]
        if not moves[coordinate]:
            value = value + (weight * residual.abs()).sum(-1, keepdim=True)
            slope = slope + (weight * p * residual.sign()).sum(-1, keepdim=True)
            continue
        # Sums over the points whose residual is above the anchor's minus those below, from sums over the sorted order.
        order = _argsort(residual)
        above_minus_below = [
            torch.empty_like(residual).scatter_(-1, order, v.sum(-1, keepdim=True) - 2 * v.cumsum(-1) + v)
            for v in (weight[order], (weight * p)[order], (weight * residual).gather(-1, order))
        ]
        of_weight, of_source, of_residual = above_minus_below
        value = value + of_residual - residual * of_weight
        slope = slope + of_source - p * of_weight
    return value, slope


def _lower_bounds(scales: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """Least that convex functions (K, N), known at scales (K,), can be between neighbouring scales: (K - 1, N)."""
    left, right = slice(None, -1), slice(1, None)
    width = (scales[right] - scales[left])[:, None]
    # The least is at the end where the function rises inwards, or else not below the point where the tangents meet.
    meet = (value[right] - value[left] - slope[right] * width) / (slope[left] - slope[right])
    inside = value[left] + slope[left] * torch.minimum(meet.nan_to_num(0, 0, 0).clamp(min=0), width)
    return torch.where(slope[left] >= 0, value[left], torch.where(slope[right] <= 0, value[right], inside))


def _best_element(x: Tensor, y: Tensor, w: Tensor, trunc: float | None, rounding: torch.dtype) -> tuple[Tensor, Tensor]:
    """For rows (R, N) in float64: the element (R,) whose ratio y / x is the best scale, and the objective (R,) there.

    The scale is judged as `rounding` can represent it, which matters where residuals are steep (huge weights).
    """
    rows = _rows_per_chunk(x.device, 4 * x.shape[-1])
    chunks = zip(torch.split(x, rows), torch.split(y, rows), torch.split(w, rows), strict=True)
    found = [_best_element_of_chunk(*chunk, trunc, rounding) for chunk in chunks]
    return torch.cat([index for index, _ in found]), torch.cat([objective for _, objective in found])


def _rows_per_chunk(device: torch.device, breakpoints: int) -> int:
    return max(1, (_CHUNK_BREAKPOINTS_CPU if device.type == "cpu" else _CHUNK_BREAKPOINTS) // breakpoints)


def _best_element_of_chunk(
    x: Tensor, y: Tensor, w: Tensor, trunc: float | None, rounding: torch.dtype
) -> tuple[Tensor, Tensor]:
    slope = w * x.abs()
    ratio = y / x
    half_width = torch.zeros_like(slope) if trunc is None else trunc / slope
    moving = (slope > 0) & (ratio.abs() + half_width).isfinite()
    slope, ratio = torch.where(moving, slope, 0), torch.where(moving, ratio, 0)

    # Elements that no scale moves add a constant.
    constant = torch.where(moving, 0, w * y.abs())
    constant = (constant if trunc is None else constant.clamp(max=trunc)).sum(-1)

    if trunc is None:
        index, objective = _weighted_median(ratio, slope)
    else:
        scale = None if rounding == torch.float64 else ratio.to(rounding).double()
        index, objective = _truncated_sweep(ratio, slope, torch.where(moving, half_width, 0), moving, trunc, scale)
    stuck = ~moving.any(-1)
    return index.masked_fill(stuck, 0), torch.where(stuck, 0, objective) + constant


def _weighted_median(ratio: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Minimise `sum_i slope_i |a - ratio_i|` over a, for rows (R, N)."""
    order = _argsort(ratio)
    cumulative = slope.gather(-1, order).cumsum(-1)
    position = torch.searchsorted(cumulative, cumulative[:, -1:] / 2).clamp(max=ratio.shape[-1] - 1)
    index = order.gather(-1, position)
    objective = (slope * (ratio.gather(-1, index) - ratio).abs()).sum(-1)
    return index[:, 0], objective


def _truncated_sweep(
    ratio: Tensor, slope: Tensor, half_width: Tensor, moving: Tensor, trunc: float, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Minimise `sum_i min(trunc, slope_i |a - ratio_i|)` over the scales, the ratios if None, for rows (R, N).

    Each term is a notch: it leaves its plateau `trunc` at ratio - half_width, touches zero at the ratio and is back on
    the plateau at ratio + half_width. Sorted, the breakpoints give the sum's slope and value as running sums.
    """
    size = ratio.shape[-1]
    places = [ratio - half_width, ratio + half_width, ratio]
    bends = [-slope, -slope, 2 * slope]
    if scale is not None:  # no breakpoints, but places where the value is asked for
        places.append(scale)
        bends.append(torch.zeros_like(slope))
    place = torch.cat(places, -1)
    order = _argsort(place)
    breakpoints = place.gather(-1, order)
    bend = torch.cat(bends, -1).gather(-1, order)
    gap = breakpoints.diff(dim=-1)

    # Sums run from both plateaus towards a = 0. A ratio far from zero belongs to a tiny x, hence to a tiny slope, and a
    # sum that had passed the steep notches near zero would have lost it in the rounding.
    from_left = bend.cumsum(-1)[:, :-1]
    from_right = -_suffix_sum(bend[:, 1:])
    rise = torch.where(breakpoints[:, 1:] <= 0, from_left, from_right) * gap
    value = torch.zeros_like(breakpoints)
    value[:, 1:] = rise.cumsum(-1)
    right = breakpoints > 0
    value[:, :-1] = torch.where(right[:, :-1], -_suffix_sum(rise), value[:, :-1])
    value[:, -1].masked_fill_(right[:, -1], 0)

    value_at_scale = torch.empty_like(value).scatter_(-1, order, value)[:, -size:].masked_fill(~moving, math.inf)
    lowest, index = value_at_scale.min(-1)
    return index, lowest + trunc * moving.sum(-1, dtype=lowest.dtype)


def _argsort(v: Tensor) -> Tensor:
    # NumPy's vectorised sort takes a sixth of the time of torch's on a CPU.
    return torch.from_numpy(np.argsort(v.numpy(), axis=-1)) if v.device.type == "cpu" else v.argsort(-1)


def _suffix_sum(v: Tensor) -> Tensor:
    return v.flip(-1).cumsum(-1).flip(-1)


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


def _check_points(source: Tensor, target: Tensor, weight: Tensor, trunc: float | None, method: str) -> None:
    if source.dim() < 2 or source.shape[-1] != 3:
        raise InputError("source", "must be points (..., N, 3)", found=tuple(source.shape))
    if target.shape != source.shape:
        raise InputError("target", f"must have the shape of source, {tuple(source.shape)}", found=tuple(target.shape))
    _check_arguments("source", source.shape[:-1], target.shape[:-1], weight.shape, trunc, method)


def _check_arguments(
    name: str, source: torch.Size, target: torch.Size, weight: torch.Size, trunc: float | None, method: str
) -> None:
    if len(source) == 0:
        raise InputError(name, "must have at least the dimension of its N values", found=tuple(source))
    for what, shape in (("target", target), ("weight", weight)):
        if shape != source:
            raise InputError(what, f"must have shape {tuple(source)}, as {name}", found=tuple(shape))
    if trunc is not None and not (trunc > 0 and math.isfinite(trunc)):
        raise InputError("trunc", "must be positive and finite, or None for no truncation", found=trunc)
    if method != "exhaustive":
        raise InputError("method", 'must be "exhaustive", the only method', found=repr(method))
