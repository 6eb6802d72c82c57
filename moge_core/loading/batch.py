"""From a batch's plan to its samples; broken instances are replaced on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moge_core.loading.failures import Failure
from moge_core.loading.instance import Recipe, Sample, UnusableInstanceError, load_sample
from moge_core.loading.sampling import BatchPlan, SamplePlan


@dataclass
class LoadedBatch:
    """The samples of `plan`, and the instances that were tried in vain.

    `samples` is shorter than the plan only where all candidates of a sample failed.
    """

    plan: BatchPlan
    samples: list[Sample]
    failures: list[Failure]


def load_batch(recipes: Sequence[Recipe], plan: BatchPlan) -> LoadedBatch:
    """Load what `plan` says; `recipes` are those of all datasets, in the configuration's order."""
    failures: list[Failure] = []
    samples = [_first_usable(recipes[sample.dataset], sample, plan, failures) for sample in plan.samples]
    return LoadedBatch(plan, [sample for sample in samples if sample is not None], failures)


def _first_usable(recipe: Recipe, sample: SamplePlan, plan: BatchPlan, failures: list[Failure]) -> Sample | None:
    for attempt, candidate in enumerate(sample.candidates):
        try:
            loaded = load_sample(recipe, candidate.instance, candidate.seed, plan.size)
        except UnusableInstanceError as error:
            failures.append(Failure(recipe.name, candidate.instance, error.rule, error.found or ""))
        except Exception as error:
            # Whatever an instance breaks is told here; if it is our own fault, the quota soon ends the run.
            failures.append(Failure(recipe.name, candidate.instance, "processing", f"{type(error).__name__}: {error}"))
        else:
            loaded.info |= {"sample_number": sample.sample_number, "step": plan.step, "attempt": attempt}
            return loaded
    return None
