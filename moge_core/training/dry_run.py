"""Before the days of a training: everything resolved, a few steps made, a checkpoint written, and what it will take."""

from __future__ import annotations

import itertools
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from moge_core.datasets.lists import SCENE_RULE
from moge_core.loading.profiling import LoaderRate, measure_rate
from moge_core.training.advice import num_processes
from moge_core.training.agreement import all_or_none, found_by_main
from moge_core.training.config import TrainConfig
from moge_core.training.devices import finish_work, leave_process_group
from moge_core.training.estimate import Interruption, StepSeconds, estimate
from moge_core.training.flags import TrainFlags
from moge_core.training.preflight import DatasetIdentity
from moge_core.training.trainer import Trainer
from moge_core.training.validation import Split, split_datasets
from moge_core.training.workspace import parse_checkpoint_flag

_GB = 1e9
# The loader is watched for so many batches of each worker, or so many seconds.
_BATCHES_OF_A_WORKER = 3
_MOST_LOADING_S = 20.0


@dataclass(frozen=True)
class DryRun:
    """What a training will do and take.

    Attributes:
        lines: the plan, to be printed.
        fits: whether the disk can hold the checkpoints that the flags ask to keep.
    """

    lines: tuple[str, ...]
    fits: bool


@dataclass(frozen=True)
class Measured:
    """What was seen of a training.

    Attributes:
        num_steps: that were made.
        warm_up_s: seconds of the first one, with what is done but once.
        loss: mean over the steps.
        tokens: the least, the mean and the greatest number of tokens.
        steps: seconds of a step with each of them, on images of the mean size.
        largest_s: seconds of a step with the most tokens on the largest images.
        memory: after that, in words.
        copy_s: seconds until a checkpoint is copied and the training goes on.
        write_s: seconds until it is on the disk after that.
        checkpoint_gb: its size.
        score_s: seconds to score a held-out instance, the average's score with it; 0 without any.
        loader: of all processes, which load at the same time.
    """

    num_steps: int
    warm_up_s: float
    loss: float
    tokens: tuple[int, int, int]
    steps: StepSeconds
    largest_s: float
    memory: str
    copy_s: float
    write_s: float
    checkpoint_gb: float
    score_s: float
    loader: LoaderRate


def dry_run(config: TrainConfig, flags: TrainFlags, datasets: Sequence[DatasetIdentity]) -> DryRun:
    """Make a few steps and one checkpoint in a folder beside the workspace, which is removed again.

    Every process of a launch calls this, and gets the same plan.

    Raises:
        MoGeError: the training could not start, or a step or the checkpoint fails.
    """
    parent = _existing(flags.workspace)
    with tempfile.TemporaryDirectory(prefix=".moge-dry-run-", dir=parent) as folder:
        trial = replace(
            flags,
            workspace=Path(folder),
            enable_mlflow=False,
            vis_every=0,
            # As many as are scored at once tell how long one takes.
            eval_instances=min(flags.eval_instances, flags.batch_size_forward * num_processes()),
        )
        if flags.checkpoint and not isinstance(parse_checkpoint_flag(flags.checkpoint), Path):
            # Steps of the workspace itself: its files are looked at when it runs.
            trial = replace(trial, checkpoint=None)
        trainer = Trainer(config, trial, datasets)
        try:
            measured = _measure(trainer)
            plan = found_by_main(lambda: _plan(trainer, measured, flags, parent), is_main=trainer.is_main)
        except torch.OutOfMemoryError as error:
            raise trainer.report.cause_of(error, sharded=trainer.network.sharded) from error
        finally:
            trainer.loader.close()
            trainer.writer.close()
            trainer.watchdog.close()
    leave_process_group()
    return plan


# --- what is measured, by all processes together ---


