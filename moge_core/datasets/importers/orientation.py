"""Turned pictures: which of the stored pixels and the upright picture depth and camera belong to.

A camera writes the pixels as its sensor lies, and says by EXIF how to turn them for people. Depth and camera belong to
the one or to the other: COLMAP and most devices use the pixels as they are stored, people and most programs for
pictures the upright ones. Sizes tell it of pictures that are turned by a quarter, and edges of the rest; what they
cannot tell is taken as upright, and told.

Depth, camera and further maps stay as they are; the picture is turned to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.crops import lies_in, shared
from moge_core.datasets.importers.edges import LEAST_FIT, LEAST_LEAD, EdgesOfDepth
from moge_core.datasets.importers.sizes import is_same_shape
from moge_core.errors import InstanceError

if TYPE_CHECKING:
    from moge_core.datasets.importers.frames import Parts
    from moge_core.datasets.importers.records import ImportSettings, Record

Belonging: TypeAlias = Literal["stored", "upright"]
_BOTH: tuple[Belonging, ...] = ("stored", "upright")

TURNS: Mapping[int, str] = {
    2: "mirrored left to right",
    3: "turned by 180 degrees",
    4: "mirrored top to bottom",
    5: "transposed",
    6: "turned by 90 degrees clockwise",
    7: "turned by 90 degrees and mirrored",
    8: "turned by 90 degrees counter-clockwise",
}
"""What makes stored pixels upright, by EXIF orientation."""

# The principal point of a picture is so near to its centre, as a share of a side; that of a turned one need not be.
_CENTRED = 0.1


def turn_to_depth(parts: Parts, record: Record, settings: ImportSettings) -> None:
    """Turn a picture that carries an EXIF orientation to its depth and camera, and take the orientation from its file.

    Args:
        parts: `image` as stored, with its `orientation`; afterwards as depth and camera lie, with orientation 1.
        record: its `orientation` says what the layout knows.
        settings: their `orientation` goes before that.

    Raises:
        InstanceError: what was said does not fit the sizes, and the other does.
    """
    from moge_core.io.headers import without_exif
    from moge_core.io.image import turned_upright

    if parts.orientation == 1:
        return
    turn = TURNS[parts.orientation]
    belonging = _belonging(parts, record, settings)
    if belonging is None:
        parts.told.suspicions.add(
            f"Pictures say by EXIF that they are to be {turn}; neither sizes nor edges tell whether depth and camera"
            " belong to the stored pixels or to the upright picture, and it was taken as upright. Say it with"
            " --orientation stored or --orientation upright."
        )
    if belonging == "stored":
        parts.told.suspicions.add(
            f"Pictures say by EXIF that they are to be {turn}, but their depth belongs to the pixels as stored; so they"
            " were left."
        )
        parts.jpeg = None if parts.jpeg is None else without_exif(parts.jpeg)
    else:
        if belonging == "upright":
            parts.told.suspicions.add(f"Pictures were {turn}, as they say by EXIF and their depth is.")
        parts.image, parts.jpeg = turned_upright(parts.image, parts.orientation), None
    parts.orientation = 1


def seen_turn(image: npt.NDArray[np.uint8], edges: EdgesOfDepth) -> int | None:
    """By which EXIF orientation a picture would lie as its depth map does, where edges tell; None where they do not.

    Args:
        image: (H, W, 3), of a depth map of (W, H).
        edges: of the depth map.
    """
    from moge_core.io.image import turned_upright

    fits = {turn: edges.whole_fit(turned_upright(image, turn)) for turn in (5, 6, 7, 8)}
    ranked = sorted(((fit[1], turn) for turn, fit in fits.items() if fit is not None), reverse=True)
    if len(ranked) < 2 or ranked[0][0] < LEAST_FIT or ranked[0][0] - ranked[1][0] < LEAST_LEAD:
        return None
    return ranked[0][1]


def _belonging(parts: Parts, record: Record, settings: ImportSettings) -> Belonging | None:
    """Which of the two depth and camera belong to; None where neither sizes nor edges tell.

    Raises:
        InstanceError: what was said has not the shape of depth or camera, and the other has.
    """
    said = record.orientation if settings.orientation == "auto" else settings.orientation
    height, width = parts.image.shape[:2]
    sizes: dict[Belonging, tuple[int, int]] = {"stored": (width, height), "upright": (width, height)}
    if parts.orientation >= 5:
        sizes["upright"] = (height, width)
    fitting = [which for which in _BOTH if _fits(sizes[which], parts, settings.depth_at)]
    if said != "auto":
        if fitting and said not in fitting:
            raise InstanceError(
                record.image.path,
                f"the {said} picture must lie like its depth and camera",
                found=f"{sizes[said][0]}x{sizes[said][1]}, and {sizes[fitting[0]][0]}x{sizes[fitting[0]][1]} of the"
                f" {fitting[0]} one fits",
                fix=f"Import with --orientation {fitting[0]}.",
            )
        return said
    if len(fitting) == 1:
        return fitting[0]
    if parts.stored is None:
        return None
    # Of what fits neither, the error to come tells sizes as they are stored.
    return _by_edges(parts, settings.depth_at) if fitting else "stored"


def _fits(size: tuple[int, int], parts: Parts, depth_at: tuple[int, int] | None) -> bool:
    """Whether a picture of this size can belong to the depth map or, where there is none, to the camera."""
    if parts.stored is not None:
        depth = (parts.stored.shape[1], parts.stored.shape[0])
        return is_same_shape(size, depth) if depth_at is None else lies_in(size, depth, depth_at)
    camera = parts.camera
    if camera.size is not None:
        return is_same_shape(size, camera.size)
    centre = ((camera.cx + 0.5) / size[0], (camera.cy + 0.5) / size[1])
    return all(abs(part - 0.5) < _CENTRED for part in centre)


def _by_edges(parts: Parts, depth_at: tuple[int, int] | None) -> Belonging | None:
    from moge_core.io.image import turned_upright

    assert parts.stored is not None and parts.meaning is not None
    fits: list[tuple[float, Belonging]] = []
    for which in _BOTH:
        image, stored = parts.image, parts.stored
        if which == "upright":
            image = turned_upright(image, parts.orientation)
        if depth_at is not None:
            image, stored = shared(image, stored, depth_at)
        fit = EdgesOfDepth(stored, parts.meaning).whole_fit(image)
        if fit is None:
            return None
        fits.append((fit[1], which))
    (worse, _), (better, belonging) = sorted(fits)
    return belonging if better >= LEAST_FIT and better - worse >= LEAST_LEAD else None
