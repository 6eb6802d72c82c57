"""The flags of the training command, with the published names, meanings and defaults. Imports no torch."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import click

from moge_core.errors import ConfigError
from moge_core.training.config import RunFlags, TrainConfig

logger = logging.getLogger(__name__)

Precision = Literal["no", "fp16", "bf16"]


@dataclass(frozen=True)
class TrainFlags:
    """Everything that the command line decides about a run; the defaults are the published ones."""

    config: Path
    workspace: Path = Path("workspace/debug")
    checkpoint: str | None = None
    checkpoint_strict: bool = True
    batch_size_forward: int = 8
    gradient_accumulation_steps: int = 1
    enable_gradient_checkpointing: bool = True
    mixed_precision: Precision | None = None
    enable_ema: bool = True
    num_iterations: int = 1_000_000
    save_every: int = 10_000
    keep_last: int = 0
    keep_every: int = 0
    eval_every: int = 0
    eval_instances: int = 32
    eval_fraction: float = 0.0
    log_every: int = 1000
    vis_every: int = 0
    num_vis_images: int = 32
    enable_mlflow: bool = True
    seed: int = 0
    init: str = "hub"
    num_workers: int | None = None
    max_failure_share: float = 0.01
    max_skipped: int = 20
    hang_timeout_s: float = 600.0
    compile: bool = False
    deterministic: bool = False
    accept_index_change: bool = False
    dry_run: bool = False


def resolve_flags(given: dict[str, Any], config: TrainConfig) -> TrainFlags:
    """Flags of the command line over those of the configuration's `run` section over the published defaults.

    Args:
        given: flags that the command line sets; None means unset.
        config: the configuration that `given["config"]` names.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if given.pop("enable_mixed_precision", None) and given.setdefault("mixed_precision", "fp16") != "fp16":
        raise ConfigError(
            "--enable_mixed_precision",
            "is another word for --mixed_precision fp16",
            found=f"--mixed_precision {given['mixed_precision']} beside it",
            fix="Give one of the two.",
        )
    values = {**config.run.model_dump(exclude_none=True, exclude={"num_processes"}), **given}
    _settle_precision(values)
    return TrainFlags(**values)


def _settle_precision(values: dict[str, Any]) -> None:
    """Our flag wins over that of `accelerate launch`, which holds where ours is not given.

    accelerate says `no` also where nobody chose: then the trainer takes what suits its device.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched != "no" and launched in get_args(Precision):
        values.setdefault("mixed_precision", launched)
    ours = values.get("mixed_precision")
    if launched not in ("no", ours):
        logger.warning("--mixed_precision %s wins over the %s of `accelerate launch`", ours, launched)


def _option(name: str, kind: Any, text: str) -> Any:
    # Dashes are accepted too: the context normalises them to the published underscores.
    return click.option(f"--{name}", name, type=kind, default=None, help=text)


def _described(name: str) -> str:
    return RunFlags.model_fields[name].description or ""


OPTIONS = [
    click.option("--config", required=True, type=click.Path(path_type=Path), help="Training configuration (JSON)."),
    _option("workspace", click.Path(path_type=Path), "Folder of the run (default workspace/debug)."),
    _option("checkpoint", str, _described("checkpoint") + " None starts anew."),
    _option("checkpoint_strict", click.BOOL, _described("checkpoint_strict")),
    _option("num_iterations", click.IntRange(1), _described("num_iterations")),
    _option("batch_size_forward", click.IntRange(1), _described("batch_size_forward")),
    _option("gradient_accumulation_steps", click.IntRange(1), _described("gradient_accumulation_steps")),
    _option("enable_gradient_checkpointing", click.BOOL, _described("enable_gradient_checkpointing")),
    _option("mixed_precision", click.Choice(["no", "fp16", "bf16"]), _described("mixed_precision")),
    _option("enable_mixed_precision", click.BOOL, "The published word for --mixed_precision fp16."),
    _option("enable_ema", click.BOOL, _described("enable_ema")),
    _option("init", str, _described("init")),
    _option("save_every", click.IntRange(1), _described("save_every")),
    _option("keep_last", click.IntRange(0), _described("keep_last")),
    _option("keep_every", click.IntRange(0), _described("keep_every")),
    _option("eval_every", click.IntRange(0), _described("eval_every")),
    _option("eval_instances", click.IntRange(1), _described("eval_instances")),
    _option("eval_fraction", click.FloatRange(0, 1, max_open=True), _described("eval_fraction")),
    _option("log_every", click.IntRange(1), _described("log_every")),
    _option("vis_every", click.IntRange(0), _described("vis_every")),
    _option("num_vis_images", click.IntRange(1), _described("num_vis_images")),
    _option("enable_mlflow", click.BOOL, "Log to MLflow beside metrics.jsonl (default true)."),
    _option("seed", click.IntRange(0), _described("seed")),
    _option("num_workers", click.IntRange(0), _described("num_workers")),
    _option("max_failure_share", click.FloatRange(0, 1), _described("max_failure_share")),
    _option("max_skipped", click.IntRange(1), _described("max_skipped")),
    _option("hang_timeout_s", click.FloatRange(0, 86_400), _described("hang_timeout_s")),
    _option("compile", click.BOOL, _described("compile")),
    _option("deterministic", click.BOOL, _described("deterministic")),
    _option("accept_index_change", click.BOOL, _described("accept_index_change")),
    click.option(
        "--dry_run",
        "dry_run",
        is_flag=True,
        help="Resolve everything, train a few steps, save once, and print the plan with times and sizes.",
    ),
]
