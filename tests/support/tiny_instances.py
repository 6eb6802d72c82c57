"""Instances of 16x12 pixels, written in a millisecond; good ones unless a test says otherwise."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from moge_core.io import write_depth, write_image, write_meta


def write_tiny_instance(root: Path, name: str, **overrides: Any) -> Path:
    """Write an instance of random pixels below `root`, the same for the same name, and return its folder.

    `overrides` may have other `image`, `depth`, `intrinsics`, `depth_name` and further keys of `meta`.
    """
    folder = root / name
    folder.mkdir(parents=True)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    image = overrides.get("image", rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    depth = overrides.get("depth", rng.uniform(1, 5, (12, 16)).astype(np.float32))
    intrinsics = overrides.get("intrinsics", [[0.8, 0, 0.5], [0, 1.0, 0.5], [0, 0, 1]])
    write_image(folder / "image.jpg", image)
    write_depth(folder / overrides.get("depth_name", "depth.png"), depth)
    write_meta(folder / "meta.json", {"intrinsics": intrinsics, **overrides.get("meta", {})})
    return folder
