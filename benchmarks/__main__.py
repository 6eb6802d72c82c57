"""`python -m benchmarks`: what rendering and reading cost, in the units of `benchmarks.units`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.units import median_seconds, unit_d
from moge_core.datasets import index_dataset, render_sample_scenes
from moge_core.io import read_depth

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
    d = unit_d(instance)
    yield "D, decoding of a 640x480 instance", f"{d * 1e3:.1f} ms CPU", "1 D"

    seconds = median_seconds(lambda: read_depth(instance / "depth.png"), cpu=True)
    yield "read_depth, 640x480", f"{seconds * 1e3:.1f} ms CPU", f"{seconds / d:.2f} D"


if __name__ == "__main__":
    main()
