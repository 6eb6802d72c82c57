"""Which returns of a LiDAR the camera cannot see.

The sensor stands beside the camera and looks past the edges of near things at what the camera has hidden behind them.
Projected, such returns stand in the middle of the thing that hides them. Among them and its own returns, nothing in the
picture tells the hidden ones from a far wall seen through a fence; the sensor's own view does, because there every
direction has one return. So each suspect is asked: where the camera's ray to it meets the depth of the near thing, did
the sensor see a closed surface, or through it?
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Points: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]

# What is nearer by this share of the depth is another surface; within the tolerance it is the same one.
_STEP, _SAME_SURFACE = 0.1, 0.15
# Neighbours are looked for in a square that holds about so many returns where they are spread as on average.
_NEIGHBOURS = 16
# Where more than so many stand around a return, its own neighbours are looked for in a smaller square, up to so many
# times halved; of those that are still too many, the first ones. So the work does not grow with how they crowd.
_MOST_AROUND, _MOST_HALVINGS = 144, 7
_PAIRS_AT_ONCE = 1 << 17
_NONE = np.iinfo(np.int64).max
# A sensor sees no return behind nearer ones, but for foliage and noise: below 0.7 % on KITTI. From a place where none
# stood it is 5 %: DGP publishes sweeps in the axes of the vehicle, whose origin lies on the ground.
_MOST_SELF_HIDDEN = 0.025
# Without the sensor's view: nearly all others around are nearer by so much.
_CERTAIN_NEIGHBOURS, _CERTAIN_STEP = 0.95, 0.33


def hidden_returns(
    points: Points, uv: Points, area: float, focal: tuple[float, float], sensor: Points | None
) -> npt.NDArray[np.bool_]:
    """Returns that nearer surfaces hide from the camera.

    Where the sensor's place is unknown, or the returns say that none stood there, only those that lie far behind nearly
    all others around them.

    Args:
        points: (N, 3) in camera axes, all in the picture, z > 0.
        uv: (N, 2), their places in pixels.
        area: of the picture, in pixels.
        focal: focal lengths in pixels.
        sensor: (3,), where the LiDAR stood, in camera axes.

    Returns:
        hidden (N,).
    """
    if len(points) < 2:
        return np.zeros(len(points), bool)
    reach = float(np.sqrt(_NEIGHBOURS * area / len(points)) / 2)
    if sensor is not None:
        view = _View(points - sensor, focal, reach)
        if view.self_hidden_share() <= _MOST_SELF_HIDDEN:
            return _hidden_by_closed_surfaces(points, uv, view, sensor, reach)
    return _hidden_for_certain(points[:, 2], uv, reach)


class _View:
    """The returns as the sensor saw them, on a picture plane parallel to the camera's."""

    def __init__(self, points: Points, focal: tuple[float, float], reach: float) -> None:
        self.focal = np.array(focal)
        self.reach = reach
        self.index = np.flatnonzero(points[:, 2] > 1e-6)
        self.z = points[self.index, 2]
        self.uv = self.project(points[self.index])

    def project(self, points: Points) -> Points:
        projected: Points = points[:, :2] / points[:, 2:] * self.focal
        return projected

    def self_hidden_share(self) -> float:
        """How many returns lie behind a nearer surface, seen from here."""
        if len(self.z) < 2:
            return 1.0
        around = _nearest_in_quadrants(self.uv, self.uv, self.reach, skip_equal=True)
        depth = np.append(self.z, np.inf)[around]
        return float((depth < (1 - _STEP) * self.z).all(axis=0).mean())


def _hidden_by_closed_surfaces(
    points: Points, uv: Points, view: _View, sensor: Points, reach: float
) -> npt.NDArray[np.bool_]:
    hidden = np.zeros(len(points), bool)
    z = points[:, 2]
    nearer = np.full(len(points), -1, np.int64)
    for pairs in _pairs(uv, uv, reach):
        nearer[pairs.query] = pairs.nearest(pairs.within & (z[pairs.place] < (1 - _STEP) * z[pairs.queries]))
    suspects = np.flatnonzero(nearer >= 0)
    meets = points[suspects] * (z[nearer[suspects]] / z[suspects])[:, None]
    seen = meets[:, 2] - sensor[2] > 1e-6
    suspects, meets = suspects[seen], meets[seen]
    if not suspects.size:
        return hidden
    around = _nearest_in_quadrants(view.project(meets - sensor), view.uv, reach)
    depth = np.append(z[view.index], np.inf)[around]
    closed = np.abs(depth - meets[:, 2]) < _SAME_SURFACE * meets[:, 2]
    in_front = depth < (1 - _STEP / 2) * z[suspects]
    hidden[suspects] = (closed & in_front).all(axis=0)
    return hidden


def _hidden_for_certain(z: npt.NDArray[np.float64], uv: Points, reach: float) -> npt.NDArray[np.bool_]:
    num_around, num_nearer = np.zeros(len(z), np.int64), np.zeros(len(z), np.int64)
    for pairs in _pairs(uv, uv, reach):
        num_around[pairs.query] = pairs.count(pairs.within & (pairs.queries != pairs.place))
        num_nearer[pairs.query] = pairs.count(pairs.within & (z[pairs.place] < (1 - _CERTAIN_STEP) * z[pairs.queries]))
    certain: npt.NDArray[np.bool_] = num_nearer >= np.maximum(_CERTAIN_NEIGHBOURS * num_around, 3)
    return certain


