"""What is wrong with the further maps of a frame, in words that imports and validation share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from moge_core.datasets.normal_axes import OPENCV, USUAL, NormalAxes
from moge_core.datasets.validation.edge_fits import EdgeFit, FrameGrid, fit_edges, id_edges, normal_edges
from moge_core.datasets.validation.geometry import Map
from moge_core.datasets.validation.normal_fits import fit_normals

# Correlation of a mask with where depth is known, and the share known inside, up to which they are opposites.
_OPPOSITE, _MOST_INSIDE = -0.6, 0.3
# Share of pixels inside and outside of a mask, and with and without depth, before its polarity is judged.
_LEAST_PART = 0.02
# Share of neighbours of which one has depth; where it is more, depth is sparse and holes say nothing.
_MOST_HOLES = 0.25
# Share of agreeing normals that no want of edges speaks against.
_AGREED = 0.9
_PERHAPS_OF_WORLD = " (or world, which needs poses, if other frames need other axes)"
# What fills such a share of its convex hulls was drawn by hand or by a lens, and its border lies on no edges.
_CONVEX = 0.93


@dataclass(frozen=True)
class MapFault:
    """One fault of a map.

    Attributes:
        kind: `axes`, `turned` (no axes, but a rotation fits) and `coded` (never turned into vectors) of normals,
            `inverted` of masks; `shifted` and `foreign` (of another frame) of all.
        evidence: what was found.
        axes: in which the normals fit.
    """

    kind: Literal["axes", "turned", "coded", "inverted", "shifted", "foreign"]
    evidence: str
    axes: NormalAxes | None = None

    @property
    def option(self) -> str:
        """What makes an import right, where an option does, as one types it."""
        if self.kind == "inverted":
            return "--invert-mask"
        if self.kind == "turned":
            return "--normal-axes world (which needs poses)"
        if self.axes is None:
            return ""
        doubt = "" if self.axes.is_of_world or self.axes.code in USUAL else _PERHAPS_OF_WORLD
        return f"--normal-axes {self.axes.name}{doubt}"


def find_normal_fault(
    frame: FrameGrid,
    normal: Map,
    intrinsics: npt.NDArray[np.float64],
    axes: NormalAxes = OPENCV,
    pose: Sequence[float] | None = None,
) -> MapFault | None:
    """What is wrong with normals (3, h, w); None where nothing is, or nothing can be said. See `fit_normals`."""
    fit = fit_normals(frame.depth, normal, intrinsics, axes, pose)
    if fit is None:
        return None
    told = f"of {fit.count} normals {fit.share:.0%} agree with those of the depth as {axes.name}"
    if fit.axes is not None:
        better = f"{told}, {fit.axes_share:.0%} as {fit.axes.name} ({fit.axes.described()})"
        return MapFault("axes", better, fit.axes)
    if fit.looks_coded:
        return MapFault("coded", f"{told}, and no coordinate is negative, as where the range 0 to 1 was left as it is")
    if fit.turned_deg is not None:
        turned = f"{fit.axes_share:.0%} when turned by {fit.turned_deg:.0f} degrees, as axes of the world are"
        return MapFault("turned", f"{told}, {turned}")
    edges = fit_edges(frame.depth_edges, normal_edges(normal))
    if edges is not None and edges.is_shifted:
        return MapFault("shifted", edges.told())
    if fit.is_foreign and not (edges is not None and edges.is_right):
        return MapFault("foreign", f"{told}, and in no other axes")
    if edges is not None and edges.is_foreign and fit.share < _AGREED:
        return MapFault("foreign", f"{told}, and {edges.told()}")
    return None


def find_mask_fault(frame: FrameGrid, mask: npt.NDArray[np.bool_]) -> MapFault | None:
    """What is wrong with a mask; None where nothing is, or nothing can be said.

    Args:
        frame: as it was before the mask was applied.
        mask: grid (h, w), true where depth can be trusted.
    """
    known = np.isfinite(frame.depth)
    if not _varies(mask):
        return None
    if _varies(known):
        inside, outside = float(np.mean(known[mask])), float(np.mean(known[~mask]))
        together = float(np.corrcoef(mask.ravel(), known.ravel())[0, 1])
        if together <= _OPPOSITE and inside <= _MOST_INSIDE:
            evidence = f"depth is known at {inside:.0%} of the pixels inside of the mask and at {outside:.0%} outside"
            return MapFault("inverted", evidence)
    holes, borders = id_edges(known), id_edges(mask)
    if float(np.mean(holes)) > _MOST_HOLES or _is_drawn(mask):
        return None
    if (as_holes := fit_edges(holes, borders)) is not None and as_holes.is_right:
        return None
    fits = fit_edges(frame.edges + 2 * holes, borders)
    if fits is not None and fits.is_right:
        return None
    return _fault_of(as_holes if as_holes is not None and as_holes.is_shifted else fits)


def find_segmentation_fault(frame: FrameGrid, ids: npt.NDArray[np.generic]) -> MapFault | None:
    """What is wrong with a segmentation, a grid (h, w) of ids; None where nothing is, or nothing can be said."""
    return _fault_of(fit_edges(frame.edges, id_edges(ids)))


def _fault_of(edges: EdgeFit | None) -> MapFault | None:
    if edges is None or not (edges.is_shifted or edges.is_foreign):
        return None
    return MapFault("shifted" if edges.is_shifted else "foreign", edges.told())


def _varies(mask: npt.NDArray[np.bool_]) -> bool:
    return _LEAST_PART <= float(np.mean(mask)) <= 1 - _LEAST_PART


def _is_drawn(mask: npt.NDArray[np.bool_]) -> bool:
    """Whether the inside or the outside is of convex parts, as the borders that cameras and annotators draw are."""
    from moge_core.io.opencv import cv2

    for part in (mask.astype(np.uint8), (~mask).astype(np.uint8)):
        contours, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        hulls = np.zeros_like(part)
        for contour in contours:
            cv2.fillConvexPoly(hulls, cv2.convexHull(contour), 1)
        if part.sum(dtype=np.int64) >= _CONVEX * hulls.sum(dtype=np.int64):
            return True
    return False
