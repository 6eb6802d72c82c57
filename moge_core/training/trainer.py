"""The training loop: `train()` reads as the algorithm."""

from __future__ import annotations

import logging
import re
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from tqdm import tqdm

from moge_core.errors import ConfigError, MoGeError, NonFiniteError, TrainingError
from moge_core.loading import TrainLoader
from moge_core.models import MoGeModel, build_model, check_version, init_backbone, load_weights
from moge_core.training.checkpoints import TrainingState, load_training_state, parent_of, save_checkpoint
from moge_core.training.config import TrainConfig
from moge_core.training.flags import TrainFlags
from moge_core.training.objective import check_losses, compute_objective, labels_with_normals, metric_names
from moge_core.training.optimization import (
    ExponentialMovingAverage,
    build_lr_scheduler,
    build_optimizer,
    step_lr_scheduler,
)
from moge_core.training.pictures import PredictionPictures
from moge_core.training.preflight import DatasetIdentity
from moge_core.training.tracking import MetricsFile, Observer, Observers, open_mlflow
from moge_core.training.workspace import RunStatus, Workspace, write_json

logger = logging.getLogger(__name__)

MAX_GRADIENT_NORM = 1.0
MAX_SKIPPED_IN_A_ROW = 20
"""Non-finite steps in a row after which a run is beyond recovery."""


