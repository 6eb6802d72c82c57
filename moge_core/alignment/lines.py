"""Exact minimisation over the scale alone: rows of `sum_i min(trunc, w_i |a x_i - y_i|)`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moge_core.alignment.sorting import rows_per_chunk, sort_rows


def best_elements(x: Tensor, y: Tensor, w: Tensor, trunc: float | None, rounding: torch.dtype) -> tuple[Tensor, Tensor]:
    """For rows (R, N) in float64: the element (R,) whose ratio y / x is the best scale, and the objective (R,) there.

    The scale is judged as `rounding` can represent it, which matters where residuals are steep (huge weights).
    """
    rows = rows_per_chunk(x.device, 4 * x.shape[-1])
    chunks = zip(torch.split(x, rows), torch.split(y, rows), torch.split(w, rows), strict=True)
    found = [best_elements_of_chunk(*chunk, trunc, rounding) for chunk in chunks]
    return torch.cat([index for index, _ in found]), torch.cat([objective for _, objective in found])


def best_elements_of_chunk(
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
        index, objective = weighted_median(ratio, slope)
    else:
        scale = None if rounding == torch.float64 else ratio.to(rounding).double()
        index, objective = truncated_sweep(ratio, slope, torch.where(moving, half_width, 0), moving, trunc, scale)
    stuck = ~moving.any(-1)
    return index.masked_fill(stuck, 0), torch.where(stuck, 0, objective) + constant


def weighted_median(ratio: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Minimise `sum_i slope_i |a - ratio_i|` over a, for rows (R, N)."""
    _, order = sort_rows(ratio.clone())
    cumulative = slope.gather(-1, order).cumsum(-1)
    position = torch.searchsorted(cumulative, cumulative[:, -1:] / 2).clamp(max=ratio.shape[-1] - 1)
    index = order.gather(-1, position)
    objective = (slope * (ratio.gather(-1, index) - ratio).abs()).sum(-1)
    return index[:, 0], objective


def truncated_sweep(
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
    breakpoints, order = sort_rows(torch.cat(places, -1))
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


def _suffix_sum(v: Tensor) -> Tensor:
    return v.flip(-1).cumsum(-1).flip(-1)


def moving_part(anchors: Tensor, num_fixed: int, dim: int = -1) -> Tensor:
    """What anchors take from all points: themselves, but 0 in the fixed coordinates along `dim`; in place."""
    anchors.narrow(dim, 0, num_fixed).zero_()
    return anchors
