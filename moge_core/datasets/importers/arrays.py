"""Arrays in the files that publish depth: PNG and PGM of 8 or 16 bits, TIFF, PFM, NPY, NPZ, OpenEXR, HDF5.

Every reader looks at the header first and refuses more pixels than an image may have, and more bytes than the largest
image in RGB takes: an HDF5 file of a kilobyte can announce gigabytes of one fill value.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.array_checks import check_array, check_bytes, one_of, require
from moge_core.datasets.importers.exr_files import read_exr
from moge_core.datasets.importers.float_maps import read_dpt, read_pfm
from moge_core.errors import FormatError, InputError, MoGeError

# What NumPy can hold.
_MAX_SIZE, _MAX_DIMENSIONS = (1 << 63) - 1, 32
# An HDF5 file can link to itself, and has then no end of names.
_MOST_NAMES = 1000


def read_array(path: Path, name: str | None = None, notes: set[str] | None = None) -> npt.NDArray[Any]:
    """The array of a file, by its suffix: (H, W), or what an NPY, NPZ or HDF5 file with one array holds.

    Args:
        path: the file.
        name: which array, channel, page or band of a file with several.
        notes: for depth: one of several that is called so is taken, and told here.

    Raises:
        FormatError: another suffix, damaged, or several arrays where one is expected.
        InputError: a name for a file that holds one array.
        ImageTooLargeError: more pixels than `limits.MAX_IMAGE_PIXELS`, or bytes than `limits.MAX_FILE_BYTES`.
        MissingDependencyError: a package for this format is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise FormatError(path, f"must be one of {', '.join(sorted(SUFFIXES))}", found=path.suffix or "no suffix")
    try:
        if suffix in _OF_SEVERAL:
            return _OF_SEVERAL[suffix](path, name, notes)
        if name is not None:
            rule = "is for files that hold several arrays or channels"
            raise InputError("depth_array", rule, found=f"{name!r} for {path.name}", fix="Leave it out.")
        return _OF_ONE[suffix](path)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, MoGeError):
            raise
        raise FormatError(path, "must be decodable", found=error) from error


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


def read_npz(path: Path, key: str | None = None, notes: set[str] | None = None) -> npt.NDArray[Any]:
    """One array of an NPZ file.

    Args:
        path: the file.
        key: name of the array; not needed where there is one.
        notes: see `read_array`.

    Raises:
        FormatError: no such array, several without a key, damaged, or objects.
        ImageTooLargeError: see `check_array`.
    """
    with open_npz(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        with archive.open(f"{one_of(names, key, path, notes)}.npy") as file:
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


def read_hdf5(
    path: Path, key: str | None = None, index: int | None = None, notes: set[str] | None = None
) -> npt.NDArray[Any]:
    """One dataset of an HDF5 file (MATLAB's version 7.3 is one), or one entry along its first axis.

    Args:
        path: the file.
        key: name of the dataset, or its path where it lies in groups; not needed where there is one.
        index: which entry along the first axis.
        notes: see `read_array`.

    Raises:
        FormatError: no such dataset, several without a key, no numbers, or damaged.
        ImageTooLargeError: see `check_array`.
        MissingDependencyError: h5py is not installed.
    """
    h5py = require("h5py")
    try:
        with h5py.File(path, "r") as file:
            dataset = file.get(key) if key is not None else None
            if not isinstance(dataset, h5py.Dataset):
                dataset = file[one_of(_names_of_datasets(file), key, path, notes)]
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


def _names_of_datasets(file: Any) -> list[str]:
    """The dataset of an HDF5 file outside of its groups if it is one, or else the paths of all datasets."""
    h5py = require("h5py")
    outside = [name for name, item in file.items() if isinstance(item, h5py.Dataset)]
    if len(outside) == 1:
        return outside
    names: list[str] = []

    def add(name: str, item: Any) -> bool | None:
        if isinstance(item, h5py.Dataset):
            names.append(name)
        return True if len(names) >= _MOST_NAMES else None

    file.visititems(add)
    return names


def _read_grey(path: Path) -> npt.NDArray[Any]:
    from moge_core.datasets.importers.source_files import read_grey_values

    return read_grey_values(path)


def _read_tiff(path: Path, name: str | None, _notes: set[str] | None) -> npt.NDArray[Any]:
    from moge_core.datasets.importers.tiff_files import read_tiff

    return read_tiff(path, name)


def _read_hdf5(path: Path, name: str | None, notes: set[str] | None) -> npt.NDArray[Any]:
    return read_hdf5(path, name, notes=notes)


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


_OF_ONE: Mapping[str, Callable[[Path], npt.NDArray[Any]]] = {
    ".png": _read_grey,
    ".pgm": _read_grey,
    ".pfm": read_pfm,
    ".dpt": read_dpt,
    ".npy": read_npy,
}
_OF_SEVERAL: Mapping[str, Callable[[Path, str | None, set[str] | None], npt.NDArray[Any]]] = {
    ".tif": _read_tiff,
    ".tiff": _read_tiff,
    ".npz": read_npz,
    ".exr": read_exr,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
}
SUFFIXES = frozenset({*_OF_ONE, *_OF_SEVERAL})
"""Suffixes of the files that `read_array` reads."""
