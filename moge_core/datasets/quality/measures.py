"""What the pixels of one instance say about its labels: how sharp depth edges are, and where surfaces face."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.errors import InputError

# A depth edge: disparity changes by this share of itself across `_INNER` pixels to both sides of a pixel ...
_LEAST_JUMP = 0.1
_INNER = 2
# ... and the `_INNER` pixels beyond on both sides add less than this share of it, as a slanted plane would.
_MOST_BESIDE = 0.5
# Edges whose largest step between two neighbours is at least this share of the whole change count as sharp.
SHARP_STEP = 0.8
# Fewer edges say nothing about a map.
_LEAST_EDGES = 100

# Image edges within this many pixels of a depth edge are the same edge.
_NEAR_PX = 2

# Normals within 45 degrees of straight up or down belong to floors and ceilings.
_LEVEL = float(np.cos(np.radians(45)))
ELEVATION_EDGES = np.linspace(-90, 90, 37)


@dataclass(frozen=True)
class EdgeMeasure:
    """Depth edges of one map.

    Attributes:
        crossings: bool (H, W), one pixel for each place where a row or a column crosses an edge.
        sharp: bool (H, W), those of them whose change happens between two neighbouring pixels.
        widths: (N,) width of each edge in pixels: the whole change over its largest step.
        num_edges: N.
        sharp_share: share of sharp edges; None where there are too few edges to tell.
        width_px: mean width; None likewise.
        aligned_share: share of edges with an image edge within 2 pixels; None likewise, or without image edges.
        aligned_by_chance: the same share of all pixels.
    """

    crossings: npt.NDArray[np.bool_]
    sharp: npt.NDArray[np.bool_]
    widths: npt.NDArray[np.float32]
    num_edges: int
    sharp_share: float | None = None
    width_px: float | None = None
    aligned_share: float | None = None
    aligned_by_chance: float | None = None

    def without_maps(self) -> EdgeMeasure:
        """The numbers alone."""
        nothing = np.zeros((0, 0), np.bool_)
        return dataclasses.replace(self, crossings=nothing, sharp=nothing)


def measure_edges(image: npt.NDArray[np.uint8], depth: npt.NDArray[np.float32]) -> EdgeMeasure:
    """Find the depth edges of a map, how wide they are, and whether the image has them, too.

    Args:
        image: uint8 (H, W, 3).
        depth: (H, W), NaN unknown, +Inf infinitely far.
    """
    crossings, sharp = np.zeros(depth.shape, np.bool_), np.zeros(depth.shape, np.bool_)
    with np.errstate(all="ignore"):
        disparity = np.where(depth > 0, 1 / depth, np.nan).astype(np.float32)
    widths = []
    for turned in (False, True):
        # Transposed, columns are rows.
        is_edge, width = _edges_along_rows(disparity.T if turned else disparity)
        is_sharp = is_edge & (width * SHARP_STEP <= 1)
        crossings |= is_edge.T if turned else is_edge
        sharp |= is_sharp.T if turned else is_sharp
        widths.append(width[is_edge])
    all_widths = np.concatenate(widths)
    if all_widths.size < _LEAST_EDGES:
        return EdgeMeasure(crossings, sharp, all_widths, all_widths.size)
    near_image_edge = _near_image_edge(image)
    return EdgeMeasure(
        crossings,
        sharp,
        all_widths,
        all_widths.size,
        sharp_share=float(np.mean(all_widths * SHARP_STEP <= 1)),
        width_px=float(all_widths.mean()),
        aligned_share=None if near_image_edge is None else float(near_image_edge[crossings].mean()),
        aligned_by_chance=None if near_image_edge is None else float(near_image_edge.mean()),
    )


def _edges_along_rows(disparity: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Where rows cross an edge, (H, W), and the width of the edge there in pixels."""
    height, width = disparity.shape
    reach = 2 * _INNER
    is_edge, widths = np.zeros((height, width), np.bool_), np.ones((height, width), np.float32)
    if width <= 2 * reach:
        return is_edge, widths

    def shifted(offset: int) -> npt.NDArray[np.float32]:
        return disparity[:, reach + offset : width - reach + offset]

    left, right = shifted(-_INNER), shifted(_INNER)
    change = right - left
    beside = np.abs(shifted(reach) - right) + np.abs(left - shifted(-reach))
    steps = [shifted(offset + 1) - shifted(offset) for offset in range(-_INNER, _INNER)]
    largest = np.max(np.abs(steps), axis=0)
    with np.errstate(all="ignore"):
        # The middle of the change, in pixels from here: each edge is counted where its middle is.
        middle = sum(step * (index - _INNER + 0.5) for index, step in enumerate(steps)) / change
        # Comparisons with unknown pixels are false. All between the outermost pixels must be known.
        found = (
            (np.abs(change) > _LEAST_JUMP * np.maximum(left, right))
            & (beside < _MOST_BESIDE * np.abs(change))
            & (middle > -0.51)
            & (middle <= 0.51)
        )
        inner_widths = np.maximum(np.abs(change) / largest, 1)
    is_edge[:, reach : width - reach] = found
    # A step between two pixels has its middle half-way and is found by both of them; the first is kept.
    is_edge[:, 1:] &= ~is_edge[:, :-1]
    widths[:, reach : width - reach] = np.where(found, inner_widths, 1)
    return is_edge, widths


