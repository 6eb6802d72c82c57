"""Frames as arrays: NPZ, HDF5 or Zarr with images, depth and intrinsics.

    report = import_arrays("frames.npz", "data/frames")
    report = import_arrays("episodes", "data/robot", image_key="cam0/rgb", depth_key="cam0/depth", intrinsics="K.txt")

    source                      a file of one of these kinds, or a folder with any number of them
    ├── a.npz                   arrays by name; with or without a leading N, which makes N instances
    ├── b.h5, b.hdf5            likewise; names may be paths, like obs/rgb
    └── c.zarr/                 a group of version 2 or 3, likewise

    image | images | rgb | rgbs | color | colors    (N, H, W, 3 or 4) or (N, 3 or 4, H, W): uint8, uint16, or float 0..1
    depth | depths                                  (N, H, W), also (N, H, W, 1) or (N, 1, H, W)
    intrinsics | intrinsic | K                      (3, 3), (4, 4) or fx, fy, cx, cy; one, or one a frame
    normal | normals                                (N, H, W, 3), OpenCV axes; optional
    distortion | dist | dist_coeffs | D             coefficients in OpenCV's order, one set or one a frame; optional

Intrinsics are in pixels counted from the centre of the first pixel, or normalised (fx < 10). Which was taken is told.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, Unpack

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.array_sources import SUFFIXES, ArrayInfo, Arrays, Slabs, open_arrays
from moge_core.datasets.importers.calls import repeatable
from moge_core.datasets.importers.distortion import Distortion, distortion_of
from moge_core.datasets.importers.frame_layouts import told_by_name
from moge_core.datasets.importers.intrinsics import parse_intrinsics
from moge_core.datasets.importers.passed_by import kind_by_names
from moge_core.datasets.importers.pinhole import PixelIntrinsics, intrinsics_from_matrix
from moge_core.datasets.importers.records import (
    ImportOptions,
    ImportSettings,
    Read,
    Record,
    Stored,
    StoredDepth,
    finding_of,
)
from moge_core.datasets.importers.shared_cameras import check_sizes
from moge_core.datasets.importers.source_files import each_once, walk
from moge_core.datasets.importers.vocabulary import DepthKind
from moge_core.datasets.importers.writing import ImportReport, check_folders, run_import
from moge_core.datasets.layout import Finding, Progress
from moge_core.errors import DatasetError, FormatError, MoGeError

IMPORTER = "arrays"

_Convert: TypeAlias = Callable[[npt.NDArray[Any], str], npt.NDArray[Any]]

_NAMES = {
    "image": ("image", "images", "rgb", "rgbs", "color", "colors"),
    "depth": ("depth", "depths"),
    "intrinsics": ("intrinsics", "intrinsic", "K"),
    "normal": ("normal", "normals"),
    "distortion": ("distortion", "dist", "dist_coeffs", "distortion_coefficients", "distortion_coeffs", "D"),
}


@repeatable(IMPORTER)
def import_arrays(
    source: str | Path,
    out_dir: str | Path,
    *,
    image_key: str | None = None,
    depth_key: str | None = None,
    intrinsics_key: str | None = None,
    normal_key: str | None = None,
    intrinsics: str | Path | PixelIntrinsics | None = None,
    intrinsics_size: tuple[int, int] | None = None,
    progress: Progress | None = None,
    **options: Unpack[ImportOptions],
) -> ImportReport:
    """Turn arrays into a dataset, or bring one made earlier up to date. See the module for names and shapes.

    Args:
        source: a file, or a folder with files.
        out_dir: the dataset to make or add to.
        image_key, depth_key, intrinsics_key, normal_key: names of the arrays, where they are not the usual ones;
            `depth_array` is another name of `depth_key`.
        intrinsics: the camera of all frames in pixels, "fx,fy,cx,cy" or a file, instead of an array.
        intrinsics_size: (width, height) that `intrinsics` refer to, where that is not the images' size.
        progress: called as `progress(done, total)`.
        options: what every importer takes, see `ImportOptions`.

    Raises:
        DatasetError: no such file, no arrays in the folder, or no frame that could be imported.
        InputError: an option outside its domain.
        FormatError: a file of intrinsics that holds none.
        MissingDependencyError: h5py or zarr is needed and not installed.
    """
    source, out = check_folders(source, out_dir)
    settings = ImportSettings.of(options)
    base = source if source.is_dir() else source.parent
    if isinstance(intrinsics, PixelIntrinsics | None):
        camera = intrinsics
    else:
        camera = parse_intrinsics(intrinsics, search_dir=base, size=intrinsics_size)
    if camera is not None and intrinsics_size is not None:
        camera = replace(camera, size=intrinsics_size)
    values = settings.values
    settings = replace(settings, values=replace(values, depth_array=None))
    keys = {
        "image": image_key,
        "depth": depth_key or values.depth_array,
        "intrinsics": intrinsics_key,
        "normal": normal_key,
    }
    reading = _Reading(keys, camera, values.kind)
    how = {**keys, "intrinsics": camera}
    with contextlib.ExitStack() as stack:
        records = _records(source, _sources(source, out), reading, stack)
        return run_import(IMPORTER, source, out, records, settings, options=how, progress=progress)


@dataclass(frozen=True)
class _Reading:
    """How the arrays of every file are read."""

    keys: dict[str, str | None]
    camera: PixelIntrinsics | None
    kind: DepthKind | None
    """What the user says that depth is."""


def _sources(source: Path, out: Path) -> list[Path]:
    if source.suffix.lower() in SUFFIXES:
        return [source]
    if not source.is_dir():
        raise DatasetError(source, f"must be one of {', '.join(sorted(SUFFIXES))}, or a folder of them", found="a file")
    folders = each_once(list(walk(source, exclude=out, closed=".zarr")), source)
    found = [folder.path for folder in folders if folder.path.suffix.lower() == ".zarr"]
    files = (folder.path / name for folder in folders for name in folder.files)
    found += [path for path in files if path.suffix.lower() in SUFFIXES - {".zarr"}]
    if not found:
        raise DatasetError(source, f"must hold files of {', '.join(sorted(SUFFIXES))}", found="none of them")
    return sorted(found)


def _records(
    source: Path, paths: Sequence[Path], reading: _Reading, stack: contextlib.ExitStack
) -> Iterator[Record | Finding]:
    slabs = Slabs()
    sizes: Counter[tuple[int, int]] = Counter()
    for path in paths:
        name = (path.name if path == source else path.relative_to(source).as_posix()).removesuffix(path.suffix)
        try:
            arrays = stack.enter_context(open_arrays(path, slabs))
            frames = _Frames.of(arrays, reading)
        except (MoGeError, OSError) as error:
            yield finding_of(name, error)
            continue
        if reading.camera is not None:
            sizes[frames.image_size] += frames.count or 1
            check_sizes(sizes, reading.camera, source)
        for index in range(frames.count) if frames.count is not None else (None,):
            frame_name = name if index is None else f"{name}/{index:06d}"
            try:
                yield frames.record(frame_name, index, reading)
            except (MoGeError, OSError) as error:
                yield finding_of(frame_name, error)


@dataclass(frozen=True)
class _Frames:
    """The arrays of one file: which they are, how many frames they have, and their cameras."""

    arrays: Arrays
    image_key: str
    depth_key: str
    normal_key: str | None
    count: int | None
    """None where the arrays have no leading N."""
    image_size: tuple[int, int]
    intrinsics: npt.NDArray[Any] | None
    intrinsics_key: str
    bends: _Bends | None

    @classmethod
    def of(cls, arrays: Arrays, reading: _Reading) -> _Frames:
        image_key, image = _needed(arrays, "image", reading.keys["image"])
        depth_key, depth = _needed(arrays, "depth", reading.keys["depth"])
        if len(image.shape) not in (3, 4):
            raise _misshaped(arrays, image_key, "(H, W, 3) or (3, H, W), with or without a leading N", image.shape)
        count = image.shape[0] if len(image.shape) == 4 else None
        frame_shape = image.shape[-3:]
        channels_last = frame_shape[2] in (3, 4)
        if not channels_last and frame_shape[0] not in (3, 4):
            raise _misshaped(arrays, image_key, "(H, W, 3) or (3, H, W), with or without a leading N", image.shape)
        height, width = frame_shape[:2] if channels_last else frame_shape[1:]
        normal_key = reading.keys["normal"] or _usual(arrays, "normal")
        others = {depth_key: depth}
        if normal_key is not None:
            others[normal_key] = _needed(arrays, "normal", normal_key)[1]
        for key, info in others.items():
            if count is not None and info.shape[0] != count:
                raise _misshaped(arrays, key, f"as many frames as {image_key}, {count}", info.shape)
        # A size costs a file nothing to announce; a frame that was stored takes at least a byte.
        if count is not None and count > min(image.stored_bytes, depth.stored_bytes):
            raise _misshaped(arrays, image_key, "bytes for all of its frames", image.shape)
        matrices, intrinsics_key = None, ""
        if reading.camera is None:
            intrinsics_key, _ = _needed(arrays, "intrinsics", reading.keys["intrinsics"])
            matrices = arrays.whole(intrinsics_key)
        bends = None if reading.camera is not None and reading.camera.distortion is not None else _Bends.of(arrays)
        return cls(arrays, image_key, depth_key, normal_key, count, (width, height), matrices, intrinsics_key, bends)

    def record(self, name: str, index: int | None, reading: _Reading) -> Record:
        """One frame."""
        camera, notes = (reading.camera, ()) if reading.camera is not None else self._camera(index)
        if self.bends is not None and camera.distortion is None:
            distortion, more = self.bends.of_frame(index, self.count, f"{self.arrays.path}: {self.bends.key}")
            camera, notes = replace(camera, distortion=distortion), (*notes, *more)
        keys = [key for key in (self.image_key, self.depth_key, self.normal_key) if key is not None]
        kind = kind_by_names([PurePosixPath(self.depth_key).with_suffix(".npy")]) if reading.kind is None else "z"
        if kind != "z":
            notes = (*notes, told_by_name(kind))
        return Record(
            name=name,
            image=Stored(*self._place(self.image_key, index, _to_rgb)),
            depth=StoredDepth(*self._place(self.depth_key, index), kind="ray" if kind == "ray" else "z"),
            camera=camera,
            normal=None if self.normal_key is None else Stored(*self._place(self.normal_key, index)),
            extra_files=tuple(path for key in keys for path in self.arrays.files(key, index)),
            notes=notes,
        )

    def _place(self, key: str, index: int | None, convert: _Convert | None = None) -> tuple[Path, Read, str]:
        """Path, reader and part of an array or of one of its frames."""

        def read(_: Path) -> npt.NDArray[Any]:
            values = self.arrays.whole(key) if index is None else self.arrays.frame(key, index)
            return values if convert is None else convert(values, f"{self.arrays.path}: {key}")

        return self.arrays.files(key, index)[0], read, key if index is None else f"{key}/{index}"

    def _camera(self, index: int | None) -> tuple[PixelIntrinsics, tuple[str, ...]]:
        """The camera of a frame, and which of the two conventions it was found in."""
        where = f"{self.arrays.path}: {self.intrinsics_key}"
        values = np.asarray(self.intrinsics, np.float64)
        shape = values.shape[-2:] if values.shape[-2:] in {(3, 3), (4, 4)} else values.shape[-1:]
        if values.shape == (4, 4) and self.count == 4 and not _is_homogeneous(values):
            shape = (4,)
        if shape not in {(3, 3), (4, 4), (4,)} or values.ndim > len(shape) + 1:
            raise FormatError(where, "must be (3, 3), (4, 4) or (4,), one or one a frame", found=values.shape)
        if values.ndim > len(shape):
            if len(values) not in {1, self.count or 1}:
                raise FormatError(where, f"must be one, or one of {self.count} frames", found=values.shape)
            values = values[0 if len(values) == 1 else index or 0]
        if shape == (4,):
            fx, fy, cx, cy = values
            values = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        K = values[:3, :3].copy()
        if not np.allclose(K[2], (0, 0, 1)) and np.allclose(K[:, 2], (0, 0, 1)):
            K = K.T.copy()
        if not 0 < K[0, 0] < 10:
            note = "Intrinsics were taken as pixels, counted from the centre of the first pixel."
            return intrinsics_from_matrix(K, where), (note,)
        width, height = self.image_size
        K[0] *= width
        K[1] *= height
        K[:2, 2] -= 0.5
        note = "Intrinsics were taken as normalised by the size of the image, because fx < 10."
        return replace(intrinsics_from_matrix(K, where), size=self.image_size), (note,)


@dataclass(frozen=True)
class _Bends:
    """The distortion of a file's cameras: coefficients (n,) or (N, n)."""

    key: str
    coefficients: npt.NDArray[Any]

    @classmethod
    def of(cls, arrays: Arrays) -> _Bends | None:
        """What a file says of distortion; None where it says nothing.

        Raises:
            FormatError: there is a name of its model, which is text, and no array of numbers.
        """
        key = _usual(arrays, "distortion")
        if key is None:
            return None
        coefficients = np.asarray(arrays.whole(key), np.float64)
        named = sorted({"camera_model", "distortion_model"} & set(arrays.names()))
        if named and coefficients.any():
            fix = "Write the camera with its model to a JSON file and give that: --intrinsics camera.json."
            raise FormatError(arrays.path, "the model of a distortion must be in a file", found=named[0], fix=fix)
        return cls(key, coefficients)

    def of_frame(self, index: int | None, count: int | None, where: str) -> tuple[Distortion | None, tuple[str, ...]]:
        """The distortion of a frame, and what is to be told."""
        values = self.coefficients
        if values.ndim == 2 and index is not None and len(values) == count and count > 1:
            values = values[index]
        if values.size != max(values.shape, default=0):
            raise FormatError(where, "must be one set of coefficients, or one a frame", found=f"shape {values.shape}")
        return distortion_of((), {}, [float(value) for value in values.ravel()], where)


