"""Pictures small enough to live in Dagster's metadata, which has no images but renders markdown with data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import dagster as dg

MAX_BYTES = 60_000


def picture(path: Path, caption: str, max_bytes: int = MAX_BYTES) -> dg.MarkdownMetadataValue:
    """The picture file `path` inside markdown, scaled down until its PNG has at most `max_bytes` bytes."""
    return markdown_picture(path.read_bytes(), caption, max_bytes)


def markdown_picture(data: bytes, caption: str, max_bytes: int = MAX_BYTES) -> dg.MarkdownMetadataValue:
    """As `picture`, of the bytes of a picture file."""
    encoded = base64.b64encode(small_png(data, max_bytes)).decode("ascii")
    return dg.MetadataValue.md(f"![{caption}](data:image/png;base64,{encoded})")


def small_png(data: bytes, max_bytes: int = MAX_BYTES) -> bytes:
    """A PNG with a palette of a picture file's bytes, as large as `max_bytes` allow (down to 16 pixels)."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as opened:
        full = opened.convert("RGB")
    scale = min(1.0, 1024 / max(full.size))
    while True:
        size = (max(16, round(full.width * scale)), max(16, round(full.height * scale)))
        buffer = io.BytesIO()
        full.resize(size, Image.Resampling.LANCZOS).quantize(128).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= max_bytes or max(size) == 16:
            return buffer.getvalue()
        # Bytes grow with the area; a little below the estimate, so that few rounds are needed.
        scale *= min(0.9, 0.95 * (max_bytes / buffer.tell()) ** 0.5)
