"""A record in memory: its files decoded, its values turned into depth along z, all parts of one size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.intrinsics import PixelIntrinsics
from moge_core.datasets.importers.records import ImportSettings, Record, Resolution, Stored, StoredDepth, StoredPoints
from moge_core.errors import InstanceError
from moge_core.io.files import NamedBytes, read_bytes

# Shapes of image and depth may differ by so much and still be one picture: 1296x968 and 640x480 of ScanNet do.
_SHAPE_TOLERANCE = 0.015
# A depth map holds ratios up to this, see `write_depth`.
_MOST_RANGE = 1e5
# Intrinsics of such small images cannot be told from normalised ones.
_LEAST_SIDE_IN_PIXELS = 12


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
    notes: set[str]


def read_frame(record: Record, settings: ImportSettings) -> Frame:
    """Decode a record and bring its parts to one size.

    Raises:
        MoGeError: a file that cannot be read, parts of different shapes, impossible intrinsics.
    """
    image, jpeg = _read_image(record.image)
    stored = None if isinstance(record.depth, StoredPoints) else _read_stored(record.depth)
    image_size = (image.shape[1], image.shape[0])
    depth_size = image_size if stored is None else (stored.shape[1], stored.shape[0])
    size = _instance_size(record, image_size, depth_size, settings.resolution)
    intrinsics, notes = normalised_intrinsics(record.camera, *image_size)
    notes.update(record.notes)

    if isinstance(record.depth, StoredPoints):
        depth = _project(record.depth, intrinsics, *size)
    else:
        from moge_core.datasets.importers.projection import metric_z

        assert stored is not None
        # Pixels are picked before they are converted, so that a huge map beside a small image costs little.
        rows, columns = (None, None) if depth_size == size else _picked(depth_size, size)
        depth = metric_z(stored, record.depth, intrinsics, rows=rows, columns=columns)
        if record.depth.scale is None and record.depth.kind in {"z", "ray"} and stored.dtype.kind in "iu":
            notes.add("No scale was given for depth stored as integers; it was read as millimetres.")
    if image_size != size:
        from moge_core.io.opencv import cv2

        image, jpeg = cv2.resize(image, size, interpolation=cv2.INTER_AREA), None
        notes.add(f"Images of {image_size[0]}x{image_size[1]} were made {size[0]}x{size[1]}, the size of their depth.")
    if depth_size != size:
        notes.add(f"Depth of {depth_size[0]}x{depth_size[1]} was made {size[0]}x{size[1]} by nearest neighbour.")
    normal = None if record.normal is None else _brought_to(record.normal, (3,), "normal map", size, notes)
    mask = None if record.mask is None else _brought_to(record.mask, (), "mask", size, notes) > 0
    segmentation = (
        None if record.segmentation is None else _brought_to(record.segmentation, (), "segmentation", size, notes)
    )
    if mask is not None:
        depth = np.where(mask, depth, np.float32(np.nan))
    if settings.max_depth is not None:
        depth[(depth * (record.depth_unit or 1.0) > settings.max_depth) & np.isfinite(depth)] = np.nan
    depth, num_cut = _within_range(depth)
    if num_cut:
        notes.add(
            f"Some depth maps span more than {_MOST_RANGE:g} times their least depth, which no depth file holds; the"
            " few outliers became unknown."
        )
    if settings.flip_y:
        jpeg = None
        image, depth = np.ascontiguousarray(image[::-1]), np.ascontiguousarray(depth[::-1])
        intrinsics[1, 2] = 1 - intrinsics[1, 2]
        mask = None if mask is None else np.ascontiguousarray(mask[::-1])
        segmentation = None if segmentation is None else np.ascontiguousarray(segmentation[::-1])
        normal = None if normal is None else np.ascontiguousarray(normal[::-1] * np.array([1, -1, 1], normal.dtype))
    if not np.isfinite(depth).any():
        notes.add("Some depth maps have no known pixel; `moge index` leaves them out.")
    return Frame(image, depth, intrinsics, jpeg, normal, mask, segmentation, notes)


def normalised_intrinsics(camera: PixelIntrinsics, width: int, height: int) -> tuple[npt.NDArray[np.float64], set[str]]:
    """Normalised matrix (3, 3) for an image of this size, and what is remarkable about it.

    Raises:
        InstanceError: the intrinsics refer to an image of another shape, or their principal point is outside of it.
    """
    from moge_core.geometry import normalize_intrinsics

    notes: set[str] = set()
    size = camera.size or (width, height)
    if camera.fx < 10 and camera.cx <= 2 and max(size) >= _LEAST_SIDE_IN_PIXELS:
        raise InstanceError(
            "intrinsics",
            "must be in pixels",
            found=f"fx = {camera.fx:g}, cx = {camera.cx:g}, which look normalised",
            fix="Multiply by the image size: fx * W, fy * H, cx * W - 0.5, cy * H - 0.5.",
        )
    if size != (width, height):
        if not _same_shape((width, height), size):
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
            fix="Say which resolution they refer to: --intrinsics-size, or the columns width and height of a table.",
        )
    if max(abs(cx - 0.5), abs(cy - 0.5)) > 0.15:
        notes.add(
            f"The principal point is at ({cx:.2f}, {cy:.2f}) of the image, far from its centre. If the intrinsics refer"
            " to another resolution, say so (--intrinsics-size, or width and height in a table)."
        )
    return normalised, notes


def _read_image(stored: Stored) -> tuple[npt.NDArray[np.uint8], bytes | None]:
    """The picture, and the file's bytes where it is a JPEG that can be copied."""
    from moge_core.io import limits, read_image

    if stored.read is not None:
        image = np.asarray(stored.read(stored.path))
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InstanceError(
                stored.path, "must hold an RGB image of 8 bits", found=f"{image.dtype} of shape {image.shape}"
            )
        return np.ascontiguousarray(image), None
    data = read_bytes(stored.path, limit=limits.MAX_FILE_BYTES)
    return read_image(NamedBytes(stored.path, data)), data if data.startswith(b"\xff\xd8") else None


