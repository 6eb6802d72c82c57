"""Weights and optimiser state that are spread over the ranks (FSDP): gathered for checkpoints, dealt out on resuming.

Checkpoints have the same contents with and without FSDP, so a run may go on either way. All functions are collective:
every rank calls them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn


def local(value: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor, or the tensor itself where it is not spread."""
    to_local = getattr(value, "to_local", None)
    return to_local() if to_local is not None else value


def gather_model(model: nn.Module) -> dict[str, Any]:
    """The whole `state_dict` on the host of rank 0; empty on other ranks."""
    states = _states()
    return dict(states.get_model_state_dict(model, options=_gathered(states)))


def gather_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state of the optimiser on the host of rank 0, numbered as torch and the published files do."""
    states = _states()
    named: Any = states.get_optimizer_state_dict(model, optimizer, options=_gathered(states))
    if not named:
        return {}
    names = [name for group in named["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    return {
        "state": {numbers[name]: values for name, values in named["state"].items()},
        "param_groups": [{**group, "params": [numbers[n] for n in group["params"]]} for group in named["param_groups"]],
    }


def deal_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state with numbered parameters; every rank has the whole of it."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    named = {
        "state": {names[number]: dict(values) for number, values in state["state"].items()},
        "param_groups": [{**group, "params": [names[n] for n in group["params"]]} for group in state["param_groups"]],
    }
    states = _states()
    states.set_optimizer_state_dict(model, optimizer, named, options=states.StateDictOptions(full_state_dict=True))


def gather_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Gather other weights of the same shape, each rank's part of them given, on the host of rank 0."""
    with own_weights_kept(model):
        put_local(model, weights)
        return gather_model(model)


def deal_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """This rank's part of the whole weights that rank 0 has; the model's own stay."""
    states = _states()
    options = states.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    with own_weights_kept(model):
        states.set_model_state_dict(model, dict(weights), options=options)
        return _local_copies(model)


@contextlib.contextmanager
def own_weights_kept(model: nn.Module) -> Iterator[None]:
    """Whatever weights the model is given within the block, it has its own after it, to the bit."""
    own = _local_copies(model)
    try:
        yield
    finally:
        put_local(model, own)


@torch.no_grad()
def put_local(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Overwrite this rank's part of every weight."""
    for name, value in model.state_dict().items():
        local(value).copy_(weights[name])


def _local_copies(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: local(value).clone() for name, value in model.state_dict().items()}


def _states() -> Any:
    """Torch's module for such states; it takes a second to import, which trainings without FSDP do not spend."""
    from torch.distributed.checkpoint import state_dict

    return state_dict


def _gathered(states: Any) -> Any:
    return states.StateDictOptions(full_state_dict=True, cpu_offload=True)
