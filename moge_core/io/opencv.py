"""OpenCV, or a sentence on what is missing.

The wheel of opencv-python needs libraries that minimal Linux images leave out; the plain ImportError names one of them
and no remedy.
"""

from __future__ import annotations

from typing import Any

from moge_core.errors import MissingDependencyError

try:
    import cv2 as _cv2
except ImportError as error:
    raise MissingDependencyError(
        "opencv-python",
        "must be importable",
        found=error,
        fix="Install it with pip and, on Debian or Ubuntu, `apt-get install libgl1 libglib2.0-0 libxcb1 libx11-6`.",
    ) from error

cv2: Any = _cv2  # its stubs know neither 16-bit images nor None for what cannot be decoded

__all__ = ["cv2"]
