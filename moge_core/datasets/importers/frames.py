"""A record in memory: its files decoded, its values turned into depth along z, all parts of one size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.crops import crop_to_depth
from moge_core.datasets.importers.further_maps import compare_maps, turn_maps
from moge_core.datasets.importers.map_files import read_mask_map, read_normal_map, read_segmentation_map
from moge_core.datasets.importers.orientation import turn_to_depth
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.records import ImportSettings, Record, Stored, StoredDepth, StoredPoints
from moge_core.datasets.importers.sizes import (
    any_of_block,
    instance_size,
    is_same_shape,
    is_sparse,
    nearest_returns,
    picked,
    resized,
)
from moge_core.datasets.importers.stored_depth import read_stored
from moge_core.datasets.importers.suspicions import look_at_values
from moge_core.datasets.importers.told import Told
from moge_core.datasets.importers.usual_mistakes import (
    for_turned_image,
    is_of_picture_on_its_side,
    off_centre,
    suspicions_of_picture,
    with_usual_cause,
)
from moge_core.errors import InstanceError, MoGeError
from moge_core.io.files import NamedBytes, read_bytes
from moge_core.io.foreign import HEAD_BYTES

# A depth map holds ratios up to this, see `write_depth`.
_MOST_RANGE = 1e5
# Intrinsics of such small images cannot be told from normalised ones.
_LEAST_SIDE_IN_PIXELS = 12


@dataclass
class Parts:
    """What the files of a record hold, each part in its own size, on the way to a frame.

    Attributes:
        image: (H, W, 3) RGB, as stored.
        orientation: how EXIF says to turn the image (1..8); 1 as it is.
        jpeg: the bytes of the picture's file where they can be copied: they show `image` as it is.
        stored: (h, w), depth as stored, decoded where its encoding is not linear; None where the record has points.
        meaning: what these values mean, also by what their file says; None where the record has points.
        camera: of the image.
        normal, mask, segmentation: see `Record`; each may have a size of its own. Normals are in the file's axes until
            `turn_maps`.
        told: what is to be told.
    """

    image: npt.NDArray[np.uint8]
    orientation: int
    jpeg: bytes | None
    stored: npt.NDArray[Any] | None
    meaning: StoredDepth | None
    camera: PixelIntrinsics
    normal: npt.NDArray[Any] | None
    mask: npt.NDArray[np.bool_] | None
    segmentation: npt.NDArray[Any] | None
    told: Told


@dataclass
class Frame:
    """A record in memory, all parts of one size."""

    image: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float32]
    intrinsics: npt.NDArray[np.float64]
    jpeg: bytes | None
    normal: npt.NDArray[np.float32] | None
    mask: npt.NDArray[np.bool_] | None
    segmentation: npt.NDArray[Any] | None
    told: Told


def read_frame(record: Record, settings: ImportSettings) -> Frame:
    """Decode a record and bring its parts to one size.

    Raises:
        MoGeError: a file that cannot be read, parts of different shapes, impossible intrinsics.
    """
    from moge_core.datasets.importers.undistortion import undistort

    parts = read_parts(record)
    turn_maps(parts, record, settings)
    turn_to_depth(parts, record, settings)
    crop_to_depth(parts, record, settings)
    # What values give away, they do as they are stored.
    stored, meaning = parts.stored, parts.meaning
    undistort(parts, record, settings)
    frame = _of_one_size(parts, record, settings)
    if stored is not None and meaning is not None:
        # Sky is looked for at the top.
        upright = slice(None, None, -1 if settings.flip_y else None)
        look_at_values(stored[upright], meaning, frame.depth[upright], record, frame.told)
    compare_maps(frame, record, settings)
    if frame.mask is not None:
        frame.depth = np.where(frame.mask, frame.depth, np.float32(np.nan))
    if settings.max_depth is not None:
        far = frame.depth * (record.depth_unit or 1.0) > settings.max_depth
        frame.depth[far & np.isfinite(frame.depth)] = np.nan
    frame.depth, num_cut = _within_range(frame.depth)
    if num_cut:
        frame.told.notes.add(
            f"Some depth maps span more than {_MOST_RANGE:g} times their least depth, which no depth file holds; the"
            " few outliers became unknown."
        )
    if settings.flip_y:
        _flip(frame)
    if not np.isfinite(frame.depth).any():
        frame.told.notes.add("Some depth maps have no known pixel; `moge index` leaves them out.")
    return frame


def read_parts(record: Record) -> Parts:
    """Decode the files of a record.

    Raises:
        MoGeError: a file that cannot be read, or holds something else.
    """
    try:
        return _read_parts(record)
    except MoGeError as error:
        raise with_usual_cause(error, record) from error


def _read_parts(record: Record) -> Parts:
    told = Told(notes={*record.notes, *record.camera.notes})
    image, orientation, jpeg = _read_image(record.image, told)
    meaning = record.depth if isinstance(record.depth, StoredDepth) else None
    stored = None
    if meaning is not None:
        stored, meaning = read_stored(record, told)
    return Parts(
        image,
        orientation,
        jpeg,
        stored,
        meaning,
        record.camera,
        None if record.normal is None else read_normal_map(record.normal, told.notes),
        None if record.mask is None else read_mask_map(record.mask, told.notes),
        None if record.segmentation is None else read_segmentation_map(record.segmentation),
        told,
    )


def _of_one_size(parts: Parts, record: Record, settings: ImportSettings) -> Frame:
    """Depth along z, and all parts in the size of the instance."""
    from moge_core.datasets.importers.projection import metric_z

    image, jpeg, stored, notes = parts.image, parts.jpeg, parts.stored, parts.told.notes
    is_thinned = False
    image_size = (image.shape[1], image.shape[0])
    depth_size = image_size if stored is None else (stored.shape[1], stored.shape[0])
    size = instance_size(image_size, depth_size, settings.resolution)
    intrinsics, remarks = normalised_intrinsics(parts.camera, *image_size, record.size_is_said_by)
    notes.update(remarks)
    if stored is None or parts.meaning is None:
        assert isinstance(record.depth, StoredPoints)
        depth = _project(record.depth, intrinsics, *size)
    else:
        # Pixels are picked before they are converted, so that a huge map beside a small image costs little.
        rows, columns = (None, None) if depth_size == size else picked(depth_size, size)
        unit = record.depth_unit or 1.0
        depth = metric_z(stored, parts.meaning, intrinsics, rows=rows, columns=columns, metres_a_unit=unit)
        is_thinned = size < depth_size and is_sparse(depth)
        if is_thinned:
            depth = _thinned(parts, metric_z(stored, parts.meaning, intrinsics, metres_a_unit=unit), size)
        if parts.meaning.scale is None and parts.meaning.kind in {"z", "ray"} and stored.dtype.kind in "iu":
            notes.add("No scale was given for depth stored as integers; it was read as millimetres.")
    if image_size != size:
        from moge_core.io.opencv import cv2

        image, jpeg = cv2.resize(image, size, interpolation=cv2.INTER_AREA), None
        notes.add(f"Images of {image_size[0]}x{image_size[1]} were made {size[0]}x{size[1]}, the size of their depth.")
    if depth_size != size:
        how = "the nearest return of each pixel's block, because it is sparse" if is_thinned else "nearest neighbour"
        notes.add(f"Depth of {depth_size[0]}x{depth_size[1]} was made {size[0]}x{size[1]} by {how}.")
    normal = _brought_to(parts.normal, record.normal, "normal map", size, notes)
    mask = _brought_to(parts.mask, record.mask, "mask", size, notes)
    segmentation = _brought_to(parts.segmentation, record.segmentation, "segmentation", size, notes)
    return Frame(image, depth, intrinsics, jpeg, normal, mask, segmentation, parts.told)


def _thinned(parts: Parts, depth: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Sparse depth made smaller with its returns, and with it a mask of the same pixels, which says which returns."""
    mask = parts.mask
    if mask is not None and mask.shape == depth.shape:
        depth = np.where(mask, depth, np.float32(np.nan))
        parts.mask = any_of_block(mask, size)
    return nearest_returns(depth, size)


