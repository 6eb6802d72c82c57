"""The training loop: `train()` reads as the algorithm."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from moge_core.devices import describe_device
from moge_core.errors import ConfigError, MoGeError, NonFiniteError, TrainingError
from moge_core.loading import TrainLoader
from moge_core.training.agreement import found_by_main
from moge_core.training.best import best_record, claim, is_better, is_scored_alike, score_anew
from moge_core.training.checkpoint_writer import CheckpointWriter
from moge_core.training.checkpoints import TrainingState, parent_of
from moge_core.training.config import TrainConfig
from moge_core.training.devices import build_accelerator, leave_process_group, on_device
from moge_core.training.flags import TrainFlags
from moge_core.training.memory import Work
from moge_core.training.metrics import MetricSums
from moge_core.training.mlflow_tracking import MLflowTracker
from moge_core.training.network import build_network
from moge_core.training.non_finite import SkippedSteps
from moge_core.training.objective import check_losses, compute_objective, labels_with_normals
from moge_core.training.pictures import PredictionPictures
from moge_core.training.preflight import DatasetIdentity
from moge_core.training.provenance import Provenance
from moge_core.training.reporting import Report
from moge_core.training.restoring import load_on_all
from moge_core.training.scoring import (
    HeldOutScorer,
    HeldOutScores,
    scoring_precision,
    scoring_tokens,
    training_precision,
)
from moge_core.training.sharding import whole
from moge_core.training.timing import clock_for
from moge_core.training.tracking import MetricsFile, Observer
from moge_core.training.validation import HeldOut, Split, rule_of, split_datasets
from moge_core.training.watchdog import Watchdog
from moge_core.training.workspace import RunStatus, Workspace, write_json

logger = logging.getLogger(__name__)

MAX_GRADIENT_NORM = 1.0
# Cycles of garbage are rare in a training; looking for them in the middle of a step makes one rank wait for another.
_STEPS_BETWEEN_COLLECTIONS = 1000


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
        self.accelerator = build_accelerator(flags)
        self.device: torch.device = self.accelerator.device
        self.workspace = Workspace(flags.workspace)
        self.is_main: bool = self.accelerator.is_main_process
        self.rank: int = self.accelerator.process_index
        self.watchdog = Watchdog(
            self.workspace.path,
            0 if flags.dry_run else flags.hang_timeout_s,
            rank=self.rank,
            world_size=self.accelerator.num_processes,
            num_iterations=flags.num_iterations,
            compiles=flags.compile,
        )
        self.global_batch = (
            flags.batch_size_forward * flags.gradient_accumulation_steps * self.accelerator.num_processes
        )
        self.clock = clock_for(self.device, on_enter=self.watchdog.enter)
        self.stop_requested = False

        restored = self._load_checkpoint()
        self.split = self._hold_out(rule_of(restored.manifest if restored is not None else {}))
        self.network = build_network(config, flags, self.accelerator, restored)
        self.metrics = MetricSums(config.loss, config.data, self.device)
        self.skips = SkippedSteps(self.workspace.path / "bad_batches", flags.max_skipped, self.rank)
        self.first_step = 0
        self.continues = restored is not None and bool(restored.manifest)
        self.failures_before, self.failure_window = 0, (0, 0)
        self.best: dict[str, Any] | None = None
        self.parent: dict[str, Any] | None = None
        self.provenance = Provenance(self.workspace, config)
        if restored is not None:
            self._restore(restored)
        self.saved_step = self.first_step - 1
        # Before anything is moved out of the way, so that data that cannot be loaded leaves all as it was.
        self._open_data()
        self._set_aside_what_is_abandoned()
        self.writer = CheckpointWriter(self.workspace, flags.keep_last, flags.keep_every)
        self.report = Report(
            self.workspace,
            self.accelerator,
            flags=flags,
            global_batch=self.global_batch,
            first_step=self.first_step,
            observers=self._open_observers(observers) if self.is_main else [],
        )
        self.pictures = PredictionPictures(self.workspace.path / "vis") if flags.vis_every else None

    def train(self) -> RunStatus:
        """Train until `num_iterations`, a SIGTERM or Ctrl-C; the last finished step is saved in each case.

        Returns:
            How the run ended: finished or interrupted.

        Raises:
            NonFiniteError: losses or gradients were not finite too many times in a row.
            MoGeError: a checkpoint cannot be written, too many instances are broken, or another process died.
        """
        with self._signals():  # to the very end: the launcher ends all ranks when one has died
            self._begin()
            try:
                return self._train_on()
            except BaseException as error:
                try:
                    with self.watchdog.stage("end"):
                        self._finish_saving()
                except Exception as second:  # the first error is the one to tell
                    logger.warning("%s", second)
                cause = self.report.cause_of(error, sharded=self.network.sharded)
                reason = f"{type(cause).__name__}: {cause}"
                resumable = not isinstance(cause, ConfigError | NonFiniteError)
                self.report.end("failed", reason, self.saved_step, self.loader, resumable=resumable)
                if cause is not error:
                    raise cause from error
                raise
            finally:
                with self.watchdog.stage("end"):
                    self.writer.close()
                self.watchdog.close()

    def _train_on(self) -> RunStatus:
        last = self.flags.num_iterations - 1
        self._score_best_anew()
        with _collecting_garbage_on_schedule(), self.report.progress() as progress, self.loader:
            batches = self.batches()
            self.watchdog.finished(self.first_step - 1)
            for step in range(self.first_step, self.flags.num_iterations):
                stop = self.train_step(step, batches)
                self.watchdog.finished(step)

                with self.watchdog.stage("evaluate"):
                    scores = self._evaluate(step) if self._evaluates_at(step, last) else None
                # Not where it stops: what has been summed up is saved, and logged when an uninterrupted run would.
                if self._is_due(step, self.flags.log_every) or step == last or scores:
                    self._log(step, scores.values if scores else {})
                is_best = scores is not None and self._is_best(step, scores)
                if step % self.flags.save_every == 0 or step == last or stop or is_best:
                    self.save(step, is_best=is_best)
                if self.pictures and (self._is_due(step, self.flags.vis_every) or step == last):
                    with self.watchdog.stage("pictures"):
                        self._draw(step)
                self._tell_of_checkpoints()
                if step % _STEPS_BETWEEN_COLLECTIONS == _STEPS_BETWEEN_COLLECTIONS - 1:
                    gc.collect()
                progress.update()
                if stop and step < last:
                    return self._end("interrupted", "asked to stop", step, resumable=True)
            reason = f"reached {self.flags.num_iterations} iterations"
            if self.first_step > last:
                reason = f"nothing to do: {self.first_step} steps are done, and num_iterations is {last + 1}"
            self._claim()
            return self._end("finished", reason, max(last, self.first_step - 1), resumable=False)

    def _end(self, state: Literal["finished", "interrupted"], reason: str, step: int, *, resumable: bool) -> RunStatus:
        """Leave no rank behind: a launcher ends the others soon after the first is gone."""
        with self.watchdog.stage("end"):
            self._finish_saving()
            status = self.report.end(state, reason, step, self.loader, resumable=resumable)
            self.accelerator.wait_for_everyone()
            leave_process_group()
        return status

    # --- one step ---

    def batches(self, size: tuple[int, int] | None = None) -> Iterator[dict[str, Any]]:
        """The run's batches on its device; with a size (height, width), the first step's in that size again and again.

        Raises:
            DatasetError: instances cannot be used.
        """
        if size is None:
            return on_device(self.loader, self.device)
        return on_device(itertools.repeat(self.loader.load_again(self.first_step, size=size)), self.device)

    def train_step(self, step: int, batches: Iterator[Mapping[str, Any]], num_tokens: int | None = None) -> bool:
        """One optimiser step, with its own number of tokens or another; True when any rank was asked to stop."""
        # Losses of other packages may draw from torch's own generator: it, too, depends on (seed, step, rank) alone.
        torch.manual_seed(int(self._random(step, 2 + self.rank).integers(2**62)))
        num_tokens = num_tokens or self.draw_num_tokens(step)
        num_micro = self.flags.gradient_accumulation_steps
        num_valid = torch.zeros((), dtype=torch.float64, device=self.device)
        losses: list[Tensor] = []
        for micro in range(num_micro):
            with self.clock.stage("wait"):
                batch = next(batches)
            self.report.work = Work("training", num_tokens, batch["image"].shape)
            with self.network.synchronized(self.accelerator, wanted=micro == num_micro - 1):
                with self.clock.stage("forward"), self.accelerator.autocast():
                    output = self.network.model(batch["image"], num_tokens)
                with self.clock.stage("losses"):
                    objective = compute_objective(output, batch, self.config.loss, self.flags.seed)
                with self.clock.stage("backward"):
                    self.accelerator.backward(objective.total)
            with self.clock.stage("other"):
                num_valid += objective.num_valid
                losses.append(objective.total.detach())
                self.metrics.add(objective.metrics, [info["dataset"] for info in batch["info"]])
                del output, objective

        with self.clock.stage("optimiser"):
            totals = torch.stack([num_valid, num_valid.new_full((), float(self.stop_requested))])
            all_valid, asked_to_stop = self.accelerator.reduce(totals, reduction="sum").tolist()
            self._apply_gradients(step, all_valid, losses)
            self.network.step_done()
        return bool(asked_to_stop > 0)

    def _apply_gradients(self, step: int, num_valid: float, losses: Sequence[Tensor]) -> None:
        """Mean over all ranks' and micro-batches' valid instances, clip, step; non-finite gradients skip the step."""
        gradients = [p.grad for p in self.network.raw_model.parameters() if p.grad is not None]
        reason = None
        if num_valid > 0:
            # DDP has averaged over ranks what is to be averaged over instances.
            torch._foreach_mul_(gradients, self.accelerator.num_processes / num_valid)
            norm = self.accelerator.clip_grad_norm_(self.network.model.parameters(), MAX_GRADIENT_NORM)
            if bool(torch.isfinite(whole(norm))):
                self.network.optimizer.step()
                self.skips.went_well()
            elif self.accelerator.scaler is None:
                reason = "the gradient is not finite"
            else:
                # The scaler saw the overflow itself: it skips the step and lowers its scale.
                self.network.optimizer.step()
                reason = "the gradient overflowed in half precision"
        else:
            reason = "no instance of the batch is valid"
        self.network.optimizer.zero_grad(set_to_none=True)
        if reason is not None:
            self.skips.skipped(step, reason, self.loader, losses)

    def draw_num_tokens(self, step: int) -> int:
        """Tokens of a step, equal on all ranks and after a resume, since they depend on (seed, step) alone."""
        low, high = self.network.token_range
        if step <= self.config.low_resolution_training_steps:
            return int(low)
        return int(self._random(step, 1).integers(low, high + 1))

    def _random(self, step: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence((self.flags.seed, step, purpose)))

    def _is_due(self, step: int, every: int) -> bool:
        """Every so many steps and at a run's first one; a resumed run does what the uninterrupted one would."""
        return step % every == 0 or (step == self.first_step and not self.continues)

    # --- metrics ---

    def _log(self, step: int, scores: Mapping[str, float]) -> None:
        means = self.metrics.means(self.accelerator)
        rates = {f"learning_rate.group_{i}": float(rate) for i, rate in enumerate(self.network.scheduler.get_last_lr())}
        counts = {"skipped_steps": float(self.skips.total), "skipped_instances": float(self._num_failures(step))}
        self.report.log(step, {**means, **rates, **counts, **scores}, self.clock, self.loader)
        self.clock = clock_for(self.device, on_enter=self.watchdog.enter)

    def _num_failures(self, step: int) -> int:
        """Draws up to a step that could not be used since the run began, over all ranks and restarts."""
        own = torch.tensor(float(self.loader.failures_before(step + 1).total), device=self.device)
        return self.failures_before + int(self.accelerator.reduce(own, reduction="sum"))

    def _evaluates_at(self, step: int, last: int) -> bool:
        every = self.flags.eval_every
        return bool(every and self.held_out) and ((step > 0 and step % every == 0) or step == last)

    def _evaluate(self, step: int) -> HeldOutScores:
        """Scores of the held-out instances, of the model and its average. Each rank makes its share, and knows all."""
        self.report.work = Work("evaluation", self.scorer.conditions.num_tokens)
        scores = self.scorer.score(self.network.raw_model)
        if self.flags.enable_ema:
            with self.network.averaged():
                scores |= self.scorer.score(self.network.raw_model, prefix="eval_ema")
        if self.is_main:
            named = (f"{name} {value:.4f}" for name, value in scores.values.items())
            logger.info("step %d: %s", step, ", ".join(named))
        return scores

    @property
    def _best_metric(self) -> str:
        return "eval_ema.rel" if self.flags.enable_ema else "eval.rel"

    def _is_best(self, step: int, scores: HeldOutScores) -> bool:
        record = best_record(step, self._best_metric, scores)
        if record is None or not is_better(record, self.best):
            return False
        self.best = record
        return True

    def _score_best_anew(self) -> None:
        """The best so far may have been scored otherwise before a resume: in another precision, on other instances."""
        metric, scorer = self._best_metric, self.scorer
        is_scoring = bool(self.flags.eval_every and self.held_out)
        if self.best is None or not is_scoring or is_scored_alike(self.best, metric, scorer.conditions):
            return
        self.report.work = Work("evaluation", scorer.conditions.num_tokens)
        with self.watchdog.stage("evaluate"):
            self.best = score_anew(self.best, metric, self.workspace, self.network, scorer, is_main=self.is_main)
        if self.is_main:
            self.workspace.write_best(self.best)

    def _claim(self) -> None:
        """Score the best step once on what it was not chosen by; best.json keeps that."""
        if self.best is None or self.split is None or not self.split.is_claimed_apart():
            return
        with self.watchdog.stage("evaluate"):
            self._finish_saving()
            self.accelerator.wait_for_everyone()
            scorer = self._scorer_of(self.split.claimed)
            self.report.work = Work("evaluation", scorer.conditions.num_tokens)
            claimed = claim(self.best, self.workspace, self.network, scorer, is_main=self.is_main)
        if self.is_main and claimed is not None:
            self.workspace.write_best({**self.best, "claimed": claimed})

    # --- checkpoints ---

    def save(self, step: int, *, is_best: bool = False) -> None:
        """Copy the state and leave the writing to the writer."""
        with self.clock.stage("save"):
            metric_sums, num_failures = self.metrics.state(self.accelerator), self._num_failures(step)
            if self.is_main or self.network.sharded:
                counters = {
                    "num_skipped": self.skips.total,
                    "skipped_in_a_row": self.skips.in_a_row,
                    "num_failures": num_failures,
                    "failure_window": self.loader.failures_before(step + 1)[1:],
                    "metric_sums": metric_sums,
                    "best": self.best,
                }
                state = self.network.state(step, self.accelerator, counters)
            if self.is_main:
                self.writer.save(state, self._lineage() | self.provenance.as_dict(), self.best if is_best else None)

    def _finish_saving(self) -> None:
        self.writer.wait()
        self._tell_of_checkpoints()

    def _tell_of_checkpoints(self) -> None:
        for info in self.writer.take_written():
            self.saved_step = info.step
            self.report.observers.on_checkpoint(info.step, info.model_path)

    def _lineage(self) -> dict[str, Any]:
        return {
            "config_digest": self.config.digest(),
            "datasets": [dataset.as_dict() for dataset in self.datasets],
            "parent": self.parent,
            "batch_size_total": self.global_batch,
            "seed": self.flags.seed,
            "held_out": self.split.digest() if self.split else None,
            "held_out_fraction": self.flags.eval_fraction if self.split else None,
            "held_out_rule": self.split.rule if self.split else None,
            "held_out_how": self.split.told if self.split else [],
        }

    # --- building ---

    def _hold_out(self, rule: int) -> Split | None:
        """One process decides, so that no other can read the data otherwise."""
        flags = self.flags
        if not flags.eval_every:
            return None
        data, share, most = self.config.data, flags.eval_fraction, flags.eval_instances
        return found_by_main(lambda: split_datasets(data, share, most, rule), is_main=self.is_main)

    def _load_checkpoint(self) -> TrainingState | None:
        check_losses(self.config.loss)
        flag = self.flags.checkpoint
        restored = load_on_all(self.workspace, flag, self.accelerator) if flag else None
        if flag == "latest" and restored is None and self.is_main:
            logger.info("no checkpoint in %s yet: training starts anew", self.workspace.path)
        self._check_same_data(restored)
        return restored

    def _restore(self, state: TrainingState) -> None:
        """Continue where a checkpoint stopped; a plain model file only lends its weights."""
        if state.manifest:
            self.parent = state.manifest.get("parent")
            self._tell_what_changed(state.manifest)
        elif state.source is not None and self.is_main:  # who writes manifests; it reads the whole file
            self.parent = parent_of(state.source)
        self.network.restore(state, self.accelerator)
        self.first_step = state.step + 1
        self.skips.total = int(state.counters.get("num_skipped", 0))
        self.skips.in_a_row = int(state.counters.get("skipped_in_a_row", 0))
        self.failures_before = int(state.counters.get("num_failures", 0))
        num_draws, num_failed = state.counters.get("failure_window", (0, 0))
        self.failure_window = (int(num_draws), int(num_failed))
        self.best = state.counters.get("best")
        if self.is_main:
            self.metrics.load(state.counters.get("metric_sums") or {})
        if self.first_step >= self.flags.num_iterations and not state.manifest:
            raise TrainingError(
                "--num_iterations",
                f"must be above {self.first_step}, the steps that {state.source} has behind it",
                found=self.flags.num_iterations,
                fix="It is the absolute end of the training, not the number of further steps.",
            )

    def _open_data(self) -> None:
        flags = self.flags
        self.held_out = self.split.held_out if self.split else []
        self.scorer = self._scorer_of(self.held_out)
        self.loader = TrainLoader(
            self.config.data,
            flags.batch_size_forward,
            flags.seed,
            accumulation=flags.gradient_accumulation_steps,
            rank=self.rank,
            world_size=self.accelerator.num_processes,
            num_workers="auto" if flags.num_workers is None else flags.num_workers,
            normals_for=labels_with_normals(self.config.loss),
            instances=self.split.train if self.split else None,
            max_failure_share=flags.max_failure_share,
            failures_path=self.workspace.failures_path(self.rank),
            on_round=self.watchdog.loader_lives,
        )
        self.loader.load_state_dict({**self.loader.state_dict(), "step": self.first_step})
        self.loader.go_on_counting(*self.failure_window)

    def _scorer_of(self, held_out: Sequence[HeldOut]) -> HeldOutScorer:
        return HeldOutScorer(
            held_out,
            scoring_tokens(self.network.raw_model),
            batch_size=self.flags.batch_size_forward,
            precision=scoring_precision(self.accelerator.mixed_precision, sharded=self.network.sharded),
            device=self.device,
            rank=self.rank,
            world_size=self.accelerator.num_processes,
        )

    def _open_observers(self, others: Sequence[Observer]) -> list[Observer]:
        opened: list[Observer] = [MetricsFile(self.workspace, self.first_step), *others]
        if self.flags.enable_mlflow:
            tags = {"mlflow.runName": self.workspace.path.as_posix(), "moge.config": str(self.config.source)}
            tags |= self.provenance.launch.mlflow_tags()
            if self.parent:
                tags["moge.parent_checkpoint"] = f"{self.parent['path']} (sha256 {self.parent['sha256']})"
            weights = {dataset.name: dataset.weight for dataset in self.config.data.datasets}
            inputs = [{**dataset.as_dict(), "weight": weights[dataset.name]} for dataset in self.datasets]
            tracker = MLflowTracker(self.workspace, tags, inputs)
            self.provenance.mlflow_run = lambda: tracker.run
            opened.append(tracker)
        return opened

    def _tell_what_changed(self, manifest: Mapping[str, Any]) -> None:
        """Warn of changes under which a resumed run no longer is the run that was interrupted."""
        now = self._lineage()
        self.provenance.continues(manifest, now)
        for key in ("config_digest", "batch_size_total", "seed", "held_out"):
            value = now[key]
            if self.is_main and manifest.get(key, value) != value:
                logger.warning(
                    "resumed with another %s (%s, was %s): results differ from an uninterrupted run; learning rates "
                    "and schedule are those of the checkpoint",
                    key,
                    value,
                    manifest[key],
                )

    def _set_aside_what_is_abandoned(self) -> None:
        """Checkpoints of a run that this one begins anew, or goes back behind, are kept, but not in its way."""
        if self.is_main:
            self.workspace.remove_fragments()
            folder = self.workspace.set_aside(self.first_step)
            if folder is not None:
                logger.warning("earlier results from step %d on were moved to %s", self.first_step, folder)
            if self.best is not None:
                self.workspace.write_best(self.best)

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
            precision = training_precision(self.accelerator.mixed_precision)
            logger.info("device %s, precision %s", describe_device(self.device), precision)
            for line in self.split.told if self.split else ():
                logger.info("held out of %s", line)
            write_json(self.workspace.config_path, self.config.raw)
            self.provenance.begin(
                {
                    "first_step": self.first_step,
                    "continues": self.continues,
                    **self._lineage(),
                    "flags": {name: str(value) for name, value in asdict(self.flags).items()},
                }
            )
        parameters = {name: str(value) for name, value in asdict(self.flags).items()}
        parameters |= {
            "batch_size_total": str(self.global_batch),
            "config_digest": self.config.digest(),
            "mixed_precision": str(self.accelerator.mixed_precision),
            "scoring_precision": self.scorer.conditions.precision,
            "num_processes": str(self.accelerator.num_processes),
        }
        for dataset in self.datasets:
            parameters[f"dataset.{dataset.name}.digest"] = dataset.digest
            parameters[f"dataset.{dataset.name}.instances"] = str(dataset.num_instances)
        self.report.begin(parameters)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C stop after the step at hand; a second Ctrl-C stops at once."""

        def request_stop(number: int, frame: object) -> None:
            if self.stop_requested and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stop_requested = True

        previous = {number: signal.signal(number, request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    # --- pictures ---

    def _draw(self, step: int) -> None:
        if self.network.sharded:
            return  # one rank alone cannot predict
        if self.is_main and self.pictures is not None:
            low = step <= self.config.low_resolution_training_steps
            try:
                if not self.pictures.has_truth:
                    self.pictures.take_truth(self._vis_batches())
                folder = self.pictures.draw(self.network.raw_model, step, self.network.token_range[0] if low else None)
                self.report.observers.on_pictures(step, folder)
            except (MoGeError, OSError, RuntimeError) as error:  # a training of days must not end over a picture
                logger.warning("no pictures of step %d: %s", step, error)
        self.accelerator.wait_for_everyone()

    def _vis_batches(self) -> list[Mapping[str, Any]]:
        """Whole batches of a stream of its own, so that pictures never shift the training data."""
        size = min(self.flags.batch_size_forward, self.flags.num_vis_images)
        with TrainLoader(self.config.data, size, self.flags.seed + 1, num_workers=0) as loader:
            stream = iter(loader)
            return [next(stream) for _ in range(self.flags.num_vis_images // size)]


@contextlib.contextmanager
def _collecting_garbage_on_schedule() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
