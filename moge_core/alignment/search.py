"""The fast search: looks over scales, not over anchors.

At one scale all residuals are known, and one sort of their breakpoints gives the objective with every point as the
anchor at once. So the search

1. takes scales at quantiles of the ratios of random pairs of points, which crowd where the scale is,
2. looks at the objectives of all anchors there, and at further scales around the best local minima,
3. refines the scale of the most promising anchors, each for itself,
4. solves the best few exactly along their scale, looks at all anchors at the scales found, and does so once more.

Problems of fewer points skip steps: looking at all pairs of points is then cheaper than sorting, and solving more
lines cheaper than refining; for the fewest, every anchor is solved exactly. No step waits for a device's values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moge_core.accelerators import is_accelerator
from moge_core.alignment.lines import moving_part, weighted_median
from moge_core.alignment.sorting import Scratch, rows_per_chunk, sort_rows
from moge_core.tensors import zero_unless_

# Up to this many points every anchor is solved exactly; up to that many, pairs are looked at.
_MAX_POINTS_FOR_ALL_LINES, _MAX_POINTS_FOR_PAIRS = 25, 80
# Up to this many points the search is short: (up to, scales, lines solved).
_SHORT_SEARCHES = ((64, 32, 12), (150, 48, 16))
# Scales of step 1, and ratios that they are quantiles of.
_NUM_SCALES, _RATIOS_PER_SCALE = 64, 6
# Local minima of step 2, and further scales around each.
_NUM_MINIMA, _SCALES_PER_MINIMUM = 3, 4
# Anchors of step 3, and further scales for each.
_NUM_ANCHORS, _SCALES_PER_ANCHOR = 32, 8
# Lines of step 4 that are solved before the second look, and again after it.
_NUM_LINES = 8

# Share of the truncated bound above which a search is not trusted, and the size above which chance matters little.
_HOPELESS, _MAX_POINTS_FOR_ANOTHER_TRY = 0.5, 600

# Objectives that are held at once, in numbers.
_MAX_OBJECTIVES = 2**22
# Pairs of points are looked at in chunks this much larger than usual: nothing is sorted, and a step is one pass.
_PAIR_CHUNKS = 8

# Values this far from the typical ones, or scales this far from their ratio, can only be outliers. Bounding them keeps
# running sums over steep and flat elements exact enough in float64.
_MAX_VALUE, _MAX_SCALE = 1e6, 1e8


# Anchor, element and objective (B,).
_Found = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class _Problems:
    """B problems of N points in D coordinates, in float64; what has no weight is 0.

    Elements are numbered coordinate by coordinate: element c * N + i is coordinate c of point i.
    """

    source: Tensor  # (B, D, N)
    target: Tensor  # (B, D, N)
    weight: Tensor  # (B, N)
    max_scale: Tensor  # (B, 1)
    num_fixed: int  # leading coordinates that the shift does not act on
    trunc: float | None
    scratch: Scratch

    @property
    def used(self) -> Tensor:
        """(B, N)."""
        return self.weight > 0

    @property
    def used_first(self) -> Tensor:
        """Indices (B, N) of the points, the used ones first."""
        return self.used.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)

    def part(self, rows: slice | Tensor) -> _Problems:
        """Some of the problems."""
        return replace(
            self,
            source=self.source[rows],
            target=self.target[rows],
            weight=self.weight[rows],
            max_scale=self.max_scale[rows],
        )

    def truncate(self, residual: Tensor) -> Tensor:
        """The terms of the objective, of weighted residuals; in place."""
        residual.abs_()
        return residual if self.trunc is None else residual.clamp_(max=self.trunc)

    def lines(self, anchors: Tensor, num_numbers: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, slice]]:
        """The problems along the lines that anchors (B, L) leave, flat and in chunks of R.

        Yields x, y (R, D, N), weight (R, 1, N), max_scale (R, 1) and the chunk's rows among B * L. `num_numbers` is
        what a row takes in the largest intermediate tensor.
        """
        problem = torch.arange(len(anchors), device=anchors.device)[:, None].expand(anchors.shape).flatten()
        anchor = anchors.flatten()
        count = rows_per_chunk(anchors.device, num_numbers)
        for first in range(0, len(anchor), count):
            rows = slice(first, first + count)
            own = problem[rows]
            x, y = (
                v.index_select(0, own).sub_(moving_part(v[own, :, anchor[rows]], self.num_fixed, dim=1)[..., None])
                for v in (self.source, self.target)
            )
            yield x, y, self.weight.index_select(0, own)[:, None], self.max_scale[own], rows


@torch.no_grad()
def search_anchors(
    source: Tensor, target: Tensor, weight: Tensor, trunc: float | None, num_fixed: int
) -> tuple[Tensor, Tensor]:
    """A good anchor (B,) in 0..N-1 and, with it, the best element (B,) in 0..N*D-1 of points (B, N, D).

    A problem without a point of weight > 0 has an arbitrary anchor and element, all masked to 0.
    """
    source, target = (v.double().mT.contiguous() for v in (source, target))
    problems = _bounded(source, target, weight.double(), trunc, num_fixed)
    num_problems, size = weight.shape
    search = _search
    if size <= _MAX_POINTS_FOR_ALL_LINES:
        search = _try_all
    elif size <= _SHORT_SEARCHES[-1][0]:
        search = _search_shortly
    count = max(1, _MAX_OBJECTIVES // (size * _NUM_SCALES))
    parts = (problems.part(slice(first, first + count)) for first in range(0, num_problems, count))
    found = [_with_another_try(part, *search(part)) for part in parts]
    none = torch.zeros(2, 0, dtype=torch.long, device=weight.device)
    anchor, element = torch.cat([none, *found], -1)
    return anchor, element % size * source.shape[1] + element // size


def _with_another_try(problems: _Problems, anchor: Tensor, element: Tensor, objective: Tensor) -> Tensor:
    """Anchor and element (2, B), found by trying all where a search left most truncated.

    Then the best is a chance meeting of a few residuals, which no grid of scales leads to. Only on a CPU: an
    accelerator would have to wait for the answer which problems these are.
    """
    dims, size = problems.source.shape[1:]
    if problems.trunc is not None and size <= _MAX_POINTS_FOR_ANOTHER_TRY and not is_accelerator(anchor.device):
        hopeless = (objective > _HOPELESS * problems.trunc * dims * problems.used.sum(-1)).nonzero()[:, 0]
        if len(hopeless) > 0:
            anchor[hopeless], element[hopeless], _ = _try_all(problems.part(hopeless))
    return torch.stack([anchor, element])


def _try_all(problems: _Problems) -> _Found:
    num_problems, size = problems.weight.shape
    anchors = torch.arange(size, device=problems.weight.device).expand(num_problems, size)
    return _best(anchors, *_solve_lines(problems, anchors))


def _search_shortly(problems: _Problems) -> _Found:
    size = problems.weight.shape[1]
    num_scales, num_lines = next(setting for limit, *setting in _SHORT_SEARCHES if size <= limit)
    scales = _initial_scales(problems, num_scales)
    look = _objectives_by_pairs if size <= _MAX_POINTS_FOR_PAIRS else _objectives_of_all_anchors
    objectives = look(problems, scales)
    anchors = objectives.amin(1).topk(num_lines, largest=False).indices
    return _best(anchors, *_solve_lines(problems, anchors))


def _search(problems: _Problems) -> _Found:
    scales = _initial_scales(problems, _NUM_SCALES)
    objectives = _objectives_of_all_anchors(problems, scales)

    more = _scales_around_minima(scales, objectives.amin(-1))
    scales, order = torch.cat([scales, more], -1).sort(-1)
    objectives = torch.cat([objectives, _objectives_of_all_anchors(problems, more)], 1)
    objectives = objectives.gather(1, order[..., None].expand_as(objectives))

    anchors = _promising_anchors(problems, scales, objectives)
    first = _solve_lines(problems, anchors)
    more_anchors = _objectives_of_all_anchors(problems, first[0]).argmin(-1)
    second = _solve_lines(problems, more_anchors)
    both = (torch.cat(pair, -1) for pair in zip(first, second, strict=True))
    return _best(torch.cat([anchors, more_anchors], -1), *both)


def _best(anchors: Tensor, _: Tensor, element: Tensor, objective: Tensor) -> _Found:
    """The line of the least objective, of lines (B, L)."""
    best = objective.argmin(-1, keepdim=True)
    return anchors.gather(-1, best)[:, 0], element.gather(-1, best)[:, 0], objective.gather(-1, best)[:, 0]


# Step 1.


def _bounded(source: Tensor, target: Tensor, weight: Tensor, trunc: float | None, num_fixed: int) -> _Problems:
    source_unit, target_unit = _typical_magnitude(source), _typical_magnitude(target)
    source, target = (
        v.clamp(-_MAX_VALUE * unit[..., None], _MAX_VALUE * unit[..., None])
        for v, unit in ((source, source_unit), (target, target_unit))
    )
    return _Problems(source, target, weight, _MAX_SCALE * target_unit / source_unit, num_fixed, trunc, Scratch())


def _typical_magnitude(values: Tensor) -> Tensor:
    """Median (B, 1) of the magnitudes other than 0 of values (B, D, N); 1 where all are 0."""
    ascending, _ = sort_rows(values.abs().flatten(1))
    count = (ascending > 0).sum(-1, keepdim=True)
    middle = ascending.gather(-1, (ascending.shape[-1] - 1 - count // 2).clamp(min=0))
    return torch.where(count > 0, middle, 1)


def _initial_scales(problems: _Problems, number: int) -> Tensor:
    """Ascending scales (B, K) at quantiles of the ratios of pairs of points, by number and by weight alike."""
    device = problems.weight.device
    used_first, count = problems.used_first, problems.used.sum(-1, keepdim=True)
    # A sequence that fills the square evenly (Roberts 2018, from the plastic number) instead of random numbers.
    num_pairs = number * _RATIOS_PER_SCALE // problems.source.shape[1]
    pair = torch.arange(1, num_pairs + 1, device=device, dtype=torch.float64)
    anchor = (pair * 0.7548776662466927 % 1 * count).long()
    point = (anchor + 1 + (pair * 0.5698402909980532 % 1 * (count - 1)).long()) % count.clamp(min=1)
    anchor, point = used_first.gather(-1, anchor), used_first.gather(-1, point)

    x, y = (
        _points_at(v, point) - moving_part(_points_at(v, anchor), problems.num_fixed, dim=1)
        for v in (problems.source, problems.target)
    )
    ratio = (y / x).flatten(1)
    slope = (problems.weight.gather(-1, point)[:, None] * x.abs()).flatten(1)
    usable = (slope > 0) & (ratio.abs() < problems.max_scale)
    ratio, order = sort_rows(torch.where(usable, ratio, problems.max_scale))
    share = _share(torch.where(usable, slope, 0)) + _share(usable.double())
    cumulative = share.gather(-1, order).cumsum(-1)
    quantile = (torch.arange(number, device=device) + 0.5) / number
    position = torch.searchsorted(cumulative, cumulative[:, -1:] * quantile)
    scales = ratio.gather(-1, position.clamp(max=ratio.shape[-1] - 1))
    return torch.where(cumulative[:, -1:] > 0, scales, 0)  # 0 as good as any where no scale moves anything


def _share(values: Tensor) -> Tensor:
    return values / values.sum(-1, keepdim=True).clamp(min=1e-300)


def _points_at(points: Tensor, index: Tensor) -> Tensor:
    """Points (B, D, N) at indices (B, M): (B, D, M)."""
    return points.gather(2, index[:, None].expand(-1, points.shape[1], -1))


# Step 2.


def _objectives_of_all_anchors(problems: _Problems, scales: Tensor) -> Tensor:
    """Objectives (B, K, N) at scales (B, K) with every point as the anchor, infinite for points that are not used."""
    count = rows_per_chunk(scales.device, 3 * problems.weight.numel())
    parts = [_objectives_of_chunk(problems, part) for part in torch.split(scales, count, dim=1)]
    return torch.cat(parts, 1).masked_fill_(~problems.used[:, None], math.inf)


def _objectives_of_chunk(problems: _Problems, scales: Tensor) -> Tensor:
    weight = problems.weight[:, None]
    objectives = scales.new_zeros(*scales.shape, weight.shape[-1])
    coordinates = zip(problems.source.unbind(1), problems.target.unbind(1), strict=True)
    for coordinate, (source, target) in enumerate(coordinates):
        residual = torch.addcmul(target[:, None], source[:, None], scales[..., None], value=-1)
        if coordinate < problems.num_fixed:
            objectives += problems.truncate(residual.mul_(weight)).sum(-1, keepdim=True)
        else:
            objectives += _objectives_of_shifts(problems, residual)
    return objectives


def _objectives_of_shifts(problems: _Problems, residual: Tensor) -> Tensor:
    """Sums over j of `min(trunc, w_j |t - r_j|)` at every shift t = r_i, (B, K, N), of residuals r (B, K, N)."""
    weight, trunc, scratch = problems.weight[:, None], problems.trunc, problems.scratch
    num_problems, num_scales, size = residual.shape
    if trunc is None:
        value, order = (v.view(residual.shape) for v in sort_rows(residual.view(-1, size)))
        weight = weight.expand(residual.shape).gather(-1, order)
        moment, mass = (v.sum(-1, keepdim=True) - 2 * v.cumsum(-1) for v in (weight * value, weight))
        return torch.empty_like(value).scatter_(-1, order, moment - value * mass)
    # Each term is a notch, see lines.py. Points without weight have neither width nor slope.
    half_width = torch.where(weight > 0, trunc / weight, 0)
    shape = (num_problems, num_scales, 3 * size)
    place, slope = (scratch.empty(name, shape, residual) for name in ("place", "rise"))
    bend = torch.empty(num_problems, 1, 3, size, dtype=residual.dtype, device=residual.device)
    _fill_notches(place.view(num_problems, num_scales, 3, size), bend, residual, half_width, weight)
    ordered, order = (v.view(shape) for v in sort_rows(place.view(-1, 3 * size), scratch))
    torch.gather(bend.flatten(2).expand(shape), -1, order, out=slope)
    torch.cumsum(slope, -1, out=slope)
    value = scratch.empty("bend", shape, residual)
    value[..., 0] = trunc * (weight > 0).sum(-1)
    torch.sub(ordered[..., 1:], ordered[..., :-1], out=value[..., 1:]).mul_(slope[..., :-1])
    torch.cumsum(value, -1, out=value)
    return slope.scatter_(-1, order, value)[..., :size]


def _objectives_by_pairs(problems: _Problems, scales: Tensor) -> Tensor:
    """As `_objectives_of_all_anchors`, in float32, from the N^2 differences of all points at each scale."""
    num_problems, dims, size = problems.source.shape
    num_scales = scales.shape[1]
    # Scales of the order of 1 keep float32 in its range.
    unit = problems.max_scale / _MAX_SCALE
    scales = (scales / unit).float()[..., None]
    planes = problems.source * unit[..., None], problems.target
    weight = problems.weight[:, None]
    weighted = [(v * weight)[:, None] for v in planes]
    anchors = [moving_part(v.mT.clone(), problems.num_fixed, dim=2)[..., None] for v in planes]
    weight = weight[:, None]

    objectives = torch.empty(num_problems, num_scales, size, device=scales.device)
    count = rows_per_chunk(scales.device, num_scales * size * size * dims // _PAIR_CHUNKS)
    for first in range(0, num_problems, count):
        rows = slice(first, first + count)
        x, y = (
            torch.addcmul(v[rows], anchor[rows], weight[rows], value=-1).float().flatten(1)[:, None]
            for v, anchor in zip(weighted, anchors, strict=True)
        )
        residual = problems.scratch.empty("pairs", (len(x), num_scales, x.shape[-1]), x)
        torch.addcmul(y, x, scales[rows], value=-1, out=residual)
        torch.sum(problems.truncate(residual).view(len(x), num_scales, size, -1), -1, out=objectives[rows])
    return objectives.masked_fill_(~problems.used[:, None], math.inf)


def _scales_around_minima(scales: Tensor, least: Tensor) -> Tensor:
    """Further scales (B, T * Z) around the best local minima of `least` (B, K) at ascending scales (B, K)."""
    beyond = torch.full_like(least[:, :1], math.inf)
    left, right = torch.cat([beyond, least[:, :-1]], -1), torch.cat([least[:, 1:], beyond], -1)
    is_minimum = ((least <= left) & (least < right)) | ((least < left) & (least <= right))
    place = torch.where(is_minimum, least, math.inf).topk(_NUM_MINIMA, largest=False).indices
    return _between_neighbours(scales, place, _SCALES_PER_MINIMUM).flatten(1)


def _between_neighbours(scales: Tensor, place: Tensor, number: int) -> Tensor:
    """Scales (B, M, number) around places (B, M) of ascending scales (B, K), half of them up to either neighbour."""
    low, middle, high = (
        scales.gather(-1, (place + step).clamp(0, scales.shape[-1] - 1))[..., None] for step in (-1, 0, 1)
    )
    part = torch.arange(1, number // 2 + 1, device=scales.device) / (number // 2 + 1)
    return torch.cat([low + (middle - low) * part, middle + (high - middle) * part], -1)


# Steps 3 and 4.


def _promising_anchors(problems: _Problems, scales: Tensor, objectives: Tensor) -> Tensor:
    """The best anchors (B, L) by their objectives (B, K, N) at ascending scales (B, K) and a closer look at some."""
    best, place = objectives.min(1)
    anchors = best.topk(_NUM_ANCHORS, largest=False).indices
    place = place.gather(-1, anchors)
    around = _between_neighbours(scales, place, _SCALES_PER_ANCHOR)
    around = torch.cat([scales.gather(-1, place)[..., None], around], -1).flatten(0, 1)
    closer = []
    for x, y, weight, _, rows in problems.lines(anchors, around.shape[-1] * problems.source[0].numel()):
        weighted_x, weighted_y = (v.mul_(weight).flatten(1)[:, None] for v in (x, y))
        residual = torch.addcmul(weighted_y, weighted_x, around[rows, :, None], value=-1)
        closer.append(problems.truncate(residual).sum(-1).amin(-1))
    objective = torch.cat(closer).view(anchors.shape).masked_fill_(~problems.used.gather(-1, anchors), math.inf)
    return anchors.gather(-1, objective.topk(_NUM_LINES, largest=False).indices)


def _solve_lines(problems: _Problems, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For anchors (B, L): the best scale, the element whose ratio it is, and the objective there, (B, L) each."""
    solved = []
    for x, y, weight, max_scale, _ in problems.lines(anchors, 3 * problems.source[0].numel()):
        slope, ratio = x.abs().mul_(weight).flatten(1), (y / x).flatten(1)
        half_width = torch.zeros_like(slope) if problems.trunc is None else problems.trunc / slope
        moving = (slope > 0) & (ratio.abs() + half_width < max_scale)  # false where the ratio is NaN
        ratio = torch.where(moving, ratio, max_scale)
        # Elements that no scale moves add a constant.
        constant = problems.truncate(zero_unless_(y.mul_(weight).flatten(1), ~moving)).sum(-1)
        slope = zero_unless_(slope, moving)
        if problems.trunc is None:
            element, objective = weighted_median(ratio, slope)
        else:
            element, objective = _sweep(
                ratio, slope, zero_unless_(half_width, moving), problems.trunc, problems.scratch
            )
        solved.append((ratio.gather(-1, element[:, None])[:, 0], element, objective + constant))
    scale, element, objective = (torch.cat(part).view(anchors.shape) for part in zip(*solved, strict=True))
    return scale, element, objective.masked_fill_(~problems.used.gather(-1, anchors), math.inf)


