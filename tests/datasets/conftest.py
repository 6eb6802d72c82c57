"""Small datasets to break."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moge_core.io import write_depth, write_image, write_meta

WriteInstance = Callable[..., Path]


@pytest.fixture
def write_instance(tmp_path: Path) -> WriteInstance:
    """Writes an instance of 16x12 pixels below `tmp_path / "data"`; returns its folder."""

    def write(name: str, **overrides: Any) -> Path:
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        image = overrides.get("image", rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        depth = overrides.get("depth", rng.uniform(1, 5, (12, 16)).astype(np.float32))
        intrinsics = overrides.get("intrinsics", [[0.8, 0, 0.5], [0, 1.0, 0.5], [0, 0, 1]])
        write_image(folder / "image.jpg", image)
        write_depth(folder / overrides.get("depth_name", "depth.png"), depth)
        write_meta(folder / "meta.json", {"intrinsics": intrinsics, **overrides.get("meta", {})})
        return folder

    return write


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder that `write_instance` writes below."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder
