"""Whether what is infinitely far can be sky: above the horizon, open to the upper border, in one piece.

Sensors write +Inf for "no return" as often as renderers do for sky. What they lose lies in stripes beside edges, in
holes and specks anywhere, and behind their range at the end of a corridor.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moge_core.datasets.validation.settings import ValidationSettings
from moge_core.io.depth import INFINITE_CODE, CodedDepth

Mask = npt.NDArray[np.bool_]

# Longer side of the grid that is looked at, and the fewest infinite cells of it that say something.
_GRID, _LEAST_CELLS = 160, 12
# Rows below the principal point, as a share of the height, that are taken to be below the horizon of a level camera.
_BELOW = 0.05
# A floor's horizon is known to about this angle, in radians.
_HORIZON_MARGIN = 0.05
# A stripe along the left or right border is at most so wide, and infinite over so much of its height.
_STRIPE, _STRIPE_HEIGHT = 0.25, 0.95
# A sky behind a window is brighter than this share of the rest.
_BRIGHT = 0.9
# A heap of pixels is a sky where so much of it is in one piece with the upper border, and that covers this share of it.
_IN_ONE_PIECE, _OF_BORDER = 0.9, 0.2
# A line is what has less than this share of itself in pieces.
_OF_LINE = 0.1


def judge_infinity(
    coded: CodedDepth,
    grey: npt.NDArray[np.uint8] | None,
    intrinsics: npt.NDArray[np.float64] | None,
    floor_normal: npt.NDArray[np.float64] | None,
    settings: ValidationSettings,
) -> str | None:
    """What speaks against the infinite pixels of a map being sky; None where they may be.

    Args:
        coded: the map (H, W).
        grey: the image, of any size and the same field, where it can be compared: what is as bright as a sky behind a
            window is not told.
        intrinsics: (3, 3), normalised; the principal point tells where the horizon of a level camera is.
        floor_normal: (3,) downwards in camera axes, where a floor is seen.
        settings: thresholds.
    """
    infinite: Mask = _picked(coded.codes == INFINITE_CODE)
    num_infinite = int(np.count_nonzero(infinite))
    if num_infinite < _LEAST_CELLS:
        return None
    stripe = _stripe(infinite)
    if stripe is not None:
        return stripe
    height, width = infinite.shape
    told = f"{num_infinite / infinite.size:.1%} of the pixels are infinitely far"
    solid = _solid(infinite)
    below = _below_level_camera(height, intrinsics)
    # A window is a piece; specks are none, however bright.
    pieces = _dark(infinite & solid & ~_hanging(solid) & below, grey, infinite, settings)
    loose = pieces | (infinite & ~solid & below)
    if _are_many(loose, num_infinite, settings):
        share = np.count_nonzero(loose) / num_infinite
        return f"{told}, {share:.0%} of them in holes, stripes or specks in the lower part of the picture"
    if floor_normal is not None and intrinsics is not None:
        under = infinite & _below_horizon(height, width, intrinsics, floor_normal)
        under = _dark(under, grey, infinite, settings)
        if _are_many(under, num_infinite, settings):
            share = np.count_nonzero(under) / num_infinite
            return f"{told}, {share:.0%} of them below the horizon of the floor that is seen"
    return None


def _are_many(misplaced: Mask, num_infinite: int, settings: ValidationSettings) -> bool:
    count = int(np.count_nonzero(misplaced))
    least = min(settings.misplaced_infinity * num_infinite, settings.misplaced_pixels * misplaced.size)
    return count >= max(least, _LEAST_CELLS)


def is_like_sky(chosen: Mask) -> bool:
    """Whether the chosen pixels (H, W) hang from the upper border in one piece, as a sky does."""
    chosen = _picked(chosen)
    num_chosen = int(np.count_nonzero(chosen))
    if num_chosen < _LEAST_CELLS:
        return False
    hanging = int(np.count_nonzero(_hanging(_solid(chosen))))
    return hanging >= _IN_ONE_PIECE * num_chosen and float(chosen[0].mean()) >= _OF_BORDER


def is_line(chosen: Mask) -> bool:
    """Whether the chosen pixels (H, W) are thin everywhere, as the last rows of a plain before its horizon are."""
    chosen = _picked(chosen)
    return int(np.count_nonzero(_solid(chosen))) < _OF_LINE * int(np.count_nonzero(chosen))


def _picked(of: Mask) -> Mask:
    step = max(1, round(max(of.shape) / _GRID))
    return of[step // 2 :: step, step // 2 :: step] if step > 1 else of


def _solid(chosen: Mask) -> Mask:
    """The chosen cells (h, w) in pieces that a square of nine cells fits into; specks that touch by chance are none."""
    from moge_core.io.opencv import cv2

    padded = cv2.copyMakeBorder(chosen.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    return np.asarray(cv2.morphologyEx(padded, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))[1:-1, 1:-1] > 0)


def _hanging(solid: Mask) -> Mask:
    """The pieces (h, w) that hang from the upper border."""
    from moge_core.io.opencv import cv2

    _, labels = cv2.connectedComponents(solid.astype(np.uint8), connectivity=4)
    at_border = np.unique(labels[0])
    return np.asarray(np.isin(labels, at_border[at_border > 0]))


def _dark(misplaced: Mask, grey: npt.NDArray[np.uint8] | None, infinite: Mask, settings: ValidationSettings) -> Mask:
    """Without what the image shows brighter than nearly all of what is not infinite, as behind a window."""
    from moge_core.io.opencv import cv2

    if grey is None or infinite.all() or not _are_many(misplaced, int(np.count_nonzero(infinite)), settings):
        return misplaced
    height, width = infinite.shape
    small = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(misplaced & (small <= np.quantile(small[~infinite], _BRIGHT)))


def _stripe(infinite: Mask) -> str | None:
    """A stripe down the left or right side, as stereo leaves one, beside a picture that is not so."""
    full = infinite.mean(axis=0) >= _STRIPE_HEIGHT
    if full.all() or infinite.mean() > 2 * _STRIPE:
        return None
    for side, columns in (("left", full), ("right", full[::-1])):
        width = int(np.argmin(columns))
        if 0.01 * full.size <= width <= _STRIPE * full.size and width >= 2:
            return f"a stripe of {width / full.size:.0%} of the width down the {side} side is infinitely far"
    return None


def _below_level_camera(height: int, intrinsics: npt.NDArray[np.float64] | None) -> Mask:
    centre = 0.5 if intrinsics is None else float(intrinsics[1, 2])
    rows = (np.arange(height) + 0.5) / height
    return np.asarray(rows > centre + _BELOW)[:, None]


def _below_horizon(
    height: int, width: int, intrinsics: npt.NDArray[np.float64], floor_normal: npt.NDArray[np.float64]
) -> Mask:
    """Pixels whose rays go down to the floor."""
    u = ((np.arange(width) + 0.5) / width - intrinsics[0, 2]) / intrinsics[0, 0]
    v = ((np.arange(height) + 0.5) / height - intrinsics[1, 2]) / intrinsics[1, 1]
    downwards = u[None, :] * floor_normal[0] + v[:, None] * floor_normal[1] + floor_normal[2]
    return np.asarray(downwards > _HORIZON_MARGIN * np.sqrt(1 + u[None, :] ** 2 + v[:, None] ** 2))
