"""Arrays in the files that publish depth: PNG and PGM of 8 or 16 bits, TIFF, PFM, NPY, NPZ, OpenEXR, HDF5.

Every reader looks at the header first and refuses what would not fit into memory.
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moge_core.errors import FormatError, ImageTooLargeError, MissingDependencyError, MoGeError
from moge_core.io import limits

# Keyword, width, height, scale, each followed by one blank; a negative scale says that the least byte comes first.
_PFM_HEADER = re.compile(rb"(P[Ff])\s+(\d+)\s+(\d+)\s+(-?[0-9.eE+-]+)\s")


def read_array(path: Path) -> npt.NDArray[Any]:
    """The array of a file, by its suffix: (H, W), or what an NPY, NPZ or HDF5 file with one array holds.

    Raises:
        FormatError: another suffix, damaged, or several arrays where one is expected.
        ImageTooLargeError: more pixels than `limits.MAX_IMAGE_PIXELS`, or bytes than `limits.MAX_FILE_BYTES`.
        MissingDependencyError: a package for this format is not installed.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise FormatError(path, f"must be one of {', '.join(sorted(_READERS))}", found=path.suffix or "no suffix")
    try:
        return reader(path)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError(path, "must be decodable", found=error) from error


def read_pfm(path: Path) -> npt.NDArray[np.float32]:
    """Values (H, W) of a grey portable float map, first row on top. Their scale of brightness says nothing of depth.

    Raises:
        FormatError: no grey PFM, or truncated.
    """
    with path.open("rb") as file:
        match = _PFM_HEADER.match(file.read(128))
        if match is None or match[1] != b"Pf":
            raise FormatError(path, "must be a grey portable float map, Pf", found="another header")
        width, height = int(match[2]), int(match[3])
        limits.check_pixel_count(str(path), width, height)
        file.seek(match.end())
        data = file.read(4 * width * height)
    if len(data) < 4 * width * height:
        raise FormatError(path, "must not be truncated", found=f"{len(data):,} bytes of pixels for {width}x{height}")
    values = np.frombuffer(data, "<f4" if match[4].startswith(b"-") else ">f4").reshape(height, width)
    return np.ascontiguousarray(values[::-1]).astype(np.float32)


def read_npy(path: Path) -> npt.NDArray[Any]:
    """The array of an NPY file; one that holds Python objects is refused.

    Raises:
        FormatError: damaged, or objects.
    """
    with path.open("rb") as file:
        return _read_npy(file, str(path))


@dataclass(frozen=True)
class NpyHeader:
    """What an NPY file or a member of an NPZ file says of its array."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]


def npz_headers(path: Path) -> dict[str, NpyHeader]:
    """Names and headers of the arrays in an NPZ file, without decompressing the arrays.

    Raises:
        FormatError: damaged, or objects.
    """
    headers = {}
    with open_npz(path) as archive:
        for member in archive.namelist():
            if member.endswith(".npy"):
                with archive.open(member) as file:
                    headers[member.removesuffix(".npy")] = read_npy_header(file, f"{path}: {member}")
    return headers


def npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays in an NPZ file, without decompressing them.

    Raises:
        FormatError: damaged, or objects.
    """
    return {name: header.shape for name, header in npz_headers(path).items()}


