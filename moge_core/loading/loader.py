"""The endless stream of training batches.

with TrainLoader(config.data, batch_size=8, seed=0) as loader:
    for step, batch in zip(range(1000), loader):
        train(batch["image"], batch["depth"])
"""

from __future__ import annotations

import os
import time
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

import torch

from moge_core.configuration import parse_as
from moge_core.datasets import read_index
from moge_core.datasets.parallel import num_cores
from moge_core.errors import InputError
from moge_core.loading.batch import BlockLayout, LoadedBatch, load_batch
from moge_core.loading.config import DataConfig
from moge_core.loading.failures import Failure, FailureCount, FailureLog, unusable
from moge_core.loading.instance import recipes_of
from moge_core.loading.sampling import NUM_CANDIDATES, BatchLayout, BatchPlan, Sampler, Sizes
from moge_core.loading.shared_memory import Arena, keep_freed_memory
from moge_core.loading.statistics import LoaderStatistics
from moge_core.loading.workers import Delivery, WorkerPool

MAX_AUTO_WORKERS = 8
# Steps whose failures are told apart: who reads batches ahead of the step at hand is a batch or two ahead.
_STEPS_REMEMBERED = 16

Batch = dict[str, Any]
"""What a batch of B instances holds.

image           (B, 3, H, W) float32, 0..1
depth           (B, H, W) float32, NaN unknown, +Inf infinitely far
depth_mask_fin  (B, H, W) bool, finitely far for the mask losses
depth_mask_inf  (B, H, W) bool, infinitely far
normal          (B, H, W, 3) float32, NaN unknown; only if a label of the batch is in `normals_for`
intrinsics      (B, 3, 3) float32, normalised
is_metric       (B,) bool
label_type      list of B names of loss sets
info            list of B dictionaries: dataset, instance, sample_number, seed, ...
"""


