"""PNG files made by hand and read by rule, independent of the code under test."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

GREY, RGB = 0, 2


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def text_chunk(key: str, value: str) -> bytes:
    return chunk(b"tEXt", key.encode() + b"\0" + value.encode("latin-1"))


def png_file(
    width: int,
    height: int,
    *,
    bit_depth: int = 16,
    color_type: int = GREY,
    extra: bytes = b"",
    pixels: bytes | None = None,
) -> bytes:
    """A PNG of zeros, or of raw scan lines."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    if pixels is None:
        pixels = bytes(1 + (width * bit_depth * channels + 7) // 8) * height
    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def grey16_file(codes: npt.NDArray[Any], extra: bytes = b"") -> bytes:
    rows = codes.astype(">u2")
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    return png_file(codes.shape[1], codes.shape[0], pixels=lines, extra=extra)


def huge_header(width: int = 50_000, height: int = 50_000, *, color_type: int = GREY, extra: bytes = b"") -> bytes:
    """A PNG of some hundred bytes that announces gigapixels, 16 bits each."""
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def read_depth_by_rule(data: bytes) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float64], float]:
    """Codes, depths and the width of a step in log depth, as the format defines them and other tools read them."""
    image = Image.open(io.BytesIO(data))
    assert image.mode == "I;16"
    near, far = float(image.info["near"]), float(image.info["far"])
    codes = np.array(image)
    t = (codes.astype(np.float64) - 1) / 65533
    depth = np.exp((1 - t) * np.log(near) + t * np.log(far))
    depth[codes == 0] = np.nan
    depth[codes == 65535] = np.inf
    return codes, depth, np.log(far / near) / 65533
