"""From a few measured steps to what a whole training takes, phase by phase."""

from __future__ import annotations

from dataclasses import dataclass

from moge_core.loading.profiling import LoaderRate


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of an optimiser step at the least, the mean and the greatest number of tokens, on images of mean size."""

    least: float
    mean: float
    greatest: float

    @property
    def average(self) -> float:
        """Over numbers of tokens that are equally likely: Simpson's rule, exact where the cost is a cubic of them."""
        return (self.least + 4 * self.mean + self.greatest) / 6


@dataclass(frozen=True)
class Part:
    """A part of a training: so many of the like, and how long all of them take."""

    name: str
    count: int
    seconds: float


@dataclass(frozen=True)
class Interruption:
    """What a training does every so many steps, and the seconds that it takes each time."""

    name: str
    every: int
    seconds: float
    at_step_0: bool


def estimate(
    steps: range,
    low_resolution_steps: int,
    step_seconds: StepSeconds,
    loader: LoaderRate,
    num_images: int,
    interruptions: list[Interruption],
) -> list[Part]:
    """The parts of a training that take place, in order.

    Args:
        steps: that are still to be made.
        low_resolution_steps: the last step with the least number of tokens; those after it draw theirs evenly.
        step_seconds: of a step without loading.
        loader: what feeds it.
        num_images: in a step, over all processes.
        interruptions: saving and evaluating; all are done at the last step, too.
    """
    num_low = len(range(steps.start, min(low_resolution_steps + 1, steps.stop)))
    phases = [
        ("steps at low resolution", num_low, step_seconds.least),
        ("steps" if num_low == 0 else "steps after", len(steps) - num_low, step_seconds.average),
    ]
    parts = [Part(name, count, count * loader.seconds_with_loading(each, num_images)) for name, count, each in phases]
    for what in interruptions:
        count = num_times(steps, what.every, at_step_0=what.at_step_0)
        parts.append(Part(what.name, count, count * what.seconds))
    return [part for part in parts if part.count]


def num_times(steps: range, every: int, *, at_step_0: bool) -> int:
    """How often something happens that is due at multiples of `every` and at the last step."""
    if not steps or not every:
        return 0
    first = max(steps.start, 0 if at_step_0 else 1)
    multiples = range(-(-first // every) * every, steps.stop, every)
    return len(multiples) + (steps[-1] % every != 0 or (steps[-1] == 0 and not at_step_0))
