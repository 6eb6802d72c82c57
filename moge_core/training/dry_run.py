"""Before the days of a training: everything resolved, one step made, one checkpoint written, and what it will take."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from moge_core.training.config import TrainConfig
from moge_core.training.flags import TrainFlags
from moge_core.training.preflight import DatasetIdentity
from moge_core.training.trainer import Trainer
from moge_core.training.workspace import parse_checkpoint_flag

_GB = 1e9


@dataclass(frozen=True)
class DryRun:
    """What a training will do and take.

    Attributes:
        lines: the plan, to be printed.
        fits: whether the disk can hold the checkpoints that the flags ask to keep.
    """

    lines: tuple[str, ...]
    fits: bool


def dry_run(config: TrainConfig, flags: TrainFlags, datasets: Sequence[DatasetIdentity]) -> DryRun:
    """Make one step on two batches and one checkpoint in a folder beside the workspace, which is removed again.

    Raises:
        MoGeError: the training could not start, or its first step or checkpoint fails.
    """
    parent = _existing(flags.workspace)
    with tempfile.TemporaryDirectory(prefix=".moge-dry-run-", dir=parent) as folder:
        trial = replace(
            flags, workspace=Path(folder), enable_mlflow=False, num_iterations=max(2, flags.num_iterations), vis_every=0
        )
        if flags.checkpoint and not isinstance(parse_checkpoint_flag(flags.checkpoint), Path):
            trial = replace(
                trial, checkpoint=None
            )  # steps of the workspace itself: its files are looked at when it runs
        trainer = Trainer(config, trial, datasets)
        try:
            return _measure(trainer, config, flags, datasets, parent)
        except torch.OutOfMemoryError as error:
            raise trainer.report.cause_of(error, sharded=trainer.network.sharded) from error
        finally:
            trainer.loader.close()
            trainer.writer.close()


def _measure(
    trainer: Trainer, config: TrainConfig, flags: TrainFlags, datasets: Sequence[DatasetIdentity], parent: Path
) -> DryRun:
    batches = iter(trainer.loader)
    seconds = []
    for step in (trainer.first_step, trainer.first_step + 1):
        start = time.perf_counter()
        trainer.train_step(step, batches)
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    trainer.save(trainer.first_step)
    trainer.writer.wait()
    save_seconds = time.perf_counter() - start
    checkpoint_gb = sum(f.stat().st_size for f in trainer.workspace.checkpoint_dir.glob("*")) / _GB
    num_kept, needed_gb = _checkpoints_kept(flags), _checkpoints_kept(flags) * checkpoint_gb
    free_gb = shutil.disk_usage(parent).free / _GB
    fits = needed_gb < free_gb

    loss = trainer.metrics.means(trainer.accelerator).get("loss", float("nan"))
    parameters = [p for p in trainer.network.raw_model.parameters() if p.requires_grad]
    total_weight = sum(dataset.weight for dataset in config.data.datasets)
    shares = {dataset.name: dataset.weight / total_weight for dataset in config.data.datasets}
    time_left = _duration((flags.num_iterations - trainer.first_step) * seconds[1])
    lines = [
        f"configuration  {config.source} ({config.digest()[:16]})",
        f"model          {config.model_version}, {sum(p.numel() for p in parameters) / 1e6:.1f} M trained parameters",
        *(
            f"data           {d.name}: {d.num_instances:,} instances, {shares[d.name]:.1%} of the samples, {d.path}"
            for d in datasets
        ),
        *(f"held out       {each.name}: {len(each.instances)} scored" for each in trainer.held_out),
        f"batch          {trainer.global_batch} = {flags.batch_size_forward} x {flags.gradient_accumulation_steps}"
        f" micro-batches x {trainer.accelerator.num_processes} processes, {trainer.loader.num_workers} loader workers",
        *(
            f"learning rate  group {i}: {rate:.3g} at step {trainer.first_step + 2}"
            for i, rate in enumerate(trainer.network.scheduler.get_last_lr())
        ),
        f"device         {trainer.device}, precision {trainer.accelerator.mixed_precision}",
        f"first step     loss {loss:.4g}, {seconds[0]:.2f} s, then {seconds[1]:.2f} s a step",
        f"memory         {_memory(trainer.device)}",
        f"steps          {trainer.first_step} to {flags.num_iterations - 1}: about {time_left}",
        f"checkpoint     {checkpoint_gb:.3f} GB in {save_seconds:.2f} s; {num_kept} to keep need {needed_gb:.1f} GB, "
        f"{free_gb:.0f} GB are free",
    ]
    if not fits:
        lines.append("               NOT ENOUGH ROOM: set --keep_last, raise --save_every or free some space")
    return DryRun(tuple(lines), fits)


def _checkpoints_kept(flags: TrainFlags) -> int:
    """Checkpoints on the disk at the end, at most."""
    saved = -(-flags.num_iterations // flags.save_every) + 1
    if not flags.keep_last:
        return saved
    spaced = flags.num_iterations // flags.keep_every + 1 if flags.keep_every else 0
    # One more for the best, and one that is written before an old one is removed.
    return min(saved, flags.keep_last + spaced + 2)


def _memory(device: torch.device) -> str:
    host = f"{psutil.Process().memory_info().rss / _GB:.1f} GB of the host for this process"
    if device.type != "cuda":
        return host
    total = torch.cuda.get_device_properties(device).total_memory / _GB
    return f"{torch.cuda.max_memory_reserved(device) / _GB:.1f} of {total:.1f} GB of the device, {host}"


def _duration(seconds: float) -> str:
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def _existing(path: Path) -> Path:
    """The folder that a workspace will be made in, or the nearest above it."""
    resolved = path.resolve()
    return next(folder for folder in (resolved.parent, *resolved.parents) if folder.is_dir())