def _flip(frame: Frame) -> None:
    """Turn a frame upside down."""
    frame.jpeg = None
    frame.image = np.ascontiguousarray(frame.image[::-1])
    frame.depth = np.ascontiguousarray(frame.depth[::-1])
    frame.intrinsics[1, 2] = 1 - frame.intrinsics[1, 2]
    if frame.mask is not None:
        frame.mask = np.ascontiguousarray(frame.mask[::-1])
    if frame.segmentation is not None:
        frame.segmentation = np.ascontiguousarray(frame.segmentation[::-1])
    if frame.normal is not None:
        frame.normal = np.ascontiguousarray(frame.normal[::-1] * np.array([1, -1, 1], frame.normal.dtype))


def normalised_intrinsics(
    camera: PixelIntrinsics, width: int, height: int, said_by: str = ""
) -> tuple[npt.NDArray[np.float64], set[str]]:
    """Normalised matrix (3, 3) for an image of this size, and what is remarkable about it.

    Args:
        camera: intrinsics in pixels.
        width, height: of the image.
        said_by: see `Record.size_is_said_by`.

    Raises:
        InstanceError: the intrinsics refer to an image of another shape, or their principal point is outside of it.
    """
    from moge_core.geometry import normalize_intrinsics

    notes: set[str] = set()
    size = camera.size or (width, height)
    if camera.size is None and is_of_picture_on_its_side(camera, size):
        raise for_turned_image(replace(camera, size=(height, width)), size, said_by)
    if camera.fx < 10 and camera.cx <= 2 and max(size) >= _LEAST_SIDE_IN_PIXELS:
        raise InstanceError(
            "intrinsics",
            "must be in pixels",
            found=f"fx = {camera.fx:g}, cx = {camera.cx:g}, which look normalised",
            fix="Multiply by the image size: fx * W, fy * H, cx * W - 0.5, cy * H - 0.5.",
        )
    if size != (width, height):
        if not is_same_shape((width, height), size):
            if is_same_shape((height, width), size):
                raise for_turned_image(camera, (width, height))
            raise InstanceError(
                "intrinsics",
                f"must refer to images of the shape of these, {width}x{height}",
                found=f"intrinsics for {size[0]}x{size[1]}",
                fix="Give the intrinsics of the images as they are, after cropping.",
            )
        notes.add(f"The intrinsics refer to {size[0]}x{size[1]}; they were scaled to images of {width}x{height}.")
    normalised: npt.NDArray[np.float64] = normalize_intrinsics(camera.matrix(), *size)
    cx, cy = normalised[0, 2], normalised[1, 2]
    if not (0 < cx < 1 and 0 < cy < 1):
        raise InstanceError(
            "intrinsics",
            f"the principal point must be inside the {size[0]}x{size[1]} image",
            found=f"cx = {camera.cx:g}, cy = {camera.cy:g}",
            fix=f"Say which resolution they refer to: {said_by}." if said_by else None,
        )
    if max(abs(cx - 0.5), abs(cy - 0.5)) > 0.15:
        notes.add(off_centre(camera, size, said_by))
    return normalised, notes


