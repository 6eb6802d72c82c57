"""`python -m benchmarks.datasets`: what validation and indexing cost, how they grow with cores and instances.

Validation is told in D, the decoding of one instance, measured on the same files before and after. `--large` also makes
100,000 instances (1 GB, two minutes) and scans them warm.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from benchmarks.units import median_seconds, unit_d
from moge_core.datasets import index_dataset, render_sample_scenes, validate_dataset
from moge_core.datasets.layout import scan_instances
from moge_core.datasets.validation import examine_instance
from moge_core.datasets.validation.maps import FurtherMaps
from moge_core.io import (
    read_depth,
    read_meta,
    read_normal,
    write_depth,
    write_image,
    write_mask,
    write_meta,
    write_segmentation,
)
from moge_core.io.depth import read_depth_codes

SOURCES = {"640x480": ((640, 480), 24), "1920x1080": ((1920, 1080), 12)}
NUM_SMALL, NUM_MANY = 20_000, 100_000


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="also 100,000 instances")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, (size, count) in SOURCES.items():
            render_sample_scenes(Path(folder, name), count, 2, size=size)
        for name in SOURCES:
            _cost(Path(folder, name))
            _cost_of_maps(Path(folder, name))
        _cores(Path(folder, "640x480"))
        _memory(Path(folder, "small"), NUM_SMALL)
        if arguments.large:
            _scale(Path(folder, "many"), NUM_MANY)


def _cost(root: Path) -> None:
    instances, _ = scan_instances(root)
    cv2.setNumThreads(1)

    def seconds_of(full: bool) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            for instance in instances:
                examine_instance(root, instance, full=full)
            times.append((time.process_time() - start) / len(instances))
        return statistics.median(times)

    before = _mean_d(root, instances)
    full, cheap = seconds_of(True), seconds_of(False)
    d = (before + _mean_d(root, instances)) / 2
    print(f"{root.name} (D = {d * 1e3:.1f} ms CPU): full {full * 1e3:.2f} ms = {full / d:.2f} D,", end=" ")
    print(f"cheap {cheap * 1e3:.2f} ms = {cheap / d:.2f} D", flush=True)


def _cost_of_maps(root: Path) -> None:
    """What normals, and normals, mask and segmentation add: decoding them, and comparing them."""
    instances, _ = scan_instances(root)
    for instance in instances:
        normal = read_normal(root / instance / "normal.png")
        ids = np.unique(np.nan_to_num(normal.round(1)).reshape(-1, 3), axis=0, return_inverse=True)[1]
        write_mask(root / instance / "mask.png", np.isfinite(read_depth(root / instance / "depth.png")))
        write_segmentation(root / instance / "segmentation.png", ids.reshape(normal.shape[:2]).astype(np.uint16))
    d = len(instances) * _mean_d(root, instances)
    for names in (["normal.png"], ["normal.png", "mask.png", "segmentation.png"]):
        decoding = sum(median_seconds(partial(_decode, root / name, names), cpu=True) for name in instances)
        both = sum(
            median_seconds(partial(_judge, root / name, names, _parts(root / name)), cpu=True) for name in instances
        )
        print(
            f"{root.name}, {', '.join(names)}: decoding {decoding / d:.2f} D, comparing {(both - decoding) / d:.2f} D"
        )


def _decode(folder: Path, names: list[str]) -> None:
    for name in names:
        cv2.imdecode(np.frombuffer((folder / name).read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)


def _parts(folder: Path) -> tuple[Any, ...]:
    """What validation has of an instance already when it looks at its further maps."""
    coded = read_depth_codes(folder / "depth.png")
    grey = np.asarray(cv2.imread(str(folder / "image.jpg"), cv2.IMREAD_REDUCED_GRAYSCALE_4))
    return coded, grey, read_meta(folder / "meta.json")["intrinsics"].astype(float), lambda: None


def _judge(folder: Path, names: list[str], parts: tuple[Any, ...]) -> None:
    further = FurtherMaps(*parts)
    for name in names:
        list(further.judge(folder / name))


def _cores(root: Path) -> None:
    """Wall time of the same validation on one and on two cores."""
    if not hasattr(os, "sched_setaffinity"):
        return
    everywhere = os.sched_getaffinity(0)
    if len(everywhere) < 2:
        return
    # Copies, so that there is work for seconds.
    for copy in range(16):
        shutil.copytree(root / "room", root / f"copy_{copy}")
    listed, _ = scan_instances(root)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    try:
        for _ in range(5):
            for cores in (1, 2):
                os.sched_setaffinity(0, sorted(everywhere)[:cores])
                seconds[cores].append(_seconds(lambda: validate_dataset(root)))
    finally:
        os.sched_setaffinity(0, everywhere)
    one, two = (statistics.median(seconds[cores]) for cores in (1, 2))
    print(f"{len(listed)} instances of {root.name} on one core {one:.2f} s, on two {two:.2f} s: {one / two:.2f} times")


def _memory(root: Path, count: int) -> None:
    _make_small(root, count)
    process = psutil.Process()
    marks: list[int] = []

    def progress(done: int, total: int) -> None:
        if done % (total // 8) == 0:
            marks.append(process.memory_info().rss)

    seconds = _seconds(lambda: validate_dataset(root, progress=progress))
    megabytes = " ".join(f"{mark / 2**20:.0f}" for mark in marks)
    print(f"{count} instances of 32x24 validated in {seconds:.1f} s; memory after each eighth, MB: {megabytes}")


def _scale(root: Path, count: int) -> None:
    _make_small(root, count)
    first = _seconds(lambda: index_dataset(root))
    scan = statistics.median(_seconds(lambda: scan_instances(root)) for _ in range(5))
    again = statistics.median(_seconds(lambda: index_dataset(root)) for _ in range(5))
    print(f"{count} instances: indexed in {first:.0f} s, scanned in {scan:.2f} s, indexed unchanged in {again:.2f} s")


def _make_small(root: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = root / f"scene_{number // 100:05d}" / f"{number % 100:03d}"
        folder.mkdir(parents=True)
        write_image(folder / "image.jpg", rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        write_depth(folder / "depth.png", rng.uniform(1, 5, (24, 32)).astype(np.float32))
        write_meta(folder / "meta.json", {"intrinsics": [[0.75, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]})


def _mean_d(root: Path, instances: list[str]) -> float:
    return statistics.mean(unit_d(root / instance) for instance in instances[:6])


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