def _read_stored(depth: StoredDepth) -> npt.NDArray[Any]:
    from moge_core.datasets.importers.arrays import read_array
    from moge_core.datasets.importers.source_files import not_16_bit

    stored = np.asarray((depth.read or read_array)(depth.path))
    # (1, H, W) and (H, W, 1) are maps; a map of one pixel stays one.
    while stored.ndim > 2 and 1 in {stored.shape[0], stored.shape[-1]}:
        stored = stored[0] if stored.shape[0] == 1 else stored[..., 0]
    if stored.ndim != 2 or not stored.size or stored.dtype.kind not in "iuf":
        raise InstanceError(
            depth.path, "must hold a depth map (H, W) of numbers", found=f"{stored.dtype} of shape {stored.shape}"
        )
    if stored.dtype.itemsize == 1 and depth.kind != "disparity":
        raise not_16_bit(depth.path, "an 8-bit grey file")
    return stored


def _project(points: StoredPoints, intrinsics: npt.NDArray[np.float64], width: int, height: int) -> Any:
    from moge_core.datasets.importers.projection import project_points

    assert points.read is not None
    cloud = np.asarray(points.read(points.path))
    if cloud.ndim != 2 or cloud.shape[1] != 3:
        raise InstanceError(points.path, "must hold points (N, 3)", found=f"shape {cloud.shape}")
    return project_points(cloud, intrinsics, width, height, drop_hidden=points.drop_hidden, sensor=points.sensor)


def _of_size(stored: Stored, channels: tuple[int, ...], what: str) -> npt.NDArray[Any]:
    from moge_core.datasets.importers.arrays import read_array

    values = np.asarray((stored.read or read_array)(stored.path))
    if values.ndim != 2 + len(channels) or values.shape[2:] != channels:
        raise InstanceError(stored.path, f"must hold a {what} {('H', 'W', *channels)}", found=f"shape {values.shape}")
    return values


def _brought_to(
    stored: Stored, channels: tuple[int, ...], what: str, size: tuple[int, int], notes: set[str]
) -> npt.NDArray[Any]:
    """A further map of the frame, in the size of the instance."""
    values = _of_size(stored, channels, what)
    own = (values.shape[1], values.shape[0])
    if own == size:
        return values
    if not _same_shape(own, size):
        raise InstanceError(
            stored.path,
            f"a {what} must have the shape of the image",
            found=f"{own[0]}x{own[1]} for an instance of {size[0]}x{size[1]}",
            fix="Export it from the same frame, not transposed and not cropped.",
        )
    notes.add(f"A {what} of {own[0]}x{own[1]} was made {size[0]}x{size[1]} by nearest neighbour.")
    return _resized(values, size)


def _same_shape(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether two sizes are of one picture: the same ratio of sides, or the same but for whole pixels."""
    (width, height), (other_width, other_height) = max(first, second), min(first, second)
    if abs((width * other_height) / (height * other_width) - 1) <= _SHAPE_TOLERANCE:
        return True
    off_width, off_height = other_width - width * other_height / height, other_height - height * other_width / width
    return other_width < width and other_height < height and max(abs(off_width), abs(off_height)) < 1


def _instance_size(
    record: Record, image_size: tuple[int, int], depth_size: tuple[int, int], resolution: Resolution
) -> tuple[int, int]:
    if image_size == depth_size:
        return image_size
    (width, height), (depth_width, depth_height) = image_size, depth_size
    if not _same_shape(image_size, depth_size):
        raise InstanceError(
            record.image.path,
            "image and depth map must have the same size, or at least the same shape",
            found=f"{width}x{height} and {depth_width}x{depth_height}",
            fix="Use the depth maps registered to the colour camera, cropped like the images.",
        )
    if resolution == "smaller":
        return min(image_size, depth_size)
    return image_size if resolution == "image" else depth_size


def _picked(own: tuple[int, int], size: tuple[int, int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and columns of the pixels nearest to those of another size."""
    rows = ((np.arange(size[1]) + 0.5) * own[1] / size[1]).astype(np.int64)
    columns = ((np.arange(size[0]) + 0.5) * own[0] / size[0]).astype(np.int64)
    return rows, columns


def _resized(values: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Nearest neighbour: measured values are picked, never mixed."""
    rows, columns = _picked((values.shape[1], values.shape[0]), size)
    return np.ascontiguousarray(values[rows[:, None], columns])


def _within_range(depth: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], int]:
    """Depth in the range that a file can hold and most pixels are in; the others unknown, and how many they are."""
    known = np.sort(depth[np.isfinite(depth)])
    if not known.size or known[-1] <= known[0] * _MOST_RANGE:
        return depth, 0
    counts = np.searchsorted(known, known.astype(np.float64) * _MOST_RANGE, side="right") - np.arange(known.size)
    least = known[int(counts.argmax())]
    outside = np.isfinite(depth) & ((depth < least) | (depth > np.float64(least) * _MOST_RANGE))
    return np.where(outside, np.float32(np.nan), depth), int(outside.sum())
