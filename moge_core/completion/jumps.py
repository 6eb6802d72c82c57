"""Jumps of depth that neither a prediction nor the image shows, and the pieces of surface that they cut off."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from moge_core.completion.common import Array

# Change of log depth beyond the slope of the surface that is a jump: at least this, or this many times the median.
_LEAST_JUMP = 0.04
_TIMES_MEDIAN = 8.0
# The prediction shows a jump when its own change over this reach, as a share of the diagonal, is this part of it.
_REACH = 0.008
_SHOWN_PART = 0.5
# A displaced piece is at most this share of the known pixels.
_LARGEST_PIECE = 0.2
# A piece that mostly meets others in gaps is not judged: sensors see nothing beside true edges of depth.
_LEAST_RIM = 0.3
# Of a displaced rim more than this part is unsupported, of what the image does not support by chance: with its edges
# in place, and wherever these are moved by up to a share of the diagonal.
_BARE_PART, _BARE_PART_SHIFTED = 0.5, 0.25
_SHIFT = 0.02
_LATTICE = 3
_TINY_PIECE = 4


def drop_unsupported_pieces(
    log_depth: Array, log_prediction: Array, known: Array, sky: Array, contrast: tuple[Array, Array, float] | None
) -> npt.NDArray[np.bool_]:
    """Pixels (H, W) that a filter drops because of unsupported jumps of depth.

    Args:
        log_depth: (H, W), finite where known.
        log_prediction: (H, W), finite, aligned.
        known, sky: (H, W) bool.
        contrast: of the image, as `image_contrast` gives it, or None.
    """
    jump_x, supported_x = _jumps_along_rows(log_depth, log_prediction, known)
    jump_y, supported_y = (v.T for v in _jumps_along_rows(log_depth.T, log_prediction.T, known.T))
    labels = _pieces(known, jump_x, jump_y)
    sizes = np.bincount(labels.ravel())
    rims = [
        _rim_of_smaller(labels, sizes, jump_x, supported_x, axis=1),
        _rim_of_smaller(labels, sizes, jump_y, supported_y, axis=0),
    ]
    length = _count([rim.piece for rim in rims], len(sizes))
    nearest = _spread(labels)
    across = [_open_ends(labels, nearest, sky, axis) for axis in (1, 0)]
    open_end = _count(across, len(sizes))
    judged = (sizes <= _LARGEST_PIECE * sizes[1:].sum()) & (length > 0)
    judged &= length >= _LEAST_RIM * (length + open_end)
    judged[0] = False
    if contrast is None:
        displaced = _bare(rims, None, (0, 0), len(sizes)) > _BARE_PART * length
    else:
        edges = _widened(np.greater(contrast[0], contrast[2]), 1), _widened(np.greater(contrast[1], contrast[2]), 0)
        by_chance = float(np.mean(np.concatenate([edge.ravel() for edge in edges])))
        displaced = _bare(rims, edges, (0, 0), len(sizes)) > _BARE_PART * (1 - by_chance) * length
        # A rim that edges of the image match elsewhere nearby is that of a true object, shifted against the image.
        suspects = [rim.of_pieces(judged & displaced) for rim in rims]
        for shift in _shifts(known.shape):
            displaced &= _bare(suspects, edges, shift, len(sizes)) > _BARE_PART_SHIFTED * (1 - by_chance) * length
    pixels: npt.NDArray[np.bool_] = (judged & (displaced | (sizes <= _TINY_PIECE)))[labels]
    return pixels


@dataclass(frozen=True)
class _Rim:
    """Jumps along one axis between a piece and a larger one.

    Attributes:
        piece: (N,) label of the smaller piece.
        row, column: (N,) places, of shape (H, W - 1) or (H - 1, W).
        bare: (N,) bool, not shown by the prediction.
    """

    piece: Array
    row: Array
    column: Array
    bare: Array

    def of_pieces(self, chosen: Array) -> _Rim:
        part = chosen[self.piece]
        return _Rim(self.piece[part], self.row[part], self.column[part], self.bare[part])


def _rim_of_smaller(labels: Array, sizes: Array, jump: Array, supported: Array, axis: int) -> _Rim:
    first, second = _neighbours(labels, axis)
    row, column = np.nonzero(jump & (first != second))
    one, other = first[row, column], second[row, column]
    unequal = sizes[one] != sizes[other]
    row, column, one, other = row[unequal], column[unequal], one[unequal], other[unequal]
    return _Rim(np.where(sizes[one] < sizes[other], one, other), row, column, ~supported[row, column])


def _bare(rims: list[_Rim], edges: tuple[Array, Array] | None, shift: tuple[int, int], count: int) -> Array:
    """Number of unsupported places in the rim of each piece (count,), with the image's edges moved by `shift`."""
    pieces = []
    for axis, rim in enumerate(rims):
        bare = rim.bare
        if edges is not None:
            edge = edges[axis]
            row, column = (
                np.clip(place + step, 0, size - 1)
                for place, step, size in zip((rim.row, rim.column), shift, edge.shape, strict=True)
            )
            bare = bare & ~edge[row, column]
        pieces.append(rim.piece[bare])
    return _count(pieces, count)


