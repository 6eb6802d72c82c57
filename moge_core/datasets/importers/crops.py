"""Depth maps that show a part of the picture, or more than it: a crop is no scaling.

NYU's toolbox cuts 561x427 pixels out of depth of 640x480 and leaves the picture whole. The ratio of the sides is nearly
the same, so by sizes alone it could be a smaller depth map of the whole picture; the edges of both tell.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.edges import LEAST_FIT, LEAST_LEAD, EdgesOfDepth, Place
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.sizes import is_same_shape
from moge_core.errors import InstanceError

if TYPE_CHECKING:
    from moge_core.datasets.importers.frames import Parts
    from moge_core.datasets.importers.records import ImportSettings, Record

Number = TypeVar("Number", bound=np.generic)

# Pictures are made smaller by such fractions: 3/2, 4/3, 8/5, 15/2.
_USUAL_DENOMINATOR = 8
# Whether so few of the pixels of a side were cut off or scaled away makes no difference that matters.
_NO_DIFFERENCE = 0.015
# A crop mostly leaves at least so much of a side: of the whole picture, and of one made smaller by a whole number.
_LEFT_OF_WHOLE = 2 / 3
_LEFT_OF_SMALLER = 0.85
# Of a scaling with an unusual ratio, a crop need fit better by no more than this: it is likely by its size already.
_UNUSUAL_LEAD = 0.05
# Of sizes that people scale by, a crop is looked for where sides have so many pixels: fewer fit somewhere by chance.
_LEAST_SIDE = 100
# A crop is looked for where it would be at least this share of the picture's side.
_LEAST_SHARE = 1 / 3


def crop_to_depth(parts: Parts, record: Record, settings: ImportSettings) -> None:
    """Cut image and depth to the field that both show, where `depth_at` says it; else refuse those that differ.

    Args:
        parts: all are cut, the camera with them: its intrinsics are those of the whole image, unless it names the size
            of the crop.
        record: names the files.
        settings: `depth_at` is the first pixel of the depth map in the image; negative where depth shows more.

    Raises:
        InstanceError: neither of them lies in the other at that place; without it, they are of one shape but show
            different fields by their edges.
    """
    if settings.depth_at is None:
        check_same_field(parts, record)
        return
    height, width = parts.image.shape[:2]
    if parts.stored is None:
        found = f"points for an image of {width}x{height}"
        raise InstanceError(record.image.path, "--depth-at is for depth maps", found=found, fix="Leave it out.")
    depth_size = (parts.stored.shape[1], parts.stored.shape[0])
    if not lies_in((width, height), depth_size, settings.depth_at):
        column, row = settings.depth_at
        raise InstanceError(
            record.image.path,
            "the depth map must lie in the image where --depth-at says, or the image in the depth map",
            found=f"an image of {width}x{height} and depth of {depth_size[0]}x{depth_size[1]} at {column},{row}",
            fix="Give the column and row of the depth map's first pixel in the image, counted from 0.",
        )
    image, parts.stored = shared(parts.image, parts.stored, settings.depth_at)
    for name in ("normal", "mask", "segmentation"):
        values = getattr(parts, name)
        if values is not None:
            setattr(parts, name, _cut_alike(values, (width, height), depth_size, settings.depth_at))
    if image.shape == parts.image.shape:
        return
    parts.camera = _camera_of_crop(parts.camera, (width, height), image.shape, settings.depth_at)
    parts.image, parts.jpeg = image, None
    parts.told.notes.add(
        f"Images of {width}x{height} were cropped to {image.shape[1]}x{image.shape[0]}, the field of their depth, and"
        " their principal point was moved."
    )


def lies_in(image: tuple[int, int], depth: tuple[int, int], at: tuple[int, int]) -> bool:
    """Whether along each side depth of this size lies in an image of that at a place, or the image in the depth."""
    return all(
        (first >= 0 and first + part <= whole) or (first <= 0 and first + part >= whole)
        for whole, part, first in zip(image, depth, at, strict=True)
    )


def shared(
    image: npt.NDArray[np.uint8], stored: npt.NDArray[Number], at: tuple[int, int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Number]]:
    """What image (H, W, 3) and depth map (h, w) both show, where the first pixel of the latter is at (column, row)."""
    of_image, of_depth = _shared_pixels((image.shape[1], image.shape[0]), (stored.shape[1], stored.shape[0]), at)
    return np.ascontiguousarray(image[of_image]), np.ascontiguousarray(stored[of_depth])


def is_usual_ratio(image: tuple[int, int], depth: tuple[int, int]) -> bool:
    """Whether one size is made of the other by what people scale pictures by, so that nobody would think of a crop."""
    ratio = max(max(a, b) / min(a, b) for a, b in zip(image, depth, strict=True))
    left = int(ratio) / ratio
    least = _LEFT_OF_WHOLE if ratio < 2 else _LEFT_OF_SMALLER
    return not least < left < 1 - _NO_DIFFERENCE or _is_simple(max(image, depth), min(image, depth))


def check_same_field(parts: Parts, record: Record) -> None:
    """Refuse image and depth map of different sizes that do not show the same field, and tell what cannot be known.

    Raises:
        InstanceError: one is turned against the other, is a crop of the other, or of another shape.
    """
    if parts.stored is None or parts.meaning is None:
        return
    image, depth = (parts.image.shape[1], parts.image.shape[0]), (parts.stored.shape[1], parts.stored.shape[0])
    if image == depth:
        return
    edges = EdgesOfDepth(parts.stored, parts.meaning)
    if not is_same_shape(image, depth):
        if is_same_shape(image, depth[::-1]):
            raise _turned(parts, record, edges)
        raise _of_other_shape(parts, record, edges)
    is_usual = is_usual_ratio(image, depth)
    if is_usual and min(*image, *depth) < _LEAST_SIDE:
        return
    fit = edges.whole_fit(parts.image)
    here, best = fit or (0.0, 0.0)
    if is_usual and here >= LEAST_FIT:
        return
    place, pixels = _best_crop(parts.image, edges, image, depth)
    crop = 0.0 if place is None else place.fit
    needed = max(here, best) + LEAST_LEAD if is_usual else here + _UNUSUAL_LEAD
    if place is not None and crop >= max(LEAST_FIT, needed):
        raise _cropped(record, image, depth, place, pixels, here)
    fits_badly = crop >= max(LEAST_FIT, here + LEAST_LEAD)
    if fits_badly or (not is_usual and (here < LEAST_FIT or crop >= here)):
        why = "fit badly by their edges" if fits_badly else "differ by an unusual ratio, and their edges do not tell"
        parts.told.suspicions.add(
            f"Images of {_size(image)} and depth of {_size(depth)} were taken as one field in two sizes, but they"
            f" {why}. If one is a crop of the other, import again with --depth-at X,Y, where the first pixel of the"
            " depth map lies in the image."
        )


def _is_simple(larger: tuple[int, int], smaller: tuple[int, int]) -> bool:
    """Whether both sides are larger by one fraction with a small denominator, but for whole pixels of the smaller."""
    fraction = Fraction(larger[0], smaller[0]).limit_denominator(_USUAL_DENOMINATOR)
    return all(abs(whole - part * fraction) < fraction for part, whole in zip(smaller, larger, strict=True))


def _best_crop(
    image: npt.NDArray[np.uint8], edges: EdgesOfDepth, size: tuple[int, int], depth: tuple[int, int]
) -> tuple[Place | None, int]:
    """The best place of the smaller in the larger, and how many pixels of the image a pixel of depth is.

    For the place of an image in a larger depth map, that is -1.
    """
    ratios = [whole / part for whole, part in zip(size, depth, strict=True)]
    if max(ratios) <= 1:
        return (edges.place_of(image) if min(ratios) >= _LEAST_SHARE else None), -1
    ratio = min(ratios)
    found: list[tuple[Place, int]] = []
    # As large as the pixels of the image, or as those of the image made smaller by a whole number.
    for pixels in sorted({1, int(ratio)} if ratio >= 1 else ()):
        if _LEAST_SHARE <= pixels / max(ratios) < 1 - _NO_DIFFERENCE:
            place = edges.place_in(image, pixels)
            if place is not None:
                found.append((place, pixels))
    return max(found, key=lambda one: one[0].fit, default=(None, 1))


def _cropped(
    record: Record, image: tuple[int, int], depth: tuple[int, int], place: Place, pixels: int, here: float
) -> InstanceError:
    what, whole = ("the image", "depth map") if pixels < 0 else ("the depth map", "image")
    made = "" if pixels <= 1 else f", made smaller {pixels} times,"
    found = (
        f"{_size(image)} and {_size(depth)}, whose edges correlate by {place.fit:.2f} with {what} as a crop of the"
        f" {whole}{made} at {place.column},{place.row}, and by {here:.2f} if one is the other made smaller"
    )
    if pixels > 1:
        width, height = (side * pixels for side in depth)
        fix = (
            f"Crop the images to {width}x{height} from {place.column},{place.row} on before the import, and subtract"
            f" {place.column} and {place.row} from cx and cy."
        )
    else:
        sign, cut = (-1, "the depth map") if pixels < 0 else (1, "it")
        fix = (
            f"Import with --depth-at {sign * place.column},{sign * place.row}, and intrinsics of the whole image; {cut}"
            " is cropped alike. If it is no crop, resize the images to the size of their depth before the import."
        )
    return InstanceError(record.image.path, "image and depth map must show the same field", found=found, fix=fix)


def _turned(parts: Parts, record: Record, edges: EdgesOfDepth) -> InstanceError:
    from moge_core.datasets.importers.orientation import TURNS, seen_turn

    assert parts.stored is not None
    turn = seen_turn(parts.image, edges)
    height, width = parts.image.shape[:2]
    sizes = f"{width}x{height} and {parts.stored.shape[1]}x{parts.stored.shape[0]}"
    if turn == 5:
        found = f"{sizes}; by their edges the depth map is transposed, with columns as rows"
        fix = "Save the depth maps as (H, W), for example array.T of these."
    elif turn is not None:
        found = f"{sizes}; by their edges depth lies like the image {TURNS[turn]}"
        fix = f"Have the images {TURNS[turn]} before the import; the intrinsics must be of images that lie like depth."
    else:
        found = f"{sizes}: one is turned by a quarter against the other, or an array is transposed"
        fix = (
            "Turn the images by 90 degrees as their depth lies, the intrinsics with them; of an array (W, H) save its"
            " transpose."
        )
    rule = "image and depth map must lie the same way, both upright or both on their side"
    return InstanceError(record.image.path, rule, found=found, fix=fix)


def _of_other_shape(parts: Parts, record: Record, edges: EdgesOfDepth) -> InstanceError:
    assert parts.stored is not None
    image, depth = (parts.image.shape[1], parts.image.shape[0]), (parts.stored.shape[1], parts.stored.shape[0])
    found = f"{_size(image)} and {_size(depth)}"
    fix = "Use the depth maps registered to the colour camera, cropped like the images."
    place, pixels = _best_crop(parts.image, edges, image, depth)
    if place is not None and place.fit >= LEAST_FIT and abs(pixels) == 1:
        column, row = pixels * place.column, pixels * place.row
        found += f"; by their edges the first pixel of the depth map lies at {column},{row} of the image"
        cropped = "it" if pixels > 0 else "the depth map"
        fix = f"Import with --depth-at {column},{row}, and intrinsics of the whole image; {cropped} is cropped alike."
    elif all(part <= whole for part, whole in zip(depth, image, strict=True)):
        fix += " If depth is a crop of the image, say where its first pixel lies in it: --depth-at X,Y."
    rule = "image and depth map must have the same size, or at least the same shape"
    return InstanceError(record.image.path, rule, found=found, fix=fix)


def _shared_pixels(
    image: tuple[int, int], depth: tuple[int, int], at: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Rows and columns of what both show: in the image, and in the depth map."""
    begins = [max(first, 0) for first in at]
    ends = [min(first + part, whole) for whole, part, first in zip(image, depth, at, strict=True)]
    columns, rows = (slice(begin, end) for begin, end in zip(begins, ends, strict=True))
    left, top = at
    return (rows, columns), (
        slice(rows.start - top, rows.stop - top),
        slice(columns.start - left, columns.stop - left),
    )


