"""Whether a training in bf16 learns as much as one in float32: `python -m benchmarks.precision_training`, 30 minutes.

Trains the sample configuration in both precisions from two seeds and scores what it never saw, in float32. Then each
trained model predicts in 16 bits and must stay within the bounds of tests/models: point
normals move by less than 0.5 degrees, points by less than 0.1 %. Exits with 1 where they do not.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from moge_core.datasets import index_dataset, read_index, render_sample_scenes
from moge_core.datasets.inspection import load_instance
from moge_core.evaluation import compute_metrics
from moge_core.geometry import depth_map_to_point_map, point_map_to_normal_map
from moge_core.models import MoGeModel, load_model

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (0, 1)
NUM_SCENES, NUM_HELD_OUT = 2400, 32
NUM_TOKENS = 1200
"""Of the comparison of precisions, on images of 640x480."""
MOST_DEGREES, MOST_RELATIVE = 0.5, 1e-3


def main() -> int:
    """Print two tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for scenes, count, seed in (("data/sample", NUM_SCENES, 1), ("heldout", NUM_HELD_OUT, 2)):
            render_sample_scenes(folder / scenes, count, seed, size=(200, 150))
            index_dataset(folder / scenes)
        print("| precision | seed | minutes | rel | boundary F1 | normals, degrees |\n|---|---|---|---|---|---|")
        trained = {(how, seed): _train(folder, how, seed) for seed in SEEDS for how in ("no", "bf16")}
        print("\n| trained in | seed | predicts in | normals move by | points move by |\n|---|---|---|---|---|")
        moved = [_compare(folder, how, seed, path) for (how, seed), path in trained.items()]
    return 0 if all(moved) else 1


def _train(folder: Path, precision: str, seed: int) -> Path:
    workspace = folder / f"{precision}{seed}"
    command = [sys.executable, "-m", "moge_core.training", "--config", str(ROOT / "configs" / "train" / "sample.json")]
    flags = ["--workspace", str(workspace), "--seed", str(seed), "--mixed_precision", precision]
    flags += ["--enable_mlflow", "False", "--vis_every", "0", "--eval_every", "0", "--enable_ema", "False"]
    start = time.monotonic()
    environment = {**os.environ, "MOGE_DATA_ROOT": str(folder)}
    subprocess.run([*command, *flags], check=True, env=environment, stderr=subprocess.DEVNULL)
    minutes = (time.monotonic() - start) / 60
    path = max((workspace / "checkpoint").glob("0*[0-9].pt"))
    rel, boundary, angle = _scores(load_model(path), folder / "heldout")
    print(f"| {precision} | {seed} | {minutes:.1f} | {rel:.4f} | {boundary:.4f} | {angle:.2f} |", flush=True)
    return path


@torch.no_grad()
def _scores(model: MoGeModel, dataset: Path) -> tuple[float, float, float]:
    """Means over the instances: rel of affine-invariant points, boundary F1 of one pixel, angle of point normals."""
    found = []
    for name in read_index(dataset):
        instance = load_instance(dataset / name)
        points = depth_map_to_point_map(instance.depth, instance.intrinsics)
        known = np.isfinite(points).all(axis=-1)
        image = torch.from_numpy(instance.image).permute(2, 0, 1).float() / 255
        fov_x = float(np.degrees(2 * np.arctan(0.5 / instance.intrinsics[0, 0])))
        prediction = model.infer(image, fov_x=fov_x, num_tokens=model.num_tokens_range[0], apply_mask=False)
        predicted = prediction["points"].numpy()
        pred = {"points_affine_invariant": predicted, "depth_affine_invariant": predicted[..., 2]}
        truth = {"points": points, "depth": points[..., 2], "depth_mask": known, "intrinsics": instance.intrinsics}
        metrics = compute_metrics(pred, {**truth, "has_sharp_boundary": True})
        ours, seen = point_map_to_normal_map(predicted)
        theirs, there = point_map_to_normal_map(points, mask=known)
        both = seen & there
        cosine = np.clip((ours[both] * theirs[both]).sum(-1), -1, 1)
        angle = float(np.degrees(np.arccos(cosine)).mean())
        found.append((metrics["points_affine_invariant"]["rel"], metrics["boundary"]["radius1_f1"], angle))
    rel, boundary, angle = (statistics.fmean(values) for values in zip(*found, strict=True))
    return rel, boundary, angle


@torch.no_grad()
def _compare(folder: Path, trained_in: str, seed: int, path: Path) -> bool:
    model = load_model(path)
    names = read_index(folder / "heldout")[:4]
    found = [torch.from_numpy(load_instance(folder / "heldout" / name).image) for name in names]
    images = torch.cat([_resized(image) for image in found])
    exact = model(images, NUM_TOKENS)["points"]
    is_close = True
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with torch.autocast("cpu", dtype=dtype):
            points = model(images, NUM_TOKENS)["points"]
        degrees = _degrees_between(points, exact)
        relative = float(((points - exact).norm(dim=-1) / exact.norm(dim=-1)).mean())
        is_close &= degrees < MOST_DEGREES and relative < MOST_RELATIVE
        print(f"| {trained_in} | {seed} | {name} | {degrees:.3f} degrees | {relative:.3%} |", flush=True)
    return is_close


def _resized(image: torch.Tensor) -> torch.Tensor:
    """(H, W, 3) of 0..255, lying or standing, as (1, 3, 480, 640) of 0..1."""
    batch = image.permute(2, 0, 1)[None].float() / 255
    return F.interpolate(batch, (480, 640), mode="bilinear", align_corners=False)


def _degrees_between(points: torch.Tensor, exact: torch.Tensor) -> float:
    """Mean angle between the point normals of two maps; what has no normal counts as 90 degrees."""
    ours, theirs = (_normals(each) for each in (points, exact))
    cosine = (ours * theirs).sum(-1).clamp(-1, 1)
    return float(torch.rad2deg(torch.atan2(torch.linalg.cross(ours, theirs).norm(dim=-1), cosine)).mean())


def _normals(points: torch.Tensor) -> torch.Tensor:
    right, down = (points[:, :, 1:] - points[:, :, :-1])[:, :-1], (points[:, 1:] - points[:, :-1])[:, :, :-1]
    return F.normalize(torch.linalg.cross(right, down), dim=-1)


if __name__ == "__main__":
    sys.exit(main())
