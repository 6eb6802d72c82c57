"""What a loader did and how long the training waited for it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from moge_core.loading.batch import LoadedBatch
from moge_core.loading.stages import StageClock


@dataclass
class LoaderStatistics:
    """Sums over the batches since the last `reset`.

    Attributes:
        num_batches: batches handed over.
        num_images: instances in them.
        wait_s: seconds that the training waited for them.
        sum_ready: sum, over the batches, of how many were ready when one was asked for.
        clock: seconds by stage of the work and counts, over all workers.
        num_restarts: workers that had to be replaced since the start.
        started: `time.perf_counter()` of the last reset.
    """

    num_batches: int = 0
    num_images: int = 0
    wait_s: float = 0.0
    sum_ready: int = 0
    clock: StageClock = field(default_factory=StageClock)
    num_restarts: int = 0
    started: float = field(default_factory=time.perf_counter)

    def record(self, batch: LoadedBatch, wait_s: float, num_ready: int) -> None:
        """Count a batch that was handed over."""
        self.num_batches += 1
        self.num_images += len(batch.infos)
        self.wait_s += wait_s
        self.sum_ready += num_ready
        self.clock.add(batch.clock)

    def reset(self) -> None:
        """Begin anew."""
        restarts = self.num_restarts
        vars(self).update(vars(LoaderStatistics()))
        self.num_restarts = restarts

    def metrics(self) -> dict[str, float]:
        """Figures to log, by name: shares of time, images and milliseconds."""
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        figures = {
            "loader.wait_share": self.wait_s / elapsed,
            "loader.images_per_second": self.num_images / elapsed,
            "loader.ready_batches": self.sum_ready / max(self.num_batches, 1),
            "loader.cpu_ms_per_image": sum(self.clock.cpu.values()) * 1e3 / max(self.num_images, 1),
        }
        hits, misses = (self.clock.counts.get(f"depth cache {name}", 0) for name in ("hits", "misses"))
        if hits + misses:
            figures["loader.cache_hit_share"] = hits / (hits + misses)
        return figures