def _count(pieces: list[Array], count: int) -> Array:
    counts: Array = np.bincount(np.concatenate(pieces), minlength=count)
    return counts


def _spread(labels: Array) -> Array:
    """Labels (H, W) with the unknown pixels near to a piece given to the nearest; 0 where none is near."""
    known = labels > 0
    distance, sources = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    piece_of_source = np.zeros(sources.max() + 1, labels.dtype)
    piece_of_source[sources[known]] = labels[known]
    spread: Array = np.where(distance <= _SHIFT * math.hypot(*labels.shape), piece_of_source[sources], 0)
    return spread


def _open_ends(labels: Array, nearest: Array, sky: Array, axis: int) -> Array:
    """Labels (N,) of pieces for every place where they meet another inside a gap, or the sky."""
    first, second = _neighbours(nearest, axis)
    in_gap = np.logical_or(*(known == 0 for known in _neighbours(labels, axis)))
    meets = in_gap & (first != second) & (first > 0) & (second > 0)
    sky_first, sky_second = _neighbours(sky, axis)
    one, other = _neighbours(labels, axis)
    at_sky = np.concatenate([one[sky_second & (one > 0)], other[sky_first & (other > 0)]])
    return np.concatenate([first[meets], second[meets], at_sky])


def _neighbours(v: Array, axis: int) -> tuple[Array, Array]:
    return (v[:, :-1], v[:, 1:]) if axis == 1 else (v[:-1], v[1:])


def _shifts(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Steps down and right, on a lattice as fine as the widened edges."""
    reach = round(_SHIFT * math.hypot(*shape) / _LATTICE)
    steps = range(-reach, reach + 1)
    return [(_LATTICE * down, _LATTICE * right) for down in steps for right in steps if down or right]


def _jumps_along_rows(log_depth: Array, log_prediction: Array, known: Array) -> tuple[Array, Array]:
    """Whether depth jumps between horizontal neighbours, and whether the prediction shows it, both (H, W - 1)."""
    slope = np.where(known[:, 1:] & known[:, :-1], np.diff(log_depth, axis=1), np.nan)
    padded = np.pad(slope, ((0, 0), (1, 1)), constant_values=np.nan)
    # A slanted surface changes steadily: a jump differs from the change before and after it.
    bend = np.fmin(np.abs(slope - padded[:, :-2]), np.abs(slope - padded[:, 2:]))
    bend = np.where(np.isnan(bend), np.abs(slope), np.minimum(bend, np.abs(slope)))
    usual = float(np.nanmedian(bend)) if np.isfinite(bend).any() else 0.0
    jump = np.nan_to_num(bend) > max(_LEAST_JUMP, _TIMES_MEDIAN * usual)
    reach = max(1, round(_REACH * math.hypot(*known.shape)))
    wide = np.pad(log_prediction, ((0, 0), (reach, reach)), mode="edge")
    width = slope.shape[1]
    # From `reach` pixels before the edge between j and j + 1 to as many behind it.
    change = wide[:, 2 * reach : 2 * reach + width] - wide[:, 1 : 1 + width]
    with np.errstate(invalid="ignore"):
        supported = np.nan_to_num(slope) * change >= _SHOWN_PART * np.square(np.nan_to_num(slope))
    return jump, supported


def _widened(edge: Any, axis: int) -> npt.NDArray[np.bool_]:
    """Edges, and those beside them across their direction: depth and image may be a pixel apart."""
    size = (1, 3) if axis == 1 else (3, 1)
    wide: npt.NDArray[np.bool_] = cv2.dilate(edge.astype(np.uint8), np.ones(size, np.uint8)) > 0
    return wide


def _pieces(known: Array, jump_x: Array, jump_y: Array) -> npt.NDArray[np.int32]:
    """Labels (H, W) of what is connected without a jump; 0 where unknown."""
    height, width = known.shape
    # On a grid twice as fine the places between pixels are open where no jump separates them.
    grid = np.zeros((2 * height - 1, 2 * width - 1), np.uint8)
    grid[::2, ::2] = known
    grid[::2, 1::2] = known[:, 1:] & known[:, :-1] & ~jump_x
    grid[1::2, ::2] = known[1:] & known[:-1] & ~jump_y
    _, labels = cv2.connectedComponents(grid, connectivity=4)
    pieces: npt.NDArray[np.int32] = labels[::2, ::2].astype(np.int32)
    return pieces
