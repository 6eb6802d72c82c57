"""Size and orientation of an image file, read from its header alone.

Supported: JPEG, PNG, WebP, BMP and PPM/PGM.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moge_core.errors import FormatError
from moge_core.io import limits
from moge_core.io.files import PathOrFile, name_of, read_bytes
from moge_core.io.foreign import described_head
from moge_core.io.png import SIGNATURE as PNG_SIGNATURE
from moge_core.io.png import parse_png

_PEEK_BYTES = 1 << 16
_ORIENTATION_TAG = 0x0112
_START_OF_SCAN, _APP1 = 0xDA, 0xE1
_STANDALONE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class ImageHeader:
    """What an image file says of itself.

    `width` and `height` are those of the stored pixels. `orientation` (1..8) is how to turn them, as in EXIF.
    """

    width: int
    height: int
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) after turning: of what `read_image` returns."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_image_size(path_or_file: PathOrFile) -> tuple[int, int]:
    """(width, height) of an image, depth, normal, mask or segmentation file, without decoding it.

    An EXIF orientation is obeyed, so that the answer is the size of what `read_image` returns. The maps of geometry
    (depth, normal, mask, segmentation) have none.

    Raises:
        FormatError: no supported image file, or a damaged header.
        FileNotFoundError: there is no such file.
    """
    return read_image_header(path_or_file).size


def read_image_header(path_or_file: PathOrFile) -> ImageHeader:
    """Size of the stored pixels and orientation of an image file, without decoding it.

    Raises:
        FormatError: no supported image file, or a damaged header.
        FileNotFoundError: there is no such file.
    """
    name = name_of(path_or_file)
    if isinstance(path_or_file, (str, os.PathLike)):
        with Path(path_or_file).open("rb") as file:
            head = file.read(_PEEK_BYTES)
        try:
            return parse_image_header(head, name, header_only=True)
        except FormatError:
            if len(head) < _PEEK_BYTES:
                raise
            # A long comment, thumbnail or colour profile precedes the size: the whole file decides.
    return parse_image_header(read_bytes(path_or_file, limit=limits.MAX_FILE_BYTES), name, header_only=True)


def parse_image_header(data: bytes, name: str, *, header_only: bool = False) -> ImageHeader:
    """Header of an image file; with all of its bytes, also a check that it is whole.

    Args:
        data: the file, or with `header_only` at least what precedes its pixels.
        name: what errors call the file.
        header_only: look at nothing behind the header.

    Raises:
        FormatError: no supported image file, truncated or damaged.
    """
    header = _parse(data, name, header_only=header_only)
    if header.width < 1 or header.height < 1:
        raise FormatError(name, "an image must have pixels", found=f"{header.width} x {header.height} in the header")
    return header


def exif_orientation(exif: bytes) -> int:
    """The orientation (1..8) in an EXIF block; 1, as it is, where the block has none or makes no sense."""
    tiff = exif.removeprefix(b"Exif\0\0")
    byte_order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if byte_order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(byte_order + "I", tiff, 4)
        (num_entries,) = struct.unpack_from(byte_order + "H", tiff, directory)
        for i in range(num_entries):
            tag, _type, _count, value = struct.unpack_from(byte_order + "HHIH", tiff, directory + 2 + 12 * i)
            if tag == _ORIENTATION_TAG:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def without_exif(jpeg: bytes) -> bytes:
    """A JPEG without its EXIF and XMP blocks: the same pixels, and nothing that tells a viewer to turn them.

    Args:
        jpeg: a file that `parse_image_header` has accepted.
    """
    kept, position = [], 0
    for marker, start, end in _jpeg_segments(jpeg):
        if marker == _APP1:
            kept.append(jpeg[position:start])
            position = end
    return b"".join([*kept, jpeg[position:]])


def _parse(data: bytes, name: str, *, header_only: bool) -> ImageHeader:
    if data.startswith(PNG_SIGNATURE):
        png = parse_png(data, name, header_only=header_only)
        return ImageHeader(png.width, png.height, exif_orientation(png.exif))
    if data.startswith(b"\xff\xd8"):
        return _parse_jpeg(data, name, header_only=header_only)
    if (data[:4], data[8:12]) == (b"RIFF", b"WEBP"):
        # An EXIF block follows the pixels.
        if 8 + int.from_bytes(data[4:8], "little") > len(data):
            raise FormatError(name, "must not be truncated", found=f"a WebP image that ends after {len(data):,} bytes")
        return _parse_webp(data, name)
    if data.startswith(b"BM"):
        return _parse_bmp(data, name)
    if data[:2] in {b"P5", b"P6"}:
        return _parse_netpbm(data, name)
    found, fix = described_head(data)
    raise FormatError(name, "must be a JPEG, PNG, WebP, BMP or PPM image", found=found, fix=fix)


def _parse_jpeg(data: bytes, name: str, *, header_only: bool) -> ImageHeader:
    size: tuple[int, int] | None = None
    orientation = 1
    position = 0
    try:
        for marker, position, end in _jpeg_segments(data):
            if marker in _START_OF_FRAME:
                height, width = struct.unpack_from(">HH", data, position + 5)
                size = (width, height)
            elif marker == _APP1 and data[position + 4 : position + 10] == b"Exif\0\0":
                orientation = exif_orientation(data[position + 4 : end])
    except (IndexError, struct.error):
        raise FormatError(
            name, "must not be truncated", found=f"an end within the JPEG header, after {len(data):,} bytes"
        ) from None
    # Decoders fill the rest of a cut-off JPEG with grey. The end marker cannot occur within compressed pixels.
    if not header_only and data.rfind(b"\xff\xd9") < position:
        raise FormatError(
            name, "must not be truncated", found=f"a JPEG without an end marker, after {len(data):,} bytes"
        )
    if size is None:
        raise FormatError(name, "a JPEG must announce its size before its pixels", found="no frame header")
    return ImageHeader(*size, orientation)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, begin and end of each segment of a JPEG, the last one being the one that its pixels follow.

    Raises:
        IndexError, struct.error: the data end before that.
    """
    position = 2
    while True:
        while data[position] != 0xFF or data[position + 1] == 0xFF:
            position += 1  # fill bytes
        marker = data[position + 1]
        if marker in _STANDALONE_MARKERS:
            position += 2
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        end = position + 2 + max(length, 2)
        yield marker, position, end
        if marker == _START_OF_SCAN:
            return
        position = end


