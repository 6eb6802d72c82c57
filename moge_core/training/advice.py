"""What is allowed but mostly a mistake, said before a training begins. Imports no torch."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moge_core.training.config import TrainConfig
from moge_core.training.flags import TrainFlags
from moge_core.training.workspace import parse_checkpoint_flag

# The published advice for finetuning.
MAX_HEAD_RATE, MAX_BACKBONE_RATE, LEAST_BATCH = 1e-5, 1e-6, 32

_SOME_BACKBONE, _SOME_HEAD = (
    ("backbone.blocks.0.attn.qkv.weight", "encoder.backbone.blocks.0.attn.qkv.weight"),
    (
        "head.projects.0.weight",
        "points_head.res_blocks.0.0.layers.2.weight",
    ),
)


def num_processes() -> int:
    """Processes that train together, as their launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def advise(config: TrainConfig, flags: TrainFlags, processes: int = 1) -> list[str]:
    """Warnings about a run, each with its reason."""
    return list(_advice(config, flags, processes))


def _advice(config: TrainConfig, flags: TrainFlags, processes: int) -> Iterator[str]:
    batch = flags.batch_size_forward * flags.gradient_accumulation_steps * processes
    if batch < LEAST_BATCH:
        yield (
            f"the batch of {batch} is below {LEAST_BATCH}: gradients of few images are noisy, which shows as loss "
            "spikes and forgetting; raise --gradient_accumulation_steps, which costs no memory"
        )
    if flags.checkpoint is None or not isinstance(parse_checkpoint_flag(flags.checkpoint), Path):
        return
    for kind, names, most in (
        ("backbone", _SOME_BACKBONE, MAX_BACKBONE_RATE),
        ("head", _SOME_HEAD, MAX_HEAD_RATE),
    ):
        rate = max((_rate(group) for group in config.optimizer.params if _holds(group, names)), default=0.0)
        if rate > most:
            yield (
                f"finetuning with a learning rate of {rate:g} for the {kind}, above the advised {most:g}: the weights "
                "leave what pretraining found before the new data can correct them"
            )


def _rate(group: Mapping[str, Any]) -> float:
    rate = group.get("lr", 1e-3)  # torch's default
    return float(rate) if isinstance(rate, int | float) else 0.0


def _holds(group: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    patterns = group["params"]
    return any(
        any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns["include"])
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns.get("exclude", []))
        for name in names
    )