class Trainer:
    """One training run in one process of an `accelerate` launch.

    Args:
        config: what is trained, on what, with which losses.
        flags: how this run goes.
        datasets: which data it reads, from `check_training_inputs`.
        observers: hear of progress, on rank 0.

    Raises:
        MoGeError: configuration, datasets, checkpoint or weights do not fit together; nothing has been trained then.
    """

    def __init__(
        self,
        config: TrainConfig,
        flags: TrainFlags,
        datasets: Sequence[DatasetIdentity],
        observers: Sequence[Observer] = (),
    ) -> None:
        self.config, self.flags, self.datasets = config, flags, datasets
        self.accelerator = _build_accelerator(flags)
        self.workspace = Workspace(flags.workspace)
        self.is_main = self.accelerator.is_main_process
        self.global_batch = (
            flags.batch_size_forward * flags.gradient_accumulation_steps * self.accelerator.num_processes
        )
        self.stop_requested = False

        # --- model, optimiser, schedule ---
        check_losses(config.loss)
        restored = load_training_state(self.workspace, flags.checkpoint) if flags.checkpoint else None
        if flags.checkpoint == "latest" and restored is None and self.is_main:
            logger.info("no checkpoint in %s yet: training starts anew", self.workspace.path)
        self._check_same_data(restored)
        torch.manual_seed(flags.seed)
        model = build_model(config.model_version, **config.model)
        if restored is None:
            with self.accelerator.local_main_process_first():  # one download per machine
                init_backbone(model, flags.init)
        else:
            check_version(restored.model_config, config.model_version, where=restored.source)
            report = load_weights(model, restored.model, where=restored.source, strict=flags.checkpoint_strict)
            if not report.complete:
                # Another model: it begins at step 0, with what the file lent it.
                restored = TrainingState(-1, restored.model_config, {}, source=restored.source)
        if flags.enable_gradient_checkpointing:
            model.enable_gradient_checkpointing()
        self.token_range: tuple[int, int] = model.num_tokens_range
        self.model_config = model.model_config
        optimizer = build_optimizer(model, config.optimizer)
        self.scheduler = build_lr_scheduler(optimizer, config.lr_scheduler)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.raw_model: MoGeModel = self.accelerator.unwrap_model(self.model)
        self.ema = ExponentialMovingAverage(self.raw_model) if flags.enable_ema and self.is_main else None

        # --- counters, and what a checkpoint brings back ---
        self.first_step = 0
        self.num_skipped = self.skipped_in_a_row = 0
        self.metric_names = metric_names(config.loss)
        self.metric_sums = torch.zeros(len(self.metric_names), 2, dtype=torch.float64, device=self.device)
        self.parent: dict[str, Any] | None = None
        if restored is not None:
            self._restore(restored)

        self._set_aside_what_is_abandoned()

        # --- data and observers ---
        self.loader = TrainLoader(
            config.data,
            flags.batch_size_forward,
            flags.seed,
            accumulation=flags.gradient_accumulation_steps,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            num_workers="auto" if flags.num_workers is None else flags.num_workers,
            normals_for=labels_with_normals(config.loss),
            failures_path=self.workspace.failures_path(self.accelerator.process_index),
        )
        self.loader.load_state_dict({**self.loader.state_dict(), "step": self.first_step})
        self.observers = Observers(self._open_observers(observers) if self.is_main else [])
        self.pictures = PredictionPictures(self.workspace.path / "vis") if flags.vis_every else None

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        device: torch.device = self.accelerator.device
        return device

    def train(self) -> RunStatus:
        """Train until `num_iterations`, a SIGTERM or Ctrl-C; the last finished step is saved in each case.

        Returns:
            How the run ended: finished or interrupted.

        Raises:
            NonFiniteError: losses or gradients were not finite too many times in a row.
            MoGeError: a checkpoint cannot be written, or too many instances are broken.
        """
        previous = {number: signal.signal(number, self._request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
        step, last = self.first_step - 1, self.flags.num_iterations - 1
        saved = step
        self._begin()
        progress = tqdm(
            total=self.flags.num_iterations,
            initial=self.first_step,
            # A bar for a terminal; a log file gets a line at each log step instead.
            disable=None if self.is_main else True,
            unit="step",
            dynamic_ncols=True,
        )
        try:
            with self.loader:
                batches = iter(self.loader)
                for step in range(self.first_step, self.flags.num_iterations):
                    started = time.perf_counter()
                    stop = self._train_step(step, batches)
                    seconds = time.perf_counter() - started

                    if step == self.first_step or step % self.flags.log_every == 0 or step == last or stop:
                        self._log(step, seconds, progress)
                    if step % self.flags.save_every == 0 or step == last or stop:
                        self._save(step)
                        saved = step
                    if self.pictures and (step == self.first_step or step % self.flags.vis_every == 0 or step == last):
                        self._draw(step)
                    progress.update()
                    if stop and step < last:
                        return self._end("interrupted", "asked to stop", step, resumable=True)
            return self._end("finished", f"reached {self.flags.num_iterations} iterations", last, resumable=False)
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            self._end("failed", reason, saved, resumable=not isinstance(error, ConfigError | NonFiniteError))
            raise
        finally:
            progress.close()
            for number, handler in previous.items():
                signal.signal(number, handler)

    # --- one step ---

    def _train_step(self, step: int, batches: Any) -> bool:
        """One optimiser step; True when any rank was asked to stop."""
        num_tokens = self._draw_num_tokens(step)
        num_micro = self.flags.gradient_accumulation_steps
        valid = torch.zeros((), dtype=torch.float64, device=self.device)
        for micro in range(num_micro):
            batch = _to_device(next(batches), self.device)
            with self._synchronize_only(micro == num_micro - 1):
                with self.accelerator.autocast():
                    output = self.model(batch["image"], num_tokens)
                objective = compute_objective(output, batch, self.config.loss, self.flags.seed)
                self.accelerator.backward(objective.total)
            valid += objective.num_valid
            self._add_metrics(objective.metrics)

        totals = torch.stack([valid, valid.new_tensor(float(self.stop_requested))])
        totals = self.accelerator.reduce(totals, reduction="sum")
        self._apply_gradients(float(totals[0]))
        step_lr_scheduler(self.scheduler)
        if self.ema is not None:
            self.ema.update(self.raw_model)
        return bool(totals[1] > 0)

    def _apply_gradients(self, num_valid: float) -> None:
        """Mean over all ranks' and micro-batches' valid instances, clip, step; non-finite gradients skip the step."""
        gradients = [p.grad for p in self.raw_model.parameters() if p.grad is not None]
        if num_valid > 0:
            # DDP has averaged over ranks what is to be averaged over instances.
            torch._foreach_mul_(gradients, self.accelerator.num_processes / num_valid)
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
            if bool(torch.isfinite(norm)):
                self.optimizer.step()
                self.skipped_in_a_row = 0
            elif self.accelerator.scaler is None:
                self._skip("the gradient is not finite")
            else:
                # The scaler saw the overflow itself: it skips the step and lowers its scale.
                self.optimizer.step()
                self._skip("the gradient overflowed in half precision")
        else:
            self._skip("no instance of the batch is valid")
        self.optimizer.zero_grad(set_to_none=True)

    def _skip(self, reason: str) -> None:
        self.num_skipped += 1
        self.skipped_in_a_row += 1
        logger.warning("step skipped (%d in a row): %s", self.skipped_in_a_row, reason)
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise NonFiniteError(
                "training",
                f"must not skip {MAX_SKIPPED_IN_A_ROW} steps in a row",
                found=reason,
                fix="Lower the learning rate, use bf16 instead of fp16, or look at the data with `moge validate`.",
            )

    def _synchronize_only(self, last: bool) -> AbstractContextManager[Any]:
        """Ranks exchange gradients with the last micro-batch of a step only."""
        context: AbstractContextManager[Any] = nullcontext() if last else self.accelerator.no_sync(self.model)
        return context

    def _draw_num_tokens(self, step: int) -> int:
        """Equal on all ranks and after a resume, since it depends on (seed, step) alone."""
        low, high = self.token_range
        if step <= self.config.low_resolution_training_steps:
            return int(low)
        return int(np.random.default_rng(np.random.SeedSequence((self.flags.seed, step, 1))).integers(low, high + 1))

    # --- metrics ---

    def _add_metrics(self, metrics: Mapping[str, Tensor]) -> None:
        for row, name in enumerate(self.metric_names):
            if name in metrics:
                values = metrics[name].double()
                known = torch.isfinite(values)
                self.metric_sums[row, 0] += torch.where(known, values, 0.0).sum()
                self.metric_sums[row, 1] += known.sum()

    def _log(self, step: int, step_seconds: float, progress: Any) -> None:
        sums = self.accelerator.reduce(self.metric_sums.clone(), reduction="sum").cpu()
        self.metric_sums.zero_()
        means = {n: float(s / c) for n, (s, c) in zip(self.metric_names, sums, strict=True) if c > 0}
        rates = {f"learning_rate.group_{i}": float(rate) for i, rate in enumerate(self.scheduler.get_last_lr())}
        failed = torch.tensor(float(sum(self.loader.failure_counts.values())), device=self.device)
        failed = self.accelerator.reduce(failed, reduction="sum")
        speed = {"images_per_second": self.global_batch / step_seconds, "skipped_steps": float(self.num_skipped)}
        speed["skipped_instances"] = float(failed)
        speed |= self.loader.statistics().metrics()
        self.loader.statistics().reset()
        if self.is_main:
            self.observers.on_log(step, {**means, **rates, **speed})
            loss = f"{means.get('loss', float('nan')):.4g}"
            progress.set_postfix(loss=loss)
            if progress.disable:
                logger.info("step %d of %d: loss %s", step, self.flags.num_iterations, loss)
            self._report_running(step)

    # --- checkpoints ---

    def _save(self, step: int) -> None:
        metric_sums = self.accelerator.reduce(self.metric_sums.clone(), reduction="sum")
        if self.is_main:
            scaler = self.accelerator.scaler
            state = TrainingState(
                step=step,
                model_config=self.model_config,
                model=self.raw_model.state_dict(),
                optimizer=self.optimizer.state_dict(),
                lr_scheduler=self.scheduler.state_dict(),
                scaler=scaler.state_dict() if scaler is not None else None,
                ema=self.ema.weights if self.ema else None,
                ema_updates=self.ema.num_updates if self.ema else 0,
                counters={"num_skipped": self.num_skipped, "metric_sums": metric_sums.tolist()},
            )
            info = save_checkpoint(self.workspace, state, self._lineage())
            self.observers.on_checkpoint(step, info.model_path)
        self.accelerator.wait_for_everyone()

    def _lineage(self) -> dict[str, Any]:
        return {
            "config_digest": self.config.digest(),
            "datasets": [dataset.as_dict() for dataset in self.datasets],
            "parent": self.parent,
            "batch_size_total": self.global_batch,
            "seed": self.flags.seed,
        }

    def _restore(self, state: TrainingState) -> None:
        """Continue where a checkpoint stopped; a plain model file only lends its weights."""
        if state.manifest:
            self.parent = state.manifest.get("parent")
            self._tell_what_changed(state.manifest)
        elif state.source is not None:
            self.parent = parent_of(state.source)
        if state.optimizer is not None:
            self.optimizer.load_state_dict(state.optimizer)
        if state.lr_scheduler is not None:
            self.scheduler.load_state_dict(dict(state.lr_scheduler))
        if state.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(dict(state.scaler))
        if self.ema is not None and state.ema is not None:
            self.ema.load(state.ema, state.ema_updates)
        self.first_step = state.step + 1
        self.num_skipped = int(state.counters.get("num_skipped", 0))
        sums = state.counters.get("metric_sums")
        if sums is not None and len(sums) == len(self.metric_names) and self.is_main:
            self.metric_sums += self.metric_sums.new_tensor(sums)
        if self.first_step >= self.flags.num_iterations and not state.manifest:
            raise TrainingError(
                "--num_iterations",
                f"must be above {self.first_step}, the steps that {state.source} has behind it",
                found=self.flags.num_iterations,
                fix="It is the absolute end of the training, not the number of further steps.",
            )

    def _tell_what_changed(self, manifest: Mapping[str, Any]) -> None:
        """Warn of changes under which a resumed run no longer is the run that was interrupted."""
        now = {"config_digest": self.config.digest(), "batch_size_total": self.global_batch, "seed": self.flags.seed}
        for key, value in now.items():
            if self.is_main and manifest.get(key, value) != value:
                logger.warning(
                    "resumed with another %s (%s, was %s): data and results differ from an uninterrupted run",
                    key,
                    value,
                    manifest[key],
                )

    def _set_aside_what_is_abandoned(self) -> None:
        """Checkpoints of a run that this one begins anew, or goes back behind, are kept, but not in its way."""
        if self.is_main:
            folder = self.workspace.set_aside(self.first_step)
            if folder is not None:
                logger.warning("earlier results from step %d on were moved to %s", self.first_step, folder)

    def _check_same_data(self, restored: TrainingState | None) -> None:
        """A run goes on with the very data it began with, unless told otherwise."""
        if restored is None:
            return
        before = {dataset["name"]: dataset["digest"] for dataset in restored.manifest.get("datasets", [])}
        changed = [d.name for d in self.datasets if before.get(d.name, d.digest) != d.digest]
        if changed and not self.flags.accept_index_change:
            raise TrainingError(
                self.workspace.path,
                "must go on with the data that its checkpoint was trained on",
                found=f"another index of {', '.join(changed)}",
                fix="Restore the index, start a new workspace, or pass --accept_index_change True.",
            )

    # --- beginning and end ---

    def _begin(self) -> None:
        if self.is_main:
            write_json(self.workspace.config_path, self.config.raw)
            parameters = {name: str(value) for name, value in asdict(self.flags).items()}
            parameters |= {"batch_size_total": str(self.global_batch), "config_digest": self.config.digest()}
            for dataset in self.datasets:
                name = re.sub(r"[^\w .:/-]", "_", dataset.name)  # what MLflow accepts in a parameter's name
                parameters[f"dataset.{name}.digest"] = dataset.digest
                parameters[f"dataset.{name}.instances"] = str(dataset.num_instances)
            self.observers.on_start(self.workspace.path, parameters)
            self._report_running(self.first_step - 1)

    def _end(self, state: Any, reason: str, step: int, *, resumable: bool) -> RunStatus:
        status = RunStatus(state, reason, step, self.flags.num_iterations, resumable)
        for failure in self.loader.failures:
            logger.warning("skipped %s of %s: %s, %s", failure.instance, failure.dataset, failure.rule, failure.detail)
        if self.is_main:
            self.workspace.write_status(status)
            self.observers.on_end(status)
        return status

    def _report_running(self, step: int) -> None:
        self.workspace.write_status(RunStatus("running", "training", step, self.flags.num_iterations, resumable=True))

    def _open_observers(self, others: Sequence[Observer]) -> list[Observer]:
        opened: list[Observer] = [MetricsFile(self.workspace.metrics_path, self.first_step), *others]
        if self.flags.enable_mlflow:
            tags = {"mlflow.runName": self.workspace.path.as_posix(), "moge.config": str(self.config.source)}
            if self.parent:
                tags["moge.parent_checkpoint"] = f"{self.parent['path']} (sha256 {self.parent['sha256']})"
            tracker = open_mlflow(tags)
            opened += [tracker] if tracker is not None else []
        return opened

    def _draw(self, step: int) -> None:
        if self.is_main and self.pictures is not None:
            low = step <= self.config.low_resolution_training_steps
            try:
                if not self.pictures.has_truth:
                    self.pictures.take_truth(self._vis_batches())
                self.pictures.draw(self.raw_model, step, self.token_range[0] if low else None)
            except (MoGeError, OSError, RuntimeError) as error:  # a training of days must not end over a picture
                logger.warning("no pictures of step %d: %s", step, error)
        self.accelerator.wait_for_everyone()

    def _vis_batches(self) -> list[Mapping[str, Any]]:
        """Whole batches of a stream of its own, so that pictures never shift the training data."""
        size = min(self.flags.batch_size_forward, self.flags.num_vis_images)
        with TrainLoader(self.config.data, size, self.flags.seed + 1, num_workers=0) as loader:
            stream = iter(loader)
            return [next(stream) for _ in range(self.flags.num_vis_images // size)]

    def _request_stop(self, number: int, frame: object) -> None:
        """Stop after this step; a second Ctrl-C stops at once."""
        if self.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop_requested = True


def _build_accelerator(flags: TrainFlags) -> Accelerator:
    cpu = not torch.cuda.is_available()
    if cpu and flags.mixed_precision == "fp16":
        raise ConfigError("--mixed_precision fp16", "needs a GPU", fix="Use `no` or `bf16` on a CPU.")
    handler = DistributedDataParallelKwargs(find_unused_parameters=False, gradient_as_bucket_view=True)
    return Accelerator(mixed_precision=flags.mixed_precision, cpu=cpu, kwargs_handlers=[handler])


def _to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