def _parse_webp(data: bytes, name: str) -> ImageHeader:
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        raise FormatError(
            name, "must not be truncated", found=f"an end within the WebP header, after {len(data)} bytes"
        )
    if kind == b"VP8X":  # extended: canvas size in 24 bits each, less one
        width, height = (1 + int.from_bytes(body[i : i + 3], "little") for i in (4, 7))
    elif kind == b"VP8L" and body[0] == 0x2F:  # lossless: 14 bits each, less one
        bits = int.from_bytes(body[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":  # lossy: 14 bits each, above them a hint for scaling
        width, height = (int.from_bytes(body[i : i + 2], "little") & 0x3FFF for i in (6, 8))
    else:
        raise FormatError(name, "must have a WebP header", found=repr(data[12:30]))
    position, exif = 12, b""
    while kind == b"VP8X" and position + 8 <= len(data):
        start = position + 8
        end = start + int.from_bytes(data[position + 4 : start], "little")
        if data[position : position + 4] == b"EXIF":
            exif = data[start:end]
        position = end + end % 2
    return ImageHeader(width, height, exif_orientation(exif))


def _parse_bmp(data: bytes, name: str) -> ImageHeader:
    if len(data) < 26:
        raise FormatError(name, "must not be truncated", found=f"an end within the BMP header, after {len(data)} bytes")
    # OS/2's first version has a header of 12 bytes with 16-bit sides. A negative height means rows from the top.
    width, height = struct.unpack_from("<HH" if data[14] == 12 else "<ii", data, 18)
    return ImageHeader(width, abs(height))


def _parse_netpbm(data: bytes, name: str) -> ImageHeader:
    found = re.match(rb"P[56](?:\s+|#[^\n]*\n)+(\d{1,9})(?:\s+|#[^\n]*\n)+(\d{1,9})\s", data)
    if not found:
        raise FormatError(name, "must have a PPM header", found=repr(data[:30]))
    return ImageHeader(int(found[1]), int(found[2]))
