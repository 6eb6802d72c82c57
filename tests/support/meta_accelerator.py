"""What an accelerator would be asked to do, counted on tensors without values (torch's `meta` device).

    with MetaAccelerator() as counted:
        model(torch.empty(8, 3, 480, 640, device="meta"), 1800)
    counted.started, counted.waits

Nothing is computed, so whole networks are counted in a second. A value that the host asks for is answered with a chosen
one, and noted; tests/support/played_accelerator.py is for paths that go where values lead.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
# Operations that start nothing: another look at the same memory, or memory that is not filled.
NOT_STARTED = frozenset(
    {
        "_reshape_alias",
        "_unsafe_view",
        "alias",
        "as_strided",
        "chunk",
        "detach",
        "diagonal",
        "empty",
        "empty_like",
        "empty_strided",
        "expand",
        "lift_fresh",
        "new_empty",
        "new_empty_strided",
        "permute",
        "reshape",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
        "transpose",
        "unbind",
        "unfold",
        "unsqueeze",
        "view",
        "view_as_real",
    }
)


class MetaAccelerator(TorchDispatchMode):
    """Counts while it is entered.

    Attributes:
        started: operations that an accelerator starts, by name.
        waits: where the host waits: for a value, for a number of elements, or for a copy that blocks.
        mixed: operations on tensors of both places.
    """

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self._value = value
        self.started: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.mixed: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket._qualified_op_name.split("::")[1]
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if name == "_local_scalar_dense" and tensors[0].device == META:
            self.waits[f"item {_place()}"] += 1
            return {torch.bool: bool, torch.int64: int}.get(tensors[0].dtype, float)(self._value)
        # The number of elements of a mask is a value, and indices of the host are copied.
        by_values = name == "index" and any(
            isinstance(index, Tensor) and (index.dtype == torch.bool or index.device != args[0].device)
            for index in args[1]
        )
        copies = name in {"_to_copy", "copy_"}
        if not copies and len({tensor.device for tensor in tensors if tensor.dim()}) > 1:
            self.mixed[f"{name} {_place()}"] += 1
        if copies and any(tensor.device == META for tensor in tensors):
            result = self._copy(function, name, args, kwargs)
        else:
            result = function(*args, **kwargs)
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        here = any(tensor.device == META for tensor in (*tensors, *made))
        if here and name not in NOT_STARTED:
            self.started[name] += 1
        if copies:
            places = {tensor.device for tensor in (*tensors, *made)}
            non_blocking = kwargs.get("non_blocking", name == "copy_" and len(args) > 2 and args[2])
            if len(places) > 1 and not non_blocking:
                self.waits[f"copy {_place()}"] += 1
        if by_values and here:
            self.waits[f"index {_place()}"] += 1
        return result

    def _copy(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        """What comes to the host has the chosen value."""
        if name == "copy_":
            return args[0].fill_(self._value) if args[0].device != META else function(*args, **kwargs)
        target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else META
        if target == META:
            return function(*args, **kwargs)
        return torch.full(args[0].shape, self._value, dtype=kwargs.get("dtype") or args[0].dtype)


class StandInAccelerate:
    """What the trainer asks of `accelerate.Accelerator`, for one process on the meta device."""

    device = META
    distributed_type = "NO"
    is_main_process = True
    process_index = 0
    num_processes = 1
    mixed_precision = "bf16"
    scaler = None

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        return values

    def no_sync(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def local_main_process_first(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def clip_grad_norm_(self, parameters: Any, most: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, most)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The optimiser's parameters stay those of the model: moving to `meta` makes new ones."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        moved = dict(model.to(META).named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [moved[names[id(parameter)]] for parameter in group["params"]]
        return model, optimizer

    def unwrap_model(self, model: nn.Module, *, keep_fp32_wrapper: bool) -> nn.Module:
        return model

    def wait_for_everyone(self) -> None: ...


@contextlib.contextmanager
def stand_in_accelerate() -> Iterator[None]:
    """Trainers that are built within the block run on the meta device."""
    with (
        mock.patch("moge_core.training.trainer.build_accelerator", lambda flags: StandInAccelerate()),
        mock.patch("torch.optim.optimizer._get_fused_kernels_supported_devices", lambda: ["meta", "cpu"]),
        mock.patch("torch.Tensor.pin_memory", lambda tensor, *_: tensor),
    ):
        yield


def _place() -> str:
    """The innermost line of the project that asked."""
    frames = [frame for frame in traceback.extract_stack() if "/moge_core/" in frame.filename]
    return f"{frames[-1].filename.rsplit('/moge_core/', 1)[1]}:{frames[-1].lineno}" if frames else "elsewhere"
