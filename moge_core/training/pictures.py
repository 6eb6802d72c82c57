"""Pictures and point clouds of what a model predicts while it trains.

vis/gt/0000/                 image.jpg  depth_vis.png  normal.png  info.json  points.ply  points.npz
vis/step_00001000/0000/      image.jpg  depth_vis.png  normal_vis.png  mask.png  points.ply  points.npz
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moge_core.geometry import depth_map_to_point_map, point_map_to_normal_map
from moge_core.io import write_image, write_mask, write_normal
from moge_core.models import MoGeModel
from moge_core.models.precision import network_precision
from moge_core.training.workspace import write_json
from moge_core.visualization import colorize_depth, colorize_normal, write_viewer_ply

Array = npt.NDArray[Any]


class PredictionPictures:
    """Draws the same few training views again and again.

    Args:
        folder: the workspace's `vis` folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.batches: list[Mapping[str, Any]] = []

    @property
    def has_truth(self) -> bool:
        """Whether the views have been chosen."""
        return bool(self.batches)

    def take_truth(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Choose the views: batches of a loader, on the CPU. Their images and true geometry are written once."""
        self.batches = list(batches)
        for number, (batch, row) in enumerate(self._views()):
            folder = self._folder("gt", number)
            image, depth, intrinsics = _image(batch, row), batch["depth"][row].numpy(), batch["intrinsics"][row].numpy()
            points = depth_map_to_point_map(depth, intrinsics)
            normal, known = point_map_to_normal_map(points, mask=np.isfinite(depth))
            write_image(folder / "image.jpg", image)
            write_image(folder / "depth_vis.png", colorize_depth(depth))
            write_normal(folder / "normal.png", np.where(known[..., None], normal, np.nan))
            _write_points(folder, points, image, np.isfinite(depth), metric=bool(batch["is_metric"][row]))
            write_json(folder / "info.json", {"label_type": batch["label_type"][row], **batch["info"][row]})

    @torch.no_grad()
    def draw(self, model: MoGeModel, step: int, num_tokens: int | None = None) -> Path:
        """Predict the views and write them below `step_{step:08d}`; `num_tokens` None is the model's finest level.

        In float32, whatever the training runs in.
        """
        number = 0
        for batch in self.batches:
            with network_precision(model.device.type, "fp32"):
                prediction = model.infer(batch["image"].to(model.device), num_tokens=num_tokens, apply_mask=False)
            values = {name: value.float().cpu().numpy() for name, value in prediction.items()}
            for row in range(len(batch["image"])):
                folder = self._folder(f"step_{step:08d}", number)
                image, mask = _image(batch, row), values["mask"][row] > 0
                usable = mask & np.isfinite(values["points"][row]).all(axis=-1)
                write_image(folder / "image.jpg", image)
                write_mask(folder / "mask.png", mask)
                write_image(folder / "depth_vis.png", colorize_depth(np.where(usable, values["depth"][row], np.nan)))
                if "normal" in values:
                    normal, known = values["normal"][row], usable
                else:
                    normal, known = point_map_to_normal_map(values["points"][row], mask=usable)
                write_image(folder / "normal_vis.png", colorize_normal(normal, mask=known))
                _write_points(folder, values["points"][row], image, usable, metric="metric_scale" in values)
                number += 1
        return self.folder / f"step_{step:08d}"

    def _views(self) -> list[tuple[Mapping[str, Any], int]]:
        return [(batch, row) for batch in self.batches for row in range(len(batch["image"]))]

    def _folder(self, name: str, number: int) -> Path:
        folder = self.folder / name / f"{number:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _image(batch: Mapping[str, Any], row: int) -> Array:
    image: Array = (batch["image"][row].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return image


def _write_points(folder: Path, points: Array, image: Array, mask: Array, *, metric: bool) -> None:
    """Coloured point cloud for a viewer, and the whole map for a program."""
    np.savez_compressed(folder / "points.npz", points=points.astype(np.float32), mask=mask)
    write_viewer_ply(folder / "points.ply", points[mask], image[mask], metric=metric)
