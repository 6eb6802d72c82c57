"""What alignment, anchor weights and the published loss sets cost: `python -m benchmarks.losses [--device cuda]`.

Times are medians, on a CPU also in U (see `benchmarks.units`), which is measured in the same run, beside what the
published code takes. Extra memory is the peak above what the process or the device held before.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.alignment_problems import SOLVERS, make_problems
from benchmarks.units import median_seconds, unit_u
from moge_core.datasets import render_sample_scenes
from moge_core.geometry import depth_map_to_normal_map, depth_map_to_point_map
from moge_core.io import read_depth, read_meta
from moge_core.losses.anchors import anchor_weights
from moge_core.training import load_train_config
from moge_core.training.objective import compute_objective

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "train"
# (shift, side, number of problems): what the published code takes, in U
SOLVER_SIZES = {
    ("z", 32, 1): 10,
    ("z", 48, 1): 47,
    ("xyz", 16, 16): 8.6,
    ("xyz", 8, 256): 7.4,
    ("xyz", 4, 4096): 6.0,
    ("xyz", 24, 16): 63,
    ("xyz", 12, 256): 60,
    ("xyz", 6, 4096): 48,
}
LOSS_SETS = {("v1", "synthetic"): 54, ("v2", "A"): 121}


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)
    unit = unit_u() if device.type == "cpu" else None
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"torch {torch.__version__}, {name}" + (f", U = {unit * 1e3:.0f} ms" if unit else ""))
    print("\n| what | ms | U | published code, U | extra memory |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for what, published, prepare in measurements(Path(folder), device):
            work = prepare()
            memory = extra_memory(work, device)
            seconds = median_seconds(partial(finish, work, device), 5)
            in_units = f"{seconds / unit:.2f}" if unit else ""
            print(f"| {what} | {seconds * 1e3:.1f} | {in_units} | {published} | {memory:.0f} MB |", flush=True)


def measurements(
    folder: Path, device: torch.device, *, with_oracle: bool | None = None, tiny: bool = False
) -> Iterator[tuple[str, object, Callable[[], Callable[[], object]]]]:
    """What is measured, what the published code takes in U, and a function that prepares the work.

    Args:
        folder: for sample scenes.
        device: that works.
        with_oracle: measure the exhaustive search, too; None does where that is no matter of minutes, on a GPU.
        tiny: the same work on one problem of 3x3 points or one image of 64x48, which measures nothing.
    """
    if with_oracle is None:
        with_oracle = device.type == "cuda"
    for (shift, side, number), published in SOLVER_SIZES.items():
        what = f"scale and {shift}-shift, {number} of {side}x{side}"
        size = (1, 3) if tiny else (number, side)
        yield what, published, partial(_solver, shift, *size, device, "search")
        if with_oracle:
            yield f"{what}, exhaustive", "", partial(_solver, shift, *size, device, "exhaustive")
    scenes = folder / "loss_scenes"
    size = (64, 48) if tiny else (640, 480)
    for level in (4, 16, 64):
        yield f"anchor weights, level {level}, 640x480", 12.5, partial(_anchors, scenes, size, device, level)
    for (version, label), published in LOSS_SETS.items():
        for number in (1, 8):
            what = f"losses of {version} {label}, forward and backward, {number} of 640x480"
            rows = 1 if tiny else number
            yield what, published * number, partial(_loss_set, scenes, size, device, version, label, rows)


def _solver(shift: str, number: int, side: int, device: torch.device, method: str) -> Callable[[], object]:
    problems = make_problems("few outliers", shift, number, side, seed=0)
    arguments = [v.to(device) for v in (problems.source, problems.target, problems.weight)]
    return partial(SOLVERS[shift], *arguments, problems.trunc, method=method)


def _anchors(scenes: Path, size: tuple[int, int], device: torch.device, level: int) -> Callable[[], object]:
    batch, _ = _batch(scenes, size, device)
    points = depth_map_to_point_map(batch["depth"][0], batch["intrinsics"][0])
    return partial(anchor_weights, points, 0.5 / level * points[..., 2], 400 // level, generator=None)


def _loss_set(
    scenes: Path, size: tuple[int, int], device: torch.device, version: str, label: str, number: int
) -> Callable[[], object]:
    batch, guess = _batch(scenes, size, device)
    own = {key: value[:number] for key, value in batch.items()} | {"label_type": [label] * number}
    return partial(_losses, own, guess[:number], load_train_config(CONFIGS / f"{version}.json").loss)


def _losses(batch: dict[str, Any], guess: Tensor, loss_sets: Any) -> None:
    shape = batch["depth"].shape
    output = {
        "points": guess.clone(),
        "mask": torch.full(shape, 0.5, device=guess.device),
        "normal": torch.ones(*shape, 3, device=guess.device),
        "metric_scale": torch.ones(len(guess), device=guess.device),
    }
    for value in output.values():
        value.requires_grad_()
    compute_objective(output, batch, loss_sets, 0).total.backward()


@cache
def _batch(folder: Path, size: tuple[int, int], device: torch.device) -> tuple[dict[str, Any], Tensor]:
    """Eight landscape scenes of (width, height), and predictions of them with smooth and rough errors of a few percent.

    They are rendered into the folder when they are first asked for.
    """
    render_sample_scenes(folder, 24, 2, size=size)
    number = 8
    depths, cameras = [], []
    for path in sorted(folder.rglob("depth.png")):
        depth = read_depth(path)
        if depth.shape == size[::-1]:
            depths.append(torch.from_numpy(depth))
            cameras.append(torch.tensor(np.asarray(read_meta(path.parent / "meta.json")["intrinsics"])).float())
    depth, intrinsics = torch.stack(depths[:number]), torch.stack(cameras[:number])
    truth = depth_map_to_point_map(depth, intrinsics).nan_to_num(1, 50, -50)
    generator = torch.Generator().manual_seed(0)
    smooth = torch.randn(number, 3, 12, 16, generator=generator)
    smooth = F.interpolate(smooth, depth.shape[1:], mode="bicubic").permute(0, 2, 3, 1)
    rough = torch.randn(truth.shape, generator=generator)
    guess = 1.1 * truth + truth[..., 2:] * (0.05 * smooth + 0.01 * rough)
    batch = {
        "depth": depth,
        "intrinsics": intrinsics,
        "normal": depth_map_to_normal_map(depth, intrinsics)[0],
        "depth_mask_fin": depth.isfinite(),
        "depth_mask_inf": depth.isinf(),
        "is_metric": torch.ones(number, dtype=torch.bool),
    }
    info = [{"sample_number": row} for row in range(number)]
    return {name: value.to(device) for name, value in batch.items()} | {"info": info}, guess.to(device)


def finish(work: Callable[[], object], device: torch.device) -> None:
    """Do the work and wait until the device has done it."""
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()


def extra_memory(work: Callable[[], object], device: torch.device) -> float:
    """Peak memory in MB above what was held before; on a CPU of the first call, when nothing is cached yet."""
    if device.type == "cuda":
        work()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # freed memory does not hide what is needed anew
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
