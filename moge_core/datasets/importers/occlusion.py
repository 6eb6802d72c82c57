"""Which returns of a LiDAR the camera cannot see.

The sensor stands beside the camera and looks past the edges of near things at what the camera has hidden behind them.
Projected, such returns stand in the middle of the thing that hides them. Among them and its own returns, nothing in the
picture tells the hidden ones from a far wall seen through a fence; the sensor's own view does, because there every
direction has one return. So each suspect is asked: where the camera's ray to it meets the depth of the near thing, did
the sensor see a closed surface, or through it?
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Points: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.int64]

# What is nearer by this share of the depth is another surface; within the tolerance it is the same one.
_STEP, _SAME_SURFACE = 0.1, 0.15
# Neighbours are looked for in a square that holds about so many returns where they are spread as on average.
_NEIGHBOURS = 16
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
    distance, nearer = np.full(len(points), np.inf), np.zeros(len(points), np.int64)
    for query, other, offset in _pairs(uv, uv, reach):
        apart = (offset**2).sum(axis=1)
        closer = (z[other] < (1 - _STEP) * z[query]) & (apart < distance[query])
        distance[query[closer]], nearer[query[closer]] = apart[closer], other[closer]
    suspects = np.flatnonzero(np.isfinite(distance))
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
    for query, other, _ in _pairs(uv, uv, reach):
        num_around[query] += query != other
        num_nearer[query] += z[other] < (1 - _CERTAIN_STEP) * z[query]
    certain: npt.NDArray[np.bool_] = num_nearer >= np.maximum(_CERTAIN_NEIGHBOURS * num_around, 3)
    return certain


def _nearest_in_quadrants(queries: Points, places: Points, reach: float, *, skip_equal: bool = False) -> Indices:
    """The nearest place in each quadrant around each query, (4, Q); the number of places where there is none in reach.

    A place near an axis is in both quadrants beside it, as those of a query's own scan line are. With `skip_equal`,
    places are the queries and not their own neighbours.
    """
    slack = reach / 100
    nearest = np.full((4, len(queries)), len(places), np.int64)
    distance = np.full((4, len(queries)), np.inf)
    for query, other, offset in _pairs(queries, places, reach):
        apart = (offset**2).sum(axis=1)
        if skip_equal:
            apart[query == other] = np.inf
        left, above = (offset <= slack).T
        right, below = (offset >= -slack).T
        for i, inside in enumerate((left & above, right & above, left & below, right & below)):
            better = inside & (apart < distance[i][query])
            distance[i][query[better]], nearest[i][query[better]] = apart[better], other[better]
    return nearest


def _pairs(queries: Points, places: Points, reach: float) -> Iterator[tuple[Indices, Indices, Points]]:
    """All pairs whose coordinates differ by at most `reach`, in rounds: in one round a query occurs once.

    Yields:
        queries (P,), places (P,), and places - queries (P, 2).
    """
    low = np.minimum(queries.min(axis=0), places.min(axis=0))
    cell_of_query = np.floor((queries - low) / reach).astype(np.int64) + 1
    cell_of_place = np.floor((places - low) / reach).astype(np.int64) + 1
    stride = int(max(cell_of_query[:, 0].max(), cell_of_place[:, 0].max())) + 2
    cell = cell_of_place[:, 1] * stride + cell_of_place[:, 0]
    order = np.argsort(cell, kind="stable")
    cell = cell[order]
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            wanted = (cell_of_query[:, 1] + row) * stride + cell_of_query[:, 0] + column
            position, stop = np.searchsorted(cell, wanted, "left"), np.searchsorted(cell, wanted, "right")
            query = np.flatnonzero(position < stop)
            while query.size:
                place = order[position[query]]
                offset = places[place] - queries[query]
                within = (np.abs(offset) <= reach).all(axis=1)
                yield query[within], place[within], offset[within]
                position[query] += 1
                query = query[position[query] < stop[query]]