def _nearest_in_quadrants(queries: Points, places: Points, reach: float, *, skip_equal: bool = False) -> Indices:
    """The nearest place in each quadrant around each query, (4, Q); -1 where there is none in reach.

    A place near an axis is in both quadrants beside it, as those of a query's own scan line are. With `skip_equal`,
    places are the queries and not their own neighbours.
    """
    slack = reach / 100
    nearest = np.full((4, len(queries)), -1, np.int64)
    for pairs in _pairs(queries, places, reach):
        usable = pairs.within & (pairs.queries != pairs.place) if skip_equal else pairs.within
        left, above = pairs.dx <= slack, pairs.dy <= slack
        right, below = pairs.dx >= -slack, pairs.dy >= -slack
        for i, inside in enumerate((left & above, right & above, left & below, right & below)):
            nearest[i, pairs.query] = pairs.nearest(inside & usable)
    return nearest


@dataclass(frozen=True)
class _Pairs:
    """All pairs of some queries, one query after the other.

    Attributes:
        query: (Q,), each once.
        start: (Q,), where its pairs begin.
        queries, place: (P,), the indices of both of each pair.
        dx, dy: (P,), place - query.
        within: (P,), whether the place is in the query's square.
    """

    query: Indices
    start: Indices
    queries: Indices
    place: Indices
    dx: npt.NDArray[np.float64]
    dy: npt.NDArray[np.float64]
    within: npt.NDArray[np.bool_]

    def nearest(self, usable: npt.NDArray[np.bool_]) -> Indices:
        """The nearest place of each query (Q,) among the usable pairs (P,), -1 where there is none."""
        # Distance above, place below: the least of them names the nearest.
        apart = (self.dx * self.dx + self.dy * self.dy).astype(np.float32).view(np.int32).astype(np.int64)
        least = np.minimum.reduceat(np.where(usable, apart << 32 | self.place, _NONE), self.start)
        return np.where(least == _NONE, -1, least & 0xFFFFFFFF)

    def count(self, usable: npt.NDArray[np.bool_]) -> Indices:
        """How many pairs of each query (Q,) are usable (P,)."""
        return np.add.reduceat(usable.astype(np.int64), self.start)


def _pairs(queries: Points, places: Points, reach: float) -> Iterator[_Pairs]:
    """Pairs of a query with places whose coordinates differ by at most `reach`, or by less where places crowd.

    Every query comes once, but for those that have no place near.
    """
    waiting = np.arange(len(queries))
    low = np.minimum(queries.min(axis=0), places.min(axis=0))
    for halved in range(_MOST_HALVINGS + 1):
        side = reach / 2**halved
        cell_of_query = np.floor((queries[waiting] - low) / side).astype(np.int64) + 1
        cell_of_place = np.floor((places - low) / side).astype(np.int64) + 1
        stride = int(max(cell_of_query[:, 0].max(), cell_of_place[:, 0].max())) + 2
        cell = cell_of_place[:, 1] * stride + cell_of_place[:, 0]
        order = np.argsort(cell, kind="stable")
        cell = cell[order]
        # Three cells side by side follow each other in this order.
        middle = (cell_of_query[:, 1:] + (-1, 0, 1)) * stride + cell_of_query[:, :1]
        first, num = np.searchsorted(cell, middle - 1, "left"), np.searchsorted(cell, middle + 1, "right")
        num -= first
        if halved == _MOST_HALVINGS:
            num = np.minimum(num, _MOST_AROUND // 3)
        total = num.sum(axis=1)
        now = np.flatnonzero((total > 0) & (total <= _MOST_AROUND))
        # Neighbours in the picture are neighbours in memory.
        now = now[np.argsort(middle[now, 1], kind="stable")]
        stops = np.searchsorted(
            np.cumsum(total[now]), np.arange(1, total[now].sum() // _PAIRS_AT_ONCE + 1) * _PAIRS_AT_ONCE
        )
        for part in np.split(now, stops):
            if part.size:
                yield _pairs_of(waiting[part], first[part], num[part], order, queries, places, side)
        waiting = waiting[total > _MOST_AROUND]
        if not waiting.size:
            return


def _pairs_of(
    query: Indices, first: Indices, num: Indices, order: Indices, queries: Points, places: Points, reach: float
) -> _Pairs:
    """The pairs of queries (Q,) with `num` (Q, 3) places of `order` from `first` (Q, 3) on."""
    total, runs = num.sum(axis=1), num.ravel()
    before = np.cumsum(runs) - runs
    place = order[np.arange(runs.sum()) + np.repeat(first.ravel() - before, runs)]
    dx, dy = (places[place, i] - np.repeat(queries[query, i], total) for i in (0, 1))
    within = (np.abs(dx) <= reach) & (np.abs(dy) <= reach)
    return _Pairs(query, np.cumsum(total) - total, np.repeat(query, total), place, dx, dy, within)
