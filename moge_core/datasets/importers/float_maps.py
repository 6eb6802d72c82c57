"""Files of one map of float32 behind a short header: portable float maps (PFM), and the .dpt of MPI Sintel."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.array_checks import check_array
from moge_core.errors import FormatError

# Between the words of a header: blanks, and comments to the end of a line.
_GAP = rb"(?:\s|#[^\n]*\n)+"
# Keyword, width, height and scale; a negative scale says that the least byte comes first.
_PFM_HEADER = re.compile(rb"(P[Ff])" + _GAP + rb"(\d+)" + _GAP + rb"(\d+)" + _GAP + rb"([+-]?[0-9.]+(?:[eE][+-]?\d+)?)")
# One blank or line end, of Windows too, before the pixels, which may look like blanks; and comments.
_BEFORE_PIXELS = re.compile(rb"[ \t]*(?:\r\n|\s)(?:#[^\n]*\n)*")
_MOST_HEADER_BYTES = 4096
# The float32 that a .dpt begins with, as Sintel's sdk/python/sintel_io.py checks it.
_DPT_TAG = 202021.25


def read_pfm(path: Path) -> npt.NDArray[np.float32]:
    """Values (H, W) of a grey portable float map, first row on top. Their scale of brightness says nothing of depth.

    Raises:
        FormatError: no grey PFM, or truncated.
    """
    with path.open("rb") as file:
        match, width, height = _pfm_header(file, path)
        needed, num_bytes = 4 * width * height, os.fstat(file.fileno()).st_size
        # The file ends with its pixels, so its size says where they begin.
        start = num_bytes - needed
        if start <= match.end():
            found = f"{max(num_bytes - match.end() - 1, 0):,} bytes of pixels for {width}x{height}"
            raise FormatError(path, "must not be truncated", found=found)
        file.seek(match.end())
        if start - match.end() > _MOST_HEADER_BYTES or not _BEFORE_PIXELS.fullmatch(file.read(start - match.end())):
            found = f"{num_bytes - match.end() - 1:,} bytes of pixels for {width}x{height}"
            raise FormatError(path, "must end with its pixels", found=found)
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


def read_dpt(path: Path) -> npt.NDArray[np.float32]:
    """Values (H, W) of a .dpt file of MPI Sintel: a tag, width and height, and the pixels row by row.

    Raises:
        FormatError: no such file, or truncated.
    """
    with path.open("rb") as file:
        head = file.read(12)
        if len(head) < 12 or struct.unpack("<f", head[:4])[0] != _DPT_TAG:
            raise FormatError(path, "must begin with the tag of a .dpt file", found=repr(head[:4]))
        width, height = struct.unpack("<ii", head[4:])
        if min(width, height) < 1:
            raise FormatError(path, "must have at least one pixel", found=f"{width}x{height}")
        check_array((height, width), np.dtype(np.float32), str(path))
        data = file.read(4 * width * height)
    if len(data) < 4 * width * height:
        raise FormatError(path, "must not be truncated", found=f"{len(data):,} bytes of pixels for {width}x{height}")
    values: npt.NDArray[Any] = np.frombuffer(data, "<f4").reshape(height, width).astype(np.float32)
    return values


def _pfm_header(file: IO[bytes], path: Path) -> tuple[re.Match[bytes], int, int]:
    match = _PFM_HEADER.match(file.read(_MOST_HEADER_BYTES))
    if match is None or match[1] != b"Pf":
        found = "a colour map, PF, of three channels" if match is not None else "another header"
        raise FormatError(path, "must be a grey portable float map, Pf", found=found)
    width, height = int(match[2]), int(match[3])
    check_array((height, width), np.dtype(np.float32), str(path))
    return match, width, height
