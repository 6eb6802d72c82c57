"""How much the readers accept. Assign to change, for instance `moge_core.io.limits.MAX_IMAGE_PIXELS = 1 << 30`.

The limits are read at each call. They keep a damaged or hostile file from taking the machine's memory: a PNG of a
hundred bytes can announce 10 gigapixels, and a compressed text field of a kilobyte can unfold to a megabyte.
"""

from __future__ import annotations

from moge_core.errors import FormatError, ImageTooLargeError

MAX_IMAGE_PIXELS = 1 << 28
"""Pixels of one image, as its header announces them (268 million: 16384 x 16384)."""

MAX_FILE_BYTES = 1 << 31
"""Bytes of one encoded image file."""

MAX_TEXT_BYTES = 1 << 22
"""Bytes of one text field of a PNG, after decompression. 65,536 segmentation labels of ordinary length fit."""

MAX_META_BYTES = 1 << 26
"""Bytes of one `meta.json`."""


def check_pixel_count(name: str, width: int, height: int) -> None:
    """Refuse the image size that a header announces, before anything is allocated for it.

    Raises:
        FormatError: a side is zero.
        ImageTooLargeError: more than `MAX_IMAGE_PIXELS` pixels.
    """
    if width < 1 or height < 1:
        raise FormatError(name, "an image must have at least one pixel", found=f"{width} x {height} in the header")
    if width * height > MAX_IMAGE_PIXELS:
        raise ImageTooLargeError(
            name,
            f"an image may have at most {MAX_IMAGE_PIXELS:,} pixels",
            found=f"{width} x {height} in the header",
            fix="If the size is true, raise moge_core.io.limits.MAX_IMAGE_PIXELS.",
        )
