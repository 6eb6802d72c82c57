"""`python -m benchmarks.loader`: what loading costs, by stage and in D, how it grows with workers, and the depth cache.

D is measured on the same files, before and after everything else of a set, and the mean of both counts.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.units import unit_d
from moge_core.datasets import index_dataset, render_sample_scenes
from moge_core.loading import DataConfig, TrainLoader
from moge_core.training import load_train_config
from moge_core.training.objective import labels_with_normals

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "train"
SOURCES = {"640x480": ((640, 480), 16), "1920x1080": ((1920, 1080), 12)}
# The datasets of the published configurations with the most augmentations.
DATASETS = {"v1": "TartanAir", "v2": "Hypersim"}
BATCH_SIZE = 4
NUM_BATCHES = 24


def main() -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory() as folder:
        for name, (size, count) in SOURCES.items():
            render_sample_scenes(Path(folder, name), count, 2, size=size)
            index_dataset(Path(folder, name))
        for name in SOURCES:
            for version in DATASETS:
                _costs(Path(folder, name), version)
        _throughput(Path(folder, "640x480"))
        for name in SOURCES:
            _cache(Path(folder, name), Path(folder, "cache", name))


def _costs(root: Path, version: str) -> None:
    data, normals_for = _section(root, version)
    before = _mean_d(root)
    with TrainLoader(data, BATCH_SIZE, 0, num_workers=0, normals_for=normals_for) as loader:
        next(loader)
        loader.statistics().reset()
        start = time.process_time()
        _take(loader, NUM_BATCHES)
        seconds = (time.process_time() - start) / (NUM_BATCHES * BATCH_SIZE)
        stages = {stage: cpu / (NUM_BATCHES * BATCH_SIZE) for stage, cpu in loader.statistics().clock.cpu.items()}
    d = (before + _mean_d(root)) / 2
    print(f"\n{version} set, {root.name} sources (D = {d * 1e3:.1f} ms)")
    print(f"  {'stage':20}{'CPU ms':>8}{'D':>8}")
    for stage, cpu in sorted(stages.items(), key=lambda item: -item[1]):
        print(f"  {stage:20}{cpu * 1e3:8.2f}{cpu / d:8.2f}")
    print(f"  {'total':20}{seconds * 1e3:8.2f}{seconds / d:8.2f}", flush=True)


def _throughput(root: Path) -> None:
    data, normals_for = _section(root, "v1")
    print(f"\nthroughput, v1 set, {root.name} sources")
    print(f"  {'workers':>7}{'images/s':>10}{'ratio':>7}{'CPU ms an image':>17}")
    first = None
    for workers in (1, 2):
        rates, cpu = [], 0.0
        for _ in range(3):
            with TrainLoader(data, BATCH_SIZE, 0, num_workers=workers, normals_for=normals_for) as loader:
                _take(loader, 4 * workers)
                before, start = _cpu_of_tree(), time.perf_counter()
                _take(loader, NUM_BATCHES)
                rates.append(NUM_BATCHES * BATCH_SIZE / (time.perf_counter() - start))
                cpu = (_cpu_of_tree() - before) / (NUM_BATCHES * BATCH_SIZE)
        rate = sorted(rates)[1]
        first = first or rate
        print(f"  {workers:7}{rate:10.1f}{rate / first:7.2f}{cpu * 1e3:17.1f}", flush=True)


def _cache(root: Path, folder: Path) -> None:
    print(f"\ndepth cache, v1 set, {root.name} sources\n  {'':14}{'CPU ms an image':>16}{'depth, ms':>11}{'MB':>7}")
    for label, cache in (("without", None), ("with, all hits", {"dir": str(folder), "max_gb": 1.0})):
        data, normals_for = _section(root, "v1", depth_cache=cache)
        with TrainLoader(data, BATCH_SIZE, 0, num_workers=0, normals_for=normals_for) as loader:
            _take(loader, 16)  # fills the cache
            loader.statistics().reset()
            _take(loader, NUM_BATCHES)
            cpu = loader.statistics().clock.cpu
        images = NUM_BATCHES * BATCH_SIZE
        depth = cpu["read"] + cpu["decode depth"]
        megabytes = sum(f.stat().st_size for f in (folder if cache else root).rglob("*") if _is_depth(f, cache)) / 1e6
        print(f"  {label:14}{sum(cpu.values()) / images * 1e3:16.2f}{depth / images * 1e3:11.2f}{megabytes:7.2f}")


def _is_depth(file: Path, cache: object) -> bool:
    return file.is_file() if cache else file.name == "depth.png"


def _section(root: Path, version: str, **keys: Any) -> tuple[DataConfig, tuple[str, ...]]:
    """The published `data` section with one dataset, which lies at `root`, and the labels that need normals."""
    config = load_train_config(CONFIGS / f"{version}.json")
    (dataset,) = (dataset for dataset in config.data.datasets if dataset.name == DATASETS[version])
    section = config.data.model_dump(exclude_none=True) | keys
    section["datasets"] = [dataset.model_dump(exclude_none=True) | {"path": str(root)}]
    return DataConfig.model_validate(section), labels_with_normals(config.loss)


def _mean_d(root: Path) -> float:
    instances = (root / ".index.txt").read_text().split()
    return sum(unit_d(root / instance) for instance in instances) / len(instances)


def _take(loader: TrainLoader, count: int) -> None:
    for _ in itertools.islice(loader, count):
        pass


def _cpu_of_tree() -> float:
    process = psutil.Process()
    times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times)


if __name__ == "__main__":
    main()
