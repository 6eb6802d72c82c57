"""What is trained: the model with its optimiser, schedule and average, as one thing that can be saved and restored."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch.nn.parallel import DistributedDataParallel

from moge_core.errors import CheckpointError
from moge_core.models import MoGeModel, build_model, check_version, init_backbone, load_weights
from moge_core.training.agreement import found_by_main
from moge_core.training.checkpoints import TrainingState
from moge_core.training.config import TrainConfig
from moge_core.training.flags import TrainFlags
from moge_core.training.optimization import (
    ExponentialMovingAverage,
    build_lr_scheduler,
    build_optimizer,
    freeze,
    own_state,
    step_lr_scheduler,
)
from moge_core.training.sharding import (
    deal_model,
    deal_optimizer,
    deal_weights,
    gather_model,
    gather_optimizer,
    gather_weights,
    own_weights_kept,
    put_local,
    shard,
    sharding_is_wanted,
)

logger = logging.getLogger(__name__)


@dataclass
class Network:
    """A model and all that moves its weights.

    Attributes:
        model: what is called: wrapped for several processes, compiled.
        raw_model: the model itself.
        optimizer: of the trainable parameters.
        scheduler: stepped once an optimiser step.
        ema: the moving average, on rank 0 only, or each rank's part of it.
        model_config: rebuilds the model.
        token_range: resolutions that the model is trained at.
        sharded: whether weights are spread over the ranks; all ranks then take part in what rank 0 else does alone.
    """

    model: Any
    raw_model: MoGeModel
    optimizer: Any
    scheduler: torch.optim.lr_scheduler.LRScheduler
    ema: ExponentialMovingAverage | None
    model_config: Mapping[str, Any]
    token_range: tuple[int, int]
    sharded: bool = False

    @contextlib.contextmanager
    def synchronized(self, accelerator: Accelerator, *, wanted: bool) -> Iterator[None]:
        """Ranks exchange gradients in a backward pass within the block, or add up their own."""
        if self.sharded:
            self.model.set_requires_gradient_sync(wanted)
        with contextlib.nullcontext() if wanted or self.sharded else accelerator.no_sync(self.model):
            yield

    def step_done(self) -> None:
        """Schedule and average after an optimiser step, made or skipped: both stay in phase."""
        step_lr_scheduler(self.scheduler)
        if self.ema is not None:
            self.ema.update(self.raw_model)

    def state(self, step: int, accelerator: Accelerator, counters: dict[str, Any]) -> TrainingState:
        """All of it, by reference where it is not gathered from the ranks."""
        scaler = accelerator.scaler
        ema: Mapping[str, Any] | None = self.ema.weights if self.ema else None
        if self.sharded:
            model, optimizer = gather_model(self.raw_model), gather_optimizer(self.raw_model, self._own_optimizer)
            ema = gather_weights(self.raw_model, self.ema.weights) if self.ema else None
        else:
            model, optimizer = self.raw_model.state_dict(), self.optimizer.state_dict()
        return TrainingState(
            step=step,
            model_config=self.model_config,
            model=model,
            optimizer=optimizer,
            lr_scheduler=self.scheduler.state_dict(),
            scaler=scaler.state_dict() if scaler is not None else None,
            ema=ema,
            ema_updates=self.ema.num_updates if self.ema else 0,
            counters=counters,
        )

    def restore(self, state: TrainingState, accelerator: Accelerator) -> None:
        """Go on where a checkpoint stopped; the weights are loaded already.

        Raises:
            CheckpointError: the optimiser's groups are others.
        """
        if state.optimizer is not None and self.sharded:
            found_by_main(lambda: self._check_groups(state), is_main=accelerator.is_main_process)
            deal_optimizer(self.raw_model, self._own_optimizer, state.optimizer)
        elif state.optimizer is not None:
            self._check_groups(state)
            self.optimizer.load_state_dict(state.optimizer)
            own_state(self._own_optimizer)
        if state.lr_scheduler is not None:
            self.scheduler.load_state_dict(dict(state.lr_scheduler))
        if state.scaler is not None and accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(dict(state.scaler))
        if self.ema is not None and state.ema is not None:
            average = deal_weights(self.raw_model, state.ema) if self.sharded else state.ema
            self.ema.load(average, state.ema_updates)

    def _check_groups(self, state: TrainingState) -> None:
        saved = (state.optimizer or {}).get("param_groups", [])
        sizes = [[len(group["params"]) for group in groups] for groups in (self._own_optimizer.param_groups, saved)]
        if sizes[0] != sizes[1]:
            raise CheckpointError(
                state.source,
                f"must hold the state of an optimiser with the same parameter groups, of {sizes[0]} parameters",
                found=sizes[1],
                fix="Resume with the `optimizer` and `freeze` it was trained with, or start from the plain model file.",
            )

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the average's weights on every rank within the block, and its own after it, to the bit."""
        average = {} if self.ema is None else self.ema.weights
        if not self.sharded:
            with self.lent(average):
                yield
            return
        with own_weights_kept(self.raw_model):
            put_local(self.raw_model, average)
            yield

    @contextlib.contextmanager
    def lent(self, weights: Mapping[str, Any]) -> Iterator[None]:
        """The model has the whole weights that rank 0 gives on every rank within the block, and its own after it."""
        with own_weights_kept(self.raw_model):
            if self.sharded:
                put_local(self.raw_model, deal_weights(self.raw_model, weights))
            else:
                if weights:
                    put_local(self.raw_model, weights)
                broadcast(dict(self.raw_model.state_dict()))
            yield

    @property
    def _own_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser without accelerate around it."""
        inner: torch.optim.Optimizer = self.optimizer.optimizer
        return inner


def build_network(
    config: TrainConfig, flags: TrainFlags, accelerator: Accelerator, restored: TrainingState | None
) -> Network:
    """A new network, or that of a checkpoint.

    `restored` becomes a mere lender of weights, to begin at step 0 with, where not all of them fit.

    Raises:
        CheckpointError: the checkpoint is of another version or model.
        ConfigError: optimiser, schedule or `freeze` do not suit the model.
    """
    torch.manual_seed(flags.seed)
    sharded = sharding_is_wanted()
    model = build_model(config.model_version, **config.model)
    if restored is None:
        with accelerator.local_main_process_first():  # one download per machine
            init_backbone(model, flags.init)
    else:
        is_complete = _take_weights(model, restored, config, flags, accelerator if sharded else None)
        if not is_complete:
            restored.step, restored.optimizer, restored.lr_scheduler, restored.scaler = -1, None, None, None
            restored.ema, restored.ema_updates, restored.manifest, restored.counters = None, 0, {}, {}
    if flags.enable_gradient_checkpointing:
        model.enable_gradient_checkpointing()
    frozen = freeze(model, config.freeze)
    if frozen:
        logger.info("%d parameters are frozen", len(frozen))
    if flags.compile:
        model.compile_blocks()
    if sharded:
        weights = model.state_dict() if restored is not None and accelerator.is_main_process else {}
        shard(model, accelerator)
        if restored is not None:
            deal_model(model, weights)
    optimizer = build_optimizer(model, config.optimizer, fused=True)
    scheduler = build_lr_scheduler(optimizer, config.lr_scheduler)
    if sharded:
        wrapped, optimizer = model, accelerator.prepare_optimizer(optimizer, device_placement=False)
    else:
        wrapped, optimizer = accelerator.prepare(model, optimizer)
    if isinstance(wrapped, DistributedDataParallel):
        # The buffers are mean and deviation of images, constants that no step needs to send. torch warns of the
        # argument that says so.
        wrapped.broadcast_buffers = False
    # Without accelerate's autocast around the model's own `forward`: who calls it says in which precision it runs.
    raw_model: MoGeModel = accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    has_average = flags.enable_ema and (sharded or accelerator.is_main_process)
    return Network(
        model=wrapped,
        raw_model=raw_model,
        optimizer=optimizer,
        scheduler=scheduler,
        ema=ExponentialMovingAverage(raw_model) if has_average else None,
        model_config=model.model_config,
        token_range=model.num_tokens_range,
        sharded=sharded,
    )


def _take_weights(
    model: MoGeModel, restored: TrainingState, config: TrainConfig, flags: TrainFlags, accelerator: Accelerator | None
) -> bool:
    """Give a model a checkpoint's weights; where an accelerator is given, rank 0 has them alone. Whether all fitted."""

    def take() -> bool:
        check_version(restored.model_config, config.model_version, where=restored.source)
        return load_weights(model, restored.model, where=restored.source, strict=flags.checkpoint_strict).complete

    return take() if accelerator is None else found_by_main(take, is_main=accelerator.is_main_process)
