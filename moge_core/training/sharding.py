"""Weights and optimiser state that are spread over the ranks (FSDP): gathered for checkpoints, dealt out on resuming.

Checkpoints have the same contents with and without FSDP, so a run may go on either way. All functions are collective:
every rank calls them.

The transformer's weights travel and compute in 16 bits, all others in float32, and gradients are averaged in float32.
accelerate knows one policy for all, and no FSDP on CPUs, so its configuration is obeyed and models are sharded here.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn

from moge_core.models import MoGeModel
from moge_core.training.agreement import found_by_main

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def sharding_is_wanted() -> bool:
    """Whether this process was launched with an FSDP configuration."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and torch.distributed.is_initialized()


def shard(model: MoGeModel, accelerator: Accelerator) -> None:
    """Spread a model over all ranks in units that are gathered one after the other: transformer blocks, head blocks.

    Args:
        model: whole, on the CPU; in place.
        accelerator: says the device and the precision.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, OffloadPolicy, fully_shard

    plugin = FullyShardedDataParallelPlugin()  # what the launcher passed on of the configuration file
    common: dict[str, Any] = {
        "mesh": init_device_mesh(accelerator.device.type, (accelerator.num_processes,)),
        "offload_policy": plugin.cpu_offload if isinstance(plugin.cpu_offload, OffloadPolicy) else OffloadPolicy(),
    }
    # Activations keep their type: autocast rounds what goes into products, and the sum that runs through the blocks
    # stays float32, as without FSDP.
    single = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    half = replace(single, param_dtype=_HALF.get(accelerator.mixed_precision))
    for policy, units in ((half, model.dinov2.blocks), (single, model.head_blocks)):
        for unit in units:
            fully_shard(unit, mp_policy=policy, reshard_after_forward=bool(plugin.reshard_after_forward), **common)
    fully_shard(model, mp_policy=single, **common)
    # Outputs are only read.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def local(value: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor, or the tensor itself where it is not spread."""
    to_local = getattr(value, "to_local", None)
    return to_local() if to_local is not None else value


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor that is spread over the ranks, on each of them; others as they are."""
    full_tensor = getattr(value, "full_tensor", None)
    return full_tensor() if full_tensor is not None else value


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
    """Load a state with numbered parameters; rank 0 has the whole of it, others nothing."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    named = state and {
        "state": {names[number]: dict(values) for number, values in state["state"].items()},
        "param_groups": [{**group, "params": [names[n] for n in group["params"]]} for group in state["param_groups"]],
    }
    states = _states()
    # Weights that never get a gradient have no state. Torch would want one, or makes one of zeros.
    states.set_optimizer_state_dict(model, optimizer, named, options=_dealt(states, strict=False))
    have_state = found_by_main(lambda: set(named["state"]), is_main=torch.distributed.get_rank() == 0)
    for parameter in [each for each in optimizer.state if name_of[id(each)] not in have_state]:
        del optimizer.state[parameter]


def gather_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Gather other weights of the same shape, each rank's part of them given, on the host of rank 0."""
    with own_weights_kept(model):
        put_local(model, weights)
        return gather_model(model)


def deal_model(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Give every rank its part of the weights that rank 0 has; others have none."""
    states = _states()
    states.set_model_state_dict(model, dict(weights), options=_dealt(states))


def deal_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """This rank's part of the weights that rank 0 has; the model's own stay."""
    with own_weights_kept(model):
        deal_model(model, weights)
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


def _dealt(states: Any, *, strict: bool = True) -> Any:
    return states.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=strict)