def read_npz(path: Path, key: str | None = None) -> npt.NDArray[Any]:
    """One array of an NPZ file.

    Args:
        path: the file.
        key: name of the array; not needed where there is one.

    Raises:
        FormatError: no such array, several without a key, damaged, or objects.
    """
    with open_npz(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        with archive.open(f"{_one_of(names, key, path)}.npy") as file:
            return _read_npy(file, str(path))


@contextmanager
def open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """An NPZ file, whose damages become errors that name it.

    Raises:
        FormatError: no such file, damaged, encrypted, or compressed by a method that is not known.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        if isinstance(error, MoGeError):
            raise
        raise FormatError(path, "must be a readable NPZ file", found=error) from error


def read_hdf5(path: Path, key: str | None = None, index: int | None = None) -> npt.NDArray[Any]:
    """One dataset of an HDF5 file (MATLAB's version 7.3 is one), or one entry along its first axis.

    Raises:
        FormatError: no such dataset, several without a key, or damaged.
        MissingDependencyError: h5py is not installed.
    """
    h5py = require("h5py")
    try:
        with h5py.File(path, "r") as file:
            names = [name for name, item in file.items() if isinstance(item, h5py.Dataset)]
            dataset = file[_one_of(names, key, path)]
            shape = dataset.shape if index is None else dataset.shape[1:]
            for size in (shape, dataset.chunks or ()):
                check_bytes(size, dataset.dtype, str(path))
            return np.asarray(dataset[()] if index is None else dataset[index])
    except (OSError, RuntimeError, KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, MoGeError):
            raise
        raise FormatError(path, "must be a readable HDF5 file", found=error) from error


def read_exr(path: Path) -> npt.NDArray[Any]:
    """The first channel (H, W) of an OpenEXR file, or its channels (H, W, 3) where it has R, G and B.

    Raises:
        FormatError: damaged.
        MissingDependencyError: OpenEXR is not installed.
    """
    OpenEXR = require("OpenEXR", "OpenEXR")
    try:
        with OpenEXR.File(str(path), header_only=True) as header:
            window = header.header()["dataWindow"]
            width, height = (int(high) - int(low) + 1 for low, high in zip(*window, strict=True))
        limits.check_pixel_count(str(path), width, height)
        with OpenEXR.File(str(path), separate_channels=True) as file:
            channels = {name: np.array(channel.pixels) for name, channel in file.channels().items()}
    except (RuntimeError, OSError, KeyError) as error:
        raise FormatError(path, "must be a readable OpenEXR file", found=error) from error
    if {"R", "G", "B"} <= channels.keys():
        rgb = [channels[name] for name in "RGB"]
        # A depth map is often written as three equal channels.
        return rgb[0] if all(np.array_equal(rgb[0], other, equal_nan=True) for other in rgb[1:]) else np.stack(rgb, -1)
    if not channels:
        raise FormatError(path, "must have a channel", found="none")
    named = [name for name in ("Z", "Y", "depth") if name in channels]
    return channels[named[0] if named else min(channels)]


def require(module: str, package: str | None = None) -> ModuleType:
    """A module of an optional package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            package or module,
            "is needed to read these files",
            found=error,
            fix="Install it with `pip install 'moge-pipeline[importers]'`.",
        ) from error


def _read_grey(path: Path) -> npt.NDArray[Any]:
    from moge_core.datasets.importers.source_files import read_grey_values

    return read_grey_values(path)


def _read_tiff(path: Path) -> npt.NDArray[Any]:
    from PIL import Image, UnidentifiedImageError

    from moge_core.io.opencv import cv2

    try:
        with Image.open(path) as header:
            limits.check_pixel_count(str(path), *header.size)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise FormatError(path, "must be a TIFF file", found=error) from error
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 2:
        raise FormatError(path, "must be a decodable grey TIFF", found="other pixels")
    return np.asarray(values)


def read_npy_header(file: IO[bytes], name: str) -> NpyHeader:
    """The header of an NPY file, which is left at the first byte of its numbers.

    Raises:
        FormatError: another file, an impossible shape, or Python objects.
    """
    try:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(file)
    except (ValueError, TypeError, MemoryError, RecursionError) as error:
        raise FormatError(name, "must have the header of an NPY file", found=error) from error
    if dtype.hasobject:
        raise FormatError(name, "must hold numbers", found="Python objects, which could run code when read")
    if any(size < 0 for size in shape):
        raise FormatError(name, "must have a shape", found=shape)
    return NpyHeader(shape, fortran, dtype)


def _read_npy(file: IO[bytes], name: str) -> npt.NDArray[Any]:
    header = read_npy_header(file, name)
    shape, dtype = header.shape, header.dtype
    check_bytes(shape, dtype, name)
    count = math.prod(shape)
    data = file.read(count * dtype.itemsize)
    if len(data) < count * dtype.itemsize:
        raise FormatError(name, "must not be truncated", found=f"{len(data):,} bytes for the shape {shape}")
    values: npt.NDArray[Any] = np.frombuffer(data, dtype, count)
    values = values.reshape(shape[::-1]).T if header.is_fortran else values.reshape(shape)
    return values if dtype.isnative else values.astype(dtype.newbyteorder("="))


def check_bytes(shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> None:
    """Refuse an array that a header announces, before anything is allocated for it.

    Raises:
        ImageTooLargeError: more bytes than `limits.MAX_FILE_BYTES`.
    """
    if math.prod(shape) * dtype.itemsize > limits.MAX_FILE_BYTES:
        raise ImageTooLargeError(
            name, f"an array may have at most {limits.MAX_FILE_BYTES:,} bytes", found=f"the shape {shape} of {dtype}"
        )


def _one_of(names: list[str], key: str | None, path: Path) -> str:
    listed = ", ".join(sorted(names)[:10]) or "none"
    if key is None and len(names) == 1:
        return names[0]
    if key is None:
        raise FormatError(path, "must hold one array, or be told which to take", found=f"the arrays {listed}")
    if key not in names:
        raise FormatError(path, f"must hold the array {key}", found=f"the arrays {listed}")
    return key


_READERS: Mapping[str, Callable[[Path], npt.NDArray[Any]]] = {
    ".png": _read_grey,
    ".pgm": _read_grey,
    ".tif": _read_tiff,
    ".tiff": _read_tiff,
    ".pfm": read_pfm,
    ".npy": read_npy,
    ".npz": read_npz,
    ".exr": read_exr,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
}