def _measure(trainer: Trainer) -> Measured:
    low, high = trainer.network.token_range
    tokens = (low, (low + high) // 2, high)
    mean, largest = trainer.loader.sizes
    steps = itertools.count(trainer.first_step)
    # The greatest first: what does not fit shows at once, and what is done but once is behind the others.
    warm_up_s = _step_seconds(trainer, next(steps), high, largest)
    on_mean = {number: _step_seconds(trainer, next(steps), number, mean) for number in sorted(set(tokens))}
    largest_s = _step_seconds(trainer, next(steps), high, largest)
    memory = _memory(trainer.device)
    copy_s, write_s = _saving_seconds(trainer)
    return Measured(
        num_steps=next(steps) - trainer.first_step,
        warm_up_s=warm_up_s,
        loss=trainer.metrics.means(trainer.accelerator).get("loss", float("nan")),
        tokens=tokens,
        steps=StepSeconds(*(on_mean[number] for number in tokens)),
        largest_s=largest_s,
        memory=memory,
        copy_s=copy_s,
        write_s=write_s,
        checkpoint_gb=sum(file.stat().st_size for file in trainer.workspace.checkpoint_dir.glob("*")) / _GB,
        score_s=_scoring_seconds(trainer),
        loader=_loader_rate(trainer),
    )


def _step_seconds(trainer: Trainer, step: int, num_tokens: int, size: tuple[int, int]) -> float:
    batches = all_or_none(lambda: trainer.batches(size))
    finish_work(trainer.device)
    start = time.perf_counter()
    trainer.train_step(step, batches, num_tokens)
    finish_work(trainer.device)
    return time.perf_counter() - start


def _memory(device: torch.device) -> str:
    host = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GB:.1f} GB of the host for this process"
    if device.type != "cuda":
        return host
    total = torch.cuda.get_device_properties(device).total_memory / _GB
    return f"{torch.cuda.max_memory_reserved(device) / _GB:.1f} of {total:.1f} GB of the device, {host}"


def _saving_seconds(trainer: Trainer) -> tuple[float, float]:
    """Until a checkpoint is copied, and from then until it is written."""
    start = time.perf_counter()
    trainer.save(trainer.first_step)
    copied = time.perf_counter()
    trainer.writer.wait()
    return copied - start, time.perf_counter() - copied


def _scoring_seconds(trainer: Trainer) -> float:
    """Of one held-out instance."""
    number = sum(len(each.instances) for each in trainer.held_out)
    if not number:
        return 0.0
    for _ in range(2):  # the first time warms up
        start = time.perf_counter()
        trainer._evaluate(trainer.first_step)
    return (time.perf_counter() - start) / number


def _loader_rate(trainer: Trainer) -> LoaderRate:
    """Of all processes together, which load at the same time, and the mean cost of their images."""
    number = _BATCHES_OF_A_WORKER * max(trainer.loader.num_workers, 1)
    own = all_or_none(lambda: measure_rate(trainer.loader, number, _MOST_LOADING_S))
    figures = torch.tensor([own.images_per_second, own.cpu_s, own.waiting_s], device=trainer.device)
    rate, cpu_s, waiting_s = trainer.accelerator.reduce(figures, reduction="sum").tolist()
    share = 1 / trainer.accelerator.num_processes
    return LoaderRate(rate, cpu_s * share, waiting_s * share, own.num_workers)


# --- what is told of it ---


def _plan(trainer: Trainer, measured: Measured, flags: TrainFlags, parent: Path) -> DryRun:
    config, datasets = trainer.config, trainer.datasets
    num_kept = _checkpoints_kept(flags)
    needed_gb, free_gb = num_kept * measured.checkpoint_gb, shutil.disk_usage(parent).free / _GB
    parameters = [p for p in trainer.network.raw_model.parameters() if p.requires_grad]
    total_weight = sum(dataset.weight for dataset in config.data.datasets)
    shares = {dataset.name: dataset.weight / total_weight for dataset in config.data.datasets}
    # `trainer` holds out fewer: as many as are scored at once.
    rule = trainer.split.rule if trainer.split else SCENE_RULE
    share, most = flags.eval_fraction, flags.eval_instances
    split = split_datasets(config.data, share, most, rule) if flags.eval_every else Split({}, [])
    held_out = split.held_out
    lines = [
        f"configuration  {config.source} ({config.digest()[:16]})",
        f"model          {config.model_version}, {sum(p.numel() for p in parameters) / 1e6:.1f} M trained parameters",
        *(
            f"data           {d.name}: {d.num_instances:,} instances, {shares[d.name]:.1%} of the samples, {d.path}"
            for d in datasets
        ),
        *(f"held out       {each.name}: {len(each.instances)} scored" for each in held_out),
        *(f"               {line}" for line in split.told),
        f"batch          {trainer.global_batch} = {flags.batch_size_forward} x {flags.gradient_accumulation_steps}"
        f" micro-batches x {_count(trainer.accelerator.num_processes, 'process', 'processes')}",
        *(
            f"learning rate  group {i}: {rate:.3g} at step {trainer.first_step + measured.num_steps}"
            for i, rate in enumerate(trainer.network.scheduler.get_last_lr())
        ),
        f"device         {trainer.device}, precision {trainer.accelerator.mixed_precision}",
        *_step_lines(trainer, measured),
        f"memory         {measured.memory}",
        *_loader_lines(trainer, measured),
        *_time_lines(trainer, measured, flags, sum(len(each.instances) for each in held_out)),
        f"checkpoint     {measured.checkpoint_gb:.3f} GB, copied in {measured.copy_s:.2f} s and written in "
        f"{measured.write_s:.2f} s; {num_kept} to keep need {needed_gb:.1f} GB, {free_gb:.0f} GB are free",
    ]
    fits = needed_gb < free_gb
    if not fits:
        lines.append("               NOT ENOUGH ROOM: set --keep_last, raise --save_every or free some space")
    return DryRun(tuple(lines), fits)


