"""Optimiser and learning-rate schedule as a configuration names them, and the moving average of the weights."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from moge_core.configuration import parse_as
from moge_core.errors import ConfigError
from moge_core.training.config import OptimizerConfig, SchedulerConfig
from moge_core.training.expressions import compile_expression
from moge_core.training.sharding import local
from moge_core.training.torch_names import LAMBDA_SCHEDULERS, NESTED_SCHEDULERS

FUSED = frozenset({"Adam", "AdamW", "SGD"})
"""Optimisers that torch updates in one pass over all weights, on CPUs as on GPUs."""


def build_optimizer(
    model: nn.Module, config: OptimizerConfig | Mapping[str, Any], *, fused: bool = False
) -> torch.optim.Optimizer:
    """An optimiser whose groups hold the parameters that match an `include` and no `exclude` pattern (fnmatch).

    The other keys of a group go to torch's optimiser as they are.

    Args:
        model: whose trainable parameters are grouped.
        config: the configuration's `optimizer` section.
        fused: take torch's fused implementation where there is one and no group says how it wants to be computed.

    Raises:
        ConfigError: a trainable parameter falls into no group or into two, or a group is empty.
    """
    if not isinstance(config, OptimizerConfig):
        config = parse_as(OptimizerConfig, config, "optimizer")
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    groups: list[dict[str, Any]] = []
    owner: dict[str, int] = {}
    for index, group in enumerate(config.params):
        where = f"optimizer.params.{index}"
        patterns = group["params"]
        names = [name for name in parameters if _matches(name, patterns)]
        if not names:
            raise ConfigError(where, "must match at least one parameter of the model", found=patterns)
        for name in names:
            if owner.setdefault(name, index) != index:
                raise ConfigError(where, f"must not share parameters with group {owner[name]}", found=name)
        groups.append({**group, "params": [parameters[name] for name in names]})
    left = [name for name in parameters if name not in owner]
    if left:
        raise ConfigError(
            "optimizer.params",
            "must put every trainable parameter into a group",
            found=f"{len(left)} in none: {left[:3]}",
        )
    chosen = any({"fused", "foreach", "capturable", "differentiable"} & group.keys() for group in config.params)
    keywords = {"fused": True} if fused and config.type in FUSED and not chosen else {}
    try:
        optimizer: torch.optim.Optimizer = getattr(torch.optim, config.type)(groups, **keywords)
    except (TypeError, ValueError) as error:
        raise ConfigError("optimizer.params", f"must be what torch.optim.{config.type} takes", found=error) from error
    return optimizer


def own_state(optimizer: torch.optim.Optimizer) -> None:
    """Copy what a loaded state left on the host: those tensors are a file's, and mapped, and will be written to."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.device.type == "cpu":
                state[name] = value.clone()


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Take the parameters that match a pattern (fnmatch) out of the training.

    Returns:
        their names.

    Raises:
        ConfigError: a pattern matches no parameter.
    """
    frozen = []
    for pattern in patterns:
        matching = [(name, value) for name, value in model.named_parameters() if fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            raise ConfigError("freeze", "must match parameters of the model", found=repr(pattern))
        for name, value in matching:
            value.requires_grad_(False)
            frozen.append(name)
    return frozen


def _matches(name: str, patterns: Mapping[str, list[str]]) -> bool:
    included = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns["include"])
    return included and not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns.get("exclude", []))


def build_lr_scheduler(
    optimizer: torch.optim.Optimizer, config: SchedulerConfig | Mapping[str, Any]
) -> torch.optim.lr_scheduler.LRScheduler:
    """The scheduler of torch.optim.lr_scheduler that a configuration names, to be stepped once an optimiser step.

    Raises:
        ConfigError: an expression that is not allowed, or keywords that torch refuses.
    """
    if not isinstance(config, SchedulerConfig):
        config = parse_as(SchedulerConfig, config, "lr_scheduler")
    params = dict(config.params)
    kind = getattr(torch.optim.lr_scheduler, config.type)
    if config.type in LAMBDA_SCHEDULERS:
        texts = params["lr_lambda"]
        params["lr_lambda"] = (
            compile_expression(texts) if isinstance(texts, str) else [compile_expression(text) for text in texts]
        )
    with warnings.catch_warnings():
        # torch's own schedulers call step(0) on each other while being built and then warn of both habits.
        warnings.filterwarnings("ignore", message="The epoch parameter in `scheduler.step")
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        inner: list[Any] = []
        if config.type in NESTED_SCHEDULERS:
            inner = [build_lr_scheduler(optimizer, values) for values in params.pop("schedulers")]
        before = {"ChainedScheduler": (inner,), "SequentialLR": (optimizer, inner)}.get(config.type, (optimizer,))
        try:
            scheduler = kind(*before, **params)
        except (TypeError, ValueError) as error:
            where = f"torch.optim.lr_scheduler.{config.type}"
            raise ConfigError("lr_scheduler.params", f"must be what {where} takes", found=error) from error
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    return scheduler


def step_lr_scheduler(scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
    """Advance the schedule by one optimiser step, also past a step that the optimiser skipped."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The epoch parameter in `scheduler.step")
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        scheduler.step()


class ExponentialMovingAverage:
    """Moving average of a model's weights: the first update copies, later ones keep `decay` of what was there.

    `num_updates` is part of the state: without it a resumed average would begin anew. Of weights that are spread over
    ranks each rank keeps its part.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.num_updates = 0
        self.weights = {name: local(value).detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's current weights; buffers are copied."""
        current = {name: local(value) for name, value in model.state_dict().items()}
        averaged = [] if self.num_updates == 0 else [name for name, _ in model.named_parameters()]
        if averaged:
            torch._foreach_lerp_(
                [self.weights[name] for name in averaged], [current[name] for name in averaged], 1.0 - self.decay
            )
        for name in self.weights.keys() - set(averaged):
            self.weights[name].copy_(current[name])
        self.num_updates += 1

    def load(self, weights: Mapping[str, torch.Tensor], num_updates: int) -> None:
        """Continue the average of a checkpoint."""
        for name, value in self.weights.items():
            value.copy_(weights[name])
        self.num_updates = num_updates
