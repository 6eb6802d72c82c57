"""What a training would see: batches of the loader as one picture."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.geometry import depth_map_to_normal_map
from moge_core.io import write_image
from moge_core.loading.config import DataConfig
from moge_core.loading.loader import Batch, TrainLoader
from moge_core.visualization import colorize_depth, colorize_normal, contact_sheet

_UNKNOWN, _FINITE, _INFINITE = (90, 90, 96), (240, 240, 240), (120, 180, 240)


def preview_batches(
    data: DataConfig | Mapping[str, Any],
    path: Path,
    *,
    num_batches: int = 2,
    batch_size: int = 4,
    seed: int = 0,
    normals_for: Collection[str] = (),
    tile_height: int = 200,
) -> list[dict[str, Any]]:
    """Draw the first batches of a training: a row for each sample with image, depth, normals and masks.

    The picture of normals shows those that training reads, or else, for labels whose losses use none, those of the
    view's own depth. In the picture of masks finite is white, infinitely far blue, unknown grey.

    Args:
        data: the `data` section of a configuration.
        path: PNG or JPEG to write.
        num_batches: how many batches.
        batch_size: samples in each.
        seed: of the run.
        normals_for: labels whose losses use normals.
        tile_height: height of each picture in pixels.

    Returns:
        What is known of each sample, in the order of the rows.

    Raises:
        MoGeError: as `TrainLoader`.
    """
    rows, captions, infos = [], [], []
    with TrainLoader(data, batch_size, seed, num_workers=0, normals_for=normals_for) as loader:
        for batch in itertools.islice(loader, num_batches):
            for row in range(batch_size):
                rows.append(_pictures(batch, row))
                captions.append(_captions(batch, row))
                infos.append(batch["info"][row])
    write_image(path, contact_sheet(rows, captions=captions, tile_height=tile_height))
    return infos


def _pictures(batch: Batch, row: int) -> list[npt.NDArray[np.uint8]]:
    image = np.rint(batch["image"][row].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    depth = batch["depth"][row].numpy()
    normal = batch["normal"][row].numpy() if "normal" in batch else np.full((*depth.shape, 3), np.nan)
    if np.isnan(normal).all():
        normal, valid = depth_map_to_normal_map(depth, batch["intrinsics"][row].numpy(), mask=np.isfinite(depth))
        normal[~valid] = np.nan
    mask = np.full((*depth.shape, 3), _UNKNOWN, np.uint8)
    mask[batch["depth_mask_fin"][row].numpy()] = _FINITE
    mask[batch["depth_mask_inf"][row].numpy()] = _INFINITE
    known = np.asarray(~np.isnan(normal).any(axis=-1))
    return [image, colorize_depth(depth), colorize_normal(np.nan_to_num(normal), mask=known), mask]


def _captions(batch: Batch, row: int) -> list[str]:
    info, depth = batch["info"][row], batch["depth"][row].numpy()
    finite = depth[np.isfinite(depth)]
    unit = " m" if batch["is_metric"][row] else ""
    fov_x = 2 * np.degrees(np.arctan(0.5 / float(batch["intrinsics"][row, 0, 0])))
    return [
        f"{info['dataset']}/{info['instance']}",
        f"{finite.min():.3g} to {finite.max():.3g}{unit}, {finite.size / depth.size:.0%} finite",
        f"{depth.shape[1]} x {depth.shape[0]}, {fov_x:.0f} degrees{', mirrored' if info['flip'] else ''}",
        str(batch["label_type"][row]),
    ]
