"""Named arrays in NPZ, HDF5 and Zarr: what they are, without reading them, and single frames of those that hold many.

    with open_arrays(path) as arrays:
        arrays.describe("depth")        # ArrayInfo, or None
        arrays.frame("depth", 7)

Frames that are stored together are read together and kept for those who ask for their neighbours, within a few hundred
megabytes: a chunk of a hundred frames is decompressed once, and an NPZ file is read from front to end.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.array_checks import check_array, check_bytes, require
from moge_core.datasets.importers.arrays import npz_headers, open_npz, read_npy_header
from moge_core.errors import FormatError, MoGeError

SUFFIXES = frozenset({".npz", ".h5", ".hdf5", ".zarr"})

_MAX_META_BYTES = 1 << 20
_PIECE_BYTES = 1 << 22
# What is read at once, at most, where frames are stored together.
_SLAB_BYTES = 1 << 26

# Codecs of Zarr that turn bytes into bytes. Those that build Python objects, pickle among them, could run code.
_CODECS = frozenset(
    {"adler32", "astype", "bitround", "blosc", "bytes", "bz2", "crc32", "crc32c", "delta", "fixedscaleoffset"}
    | {"fletcher32", "gzip", "lz4", "lzma", "packbits", "quantize", "sharding_indexed", "shuffle", "transpose", "zlib"}
    | {"zstd"}
)


@dataclass(frozen=True)
class ArrayInfo:
    """An array as its header describes it.

    Attributes:
        shape: of all of it.
        dtype: of its numbers.
        frames_together: how many entries along the first axis are stored as one.
        stored_bytes: what it takes on the disk, at most.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    frames_together: int
    stored_bytes: int


class Slabs:
    """Frames that were read together with one that was asked for. The least recent are forgotten first."""

    def __init__(self, max_bytes: int = 8 * _SLAB_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Path, str, int], npt.NDArray[Any]] = OrderedDict()

    def get(self, at: tuple[Path, str, int]) -> npt.NDArray[Any] | None:
        """What was kept there."""
        with self._lock:
            slab = self._kept.get(at)
            if slab is not None:
                self._kept.move_to_end(at)
            return slab

    def keep(self, at: tuple[Path, str, int], slab: npt.NDArray[Any]) -> None:
        """Keep it, and forget others beyond the limit."""
        with self._lock:
            self._kept[at] = slab
            while sum(other.nbytes for other in self._kept.values()) > self._max_bytes and len(self._kept) > 1:
                self._kept.popitem(last=False)


