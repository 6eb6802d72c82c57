"""Tiny datasets: slanted planes seen by cameras with off-centre principal points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.io import write_depth, write_image, write_meta

PLANE = np.array([0.2, -0.1, -1.0]) / np.linalg.norm([0.2, -0.1, -1.0])
"""Normal of the plane that every tiny instance shows, towards the camera; its distance is `PLANE_DISTANCE`."""

PLANE_DISTANCE = 3.0


def plane_depth(intrinsics: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[np.float32]:
    """Depth `(H, W)` of the plane `PLANE . p = -PLANE_DISTANCE`."""
    u, v = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    rays = np.stack([*np.meshgrid(u, v), np.ones((height, width))], axis=-1) @ np.linalg.inv(intrinsics).T
    return (-PLANE_DISTANCE / (rays @ PLANE)).astype(np.float32)


def write_instance(folder: Path, size: tuple[int, int] = (48, 64), seed: int = 0) -> None:
    """An instance of `size` (height, width) with some sky and some unknown depth."""
    height, width = size
    rng = np.random.default_rng(seed)
    intrinsics = np.array([[0.9, 0, 0.45], [0, 0.9 * width / height, 0.56], [0, 0, 1]])
    depth = plane_depth(intrinsics, height, width)
    depth[: height // 8, : width // 8] = np.inf
    depth[-(height // 8) :, : width // 8] = np.nan
    folder.mkdir(parents=True, exist_ok=True)
    write_image(folder / "image.jpg", rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    write_depth(folder / "depth.png", depth)
    write_meta(folder / "meta.json", {"intrinsics": intrinsics})


def data_section(*datasets: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """A `data` section of small views; each dataset needs at least `name` and `path`."""
    section: dict[str, Any] = {
        "aspect_ratio_range": [0.5, 2.0],
        "area_range": [1000, 2000],
        "center_augmentation": 0.5,
        "fov_range_absolute": [1, 179],
        "fov_range_relative": [0.4, 1.0],
        "image_augmentation": ["jittering", "jpeg_loss", "blurring", "shot_noise", "dof"],
    }
    section["datasets"] = [{"label_type": "synthetic", **dataset, "path": str(dataset["path"])} for dataset in datasets]
    return {**section, **keys}
