"""What to tell of memory that did not suffice: on what it was, and what to change first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moge_core.errors import TrainingError
from moge_core.training.flags import TrainFlags


@dataclass(frozen=True)
class Work:
    """What the network is at work on.

    Attributes:
        phase: "training" or "evaluation".
        num_tokens: of the encoder, for each image.
        image_shape: shape (B, 3, H, W) of the batch; None where images of any size follow one another.
    """

    phase: str
    num_tokens: int
    image_shape: Sequence[int] | None = None

    def __str__(self) -> str:
        if self.image_shape is None:
            return f"{self.phase} with {self.num_tokens} tokens"
        num_views, _, height, width = self.image_shape
        return (
            f"{self.phase} on {num_views} x {width} x {height} (views x width x height) with {self.num_tokens} tokens"
        )


def out_of_memory(error: BaseException, work: Work | None, flags: TrainFlags, *, sharded: bool) -> TrainingError:
    """The error that names the work and the ways out, the one that costs least first.

    Args:
        error: torch's own.
        work: what the network was at work on; None before its first step.
        flags: of the training.
        sharded: whether weights are spread over the processes already (FSDP).
    """
    # What torch goes on to advise is set already, see `allocator_environment`.
    found = str(error).partition(" If reserved")[0]
    ways = _ways_out(work, flags, sharded=sharded)
    fix = f"First {ways[0]}." + "".join(f" Then {way}." for way in ways[1:])
    return TrainingError(work or "training", "must fit into the device's memory", found=found, fix=fix)


def _ways_out(work: Work | None, flags: TrainFlags, *, sharded: bool) -> list[str]:
    """In the order of what they cost in speed or quality."""
    smaller = "lower the upper end of `num_tokens_range` (model) and of `area_range` or `image_sizes` (data)"
    if work is not None and work.phase == "evaluation":
        return [smaller, "score later, by `--eval_every 0` and `moge evaluate`"]
    ways = []
    if not flags.enable_gradient_checkpointing:
        ways.append("recompute activations: --enable_gradient_checkpointing True")
    if flags.batch_size_forward > 1:
        parts = _smallest_factor(flags.batch_size_forward)
        size, micro = flags.batch_size_forward // parts, flags.gradient_accumulation_steps * parts
        ways.append(
            f"make the same batch of smaller parts: --batch_size_forward {size} --gradient_accumulation_steps {micro}"
        )
    ways.append(smaller)
    if not sharded:
        ways.append("spread weights and optimiser over several GPUs: configs/accelerate/fsdp.yaml")
    return ways


def _smallest_factor(number: int) -> int:
    return next(factor for factor in range(2, number + 1) if number % factor == 0)
