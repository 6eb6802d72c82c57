"""Whether depth lies on its image: their edges must, moved by nothing and zoomed by nothing.

The raw depth of a sensor is seen by another camera than the colours: beside it, and with another focal length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moge_core.datasets.validation.settings import ValidationSettings

Map = npt.NDArray[np.float32]

MOST_BEND = 0.05
"""A stronger edge of depth says no more than this one."""

# Share of the cells that are such edges. Walls have hardly any: a crease may then lie on any line of the image. Of more
# edges some should lie on the image's, unless these lie nowhere, as those of grass: then nothing correlates anywhere.
_FEW_EDGES, _SOME_EDGES, _MANY_EDGES = 0.01, 0.02, 0.048
_LEAST_ANYWHERE = 0.06

# Depth is looked for within this share of the longer side from where it is ...
_REACH = 0.08
# ... and, where its edges correlate by less than `_DOUBTFUL` with the image's, also zoomed about the centre by these.
# A Kinect's depth camera has 1.12 times the focal length of its colour camera, an Azure Kinect's 0.83 times.
_ZOOMS = (0.84, 0.89, 0.94, 1.06, 1.12, 1.19)
_DOUBTFUL = 0.35
# A correlation that is worth mentioning.
_LEAST_BEST = 0.12
# By how much it must exceed that of depth as it is: absolutely, and by a share of the latter. With a zoom there is more
# to choose from, and a crease lies on many lines.
_GAIN, _ZOOMED_GAIN, _CREASE_GAIN = (0.07, 0.4), (0.08, 0.4), (0.1, 1.0)


@dataclass(frozen=True)
class Registration:
    """How well edges of depth lie on edges of the image.

    Attributes:
        shift: (x, y) of the depth that would fit best, as shares of the image's longer side.
        zoom: of the depth about the image's centre that would fit best.
        best, here: correlation there and as it is.
        step: share of the longer side that one cell of the search is.
        edges: share of the cells that are edges of depth.
    """

    shift: tuple[float, float]
    zoom: float
    best: float
    here: float
    step: float
    edges: float


def register(grey: npt.NDArray[np.uint8], depth: Map) -> Registration | None:
    """Correlation of the edges of image and depth over small shifts and zooms; None where either has no edges.

    An edge of depth is where 1/depth is not linear along a row or column, so that slanted planes have none. Rows and
    columns are kept apart: a vertical edge must meet a vertical one.

    Args:
        grey: the image, of any size and the same field.
        depth: grid (h, w), NaN where unknown.
    """
    from moge_core.io.opencv import cv2

    height, width = depth.shape
    longer = max(height, width)
    margin = max(2, round(_REACH * longer))
    if min(height, width) < 4 * margin or np.count_nonzero(np.isfinite(depth)) < 0.3 * depth.size:
        return None
    image = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
    steps, bends = image_edges(image), depth_edges(depth)
    inner = bends[margin:-margin, margin:-margin]
    if inner.max() < 1e-3 or steps.max() < 1e-3:
        return None
    fit = _fit(steps, bends, margin)
    zoom, found = 1.0, fit
    edges = float(np.count_nonzero((inner >= MOST_BEND).any(axis=2))) / (inner.shape[0] * inner.shape[1])
    if edges >= _FEW_EDGES and fit.here < _DOUBTFUL and not _is_better(fit.best, fit.here, _GAIN):
        zoom, zoomed = _fit_zoomed(steps, bends, margin)
        if zoomed.best > fit.best + 0.03:
            found = zoomed
        else:
            zoom = 1.0
    return Registration(
        shift=(found.shift[0] / longer, found.shift[1] / longer),
        zoom=zoom,
        best=found.best,
        here=fit.here,
        step=1 / longer,
        edges=edges,
    )


def judge_registration(registration: Registration, settings: ValidationSettings) -> Iterator[tuple[str, str]]:
    """(rule, evidence) where depth seems shifted or zoomed against its image, or to belong to another."""
    shift = max(abs(part) for part in registration.shift)
    allowed = max(settings.registration_shift, 1.5 * registration.step)
    is_zoomed = registration.zoom != 1
    gain = _ZOOMED_GAIN if is_zoomed else _GAIN if registration.edges >= _FEW_EDGES else _CREASE_GAIN
    if (is_zoomed or shift > allowed) and _is_better(registration.best, registration.here, gain):
        x, y = registration.shift
        zoomed = f" and zoomed by {registration.zoom:g}" if is_zoomed else ""
        yield (
            "registered",
            f"edges of depth and image correlate by {registration.here:.2f} as they are, and by {registration.best:.2f}"
            f" with depth moved by {x:+.1%}, {y:+.1%} of the longer side{zoomed}",
        )
    elif registration.here < settings.min_registration and (
        registration.edges > _MANY_EDGES or (registration.edges > _SOME_EDGES and registration.best > _LEAST_ANYWHERE)
    ):
        yield "registered", f"edges of depth and image have nothing in common (correlation {registration.here:.2f})"


def _is_better(best: float, here: float, gain: tuple[float, float]) -> bool:
    return best > _LEAST_BEST and best - here > max(gain[0], gain[1] * abs(here))


@dataclass(frozen=True)
class _Fit:
    """Best correlation, its shift (x, y) in cells, and the correlation without one."""

    best: float
    shift: tuple[int, int]
    here: float


def _fit(steps: Map, bends: Map, margin: int, zoom: float = 1.0) -> _Fit:
    """Correlation of edges (h, w) or (h, w, 2) over shifts by up to `margin` cells, depth zoomed about its centre."""
    from moge_core.io.opencv import cv2

    height, width = bends.shape[:2]
    rows = columns = margin
    if zoom != 1:
        about = np.array([[zoom, 0, (1 - zoom) * (width - 1) / 2], [0, zoom, (1 - zoom) * (height - 1) / 2]])
        bends = cv2.warpAffine(bends, about, (width, height), flags=cv2.INTER_LINEAR)
        # A smaller picture of depth does not reach the border.
        rows, columns = (max(margin, math.ceil((1 - zoom) * side / 2) + 1) for side in (height, width))
    template = np.ascontiguousarray(bends[rows : height - rows, columns : width - columns])
    field = steps[rows - margin : height - rows + margin, columns - margin : width - columns + margin]
    scores = cv2.matchTemplate(field, template, cv2.TM_CCOEFF_NORMED)
    row, column = np.unravel_index(int(scores.argmax()), scores.shape)
    return _Fit(float(scores[row, column]), (int(column) - margin, int(row) - margin), float(scores[margin, margin]))


def _fit_zoomed(steps: Map, bends: Map, margin: int) -> tuple[float, _Fit]:
    """The zoom that fits best at half the resolution, which is enough to choose it, and its fit at the full one."""
    from moge_core.io.opencv import cv2

    height, width = bends.shape[:2]
    half = (width // 2, height // 2)
    image_half, depth_half = (cv2.resize(of.sum(axis=2), half, interpolation=cv2.INTER_AREA) for of in (steps, bends))
    reach = max(2, margin // 2)
    zoom = max(_ZOOMS, key=lambda factor: _fit(image_half, depth_half, reach, factor).best)
    return zoom, _fit(steps, bends, margin, zoom)


def image_edges(image: npt.NDArray[np.uint8]) -> Map:
    """Steps of an image (h, w, 2), see `image_steps`; the strongest twentieth is as strong as its weakest."""
    steps = image_steps(image)
    ceiling = float(np.quantile(steps[::2, ::2].max(axis=2), 0.95)) + 4
    return np.minimum(steps, np.float32(ceiling))


def image_steps(image: npt.NDArray[np.uint8]) -> Map:
    """Greater of the differences to both neighbours (h, w, 2), along rows and along columns; 0 at the border."""
    height, width = image.shape
    wide = image.astype(np.float32)
    steps = np.zeros((height, width, 2), np.float32)
    across, down = np.abs(wide[:, 1:] - wide[:, :-1]), np.abs(wide[1:] - wide[:-1])
    np.maximum(across[:, :-1], across[:, 1:], out=steps[:, 1:-1, 0])
    np.maximum(down[:-1], down[1:], out=steps[1:-1, :, 1])
    return steps


def depth_edges(depth: Map) -> Map:
    """Relative second difference of 1/depth (h, w, 2), along rows and along columns; 0 beside the unknown.

    What is stronger than an edge is as strong as one.
    """
    height, width = depth.shape
    bends = np.zeros((height, width, 2), np.float32)
    with np.errstate(all="ignore"):
        inverse = 1 / depth
        across = np.abs(depth[:, 1:-1] * (inverse[:, :-2] + inverse[:, 2:]) - 2)
        down = np.abs(depth[1:-1] * (inverse[:-2] + inverse[2:]) - 2)
    bends[:, 1:-1, 0] = np.nan_to_num(across, copy=False, nan=0.0, posinf=0.0)
    bends[1:-1, :, 1] = np.nan_to_num(down, copy=False, nan=0.0, posinf=0.0)
    return np.minimum(bends, np.float32(MOST_BEND))
