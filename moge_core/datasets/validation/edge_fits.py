"""How the edges of a map lie to those of its frame, on a grid of evenly spaced pixels.

Maps of one frame have their edges in the same places. Edges are correlated over all shifts of one against the other:
of a map that belongs to the frame the correlation as they lie stands many deviations above that of all shifts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.validation.registration import MOST_BEND, Map, depth_edges, image_steps

# Pixels of the grid along the longer side, about.
_GRID = 112
# An edge of a normal map says no more than one of this, 1 - cosine (25 degrees); likewise a bend of depth.
_MOST_STEP = 0.1
# Share of the longer side that edges are shifted by, at most, and what is no shift.
_MOST_SHIFT, _NO_SHIFT = 0.12, 0.015
# Deviations of the correlation of edges: of what lies right, of what is in another place, of chance.
_LIES_THERE, _BY_CHANCE, _MUCH_LESS = 5.5, 3.5, 0.7
# Share of cells that are edges: with fewer nothing can be said, with more the map is noise.
_LEAST_EDGES, _MOST_EDGES = 0.01, 0.35


@dataclass(frozen=True, eq=False)
class FrameGrid:
    """Image and depth of a frame at the pixels of a grid.

    Attributes:
        depth: (h, w), NaN where it is not finite.
        grey: the image, of any size and the same field; None where it cannot be compared.
    """

    depth: Map
    grey: npt.NDArray[np.uint8] | None = None

    @functools.cached_property
    def depth_edges(self) -> Map:
        """Bends of the depth (2, h, w) along rows and along columns, from 0 to 1."""
        edges = depth_edges(self.depth).transpose(2, 0, 1)
        return np.asarray(edges / MOST_BEND, np.float32, order="C")

    @functools.cached_property
    def edges(self) -> Map:
        """Those of the depth and of the image, from 0 to 1 each."""
        if self.grey is None:
            return self.depth_edges
        from moge_core.io.opencv import cv2

        height, width = self.depth.shape
        image = cv2.resize(self.grey, (width, height), interpolation=cv2.INTER_AREA)
        steps = np.ascontiguousarray(image_steps(image).transpose(2, 0, 1))
        sample = steps[:, ::2, ::2].max(axis=0).ravel()
        at = int(0.95 * (sample.size - 1))
        ceiling = float(np.partition(sample, at)[at]) + 4
        return np.asarray(self.depth_edges + np.minimum(steps / ceiling, 1), np.float32)


@dataclass(frozen=True)
class EdgeFit:
    """How the edges of a map lie to those of its frame.

    Attributes:
        here, best: correlation as they lie and at the best small shift, in deviations of that of all shifts.
        shift: (x, y) of that best shift, by which the map would have to move, as shares of the longer side.
    """

    here: float
    best: float
    shift: tuple[float, float]

    @property
    def is_shifted(self) -> bool:
        """Whether the map clearly belongs elsewhere."""
        far = max(abs(part) for part in self.shift) > _NO_SHIFT
        return far and self.best >= _LIES_THERE and self.here < _MUCH_LESS * self.best

    @property
    def is_foreign(self) -> bool:
        """Whether its edges lie as by chance."""
        return self.here < _BY_CHANCE and not self.is_shifted

    @property
    def is_right(self) -> bool:
        """Whether its edges lie where those of the frame do, beyond chance."""
        return self.here >= _LIES_THERE and not self.is_shifted

    def told(self) -> str:
        """As evidence."""
        text = f"edges agree by {self.here:.1f} deviations as they lie"
        x, y = self.shift
        return f"{text}, by {self.best:.1f} with the map moved by {x:+.1%}, {y:+.1%} of the longer side"


def grid_step(shape: tuple[int, ...], longer_side: int = _GRID) -> int:
    """How far apart pixels are taken from maps of this shape (H, W), the first at half of it."""
    return max(1, round(max(shape[:2]) / longer_side))


def id_edges(ids: npt.NDArray[np.generic]) -> Map:
    """Edges (2, h, w) of a grid of ids: both sides of each boundary."""
    return _both_sides(ids[:, 1:] != ids[:, :-1], ids[1:] != ids[:-1])


def normal_edges(normal: Map) -> Map:
    """Edges (2, h, w) of a grid of normals (3, h, w), from 0 to 1: how far neighbours turn; 0 beside the unknown."""
    across = 1 - sum(plane[:, 1:] * plane[:, :-1] for plane in normal)
    down = 1 - sum(plane[1:] * plane[:-1] for plane in normal)
    return _both_sides(*(np.minimum(np.nan_to_num(step) / _MOST_STEP, 1) for step in (across, down)))


def fit_edges(frame: Map, edges: Map) -> EdgeFit | None:
    """Correlate the edges of a frame and of a map (2, h, w); None where either has too few, or the map is noise."""
    from moge_core.io.opencv import cv2

    height, width = edges.shape[1:]
    margin = max(2, round(_MOST_SHIFT * max(height, width)))
    shares = [np.count_nonzero((one[0] > 0.5) | (one[1] > 0.5)) / (height * width) for one in (frame, edges)]
    if min(height, width) <= 2 * margin + 1 or min(shares) < _LEAST_EDGES or shares[1] > _MOST_EDGES:
        return None
    rows, columns = (cv2.getOptimalDFTSize(side) for side in (height, width))
    total: Any = 0
    for of_frame, of_map in zip(frame, edges, strict=True):
        spectra = []
        for one in (of_frame, of_map):
            padded = np.zeros((rows, columns), np.float32)
            np.subtract(one, one.mean(), out=padded[:height, :width])
            spectra.append(cv2.dft(padded, nonzeroRows=height))
        total = total + cv2.mulSpectrums(spectra[0], spectra[1], 0, conjB=True)
    scores = cv2.idft(total, flags=cv2.DFT_SCALE)
    mean, deviation = (float(one[0, 0]) for one in cv2.meanStdDev(scores))
    if deviation < 1e-9:
        return None
    near = (np.roll(scores, (margin, margin), (0, 1))[: 2 * margin + 1, : 2 * margin + 1] - mean) / deviation
    row, column = np.unravel_index(int(near.argmax()), near.shape)
    longer = max(height, width)
    return EdgeFit(
        here=float(near[margin - 1 : margin + 2, margin - 1 : margin + 2].max()),
        best=float(near[row, column]),
        shift=((int(column) - margin) / longer, (int(row) - margin) / longer),
    )


def _both_sides(across: npt.NDArray[np.generic], down: npt.NDArray[np.generic]) -> Map:
    edges = np.zeros((2, across.shape[0], down.shape[1]), np.float32)
    edges[0, :, :-1], edges[1, :-1] = across, down
    np.maximum(edges[0, :, 1:], across, out=edges[0, :, 1:])
    np.maximum(edges[1, 1:], down, out=edges[1, 1:])
    edges[:, [0, -1]] = 0
    edges[:, :, [0, -1]] = 0
    return edges
