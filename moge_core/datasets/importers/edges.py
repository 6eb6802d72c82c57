"""Where the edges of a depth map fit into a picture: which way the picture is turned, and which part of it depth shows.

The measure is the one of the rule `registered`, see `validation.registration`. A true fit of real frames has a
correlation of 0.25 to 0.6, one that is turned, mirrored or of another field stays below 0.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.records import StoredDepth
from moge_core.datasets.validation.registration import Map, depth_edges, image_edges, register

LEAST_FIT = 0.2
"""Correlation of edges from which something is said: of the sample frames no wrong fit reaches it, and nearly all true
ones do."""
LEAST_LEAD = 0.1
"""How much better than another fit one must be: of the sample frames true ones lead by 0.11 and more."""

# Longer side of the grid of depth pixels that is looked at, as for the rule.
_GRID = 112
# Any camera does: edges of z and of ray lengths are in the same places.
_ANY_CAMERA = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Place:
    """Where one picture lies in another.

    Attributes:
        fit: correlation of the edges there.
        column, row: of the first pixel.
    """

    fit: float
    column: int
    row: int


class EdgesOfDepth:
    """A depth map whose edges are compared with pictures.

    Args:
        stored: (H, W), as stored.
        meaning: what stored values mean.
    """

    def __init__(self, stored: npt.NDArray[np.generic], meaning: StoredDepth) -> None:
        self._stored = stored
        self._meaning = meaning
        self._step = max(1, round(max(stored.shape) / _GRID))
        self._grid = self._picked(self._step)

    def whole_fit(self, image: npt.NDArray[np.uint8]) -> tuple[float, float] | None:
        """Correlation with a picture (H, W, 3) of the same field: where it is, and at the best of small shifts.

        None where either has no edges, or too little depth is known.
        """
        with np.errstate(all="ignore"):
            found = register(_grey(image), self._grid)
        return None if found is None else (found.here, found.best)

    def place_in(self, image: npt.NDArray[np.uint8], pixels: int = 1) -> Place | None:
        """Where in a larger picture (H, W, 3) depth lies, whose pixels are as large as so many of the picture.

        None where edges cannot tell: too few, or too little depth is known. For `pixels` 1 it is exact to the pixel.
        """
        grey, cell = _grey(image), self._step * pixels
        if not self._is_telling() or min(grey.shape) < cell:
            return None
        found = _best_place(image_edges(_smaller(grey, cell)), _inner(depth_edges(self._grid)))
        if found is None:
            return None
        rough = Place(found.fit, *(max((index - 1) * cell, 0) for index in (found.column, found.row)))
        if pixels > 1:
            return rough
        return self._refined(
            rough,
            grey.shape,
            self._stored.shape,
            lambda rows, columns: image_edges(grey[rows, columns]),
            lambda: depth_edges(self._picked(1)),
        )

    def place_of(self, image: npt.NDArray[np.uint8]) -> Place | None:
        """Where in the depth map a smaller picture (H, W, 3) lies, whose pixels are as large; None as above."""
        grey = _grey(image)
        if not self._is_telling() or min(grey.shape) < self._step:
            return None
        found = _best_place(depth_edges(self._grid), _inner(image_edges(_smaller(grey, self._step))))
        if found is None:
            return None
        rough = Place(found.fit, *(max((index - 1) * self._step, 0) for index in (found.column, found.row)))
        return self._refined(
            rough,
            self._stored.shape,
            grey.shape,
            lambda rows, columns: depth_edges(self._picked(1)[rows, columns]),
            lambda: image_edges(grey),
        )

    def _refined(
        self,
        rough: Place,
        outer: tuple[int, ...],
        inner: tuple[int, ...],
        edges_of_outer: Callable[[slice, slice], Map],
        edges_of_inner: Callable[[], Map],
    ) -> Place:
        """The best place within a cell and a half of a rough one, of all pixels; its correlation stays the rough one.

        Correlations of all pixels are lower, by the noise of both, and are compared with nothing.
        """
        if self._step == 1 or rough.fit < LEAST_FIT:
            return rough
        reach = 3 * self._step // 2 + 1
        left, top = max(rough.column - reach, 0), max(rough.row - reach, 0)
        bottom, right = min(rough.row + inner[0] + reach, outer[0]), min(rough.column + inner[1] + reach, outer[1])
        found = _best_place(edges_of_outer(slice(top, bottom), slice(left, right)), _inner(edges_of_inner()))
        return rough if found is None else Place(rough.fit, left + found.column - 1, top + found.row - 1)

    def _is_telling(self) -> bool:
        return bool(np.isfinite(self._grid).mean() > 0.3)

    def _picked(self, step: int) -> Map:
        """z at every `step`-th pixel, NaN where it is not finite."""
        from moge_core.datasets.importers.projection import metric_z

        rows, columns = (np.arange(step // 2, side, step) for side in self._stored.shape)
        grid: Map = metric_z(self._stored, self._meaning, _ANY_CAMERA, rows=rows, columns=columns)
        grid[np.isinf(grid)] = np.nan
        return grid


def _grey(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    from moge_core.io.opencv import cv2

    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))


def _smaller(grey: npt.NDArray[np.uint8], cell: int) -> npt.NDArray[np.uint8]:
    from moge_core.io.opencv import cv2

    height, width = (max(1, round(side / cell)) for side in grey.shape)
    return np.asarray(cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA))


def _inner(edges: Map) -> Map:
    # Nothing is known of edges along the border.
    return edges[1:-1, 1:-1]


def _best_place(edges: Map, within: Map) -> Place | None:
    """Where the second, smaller map of edges (h, w, 2) fits best into the first."""
    from moge_core.io.opencv import cv2

    fits_in = all(0 < small <= large for small, large in zip(within.shape, edges.shape, strict=True))
    if not fits_in or within.max() < 1e-3 or edges.max() < 1e-3:
        return None
    scores = cv2.matchTemplate(edges, np.ascontiguousarray(within), cv2.TM_CCOEFF_NORMED)
    row, column = np.unravel_index(int(scores.argmax()), scores.shape)
    return Place(float(scores[row, column]), int(column), int(row))