def _is_homogeneous(matrix: npt.NDArray[np.float64]) -> bool:
    """Whether a (4, 4) is one matrix, and not four rows of fx, fy, cx, cy."""
    return np.array_equal(matrix[3], (0, 0, 0, 1))


def _usual(arrays: Arrays, what: str) -> str | None:
    """The first of the usual names that is there."""
    return next((name for name in _NAMES[what] if arrays.describe(name) is not None), None)


def _needed(arrays: Arrays, what: str, key: str | None) -> tuple[str, ArrayInfo]:
    """Name and description of an array: the one that was named, or of a usual name."""
    name = key or _usual(arrays, what)
    info = None if name is None else arrays.describe(name)
    if name is None or info is None:
        listed = ", ".join(sorted(arrays.names())[:10]) or "no arrays"
        fix = f"Say which it is with --{what}-key" + (", or give --intrinsics." if what == "intrinsics" else ".")
        raise FormatError(arrays.path, f"must hold {key or what}", found=listed, fix=fix)
    return name, info


def _misshaped(arrays: Arrays, key: str, rule: str, shape: tuple[int, ...]) -> FormatError:
    return FormatError(f"{arrays.path}: {key}", f"must have {rule}", found=f"shape {shape}")


def _to_rgb(values: npt.NDArray[Any], where: str) -> npt.NDArray[np.uint8]:
    """Pixels (H, W, 3) of 8 bits, from any of the ways in which images are stored."""
    if values.shape[2] not in (3, 4):
        values = np.moveaxis(values, 0, 2)
    values = values[..., :3]
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype == np.uint16:
        # Rounded, without a copy in floating point.
        return (values // 257 + (values % 257 > 128)).astype(np.uint8)
    if values.dtype.kind != "f":
        raise FormatError(where, "must be uint8, uint16 or floats from 0 to 1", found=values.dtype)
    least, greatest = float(np.nanmin(values, initial=0)), float(np.nanmax(values, initial=0))
    if least < 0 or greatest > 1.001:
        found = f"{least:g} to {greatest:g}"
        raise FormatError(where, "must be floats from 0 to 1", found=found, fix="Divide by 255, or save as uint8.")
    image = np.empty(values.shape, np.uint8)
    for pixels, row in zip(image, values, strict=True):
        pixels[:] = np.rint(255 * np.clip(np.nan_to_num(row), 0, 1))
    return image
