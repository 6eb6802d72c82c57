"""Arrays in the files that publish depth: PNG and PGM of 8 or 16 bits, TIFF, PFM, NPY, NPZ, OpenEXR, HDF5.

Every reader looks at the header first and refuses more pixels than an image may have, and more bytes than the largest
image in RGB takes: an HDF5 file of a kilobyte can announce gigabytes of one fill value.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
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
# Files that went through Windows have two bytes for the last blank.
_PFM_HEADER = re.compile(rb"(P[Ff])\s+(\d+)\s+(\d+)\s+(-?[0-9.eE+-]+)(?:\r\n|\s)")
# What NumPy can hold.
_MAX_SIZE, _MAX_DIMENSIONS = (1 << 63) - 1, 32


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
        match, width, height = _pfm_header(file, path)
        needed, there = 4 * width * height, os.fstat(file.fileno()).st_size - match.end()
        # A lone \r may be the blank, and \n the first byte of the pixels.
        start = match.end() - 1 if there == needed - 1 and match[0].endswith(b"\r\n") else match.end()
        if there != needed and start == match.end():
            rule = "must not be truncated" if there < needed else "must end with its pixels"
            raise FormatError(path, rule, found=f"{there:,} bytes of pixels for {width}x{height}")
        file.seek(start)
        data = file.read(needed)
    if len(data) < needed:
        raise FormatError(path, "must not be truncated", found=f"{len(data):,} bytes of pixels for {width}x{height}")
    values = np.frombuffer(data, "<f4" if match[4].startswith(b"-") else ">f4").reshape(height, width)
    return values[::-1].astype(np.float32, order="C")


def pfm_size(path: Path) -> tuple[int, int]:
    """(width, height) of a grey portable float map, from its header.

    Raises:
        FormatError: no grey PFM.
    """
    with path.open("rb") as file:
        return _pfm_header(file, path)[1:]


def _pfm_header(file: IO[bytes], path: Path) -> tuple[re.Match[bytes], int, int]:
    match = _PFM_HEADER.match(file.read(128))
    if match is None or match[1] != b"Pf":
        raise FormatError(path, "must be a grey portable float map, Pf", found="another header")
    width, height = int(match[2]), int(match[3])
    check_array((height, width), np.dtype(np.float32), str(path))
    return match, width, height


def read_npy(path: Path) -> npt.NDArray[Any]:
    """The array of an NPY file; one that holds Python objects is refused.

    Raises:
        FormatError: damaged, or objects.
        ImageTooLargeError: see `check_array`.
    """
    with path.open("rb") as file:
        return _read_npy(file, str(path), os.fstat(file.fileno()).st_size)


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
        ImageTooLargeError: see `check_array`.
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
    except MoGeError:
        raise
    except Exception as error:  # whatever damage makes of zipfile and of zlib, bz2 and lzma behind it
        raise FormatError(path, "must be a readable NPZ file", found=error) from error


def read_hdf5(path: Path, key: str | None = None, index: int | None = None) -> npt.NDArray[Any]:
    """One dataset of an HDF5 file (MATLAB's version 7.3 is one), or one entry along its first axis.

    Raises:
        FormatError: no such dataset, several without a key, no numbers, or damaged.
        ImageTooLargeError: see `check_array`.
        MissingDependencyError: h5py is not installed.
    """
    h5py = require("h5py")
    try:
        with h5py.File(path, "r") as file:
            names = [name for name, item in file.items() if isinstance(item, h5py.Dataset)]
            dataset = file[_one_of(names, key, path)]
            shape = dataset.shape if index is None else dataset.shape[1:]
            if dataset.dtype.hasobject:
                raise FormatError(f"{path}: {dataset.name}", "must hold numbers", found=dataset.dtype)
            check_array(shape, dataset.dtype, str(path))
            check_bytes(dataset.chunks or (), dataset.dtype, str(path))
            return np.asarray(dataset[()] if index is None else dataset[index])
    except MoGeError:
        raise
    except Exception as error:  # whatever damage makes of the HDF5 library
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
            num_channels = len(header.header()["channels"])
        limits.check_pixel_count(str(path), width, height)
        check_bytes((num_channels, height, width), np.dtype(np.float32), str(path))
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
    except MoGeError:
        raise
    except (
        Exception
    ) as error:  # a header is Python's syntax: its tokenizer, parser and NumPy each have errors of their own
        raise FormatError(name, "must have the header of an NPY file", found=error) from error
    if dtype.hasobject:
        raise FormatError(name, "must hold numbers", found="Python objects, which could run code when read")
    if not dtype.itemsize or dtype.subdtype is not None:
        raise FormatError(name, "must hold numbers", found=dtype)
    if len(shape) > _MAX_DIMENSIONS or not all(0 <= size <= _MAX_SIZE for size in shape):
        raise FormatError(name, "must have a shape", found=f"{len(shape)} sizes, not all of them possible")
    return NpyHeader(shape, fortran, dtype)


def _read_npy(file: IO[bytes], name: str, file_bytes: int | None = None) -> npt.NDArray[Any]:
    header = read_npy_header(file, name)
    shape, dtype = header.shape, header.dtype
    check_array(shape, dtype, name)
    num_bytes = math.prod(shape) * dtype.itemsize
    there = num_bytes if file_bytes is None else file_bytes - file.tell()
    data = file.read(num_bytes) if there >= num_bytes else b""
    if len(data) < num_bytes:
        raise FormatError(name, "must not be truncated", found=f"{min(there, len(data)):,} bytes for the shape {shape}")
    try:
        values: npt.NDArray[Any] = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
        values = values.reshape(shape[::-1]).T if header.is_fortran else values.reshape(shape)
    except ValueError as error:
        raise FormatError(name, "must have a shape", found=error) from error
    return values if dtype.isnative else values.astype(dtype.newbyteorder("="))


def check_array(shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> None:
    """Refuse a map, an image or another array that a header announces, before anything is allocated for it.

    Args:
        shape: of what is read at once: (H, W), (H, W, C), (C, H, W); of a stack, one entry's.
        dtype: of its numbers.
        name: what errors name.

    Raises:
        ImageTooLargeError: more pixels than `limits.MAX_IMAGE_PIXELS`, or more bytes than `check_bytes` allows.
    """
    check_bytes(shape, dtype, name)
    height, width = sorted(shape)[-2:] if len(shape) > 1 else (1, 1)
    # Sweeps without returns are arrays too.
    limits.check_pixel_count(name, max(width, 1), max(height, 1))


def check_bytes(shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> None:
    """Refuse what would take more memory than the largest image that may be read, before anything is allocated for it.

    Raises:
        ImageTooLargeError: more bytes than `limits.MAX_IMAGE_PIXELS` pixels of RGB, or than `limits.MAX_FILE_BYTES`.
    """
    most = min(3 * limits.MAX_IMAGE_PIXELS, limits.MAX_FILE_BYTES)
    if math.prod(shape) * dtype.itemsize > most:
        raise ImageTooLargeError(
            name,
            f"an array may have at most {most:,} bytes",
            found=f"the shape {shape} of {dtype}",
            fix="If the size is true, raise moge_core.io.limits.MAX_IMAGE_PIXELS.",
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
