"""From a batch's plan to its arrays; broken instances are replaced on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.io.opencv import cv2
from moge_core.loading.failures import WORKER_DIED, Failure
from moge_core.loading.instance import Recipe, Sample, UnusableInstanceError, load_sample
from moge_core.loading.sampling import BatchPlan, SamplePlan
from moge_core.loading.stages import StageClock

Arrays = dict[str, npt.NDArray[Any]]
_ALIGNMENT = 64


@dataclass(frozen=True)
class BlockLayout:
    """Where the arrays of a batch lie in one block of memory.

    Attributes:
        shapes: of each array.
        dtypes: of each array.
        offsets: of each array, in bytes.
        num_bytes: size of the block.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype[Any]]
    offsets: dict[str, int]
    num_bytes: int

    @classmethod
    def of(cls, plan: BatchPlan, recipes: Sequence[Recipe]) -> BlockLayout:
        """The layout of the batch that `plan` describes."""
        with_normal = any(recipes[sample.dataset].with_normal for sample in plan.samples)
        return cls._of_size(len(plan.samples), *plan.size, with_normal)

    @classmethod
    def bound(cls, batch_size: int, num_pixels: int) -> int:
        """Bytes that suffice for a batch of images of at most `num_pixels`, whatever their shape."""
        return cls._of_size(batch_size, 1, num_pixels, with_normal=True).num_bytes

    @classmethod
    def _of_size(cls, count: int, height: int, width: int, with_normal: bool) -> BlockLayout:
        shapes: dict[str, tuple[int, ...]] = {
            "image": (count, 3, height, width),
            "depth": (count, height, width),
            "depth_mask_fin": (count, height, width),
            "depth_mask_inf": (count, height, width),
            "intrinsics": (count, 3, 3),
            "is_metric": (count,),
        }
        if with_normal:
            shapes["normal"] = (count, height, width, 3)
        booleans = {"depth_mask_fin", "depth_mask_inf", "is_metric"}
        dtypes = {name: np.dtype(bool if name in booleans else np.float32) for name in shapes}
        offsets, end = {}, 0
        for name, shape in shapes.items():
            offsets[name] = end
            end += -(-math.prod(shape) * dtypes[name].itemsize // _ALIGNMENT) * _ALIGNMENT
        return cls(shapes, dtypes, offsets, end)

    def arrays_in(self, block: Any) -> Arrays:
        """The arrays as views of a block of memory, anything with a writable buffer."""
        return {
            name: np.ndarray(shape, self.dtypes[name], buffer=block, offset=self.offsets[name])
            for name, shape in self.shapes.items()
        }


@dataclass
class LoadedBatch:
    """What is known of a batch beside its arrays.

    `infos` and `labels` are shorter than the plan only where all candidates of a sample failed.
    """

    plan: BatchPlan
    labels: list[str] = field(default_factory=list)
    infos: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    clock: StageClock = field(default_factory=StageClock)

    @property
    def complete(self) -> bool:
        """Whether every sample was found an instance."""
        return len(self.infos) == len(self.plan.samples)


def load_batch(
    recipes: Sequence[Recipe],
    plan: BatchPlan,
    arrays: Arrays,
    *,
    barred: Mapping[tuple[str, str], str] | None = None,
    on_instance: Callable[[str, str], None] = lambda dataset, instance: None,
) -> LoadedBatch:
    """Load what `plan` says into `arrays`.

    Args:
        recipes: of all datasets, in the configuration's order.
        plan: the batch.
        arrays: of the plan's `BlockLayout`.
        barred: (dataset, instance) not to touch, with what they did.
        on_instance: called with dataset and instance before each is read.
    """
    batch = LoadedBatch(plan)
    for row, sample in enumerate(plan.samples):
        loaded = _first_usable(recipes[sample.dataset], sample, batch, barred or {}, on_instance)
        if loaded is None:
            break
        with batch.clock.stage("store"):
            _store(loaded, arrays, row)
        batch.labels.append(loaded.label_type)
        batch.infos.append(loaded.info)
    return batch


def _first_usable(
    recipe: Recipe,
    sample: SamplePlan,
    batch: LoadedBatch,
    barred: Mapping[tuple[str, str], str],
    on_instance: Callable[[str, str], None],
) -> Sample | None:
    for attempt, candidate in enumerate(sample.candidates):
        on_instance(recipe.name, candidate.instance)
        try:
            _refuse_barred(barred.get((recipe.name, candidate.instance)), recipe, candidate.instance)
            loaded = load_sample(recipe, candidate.instance, candidate.seed, batch.plan.size, batch.clock)
        except UnusableInstanceError as error:
            batch.failures.append(Failure(recipe.name, candidate.instance, error.rule, error.found or ""))
        except Exception as error:
            # Whatever an instance breaks is told here; if it is our own fault, the quota soon ends the run.
            detail = f"{type(error).__name__}: {error}"
            batch.failures.append(Failure(recipe.name, candidate.instance, "processing", detail))
        else:
            loaded.info |= {"sample_number": sample.sample_number, "step": batch.plan.step, "attempt": attempt}
            return loaded
    return None


def _refuse_barred(deed: str | None, recipe: Recipe, instance: str) -> None:
    if deed is not None:
        raise UnusableInstanceError(recipe.root / instance, WORKER_DIED, found=deed)


def _store(sample: Sample, arrays: Arrays, row: int) -> None:
    for plane, target in zip(cv2.split(sample.image), arrays["image"][row], strict=True):
        np.divide(plane, np.float32(255), out=target)
    for name in ("depth", "depth_mask_fin", "depth_mask_inf", "intrinsics", "is_metric"):
        arrays[name][row] = getattr(sample, name)
    if "normal" in arrays:
        arrays["normal"][row] = np.nan if sample.normal is None else sample.normal