class TrainLoader:
    """Batches of random views of random instances, the same for the same seed, without end.

    Sample n of a run (n = optimiser step * global batch + position) is a function of (seed, n): its dataset, drawn by
    weight, its instance, view and augmentation. The image size is a function of (seed, step) and shared by all ranks
    and micro-batches. An instance that cannot be used is replaced by another one of its dataset, and recorded.

    Iterate as often as needed: the stream goes on where it was. Leaving the `with` block, or `close()`, ends the worker
    processes.

    Args:
        data: the `data` section of a configuration, or its dictionary.
        batch_size: instances per rank and micro-batch.
        seed: of the run, 0 or greater.
        accumulation: micro-batches per optimiser step.
        rank: this process among those that train together.
        world_size: number of those processes.
        num_workers: processes that load ahead; 0 loads in this one. `auto` leaves one of the cores of this rank to
            the training and takes up to 8; without a GPU and with one or two cores, 0.
        normals_for: labels whose batches need `normal`.
        instances: lists to draw from instead of datasets' indexes, by the dataset's name.
        max_failure_share: most of the last 10,000 draws that may be unusable (32 may always be).
        failures_path: file that lists every unusable instance, a JSON object a line.
        prefetch_batches: most batches to have loaded or in work ahead; by default two for each worker and two more.
        prefetch_bytes: most bytes of these together.
        stall_timeout_s: how long a batch may take before its worker is taken for stuck and replaced.
        on_round: called by a thread, every few seconds at least, as long as that looks after the workers.

    Raises:
        MissingIndexError: a dataset has no index where the configuration says one is.
        DatasetError: an index cannot be used.
        ConfigError: `data` is not a valid section.
        InputError: another argument is outside its domain.
    """

    def __init__(
        self,
        data: DataConfig | Mapping[str, Any],
        batch_size: int,
        seed: int,
        *,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int | Literal["auto"] = "auto",
        normals_for: Collection[str] = (),
        instances: Mapping[str, Sequence[str]] | None = None,
        max_failure_share: float = 0.01,
        failures_path: str | os.PathLike[str] | None = None,
        prefetch_batches: int | None = None,
        prefetch_bytes: int = 2 << 30,
        stall_timeout_s: float = 600.0,
        on_round: Callable[[], None] = lambda: None,
    ) -> None:
        config = data if isinstance(data, DataConfig) else parse_as(DataConfig, data, "data")
        self._layout = BatchLayout(batch_size, accumulation, rank, world_size)
        self._num_workers = _resolve_num_workers(num_workers, world_size)
        self._recipes = recipes_of(config, normals_for)
        # A dataset of weight 0 is switched off: it is never drawn, so it need not be there.
        indexes: list[Sequence[str]] = []
        for dataset in config.datasets:
            own = (instances or {}).get(dataset.name)
            if own is None and dataset.weight > 0:
                own = read_index(dataset.resolved_path(), dataset.index)
            indexes.append(own or [])
        self._sampler = Sampler(config, indexes, seed)
        self._log = FailureLog(max_failure_share, path=failures_path)
        self._prefetch_batches = 2 * self._num_workers + 2 if prefetch_batches is None else prefetch_batches
        self._prefetch_bytes, self._stall_timeout_s = prefetch_bytes, stall_timeout_s
        self._on_round = on_round
        if self._prefetch_batches < 1 or prefetch_bytes < 1:
            raise InputError("prefetch_batches and prefetch_bytes", "must be at least 1")
        self._largest_batch = BlockLayout.bound(batch_size, _max_pixels(config))
        self._statistics = LoaderStatistics()
        self._seed = seed
        self._step = 0
        self._micro_batch = 0
        self._failures_before = {0: self._log.count()}
        self._pool: WorkerPool | None = None
        self._arena: Arena | None = None  # of batches that are loaded in this process
        if self._num_workers == 0:
            keep_freed_memory()

    @property
    def failures(self) -> list[Failure]:
        """Skipped instances, each once for every rule that it broke: (dataset, instance, rule, detail)."""
        return list(self._log.failures)

    @property
    def failure_counts(self) -> Counter[tuple[str, str]]:
        """How many draws were skipped, by (dataset, rule)."""
        return Counter(self._log.counts)

    def failures_before(self, step: int) -> FailureCount:
        """What failed of the draws behind the optimiser steps before `step`.

        Batches of later steps do not count, though they may have been handed out: what a checkpoint says then holds for
        a run that goes on and loads them again.

        Raises:
            InputError: the step lies more than a few behind the stream.
        """
        reached = [other for other in self._failures_before if other <= step]
        if not reached:
            raise InputError("step", f"must be at least {min(self._failures_before)}", found=step)
        return self._failures_before[max(reached)]

    def go_on_counting(self, num_recent: int, num_recent_failed: int) -> None:
        """Begin with the recent draws of the run that goes on, for the share of them that may fail."""
        self._log.go_on(num_recent, num_recent_failed)
        self._failures_before = {self._step: self._log.count()}

    @property
    def num_workers(self) -> int:
        """Worker processes in use; 0 means that batches are loaded in this process."""
        return self._num_workers

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            DatasetError: too many instances are unusable; names them.
            TrainingError: a worker process died.
        """
        asked = time.perf_counter()
        num_ready = self._pool.num_ready if self._pool else 0
        if self._num_workers == 0:
            delivery = self._load_here(self._step, self._micro_batch)
        else:
            delivery = self._running_pool().next()
        self._statistics.record(delivery.batch, time.perf_counter() - asked, num_ready)
        self._step, self._micro_batch = self._layout.after(self._step, self._micro_batch)
        self._record(delivery.batch)
        if self._micro_batch == 0:
            self._failures_before[self._step] = self._log.count()
            self._failures_before.pop(self._step - _STEPS_REMEMBERED, None)
        return _to_tensors(delivery)

    def statistics(self) -> LoaderStatistics:
        """What loading has cost since the start or the last `reset`, and how long batches were waited for."""
        self._statistics.num_restarts = self._pool.num_restarts if self._pool else 0
        return self._statistics

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands: what the next batch will be. Batches loaded ahead do not count."""
        return {"seed": self._seed, "step": self._step, "micro_batch": self._micro_batch, **self._layout_state()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state` was taken.

        At the start of an optimiser step the batch may since have been dealt out differently (other ranks, other
        accumulation); the samples of the step are the same as long as the global batch is.

        Raises:
            InputError: the state is of another seed, or taken within a step that was dealt out differently.
        """
        step, micro_batch = state["step"], state["micro_batch"]
        if state["seed"] != self._seed:
            raise InputError(
                "seed", "must be the one of the run that goes on", found=self._seed, fix=f"It was {state['seed']}."
            )
        if step < 0 or not 0 <= micro_batch < self._layout.accumulation:
            raise InputError("state", "must name a step and a micro-batch of it", found=dict(state))
        layout = self._layout_state()
        if micro_batch and any(state[key] != value for key, value in layout.items()):
            raise InputError("state", f"must be of the layout {layout} within a step", found=dict(state))
        self.close()
        self._step, self._micro_batch = step, micro_batch
        self._failures_before = {step: self._log.count()}

    def close(self) -> None:
        """End the worker processes. Iterating again starts new ones."""
        if self._pool is not None:
            self._end_pool()
            self._pool = None
        if self._arena is not None:
            self._arena.close()
            self._arena = None

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _running_pool(self) -> WorkerPool:
        if self._pool is None:
            plans = _plans_from(self._sampler, self._layout, self._step, self._micro_batch)
            self._pool = WorkerPool(
                self._num_workers,
                self._recipes,
                plans,
                max_batch_bytes=self._largest_batch,
                prefetch_batches=self._prefetch_batches,
                prefetch_bytes=self._prefetch_bytes,
                stall_timeout_s=self._stall_timeout_s,
                on_round=self._on_round,
            )
            # Also when the loader is dropped or the interpreter ends without `close`.
            self._end_pool = weakref.finalize(self, self._pool.close)
        return self._pool

    def load_again(self, step: int, micro_batch: int = 0, size: tuple[int, int] | None = None) -> Batch:
        """This rank's batch of any micro-batch of any step, loaded in this process; the stream stays where it is.

        Args:
            step: of the run.
            micro_batch: of the step.
            size: (height, width) to have instead of the step's own, at most `sizes.largest`.

        Raises:
            DatasetError: a sample has no usable instance.
        """
        delivery = self._load_here(step, micro_batch, size)
        _require_complete(delivery.batch)
        return _to_tensors(delivery)

    @property
    def sizes(self) -> Sizes:
        """What sizes the images of the run have."""
        return self._sampler.sizes

    def _load_here(self, step: int, micro_batch: int, size: tuple[int, int] | None = None) -> Delivery:
        plan = self._sampler.plan_batch(self._layout, step, micro_batch)
        if size is not None:
            plan = replace(plan, size=size)
        layout = BlockLayout.of(plan, self._recipes)
        if self._arena is None:
            self._arena = Arena(self._largest_batch)
        block = self._arena.checkout(self._arena.reserve())
        return Delivery(load_batch(self._recipes, plan, layout.arrays_in(block)), layout, block)

    def _record(self, batch: LoadedBatch) -> None:
        deaths = [self._pool.deaths.popleft() for _ in range(len(self._pool.deaths))] if self._pool else []
        self._log.record(len(batch.infos), [*deaths, *batch.failures])
        _require_complete(batch)

    def _layout_state(self) -> dict[str, int]:
        layout = self._layout
        return {
            "batch_size": layout.batch_size,
            "accumulation": layout.accumulation,
            "world_size": layout.world_size,
        }


def _resolve_num_workers(num_workers: int | Literal["auto"], world_size: int) -> int:
    if num_workers == "auto":
        # torchrun and accelerate say how many ranks share this machine.
        num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        cores = num_cores() // num_ranks
        if torch.cuda.is_available():
            return max(min(cores - 1, MAX_AUTO_WORKERS), 1)
        return min(cores - 1, MAX_AUTO_WORKERS) if cores > 2 else 0
    if not isinstance(num_workers, int) or num_workers < 0:
        raise InputError("num_workers", "must be `auto` or a number of processes", found=num_workers)
    return num_workers


def _require_complete(batch: LoadedBatch) -> None:
    if not batch.complete:
        rule = f"one of {NUM_CANDIDATES} instances must be usable"
        raise unusable(rule, f"{len(batch.failures)} draws", batch.failures)


def _plans_from(sampler: Sampler, layout: BatchLayout, step: int, micro_batch: int) -> Iterator[BatchPlan]:
    while True:
        yield sampler.plan_batch(layout, step, micro_batch)
        step, micro_batch = layout.after(step, micro_batch)


def _max_pixels(config: DataConfig) -> int:
    if config.image_sizes is not None:
        return max(width * height for width, height in config.image_sizes)
    assert config.area_range is not None  # checked by DataConfig
    return max(int(config.area_range[1]), 1)


def _to_tensors(delivery: Delivery) -> Batch:
    """The batch as tensors on the very memory that it was loaded into."""
    arrays = delivery.layout.arrays_in(delivery.block)
    batch: Batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {**batch, "label_type": delivery.batch.labels, "info": delivery.batch.infos}