def _read_image(stored: Stored, told: Told) -> tuple[npt.NDArray[np.uint8], int, bytes | None]:
    """The picture as stored, its EXIF orientation, and the file's bytes where it is a JPEG that can be copied."""
    from moge_core.io import limits
    from moge_core.io.image import read_stored_image

    if stored.read is not None:
        image = np.asarray(stored.read(stored.path))
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InstanceError(
                stored.path, "must hold an RGB image of 8 bits", found=f"{image.dtype} of shape {image.shape}"
            )
        return np.ascontiguousarray(image), 1, None
    data = read_bytes(stored.path, limit=limits.MAX_FILE_BYTES)
    image, orientation = read_stored_image(NamedBytes(stored.path, data))
    told.suspicions |= suspicions_of_picture(data[:HEAD_BYTES], image)
    return image, orientation, data if data.startswith(b"\xff\xd8") else None


def _project(points: StoredPoints, intrinsics: npt.NDArray[np.float64], width: int, height: int) -> Any:
    from moge_core.datasets.importers.projection import project_points

    assert points.read is not None
    cloud = np.asarray(points.read(points.path))
    if cloud.ndim != 2 or cloud.shape[1] != 3:
        raise InstanceError(points.path, "must hold points (N, 3)", found=f"shape {cloud.shape}")
    return project_points(cloud, intrinsics, width, height, drop_hidden=points.drop_hidden, sensor=points.sensor)


def _brought_to(
    values: npt.NDArray[Any] | None, stored: Stored | None, what: str, size: tuple[int, int], notes: set[str]
) -> npt.NDArray[Any] | None:
    """A further map of the frame, in the size of the instance."""
    if values is None or stored is None:
        return None
    own = (values.shape[1], values.shape[0])
    if own == size:
        return values
    if not is_same_shape(own, size):
        raise InstanceError(
            stored.path,
            f"a {what} must have the shape of the image",
            found=f"{own[0]}x{own[1]} for an instance of {size[0]}x{size[1]}",
            fix="Export it from the same frame, not transposed and not cropped.",
        )
    notes.add(f"A {what} of {own[0]}x{own[1]} was made {size[0]}x{size[1]} by nearest neighbour.")
    return resized(values, size)


def _within_range(depth: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], int]:
    """Depth in the range that a file can hold and most pixels are in; the others unknown, and how many they are."""
    known = np.sort(depth[np.isfinite(depth)])
    if not known.size or known[-1] <= known[0] * _MOST_RANGE:
        return depth, 0
    counts = np.searchsorted(known, known.astype(np.float64) * _MOST_RANGE, side="right") - np.arange(known.size)
    least = known[int(counts.argmax())]
    outside = np.isfinite(depth) & ((depth < least) | (depth > np.float64(least) * _MOST_RANGE))
    return np.where(outside, np.float32(np.nan), depth), int(outside.sum())
