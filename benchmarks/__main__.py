"""`make bench`: what the parts of a training cost, in the units of `benchmarks.units`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.units import median_seconds, unit_d, unit_u
from moge_core.alignment import align_points_scale_xyz_shift, align_points_scale_z_shift
from moge_core.datasets import index_dataset, render_sample_scenes
from moge_core.geometry import depth_map_to_point_map
from moge_core.io import read_depth, read_meta
from moge_core.loading import TrainLoader
from moge_core.training import load_train_config
from moge_core.training.objective import compute_objective

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "train"
NUM_SCENES = 48


def main() -> None:
    """Print one table."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(f"{'what':52} {'measured':>14} {'ratio':>12}")
    with tempfile.TemporaryDirectory() as folder:
        for name, measured, ratio in _measurements(Path(folder)):
            print(f"{name:52} {measured:>14} {ratio:>12}", flush=True)


def _measurements(folder: Path) -> Iterator[tuple[str, str, str]]:
    import time

    start = time.perf_counter()
    render_sample_scenes(folder / "small", NUM_SCENES, 1)
    yield "sample scenes, 320x240", f"{NUM_SCENES / (time.perf_counter() - start):.1f}/s", ""

    names = render_sample_scenes(folder / "scenes", 8, 2, size=(640, 480))
    index_dataset(folder / "scenes")
    instance = folder / "scenes" / names[0]
    d, u = unit_d(instance), unit_u()
    yield "D, decoding of a 640x480 instance", f"{d * 1e3:.1f} ms CPU", "1 D"
    yield "U, sort of 1024x3072", f"{u * 1e3:.0f} ms", "1 U"

    seconds = median_seconds(lambda: read_depth(instance / "depth.png"), cpu=True)
    yield "read_depth, 640x480", f"{seconds * 1e3:.1f} ms CPU", f"{seconds / d:.2f} D"

    for version in ("v1", "v2"):
        data = load_train_config(CONFIGS / f"{version}.json").data
        dataset = data.datasets[-1].model_copy(update={"path": str(folder / "scenes")})
        with TrainLoader(data.model_copy(update={"datasets": [dataset]}), 4, 0, num_workers=0) as loader:
            seconds = median_seconds(lambda loader=loader: next(loader), cpu=True) / 4  # type: ignore[misc]
        yield f"loader, {version} augmentations, an image", f"{seconds * 1e3:.0f} ms CPU", f"{seconds / d:.1f} D"

    generator = torch.Generator().manual_seed(0)
    for solver, batch, side in ((align_points_scale_z_shift, 1, 32), (align_points_scale_xyz_shift, 16, 16)):
        points = torch.rand(batch, side * side, 3, generator=generator) + 1
        noisy = 2 * points + 0.1 * torch.rand(points.shape, generator=generator)
        weight = torch.ones(points.shape[:2])
        seconds = median_seconds(lambda s=solver, p=points, q=noisy, w=weight: s(p, q, w, trunc=1.0), 3)  # type: ignore[misc]
        yield f"{solver.__name__}, {batch} of {side}x{side}", f"{seconds:.3f} s", f"{seconds / u:.1f} U"

    config = load_train_config(CONFIGS / "v1.json")
    depth = torch.from_numpy(read_depth(instance / "depth.png"))[None]
    intrinsics = torch.from_numpy(np.asarray(read_meta(instance / "meta.json")["intrinsics"]))[None]
    truth = depth_map_to_point_map(depth, intrinsics)
    guess = torch.nan_to_num(truth, nan=1.0, posinf=50.0, neginf=-50.0) * 1.1
    batch = {
        "depth": depth,
        "intrinsics": intrinsics,
        "depth_mask_fin": torch.isfinite(depth),
        "depth_mask_inf": torch.isinf(depth),
        "is_metric": torch.tensor([True]),
        "label_type": ["synthetic"],
        "info": [{"sample_number": 0}],
    }

    def losses() -> None:
        output = {"points": guess.clone().requires_grad_(), "mask": torch.rand(depth.shape, requires_grad=True)}
        compute_objective(output, batch, config.loss, 0).total.backward()

    seconds = median_seconds(losses, 3)
    yield "losses, v1 synthetic, 640x480, both ways", f"{seconds:.2f} s", f"{seconds / u:.1f} U"


if __name__ == "__main__":
    main()