def _cut_alike(
    values: npt.NDArray[Any], image: tuple[int, int], depth: tuple[int, int], at: tuple[int, int]
) -> npt.NDArray[Any]:
    """A further map, cut as what it has the size of.

    Raises:
        InstanceError: it has another size.
    """
    of_image, of_depth = _shared_pixels(image, depth, at)
    own = (values.shape[1], values.shape[0])
    cut = of_depth if own == depth else of_image if own == image else None
    if cut is None:
        found = f"{_size(own)} beside an image of {_size(image)} and depth of {_size(depth)}"
        fix = "Bring it to the size of the image or of the depth map before the import."
        raise InstanceError("--depth-at", "cuts maps of the size of the image or of depth", found=found, fix=fix)
    return np.ascontiguousarray(values[cut])


def _camera_of_crop(
    camera: PixelIntrinsics, image: tuple[int, int], cropped: tuple[int, ...], at: tuple[int, int]
) -> PixelIntrinsics:
    size = (cropped[1], cropped[0])
    own = camera.size or image
    # Intrinsics that name the size of the crop are those of the crop already; other shapes are refused later.
    if own == size or not is_same_shape(own, image):
        return camera
    across, down = (whole / side for whole, side in zip(image, own, strict=True))
    return replace(
        camera,
        fx=camera.fx * across,
        fy=camera.fy * down,
        cx=(camera.cx + 0.5) * across - 0.5 - max(at[0], 0),
        cy=(camera.cy + 0.5) * down - 0.5 - max(at[1], 0),
        size=size,
    )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