class Arrays(ABC):
    """The arrays of one file or folder. Its frames may be asked for by many threads."""

    def __init__(self, path: Path, slabs: Slabs) -> None:
        self.path = path
        self._slabs = slabs
        self._reading = threading.Lock()
        self._infos: dict[str, ArrayInfo | None] = {}

    @abstractmethod
    def names(self) -> list[str]:
        """The arrays that it holds at the top."""

    @abstractmethod
    def _describe(self, key: str) -> ArrayInfo | None: ...

    @abstractmethod
    def _read(self, key: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Entries start..stop - 1 along the first axis."""

    def files(self, key: str, index: int | None) -> tuple[Path, ...]:
        """The files in which a frame, or the whole array, is stored."""
        return (self.path,)

    def close(self) -> None:  # noqa: B027 most have nothing that stays open
        """Close what is still open."""

    def describe(self, key: str) -> ArrayInfo | None:
        """What an array is; None where there is none of this name.

        Raises:
            FormatError: damaged, or not of numbers.
        """
        if key not in self._infos:
            self._infos[key] = self._describe(key)
        return self._infos[key]

    def whole(self, key: str) -> npt.NDArray[Any]:
        """All of an array.

        Raises:
            FormatError: no such array, or damaged.
            ImageTooLargeError: see `check_array`.
        """
        info = self._described(key)
        check_array(info.shape, info.dtype, f"{self.path}: {key}")
        with self._reading:
            return self._read(key, 0, info.shape[0])

    def frame(self, key: str, index: int) -> npt.NDArray[Any]:
        """One entry along the first axis.

        Raises:
            FormatError: no such array, no such frame, or damaged.
            ImageTooLargeError: see `check_array`.
        """
        info = self._described(key)
        where = f"{self.path}: {key}"
        if not 0 <= index < info.shape[0]:
            raise FormatError(where, f"must have a frame {index}", found=f"the shape {info.shape}")
        check_array(info.shape[1:], info.dtype, where)
        frame_bytes = max(1, math.prod(info.shape[1:]) * info.dtype.itemsize)
        together = max(1, min(info.frames_together, _SLAB_BYTES // frame_bytes))
        start = index - index % together
        slab = self._slabs.get((self.path, key, start))
        if slab is None:
            with self._reading:
                # Another thread may have read it while this one waited.
                slab = self._slabs.get((self.path, key, start))
                if slab is None:
                    slab = self._read(key, start, min(start + together, info.shape[0]))
                    if together > 1:
                        self._slabs.keep((self.path, key, start), slab)
        frame: npt.NDArray[Any] = slab[index - start]
        return frame

    def _described(self, key: str) -> ArrayInfo:
        info = self.describe(key)
        if info is None:
            listed = ", ".join(sorted(self.names())[:10]) or "none"
            raise FormatError(self.path, f"must hold the array {key}", found=f"the arrays {listed}")
        return info


@contextlib.contextmanager
def open_arrays(path: Path, slabs: Slabs | None = None) -> Iterator[Arrays]:
    """The arrays of a file or folder, by its suffix.

    Args:
        path: the file, or the folder of a Zarr group.
        slabs: where frames are kept for those who ask for their neighbours; one for many files keeps memory flat.

    Raises:
        FormatError: another suffix, or damaged.
        MissingDependencyError: a package for this format is not installed.
    """
    kinds: Mapping[str, type[Arrays]] = {".npz": _Npz, ".h5": _Hdf5, ".hdf5": _Hdf5, ".zarr": _Zarr}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise FormatError(path, f"must be one of {', '.join(sorted(SUFFIXES))}", found=path.suffix or "no suffix")
    arrays = kind(path, slabs or Slabs())
    try:
        yield arrays
    finally:
        arrays.close()


class _Npz(Arrays):
    """Members are compressed from front to end, so a frame costs all before it, unless one reads on."""

    def __init__(self, path: Path, slabs: Slabs) -> None:
        super().__init__(path, slabs)
        self._headers = npz_headers(path)
        self._open: dict[str, tuple[contextlib.ExitStack, IO[bytes], int]] = {}

    def names(self) -> list[str]:
        return list(self._headers)

    def _describe(self, key: str) -> ArrayInfo | None:
        header = self._headers.get(key)
        if header is None or not header.shape:
            return None
        _check_numbers(header.dtype, f"{self.path}: {key}")
        return ArrayInfo(header.shape, header.dtype, header.shape[0], self.path.stat().st_size)

    def _read(self, key: str, start: int, stop: int) -> npt.NDArray[Any]:
        header = self._headers[key]
        if header.is_fortran and stop - start < header.shape[0]:
            fix = "Save it with numpy.ascontiguousarray."
            raise FormatError(f"{self.path}: {key}", "must be stored frame by frame", found="Fortran's order", fix=fix)
        frame_shape = header.shape[1:]
        frame_bytes = math.prod(frame_shape) * header.dtype.itemsize
        stack, file, at = self._open.pop(key, (contextlib.ExitStack(), None, 0))
        with stack:
            if file is None or at != start:
                stack.close()
                file = stack.enter_context(stack.enter_context(open_npz(self.path)).open(f"{key}.npy"))
                read_npy_header(file, f"{self.path}: {key}")
                self._pass(file, start * frame_bytes)
            data = self._take(file, key, (stop - start) * frame_bytes)
            if stop < header.shape[0]:
                self._open[key] = (stack.pop_all(), file, stop)
        values: npt.NDArray[Any] = np.frombuffer(data, header.dtype)
        shape = (stop - start, *frame_shape)
        values = values.reshape(shape[::-1]).T if header.is_fortran else values.reshape(shape)
        return values if header.dtype.isnative else values.astype(header.dtype.newbyteorder("="))

    def close(self) -> None:
        for stack, _, _ in self._open.values():
            stack.close()
        self._open.clear()

    def _pass(self, file: IO[bytes], num_bytes: int) -> None:
        while num_bytes > 0 and (piece := self._guarded(file, min(num_bytes, _PIECE_BYTES))):
            num_bytes -= len(piece)

    def _take(self, file: IO[bytes], key: str, num_bytes: int) -> bytes:
        data = self._guarded(file, num_bytes)
        if len(data) < num_bytes:
            raise FormatError(f"{self.path}: {key}", "must not be truncated", found=f"{len(data):,} bytes")
        return data

    def _guarded(self, file: IO[bytes], num_bytes: int) -> bytes:
        try:
            return file.read(num_bytes)
        except Exception as error:  # whatever a damaged stream makes of zipfile and zlib
            raise FormatError(self.path, "must be a readable NPZ file", found=error) from error


class _Hdf5(Arrays):
    def names(self) -> list[str]:
        h5py = require("h5py")
        with self._file() as file:
            return [name for name in file if isinstance(file.get(name), h5py.Dataset)]

    def _describe(self, key: str) -> ArrayInfo | None:
        h5py = require("h5py")
        with self._file() as file:
            dataset = file.get(key)
            if not isinstance(dataset, h5py.Dataset) or not dataset.shape:
                return None
            _check_numbers(dataset.dtype, f"{self.path}: {key}")
            chunk = dataset.chunks or (1,)
            check_bytes(chunk, dataset.dtype, f"{self.path}: {key}")
            return ArrayInfo(dataset.shape, dataset.dtype, chunk[0], self.path.stat().st_size)

    def _read(self, key: str, start: int, stop: int) -> npt.NDArray[Any]:
        with self._file() as file:
            return np.asarray(file[key][start:stop])

    @contextlib.contextmanager
    def _file(self) -> Iterator[Any]:
        h5py = require("h5py")
        try:
            # Opened for each reading: files of a long import are not all held open.
            with h5py.File(self.path, "r") as file:
                yield file
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, MoGeError):
                raise
            raise FormatError(self.path, "must be a readable HDF5 file", found=error) from error


class _Zarr(Arrays):
    """A group of version 2 or 3. What it is stands in small JSON files, which are read here; zarr reads the chunks."""

    def __init__(self, path: Path, slabs: Slabs) -> None:
        super().__init__(path, slabs)
        self._chunks: dict[str, dict[str, list[Path]]] = {}

    def names(self) -> list[str]:
        folders = (path for path in self.path.iterdir() if path.is_dir())
        return [path.name for path in folders if self._meta_file(path.name) is not None]

    def _describe(self, key: str) -> ArrayInfo | None:
        path = self._meta_file(key)
        if path is None:
            return None
        meta = _read_json(path)
        is_v2 = path.name == ".zarray"
        if not is_v2 and meta.get("node_type") != "array":
            return None
        try:
            shape = _sizes(meta["shape"])
            if is_v2:
                codecs = [*(meta.get("filters") or []), *([meta["compressor"]] if meta.get("compressor") else [])]
                names, chunk, dtype = [codec["id"] for codec in codecs], _sizes(meta["chunks"]), meta["dtype"]
            else:
                names, dtype = list(_codec_names(meta["codecs"])), meta["data_type"]
                chunk = _sizes(meta["chunk_grid"]["configuration"]["chunk_shape"])
            dtype = np.dtype(dtype if isinstance(dtype, str) else "O")
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise FormatError(path, "must describe a Zarr array", found=repr(error)) from error
        if other := {str(name).removeprefix("numcodecs.") for name in names} - _CODECS:
            raise FormatError(path, "must use codecs of numbers", found=", ".join(sorted(other)))
        _check_numbers(dtype, str(path))
        if not shape or len(chunk) != len(shape) or min(chunk) < 1:
            raise FormatError(path, "must have a shape and chunks", found=f"{shape} and {chunk}")
        check_bytes(chunk, dtype, str(path))
        stored = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
        return ArrayInfo(shape, dtype, chunk[0], stored)

    def _read(self, key: str, start: int, stop: int) -> npt.NDArray[Any]:
        zarr = require("zarr")
        try:
            return np.asarray(zarr.open_array(str(self.path / key), mode="r")[start:stop])
        except Exception as error:  # whatever damaged chunks make of the codecs
            raise FormatError(f"{self.path}: {key}", "must be readable with zarr", found=error) from error

    def files(self, key: str, index: int | None) -> tuple[Path, ...]:
        meta, info = self._meta_file(key), self.describe(key)
        if meta is None or info is None:
            return ()
        if key not in self._chunks:
            found: dict[str, list[Path]] = {}
            for path in sorted(meta.parent.rglob("*")):
                if path != meta and path.is_file():
                    found.setdefault(_first_of_chunk(path.relative_to(meta.parent)), []).append(path)
            self._chunks[key] = found
        chunks = self._chunks[key]
        if index is not None:
            return (meta, *chunks.get(str(index // info.frames_together), []))
        return (meta, *(path for paths in chunks.values() for path in paths))

    def _meta_file(self, key: str) -> Path | None:
        parts = PurePosixPath(key).parts
        if not parts or ".." in parts or PurePosixPath(key).is_absolute():
            return None
        folder = self.path / key
        return next((folder / name for name in ("zarr.json", ".zarray") if (folder / name).is_file()), None)


def _first_of_chunk(path: Path) -> str:
    """Place along the first axis of a chunk's file: `c/3/0/0` and `c.3.0.0` (version 3), `3.0.0` and `3/0/0`."""
    parts = path.as_posix().replace("/", ".").split(".")
    return parts[1] if parts[0] == "c" and len(parts) > 1 else parts[0]


def _read_json(path: Path) -> Mapping[str, Any]:
    if path.stat().st_size > _MAX_META_BYTES:
        raise FormatError(path, f"must be smaller than {_MAX_META_BYTES >> 20} MiB")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(path, "must be JSON", found=error) from error
    if not isinstance(value, dict):
        raise FormatError(path, "must be a JSON object", found=type(value).__name__)
    return value


def _codec_names(codecs: Any) -> Iterator[str]:
    for codec in codecs:
        yield codec["name"]
        inner = codec.get("configuration") or {}
        for key in ("codecs", "index_codecs"):
            yield from _codec_names(inner.get(key) or [])


def _sizes(values: Any) -> tuple[int, ...]:
    if not all(isinstance(value, int) and value >= 0 for value in values):
        raise ValueError(f"sizes {values}")
    return tuple(values)


def _check_numbers(dtype: np.dtype[Any], where: str) -> None:
    if dtype.kind not in "uif":
        raise FormatError(where, "must hold numbers", found=dtype)
