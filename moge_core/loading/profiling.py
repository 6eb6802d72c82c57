"""What the loader of a configuration costs on this machine, where the time goes, and what would help."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moge_core.loading.augmentation import AUGMENTATIONS
from moge_core.loading.config import DataConfig
from moge_core.loading.loader import TrainLoader

Verdict = Literal["disk-bound", "decode-bound", "warp-bound", "augment-bound"]

_DECODE = ("read", "decode depth", "decode image", "decode normals")
_WARP = ("view", "warp depth", "warp image", "normals", "warp normals", "finish", "store")
_ADVICE: dict[Verdict, str] = {
    "disk-bound": "Reading waits for the disk: use a faster or a local one, or more workers, which wait at once.",
    "decode-bound": "Decoding costs most, which is what is left when nothing is wasted. Smaller source images or, "
    "where depth dominates, `depth_cache` make it less; more workers spread it.",
    "warp-bound": "Cutting views costs most: the views are large against their sources. Smaller areas (`area_range`) "
    "or more workers help.",
    "augment-bound": "Augmentations cost most: leave out the dearest of `image_augmentation`, or use more workers.",
}


@dataclass(frozen=True)
class LoaderProfile:
    """Costs of loading, by stage.

    Attributes:
        num_images: instances that were loaded for it.
        cpu_ms: processor milliseconds an image, by stage, the dearest first.
        waiting_ms: milliseconds an image that reading waited, mostly for a disk.
        images_per_second: throughput by number of workers (0: in this process).
        cache_hit_share: of the depth cache, None without one.
        num_failures: draws that could not be used.
        verdict: what most of the time goes to.
    """

    num_images: int
    cpu_ms: dict[str, float]
    waiting_ms: float
    images_per_second: dict[int, float]
    cache_hit_share: float | None
    num_failures: int
    verdict: Verdict

    def report(self) -> str:
        """The profile in words and a table."""
        total = sum(self.cpu_ms.values())
        lines = [f"{'stage':18}{'CPU ms an image':>16}{'share':>8}"]
        lines += [f"{stage:18}{ms:>16.2f}{ms / total:>8.0%}" for stage, ms in self.cpu_ms.items()]
        lines += [f"{'total':18}{total:>16.2f}", f"waiting for files: {self.waiting_ms:.2f} ms an image", ""]
        for workers, rate in self.images_per_second.items():
            who = "this process" if workers == 0 else f"{workers} worker{'s' if workers > 1 else ''}"
            lines.append(f"{who:18}{rate:>10.1f} images/s")
        if self.cache_hit_share is not None:
            lines.append(f"depth cache: {self.cache_hit_share:.0%} of the depth maps")
        if self.num_failures:
            lines.append(f"unusable instances drawn: {self.num_failures}; see `moge validate`")
        return "\n".join([*lines, "", f"{self.verdict}: {_ADVICE[self.verdict]}"])


@dataclass(frozen=True)
class LoaderRate:
    """What a loader gives when nobody keeps it waiting.

    Attributes:
        images_per_second: by all its workers.
        cpu_s: processor seconds an image.
        waiting_s: seconds an image that reading waited, mostly for a disk.
        num_workers: processes that load; with 0 a batch is loaded when it is asked for.
    """

    images_per_second: float
    cpu_s: float
    waiting_s: float
    num_workers: int

    def seconds_with_loading(self, step_s: float, num_images: int) -> float:
        """What a training step of so many seconds and images takes with this loader: workers load beside it."""
        loading_s = num_images / self.images_per_second
        return max(step_s, loading_s) if self.num_workers else step_s + loading_s

    def needed_for(self, images_per_second: float) -> tuple[int, int]:
        """Workers that would load so many images a second, and the cores that these would keep busy."""
        workers = math.ceil(images_per_second * (self.cpu_s + self.waiting_s))
        return max(workers, 1), max(math.ceil(images_per_second * self.cpu_s), 1)


def measure_rate(loader: TrainLoader, num_batches: int, most_s: float = math.inf) -> LoaderRate:
    """Take batches from a loader's stream as fast as they come.

    Args:
        loader: whose stream moves on; its statistics are those of what was measured.
        num_batches: to measure, after a warm-up.
        most_s: no further batch is asked for after so many seconds.

    Raises:
        MoGeError: as the loader.
    """
    deadline = time.perf_counter() + most_s
    # What was loaded ahead before the clock starts would be counted as for nothing.
    for _ in range(2 * loader.num_workers + 3 if loader.num_workers else 1):
        next(loader)
        if time.perf_counter() > deadline:
            break
    loader.statistics().reset()
    start = time.perf_counter()
    for _ in range(num_batches):
        next(loader)
        if time.perf_counter() > deadline:
            break
    seconds = time.perf_counter() - start
    statistics = loader.statistics()
    number, clock = statistics.num_images, statistics.clock
    waiting_s = max(clock.wall.get("read", 0.0) - clock.cpu.get("read", 0.0), 0.0)
    return LoaderRate(number / seconds, sum(clock.cpu.values()) / number, waiting_s / number, loader.num_workers)


def profile_loader(
    data: DataConfig | Mapping[str, Any],
    *,
    num_images: int = 64,
    batch_size: int = 4,
    seed: int = 0,
    normals_for: Collection[str] = (),
    num_workers: Sequence[int] = (1, 2),
) -> LoaderProfile:
    """Load the images that a training would begin with, in this process and then by workers.

    Args:
        data: the `data` section of a configuration.
        num_images: how many to load in each go, after a warm-up of one batch.
        batch_size: instances in a batch.
        seed: of the run.
        normals_for: labels whose losses use normals.
        num_workers: numbers of worker processes to try.

    Raises:
        MoGeError: as `TrainLoader`.
    """
    num_batches = max(num_images // batch_size, 1)
    arguments: dict[str, Any] = {"normals_for": normals_for, "max_failure_share": 1.0}
    rates: dict[int, float] = {}
    for workers in (0, *num_workers):
        with TrainLoader(data, batch_size, seed, num_workers=workers, **arguments) as loader:
            rate = measure_rate(loader, num_batches)
            rates[workers] = rate.images_per_second
            if workers == 0:
                statistics, failures = loader.statistics(), sum(loader.failure_counts.values())
                waiting_ms = rate.waiting_s * 1e3
    clock, loaded = statistics.clock, statistics.num_images
    cpu_ms = {stage: seconds * 1e3 / loaded for stage, seconds in clock.cpu.items()}
    counts = [clock.counts.get(f"depth cache {name}", 0) for name in ("hits", "misses")]
    return LoaderProfile(
        num_images=loaded,
        cpu_ms=dict(sorted(cpu_ms.items(), key=lambda item: -item[1])),
        waiting_ms=waiting_ms,
        images_per_second=rates,
        cache_hit_share=counts[0] / sum(counts) if sum(counts) else None,
        num_failures=failures,
        verdict=judge(cpu_ms, waiting_ms),
    )


def judge(cpu_ms: Mapping[str, float], waiting_ms: float) -> Verdict:
    """What most of the time goes to, of costs in milliseconds an image by stage."""
    costs: dict[Verdict, float] = {
        "disk-bound": waiting_ms,
        "decode-bound": sum(cpu_ms.get(stage, 0.0) for stage in _DECODE),
        "warp-bound": sum(cpu_ms.get(stage, 0.0) for stage in _WARP),
        "augment-bound": sum(cpu_ms.get(stage, 0.0) for stage in AUGMENTATIONS),
    }
    return max(costs, key=lambda verdict: costs[verdict])
