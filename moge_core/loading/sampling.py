"""Which instance is sample n of a run, and which size its optimiser step has: pure functions of the seed.

Random numbers are counter-based (Philox): the seed is the key, and what is drawn, with its number, the counter. So
nothing depends on how the work is split between ranks, micro-batches or worker processes, or on where a run was
interrupted, and there is no state to keep beyond the number of the next batch.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from moge_core.errors import InputError
from moge_core.loading.config import DataConfig

NUM_CANDIDATES = 10
"""Instances to try for one sample: the first one drawn and its replacements."""


@dataclass(frozen=True)
class Candidate:
    """An instance and the seed of everything random that is done with it."""

    instance: str
    seed: int


@dataclass(frozen=True)
class SamplePlan:
    """Sample `sample_number` of a run: the first of `candidates` that can be used, all of one dataset.

    A replacement stays within the dataset, so that broken instances do not shift the shares of the mixture.
    """

    sample_number: int
    dataset: int
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class BatchPlan:
    """What one rank loads for one micro-batch; `size` is (height, width)."""

    step: int
    micro_batch: int
    size: tuple[int, int]
    samples: tuple[SamplePlan, ...]


@dataclass(frozen=True)
class BatchLayout:
    """How the samples of an optimiser step are dealt out.

    Within a step, samples are ordered by micro-batch, then rank, then place in the batch.
    """

    batch_size: int
    accumulation: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "world_size"):
            if getattr(self, name) < 1:
                raise InputError(name, "must be at least 1", found=getattr(self, name))
        if not 0 <= self.rank < self.world_size:
            raise InputError("rank", f"must be in 0..{self.world_size - 1}", found=self.rank)

    @property
    def global_batch(self) -> int:
        """Samples per optimiser step, over all ranks and micro-batches."""
        return self.batch_size * self.accumulation * self.world_size

    def sample_numbers(self, step: int, micro_batch: int) -> range:
        """Samples of this rank's micro-batch."""
        first = step * self.global_batch + (micro_batch * self.world_size + self.rank) * self.batch_size
        return range(first, first + self.batch_size)

    def after(self, step: int, micro_batch: int) -> tuple[int, int]:
        """(step, micro-batch) of the next batch."""
        return (step, micro_batch + 1) if micro_batch + 1 < self.accumulation else (step + 1, 0)


class Sizes(NamedTuple):
    """Sizes (height, width) of a run's images: one of about their mean area and shape, and one of the greatest area."""

    mean: tuple[int, int]
    largest: tuple[int, int]