def _near_image_edge(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_] | None:
    import cv2

    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (5, 5), 1.0)
    edges = cv2.Canny(grey, 30, 80)
    if not edges.any():
        return None
    side = 2 * _NEAR_PX + 1
    return np.asarray(cv2.dilate(edges, np.ones((side, side), np.uint8)) > 0)


@dataclass(frozen=True)
class NormalMeasure:
    """Surface normals that the depth of one instance gives.

    Attributes:
        normals: (H, W, 3) in OpenCV axes, NaN where there is none.
        known_share: share of pixels with a normal.
        floor_share, wall_share, ceiling_share: of the pixels with a normal; None where there is none.
        elevation_counts: pixels by the angle of their normal above the horizon, in the bins `ELEVATION_EDGES`.
    """

    normals: npt.NDArray[np.float32]
    known_share: float
    floor_share: float | None
    wall_share: float | None
    ceiling_share: float | None
    elevation_counts: npt.NDArray[np.int64]

    def without_map(self) -> NormalMeasure:
        """The numbers alone."""
        return dataclasses.replace(self, normals=np.zeros((0, 0, 3), np.float32))


def measure_normals(depth: npt.NDArray[np.float32], intrinsics: npt.NDArray[Any]) -> NormalMeasure:
    """The normals of a depth map, and how many face up, down and sideways, taking the camera to be level.

    Args:
        depth: (H, W), NaN unknown, +Inf infinitely far.
        intrinsics: (3, 3), normalised.
    """
    from moge_core.geometry import depth_map_to_normal_map

    try:
        with np.errstate(all="ignore"):
            computed, valid = depth_map_to_normal_map(depth, intrinsics)
    except InputError:
        computed, valid = np.zeros((*depth.shape, 3), np.float32), np.zeros(depth.shape, np.bool_)
    normals = np.where(valid[..., None], computed, np.nan).astype(np.float32)
    upwards = np.clip(-normals[valid, 1], -1, 1)
    known = upwards.size > 0
    counts, _ = np.histogram(np.degrees(np.arcsin(upwards)), ELEVATION_EDGES)
    return NormalMeasure(
        normals,
        known_share=float(valid.mean()),
        floor_share=float(np.mean(upwards > _LEVEL)) if known else None,
        wall_share=float(np.mean(np.abs(upwards) <= _LEVEL)) if known else None,
        ceiling_share=float(np.mean(upwards < -_LEVEL)) if known else None,
        elevation_counts=counts.astype(np.int64),
    )
