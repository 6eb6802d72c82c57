"""The PNG container of depth, normals, masks and segmentation: header, text fields, checks before decoding.

OpenCV inflates and deflates pixels. What it leaves out is here: text fields, and a walk over the chunks that finds a
truncated or damaged file, one with too many pixels, or one of another pixel format, before memory is allocated.
Chunk layout and text fields follow the PNG specification (ISO/IEC 15948), sections 5.3 and 11.3.4.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.errors import FormatError, InputError
from moge_core.io import limits
from moge_core.io.foreign import described_head
from moge_core.io.opencv import cv2

SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = b"\x00\x00\x00\x00IEND\xae\x42\x60\x82"
"""The chunk that every PNG ends with."""
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
_COLOR_NAMES = {GREY: "grey", RGB: "RGB", PALETTE: "palette", GREY_ALPHA: "grey and alpha", RGBA: "RGBA"}

DEFAULT_COMPRESSION_LEVEL = 2
"""zlib's level. With the UP filter, real depth maps of level 2 are 1 to 8 % larger than those of level 3, in two thirds
of its time. Level 7 with libpng's own choice of filters takes several times as long for a few per cent."""


@dataclass(frozen=True)
class PngHeader:
    """What a PNG says of itself before its pixels are decoded."""

    width: int
    height: int
    bit_depth: int
    color_type: int
    text: Mapping[str, str] = field(default_factory=dict)
    """The text fields that were asked for."""
    exif: bytes = b""

    @property
    def pixel_format(self) -> str:
        return f"{self.bit_depth}-bit {_COLOR_NAMES[self.color_type]}"


def parse_png(data: bytes, name: str, *, text_keys: Collection[str] = (), header_only: bool = False) -> PngHeader:
    """Walk over the chunks of a PNG file: sizes, checksums, text fields.

    Args:
        data: the file, or with `header_only` at least what precedes its pixels.
        name: what errors call the file.
        text_keys: text fields to return; the others are not even decompressed.
        header_only: stop where the pixels begin.

    Raises:
        FormatError: not a PNG, truncated, damaged, or a text field larger than `limits.MAX_TEXT_BYTES`.
    """
    if not data.startswith(SIGNATURE):
        found, fix = described_head(data)
        raise FormatError(name, "must be a PNG file", found=found, fix=fix)
    header: PngHeader | None = None
    text: dict[str, str] = {}
    exif = b""
    num_pixel_chunks = 0
    position = len(SIGNATURE)
    while True:
        kind, start, end = _chunk_at(data, position, name)
        position = end + 4
        if position > len(data) and not (header_only and kind == b"IDAT"):
            raise FormatError(
                name, "must not be truncated", found=f"an end within chunk {kind!r}, after {len(data):,} bytes"
            )
        if header is None:
            if kind != b"IHDR":
                raise FormatError(name, "a PNG must begin with its header", found=f"chunk {kind!r}")
            header = _parse_ihdr(data[start:end], name)
        if kind == b"IEND" or (header_only and kind == b"IDAT"):
            break
        is_critical = not kind[0] & 0x20
        is_wanted_text = kind in {b"tEXt", b"zTXt", b"iTXt"} and _keyword(data, start, end) in text_keys
        if (is_critical or is_wanted_text) and zlib.crc32(memoryview(data)[start - 4 : end]) != _uint32(data, end):
            raise FormatError(name, "must not be damaged", found=f"a wrong checksum in chunk {kind.decode('latin-1')}")
        if is_wanted_text:
            text[_keyword(data, start, end)] = _parse_text(kind, data[start:end], name)
        elif kind == b"eXIf" and not num_pixel_chunks:
            exif = data[start:end]
        num_pixel_chunks += kind == b"IDAT"
    if not num_pixel_chunks and not header_only:
        raise FormatError(name, "a PNG must hold pixels", found="no IDAT chunk")
    return PngHeader(header.width, header.height, header.bit_depth, header.color_type, text, exif)


