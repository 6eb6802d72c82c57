"""Which frames are read otherwise than the first importers read them, as the heads of their files tell.

An instance that was made from such a frame is made anew; all others are up to date as they are.
"""

from __future__ import annotations

from pathlib import Path

from moge_core.datasets.importers.crops import is_usual_ratio
from moge_core.datasets.importers.records import Record, StoredDepth
from moge_core.errors import MoGeError
from moge_core.io.headers import ImageHeader, read_image_header

# Only these tell their size in their first bytes, and are what depth is mostly stored in.
_DEPTH_SUFFIXES = frozenset({".png", ".pgm"})


def changed_reading(record: Record) -> list[str]:
    """What is read otherwise than before, for the digest of an instance: nothing for most.

    Pictures that carry an EXIF orientation, and sizes of image and depth that differ by an unusual ratio, which may be
    a crop.
    """
    if record.image.read is not None:
        return []
    image = _header(record.image.path)
    if image is None:
        return []
    if image.orientation != 1:
        return [f"orientation {image.orientation}"]
    depth = record.depth
    if not isinstance(depth, StoredDepth) or depth.read is not None or depth.path.suffix.lower() not in _DEPTH_SUFFIXES:
        return []
    header = _header(depth.path)
    return [] if header is None or is_usual_ratio(image.size, header.size) else ["an unusual ratio of sizes"]


def _header(path: Path) -> ImageHeader | None:
    """None of what is no picture, of which an error will tell when it is read."""
    try:
        return read_image_header(path)
    except (MoGeError, OSError):
        return None
