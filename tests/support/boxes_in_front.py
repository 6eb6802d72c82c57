"""A picture of boxes in front of a wall with exact depth, whose edges lie in the same places and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

ORIENTATION_TAG = 0x0112


def boxes_in_front(width: int, height: int, seed: int = 0) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Image (H, W, 3) and depth (H, W) in metres, 1 to 6."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 120.0)
    depth = np.full((height, width), 6.0, np.float32)
    for nearer in range(14):
        w, h = rng.integers(width // 8, width // 3), rng.integers(height // 8, height // 3)
        x, y = rng.integers(0, width - w), rng.integers(0, height - h)
        image[y : y + h, x : x + w] = rng.integers(0, 256, 3)
        depth[y : y + h, x : x + w] = 5.5 - 0.3 * nearer
    image += rng.normal(0, 2, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), depth


def write_with_orientation(path: Path, image: npt.NDArray[np.uint8], orientation: int) -> None:
    """A picture whose file says how to turn it."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=97, exif=exif)


def orientation_in(path: Path) -> int | None:
    """What a picture's file says of that, by EXIF or XMP."""
    with Image.open(path) as image:
        found: int | None = image.getexif().get(ORIENTATION_TAG)
        return found