class Sampler:
    """Draws datasets by weight, instances evenly within a dataset, and image sizes.

    Args:
        config: the `data` section.
        indexes: for each of its datasets the instances, empty only where the weight is 0.
        seed: of the run, 0 or greater.

    Raises:
        InputError: the seed is negative, or a dataset of positive weight has no instance.
    """

    def __init__(self, config: DataConfig, indexes: Sequence[Sequence[str]], seed: int) -> None:
        if seed < 0:
            raise InputError("seed", "must be 0 or greater", found=seed)
        for dataset, index in zip(config.datasets, indexes, strict=True):
            if dataset.weight > 0 and not index:
                raise InputError("indexes", f"must list instances of dataset {dataset.name!r}", found="none")
        self._config = config
        self._indexes = indexes
        self._key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
        # Datasets of weight 0 are left out, so that no rounding at the ends of the interval can draw one.
        self._drawable = [i for i, dataset in enumerate(config.datasets) if dataset.weight > 0]
        self._thresholds = list(itertools.accumulate(config.datasets[i].weight for i in self._drawable))
        self._step_size = functools.lru_cache(maxsize=4)(self._draw_step_size)

    def plan_batch(self, layout: BatchLayout, step: int, micro_batch: int) -> BatchPlan:
        """What the rank of `layout` loads for a micro-batch of an optimiser step."""
        samples = tuple(self.plan_sample(number) for number in layout.sample_numbers(step, micro_batch))
        return BatchPlan(step, micro_batch, self._step_size(step, layout.global_batch), samples)

    def plan_sample(self, sample_number: int) -> SamplePlan:
        """The dataset of a sample and the instances to try."""
        dataset = self.dataset_of(sample_number)
        index = self._indexes[dataset]
        rng = self._generator(_Purpose.INSTANCE, sample_number)
        places = rng.integers(len(index), size=NUM_CANDIDATES).tolist()
        seeds = rng.integers(2**63, size=NUM_CANDIDATES).tolist()
        candidates = tuple(Candidate(index[place], seed) for place, seed in zip(places, seeds, strict=True))
        return SamplePlan(sample_number, dataset, candidates)

    def dataset_of(self, sample_number: int) -> int:
        """Position in the configuration of the dataset that a sample comes from."""
        point = self._generator(_Purpose.DATASET, sample_number).random() * self._thresholds[-1]
        place = bisect.bisect_right(self._thresholds, point)
        return self._drawable[min(place, len(self._drawable) - 1)]

    def image_size(self, step: int, datasets: Collection[int]) -> tuple[int, int]:
        """(width, height) of all images of an optimiser step that draws from `datasets`.

        An aspect ratio suits all of these datasets if their ranges have one in common, else any of them.
        """
        rng = self._generator(_Purpose.IMAGE_SIZE, step)
        if self._config.image_sizes is not None:
            return self._config.image_sizes[int(rng.integers(len(self._config.image_sizes)))]
        ranges = [self._config.effective(self._config.datasets[i], "aspect_ratio_range") for i in sorted(datasets)]
        lowest, highest = max(low for low, _ in ranges), min(high for _, high in ranges)
        if lowest > highest:
            lowest, highest = min(low for low, _ in ranges), max(high for _, high in ranges)
        assert self._config.area_range is not None  # checked by DataConfig
        return _width_and_height(rng.uniform(*self._config.area_range), rng.uniform(lowest, highest))

    @property
    def sizes(self) -> Sizes:
        """What `image_size` draws, on average and at most."""
        if self._config.image_sizes is not None:
            candidates = [(height, width) for width, height in self._config.image_sizes]
            mean_area = sum(map(math.prod, candidates)) / len(candidates)
            mean = min(candidates, key=lambda size: abs(math.prod(size) - mean_area))
            return Sizes(mean, max(candidates, key=math.prod))
        assert self._config.area_range is not None  # checked by DataConfig
        ranges = [self._config.effective(self._config.datasets[i], "aspect_ratio_range") for i in self._drawable]
        lowest, highest = min(low for low, _ in ranges), max(high for _, high in ranges)
        smallest_area, largest_area = self._config.area_range
        mean_width, mean_height = _width_and_height((smallest_area + largest_area) / 2, (lowest + highest) / 2)
        # Sides are rounded down, so the same area gives more pixels in one shape than in another.
        shapes = (lowest, highest, min(max(1.0, lowest), highest))
        width, height = max((_width_and_height(largest_area, shape) for shape in shapes), key=math.prod)
        return Sizes((mean_height, mean_width), (height, width))

    def _draw_step_size(self, step: int, global_batch: int) -> tuple[int, int]:
        first = step * global_batch
        width, height = self.image_size(step, {self.dataset_of(n) for n in range(first, first + global_batch)})
        return height, width

    def _generator(self, purpose: _Purpose, number: int) -> np.random.Generator:
        # The lowest word of the counter counts what one generator draws.
        return np.random.Generator(np.random.Philox(key=self._key, counter=[0, 0, number, int(purpose)]))


def _width_and_height(area: float, aspect_ratio: float) -> tuple[int, int]:
    return max(int(math.sqrt(area * aspect_ratio)), 1), max(int(math.sqrt(area / aspect_ratio)), 1)


class _Purpose(IntEnum):
    DATASET = 1
    INSTANCE = 2
    IMAGE_SIZE = 3
