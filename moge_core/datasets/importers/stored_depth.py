"""The numbers of a depth file: which file it is, which of its arrays, and how numbers are stored in it.

A depth PNG of MoGe's own format (text fields `near` and `far`) is recognised whatever the layout says of other files:
read as plain integers it would be wrong in silence.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.arrays import read_array
from moge_core.datasets.importers.encodings import OF_CHANNELS, decoded, looks_like_24_bits
from moge_core.datasets.importers.records import Record, StoredDepth
from moge_core.datasets.importers.source_files import not_16_bit
from moge_core.datasets.importers.told import Told
from moge_core.datasets.importers.usual_mistakes import how_to_say_24_bits
from moge_core.errors import FormatError, InstanceError
from moge_core.io import limits, read_depth
from moge_core.io.files import NamedBytes, read_bytes
from moge_core.io.png import GREY, RGB, PngHeader, decode_png, parse_png

_TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
_RANGE_FIELDS = frozenset({"near", "far"})
_RECOGNISED = (
    "Depth PNGs with the text fields near and far are of this format already; they were read as what they say, and no"
    " scale counts for them."
)
_FEW_STEPS = "Depth of 8 bits has at most 256 steps; it was read as was said, and steps are what it shows of slopes."


def read_stored(record: Record, told: Told) -> tuple[npt.NDArray[Any], StoredDepth]:
    """The numbers of a record's depth map, and what they mean once they are decoded.

    Args:
        record: one whose depth is a map.
        told: where it is told what was found.

    Returns:
        Numbers (H, W), integers or floats; and the meaning, with what the file itself says of it.

    Raises:
        MoGeError: a file that cannot be read, or holds something else than the record says.
    """
    depth = record.depth
    assert isinstance(depth, StoredDepth)
    if depth.read is not None:
        values, meaning = np.asarray(depth.read(depth.path)), depth
    elif depth.path.suffix.lower() == ".png":
        values, meaning = _read_png(depth, told)
    elif depth.path.suffix.lower() in _TIFF_SUFFIXES:
        values, meaning = _read_tiff(depth)
    else:
        values, meaning = np.asarray(read_array(depth.path, depth.depth_array, told.notes)), depth
    # Encodings look at bytes, which HDF5 files and memory maps may have the other way round.
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    encoding = meaning.encoding or "linear"
    if encoding == "moge-png" and (depth.read is not None or depth.path.suffix.lower() != ".png"):
        found = f"a {depth.path.suffix.lower() or 'nameless'} file"
        raise InstanceError(depth.path, "must be a PNG to be moge-png", found=found, fix="Leave --encoding out.")
    # (1, H, W) and (H, W, 1) are maps; a map of one pixel stays one.
    while values.ndim > 2 and 1 in {values.shape[0], values.shape[-1]}:
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    values = decoded(values, encoding, depth.path)
    if values.ndim != 2 or not values.size or values.dtype.kind not in "iuf":
        raise InstanceError(
            depth.path,
            "must hold a depth map (H, W) of numbers",
            found=f"{values.dtype} of shape {values.shape}",
            fix=_fix_of_shape(values.shape),
        )
    if values.dtype.itemsize == 1 and depth.kind != "disparity":
        if not record.values_are_said:
            error = not_16_bit(depth.path, "an 8-bit grey file")
            fix = f"{error.fix} Where 256 steps are all that there is, say --encoding linear."
            raise FormatError(depth.path, error.rule, found=error.found, fix=fix)
        told.notes.add(_FEW_STEPS)
    return values, meaning


def _fix_of_shape(shape: tuple[int, ...]) -> str | None:
    if len(shape) == 3 and shape[2] == 3:
        return "Three channels are points, normals or colours. Of points (X, Y, Z), save Z as (H, W)."
    if len(shape) == 3:
        return "Of a stack of many frames, name one file a frame, or import the stack with `moge import arrays`."
    return None


def holds_own_format(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a depth PNG of MoGe's own format."""
    try:
        header = parse_png(head, "PNG", text_keys=_RANGE_FIELDS, header_only=True)
    except FormatError:
        return False
    return _is_own_format(header)


def _read_png(depth: StoredDepth, told: Told) -> tuple[npt.NDArray[Any], StoredDepth]:
    data = read_bytes(depth.path, limit=limits.MAX_FILE_BYTES)
    header = parse_png(data, str(depth.path), text_keys=_RANGE_FIELDS)
    if depth.depth_array is not None:
        read_array(depth.path, depth.depth_array)
    if depth.encoding == "moge-png":
        return read_depth(NamedBytes(depth.path, data)), depth
    if _is_own_format(header):
        _check_unsaid(depth)
        told.notes.add(_RECOGNISED)
        # Markers of the layout are those of integers; what this format has for them is decoded already.
        own = replace(depth, encoding="moge-png", scale=None, offset=0.0)
        return read_depth(NamedBytes(depth.path, data)), own
    pixels = decode_png(data, str(depth.path), header)
    if depth.encoding in OF_CHANNELS:
        return pixels, depth
    if header.color_type == GREY and header.bit_depth in {8, 16}:
        return pixels, depth
    if (header.color_type, header.bit_depth) == (RGB, 16) and _are_equal(pixels):
        told.notes.add("Some depth files have three equal channels; one was taken.")
        return pixels[..., 0], depth
    likely = looks_like_24_bits(pixels)
    if likely is not None:
        raise FormatError(
            depth.path,
            "must be a 16-bit grey PNG or PGM",
            found=f"a picture whose three channels look like depth in 24 bits ({likely})",
            fix=how_to_say_24_bits(likely),
        )
    raise not_16_bit(depth.path, header.pixel_format)


def _check_unsaid(depth: StoredDepth) -> None:
    """Refuse to read this format's own depth as something else that was said.

    Raises:
        InstanceError: another encoding or kind.
    """
    if depth.encoding is None and depth.kind == "z":
        return
    found = f"encoding {depth.encoding}" if depth.encoding is not None else f"kind {depth.kind}"
    raise InstanceError(
        depth.path,
        "has the text fields near and far of a MoGe depth PNG, which holds z",
        found=f"{found}, which contradicts them",
        fix="Say --encoding moge-png if what they code is meant, or save the file without these fields.",
    )


def _is_own_format(header: PngHeader) -> bool:
    # One field without the other is this format damaged, and no plain PNG.
    return (header.color_type, header.bit_depth) == (GREY, 16) and bool(header.text)


def _read_tiff(depth: StoredDepth) -> tuple[npt.NDArray[Any], StoredDepth]:
    from moge_core.datasets.importers.tiff_files import read_tiff_channels, tiff_no_data

    if depth.encoding in OF_CHANNELS:
        return read_tiff_channels(depth.path), depth
    values = read_array(depth.path, depth.depth_array)
    no_data = tiff_no_data(depth.path, depth.depth_array)
    # What the user calls infinitely far goes before what the file calls unknown.
    if no_data is None or no_data in depth.infinite:
        return values, depth
    return values, replace(depth, invalid=(*depth.invalid, no_data))


def _are_equal(pixels: npt.NDArray[Any]) -> bool:
    return bool((pixels[..., :1] == pixels[..., 1:]).all())
