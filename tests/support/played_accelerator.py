"""An accelerator that the CPU plays: tensors with values that lie on `meta`, for whole paths without a GPU.

    with played_accelerator() as played:
        model = load_model(path).to(played.device)      # computed on the CPU, but no tensor of the CPU
        model.infer(image.to(played.device))

What a GPU refuses is refused: operations on tensors of both places, and reading memory from the host. What makes the
host wait (`item`, copies that block) is done and counted by place. Pinned memory, which needs a real device, is a
stand-in.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("meta")
CPU = torch.device("cpu")
# Operations whose answer the host has to wait for.
WAITS = frozenset(
    {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim", "bincount"}
)
# Reading and writing by indices: those may lie on the CPU.
_TAKE_HOST_INDICES = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})
_FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray)


class OnDevice(torch.Tensor):
    """A tensor that says it lies on the accelerator; its values are those of `host`."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> OnDevice:
        layout = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
        tensor = torch.Tensor._make_wrapper_subclass(cls, host.size(), device=DEVICE, **layout)
        tensor.host = host
        return tensor

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnDevice({self.host!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(function, args, kwargs or {})


@dataclass
class Played:
    """What was seen.

    Attributes:
        device: of the accelerator.
        waits: how often the host waited, by operation and the innermost line of the project.
        started: operations that the accelerator was asked for, by name.
    """

    device: torch.device = DEVICE
    waits: Counter[str] = field(default_factory=Counter)
    started: Counter[str] = field(default_factory=Counter)


@contextlib.contextmanager
def played_accelerator() -> Iterator[Played]:
    """Within the block the device `meta` computes."""
    played = Played()
    stand_ins: dict[str, Callable[..., Any]] = {
        # A moved parameter is a new one: the old one's class would not know of the place.
        "torch.__future__.get_overwrite_module_params_on_conversion": lambda: True,
        "torch.optim.optimizer._get_fused_kernels_supported_devices": lambda: [DEVICE.type, CPU.type],
        "torch.Tensor.pin_memory": lambda tensor, *_: tensor,
    }
    with contextlib.ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(mock.patch(name, stand_in))
        stack.enter_context(_FromData())
        stack.enter_context(_Everywhere(played))
        yield played


class _Everywhere(TorchDispatchMode):
    """Also catches what no tensor of the accelerator takes part in: new tensors, and copies to it."""

    def __init__(self, played: Played) -> None:
        super().__init__()
        self.played = played

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(function, args, kwargs or {}, self.played)


class _FromData(TorchFunctionMode):
    """Tensors from numbers and arrays: torch fills them on the CPU, and those for `meta` not at all.

    And back: `tolist` is refused to a tensor of a kind of its own.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].to(CPU).tolist()
        if function is torch.Tensor.new_tensor:
            like, *args = args
            kwargs = {"dtype": like.dtype, "device": like.device, **kwargs}
            function = torch.tensor
        device = kwargs.get("device")
        is_ours = function in _FROM_DATA and device is not None and torch.device(device) == DEVICE
        if not is_ours or isinstance(args[0], torch.Tensor):
            return function(*args, **kwargs)
        return function(*args, **{**kwargs, "device": CPU}).to(DEVICE)


def _compute(function: Any, args: Any, kwargs: dict[str, Any], played: Played | None = None) -> Any:
    """The operation on the values; where its result lies is what the arguments say."""
    name = function.overloadpacket._qualified_op_name.split("::")[1]
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    copies = name in {"_to_copy", "copy_"}
    if ours and not copies:
        _refuse_mixtures(name, args, tensors)
    target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    is_here = bool(ours) if target is None else target == DEVICE
    if name == "copy_":
        is_here = isinstance(args[0], OnDevice)
    if played is not None and (is_here or ours):
        played.started[name] += 1
        non_blocking = kwargs.get("non_blocking", name == "copy_" and len(args) > 2 and args[2])
        crosses = copies and (bool(ours) != is_here or 0 < len(ours) < len(tensors))
        if name in WAITS or (crosses and not non_blocking):
            played.waits[f"{name} {_place()}"] += 1
    if target == DEVICE:
        kwargs = {**kwargs, "device": CPU}
    plain_args, plain_kwargs = tree_map_only(OnDevice, lambda tensor: tensor.host, (args, kwargs))
    result = function(*plain_args, **plain_kwargs)
    in_place = {id(tensor.host): tensor for tensor in ours}

    def place(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in in_place:
            return in_place[id(tensor)]
        return OnDevice(tensor) if is_here else tensor

    return tree_map_only(torch.Tensor, place, result)


def _refuse_mixtures(name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    """As a GPU does: numbers (0-dimensional tensors) of the CPU may take part, and so may indices."""
    others = [tensor for tensor in tensors if tensor.dim() > 0 and not isinstance(tensor, OnDevice)]
    if others and not (name in _TAKE_HOST_INDICES and isinstance(args[0], OnDevice)):
        found = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found {found}")


def _place() -> str:
    """The innermost line of the project that asked."""
    frames = [frame for frame in traceback.extract_stack() if "/moge_core/" in frame.filename]
    return f"{frames[-1].filename.rsplit('/moge_core/', 1)[1]}:{frames[-1].lineno}" if frames else "elsewhere"