def decode_png(data: bytes, name: str, header: PngHeader) -> npt.NDArray[Any]:
    """Pixels of a PNG that `parse_png` has accepted, as stored: (H, W) when grey, else (H, W, 3 or 4) in RGB order.

    Raises:
        ImageTooLargeError: more pixels than `limits.MAX_IMAGE_PIXELS`.
        FormatError: the pixels cannot be decoded.
    """
    limits.check_pixel_count(name, header.width, header.height)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise FormatError(name, "must hold decodable pixels", found=error) from error
    if pixels is None or pixels.shape[:2] != (header.height, header.width):
        raise FormatError(
            name, "must hold decodable pixels", found=f"damaged pixels behind a {header.pixel_format} header"
        )
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    return np.asarray(pixels)


def encode_png(
    pixels: npt.NDArray[Any],
    *,
    text: Mapping[str, str] | None = None,
    compression_level: int = DEFAULT_COMPRESSION_LEVEL,
) -> bytes:
    """A PNG file of `pixels` (H, W) or (H, W, 3) in RGB order, native uint8 or uint16, with ASCII text fields.

    Raises:
        InputError: `compression_level` is not 0..9.
    """
    if not 0 <= compression_level <= 9:
        raise InputError("compression_level", "must be 0 (none) to 9 (smallest, slow)", found=compression_level)
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    # One fixed filter: geometry changes slowly from row to row, so UP compresses it about as well as libpng's search
    # among all five filters, in half the time, and such files decode up to a third faster.
    options = [cv2.IMWRITE_PNG_COMPRESSION, compression_level, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    done, encoded = cv2.imencode(".png", pixels, options)
    if not done:
        raise RuntimeError(f"OpenCV could not encode {pixels.dtype} {pixels.shape} as PNG")
    data: bytes = encoded.tobytes()
    end_of_ihdr = len(SIGNATURE) + 12 + 13
    fields = b"".join(_chunk(b"tEXt", f"{key}\0{value}".encode("ascii")) for key, value in (text or {}).items())
    return data[:end_of_ihdr] + fields + data[end_of_ihdr:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _chunk_at(data: bytes, position: int, name: str) -> tuple[bytes, int, int]:
    """Kind of a chunk and where its body starts and ends."""
    start = position + 8
    if start > len(data):
        raise FormatError(name, "must not be truncated", found=f"an end within a PNG chunk, after {len(data):,} bytes")
    return data[position + 4 : start], start, start + _uint32(data, position)


def _parse_ihdr(body: bytes, name: str) -> PngHeader:
    if len(body) != 13:
        raise FormatError(name, "a PNG header must have 13 bytes", found=len(body))
    width, height, bit_depth, color_type = struct.unpack(">IIBB", body[:10])
    if color_type not in _COLOR_NAMES or bit_depth not in {1, 2, 4, 8, 16}:
        raise FormatError(
            name, "must have a PNG pixel format", found=f"bit depth {bit_depth}, colour type {color_type}"
        )
    return PngHeader(width, height, bit_depth, color_type)


def _keyword(data: bytes, start: int, end: int) -> str:
    keyword_end = data.find(b"\0", start, min(start + 80, end))
    return data[start:keyword_end].decode("latin-1") if keyword_end > start else ""


def _parse_text(kind: bytes, body: bytes, name: str) -> str:
    keyword, _, value = body.partition(b"\0")
    where = f"{name}, text field {keyword.decode('latin-1')}"
    encoding = "latin-1"
    is_compressed = kind == b"zTXt"
    if is_compressed:
        value = value[1:]  # compression method, always deflate
    elif kind == b"iTXt":
        encoding = "utf-8"
        is_compressed = value[:1] == b"\x01"
        _language, _, rest = value[2:].partition(b"\0")
        _translated_keyword, _, value = rest.partition(b"\0")
    if is_compressed:
        try:
            value = zlib.decompressobj().decompress(value, limits.MAX_TEXT_BYTES + 1)
        except zlib.error as error:
            raise FormatError(where, "must be decompressible", found=error) from error
    if len(value) > limits.MAX_TEXT_BYTES:
        raise FormatError(where, f"may have at most {limits.MAX_TEXT_BYTES:,} bytes", found="more")
    try:
        return value.decode(encoding)
    except UnicodeDecodeError as error:
        raise FormatError(where, "must be UTF-8 text", found=error) from error


def _uint32(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 4], "big")