def _sweep(ratio: Tensor, slope: Tensor, half_width: Tensor, trunc: float, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """As `lines.truncated_sweep`, for values that are bounded: one running sum from the left is exact enough.

    Rows (R, L) of notches; those without slope count for nothing. The lowest breakpoint is always a ratio.
    """
    num_rows, length = ratio.shape
    place, bend, rise = (scratch.empty(name, (num_rows, 3 * length), ratio) for name in ("place", "bend", "rise"))
    _fill_notches(place.view(num_rows, 3, length), bend.view(num_rows, 3, length), ratio, half_width, slope)
    place, order = sort_rows(place, scratch)
    torch.gather(bend, -1, order, out=rise)
    torch.cumsum(rise, -1, out=rise)
    gap = torch.sub(place[:, 1:], place[:, :-1], out=bend[:, 1:])
    rise = rise[:, :-1].mul_(gap)
    torch.cumsum(rise, -1, out=rise)
    lowest, position = rise.min(-1)
    element = order.gather(-1, position[:, None] + 1)[:, 0] % length
    return element, lowest + trunc * (slope > 0).sum(-1)


def _fill_notches(place: Tensor, bend: Tensor, middle: Tensor, half_width: Tensor, slope: Tensor) -> None:
    """Breakpoints (..., 3, N) and their bends of notches (..., N), see lines.py."""
    place[..., 0, :] = middle
    torch.sub(middle, half_width, out=place[..., 1, :])
    torch.add(middle, half_width, out=place[..., 2, :])
    torch.mul(slope, 2, out=bend[..., 0, :])
    torch.neg(slope, out=bend[..., 1, :])
    bend[..., 2, :] = bend[..., 1, :]