def _step_lines(trainer: Trainer, measured: Measured) -> list[str]:
    mean, largest = trainer.loader.sizes
    steps = measured.steps
    seconds = dict(zip(measured.tokens, (steps.least, steps.mean, steps.greatest), strict=True))
    each = ", ".join(f"{each:.2f} s with {number}" for number, each in seconds.items())
    return [
        f"first step     {measured.warm_up_s:.2f} s with what is done but once; loss of {measured.num_steps} steps "
        f"{measured.loss:.4g}",
        f"steps          on images of {_size(mean)}: {each} tokens",
        f"               on the largest, {_size(largest)}: {measured.largest_s:.2f} s with {measured.tokens[2]} tokens",
    ]


def _loader_lines(trainer: Trainer, measured: Measured) -> list[str]:
    loader, steps = measured.loader, measured.steps
    needed = trainer.global_batch / steps.average
    at_low = f" ({trainer.global_batch / steps.least:.3g} at low resolution)" if steps.least != steps.average else ""
    workers, cores = loader.needed_for(needed / trainer.accelerator.num_processes)
    who = f"{_count(loader.num_workers, 'worker')} of each process" if loader.num_workers else "the training itself"
    lines = [
        f"loader         {loader.images_per_second:.3g} images/s by {who}, while nothing trains; the steps take "
        f"{needed:.3g}{at_low}",
        f"               {_count(workers, 'worker')} with {_count(cores, 'core')} for each process would feed them",
    ]
    broken = sum(trainer.loader.failure_counts.values())
    if broken:
        lines.append(f"               {_count(broken, 'draw')} could not be used: see `moge validate`")
    return lines


def _time_lines(trainer: Trainer, measured: Measured, flags: TrainFlags, num_scored: int) -> list[str]:
    steps = range(trainer.first_step, flags.num_iterations)
    # Writing goes on beside the steps; the next checkpoint waits for what is left of it then.
    writing_left_s = max(measured.write_s - flags.save_every * measured.steps.average, 0.0)
    interruptions = [
        Interruption("checkpoints", flags.save_every, measured.copy_s + writing_left_s, at_step_0=True),
        Interruption(
            "evaluations", flags.eval_every if num_scored else 0, num_scored * measured.score_s, at_step_0=False
        ),
    ]
    parts = estimate(
        steps,
        trainer.config.low_resolution_training_steps,
        measured.steps,
        measured.loader,
        trainer.global_batch,
        interruptions,
    )
    told = [f"{part.count:,} {part.name} in {_duration(part.seconds)}" for part in parts]
    return [
        f"time           {', '.join(told) or 'nothing is left to do'}",
        f"               about {_duration(sum(part.seconds for part in parts))} in all, without pictures",
    ]


def _checkpoints_kept(flags: TrainFlags) -> int:
    """Checkpoints on the disk at the end, at most."""
    saved = -(-flags.num_iterations // flags.save_every) + 1
    if not flags.keep_last:
        return saved
    spaced = flags.num_iterations // flags.keep_every + 1 if flags.keep_every else 0
    # One more for the best, and one that is written before an old one is removed.
    return min(saved, flags.keep_last + spaced + 2)


def _size(size: tuple[int, int]) -> str:
    """Of images, width first."""
    return f"{size[1]}x{size[0]}"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def _existing(path: Path) -> Path:
    """The folder that a workspace will be made in, or the nearest above it."""
    resolved = path.resolve()
    return next(folder for folder in (resolved.parent, *resolved.parents) if folder.is_dir())
