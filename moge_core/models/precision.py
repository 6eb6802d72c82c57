"""Which parts of a model run in which precision, whatever autocast and the process's settings say.

The encoder may run in 16 bits. What follows it is float32: a point map is the difference of neighbouring pixels, and a
raw map that carries the 8 bits of bf16 has normals that are off by 12 to 21 degrees. docs/gpu.md has the figures.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from moge_core.errors import InputError

Precision = Literal["fp32", "fp16", "bf16"]
"""What a model's encoder computes in, where it is predicted with or scored."""

_HALF_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

# TF32, which multiplies float32 numbers with 10 bits of mantissa, is on in cuDNN's convolutions by default.
_EXACT = "ieee"


@contextlib.contextmanager
def network_precision(device_type: str, precision: Precision) -> Iterator[None]:
    """A model that is called within the block runs in that precision, whatever autocast there is around it.

    A CPU computes 16 bits as a GPU does, but mostly slower than 32.

    Raises:
        InputError: see `check_precision`.
    """
    check_precision(device_type, precision)
    if precision == "fp32":
        with single_precision(device_type):
            yield
    else:
        with torch.autocast(device_type, dtype=_HALF_TYPES[precision]):
            yield


def check_precision(device_type: str, precision: str) -> None:
    """Refuse a precision that a model cannot run in.

    Raises:
        InputError: no `Precision`, or one that torch does not have on such a device.
    """
    if precision == "fp32":
        return
    if precision not in _HALF_TYPES:
        raise InputError("precision", "must be fp32, fp16 or bf16", found=repr(precision))
    if not torch.amp.is_autocast_available(device_type):
        raise InputError("precision", f"must be fp32 on {device_type}", found=precision)


@contextlib.contextmanager
def single_precision(device_type: str) -> Iterator[None]:
    """No autocast within the block. Convolutions may use TF32 if the process allows it, as torch does by default."""
    if torch.compiler.is_exporting() or not torch.amp.is_autocast_available(device_type):
        yield
        return
    with torch.autocast(device_type, enabled=False):
        yield


@contextlib.contextmanager
def exact_single_precision(device_type: str) -> Iterator[None]:
    """No autocast and no TF32 within the block; the process has its own settings again after it.

    To be entered by what is recomputed under checkpointing, not around it: a recomputation then enters it, too.
    """
    with single_precision(device_type):
        if torch.compiler.is_compiling():
            yield
            return
        _settings.enter()
        try:
            yield
        finally:
            _settings.leave()


def exactly(module: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`module` within `exact_single_precision`, in the first pass as in a recomputation."""

    def run(x: Tensor) -> Tensor:
        with exact_single_precision(x.device.type):
            return module(x)

    return run


class _ProcessSettings:
    """TF32 is a setting of the whole process: the first block in switches it off, the last one out restores it.

    Threads that predict side by side would else restore each other's settings.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._restore: list[Callable[[], None]] = []

    def enter(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._restore = [_without_tf32_in_convolutions(), _without_tf32_in_products()]
            self._num_inside += 1

    def leave(self) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                for restore in self._restore:
                    restore()


_settings = _ProcessSettings()


def _without_tf32_in_convolutions() -> Callable[[], None]:
    cudnn = torch.backends.cudnn
    kept = _values(cudnn, "conv", "rnn")
    try:
        allowed = cudnn.allow_tf32
    except RuntimeError:  # somebody set the newer words one by one: the older one has no answer then
        allowed = None
    if allowed is not None:
        cudnn.allow_tf32 = False
    for part, _ in kept:
        part.fp32_precision = _EXACT

    def restore() -> None:
        if allowed is not None:
            cudnn.allow_tf32 = allowed
        for part, value in kept:
            part.fp32_precision = value

    return restore


def _without_tf32_in_products() -> Callable[[], None]:
    kept = _values(torch.backends.cuda, "matmul")
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:
        precision = None
    if precision is not None:
        torch.set_float32_matmul_precision("highest")
    for part, _ in kept:
        part.fp32_precision = _EXACT

    def restore() -> None:
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        for part, value in kept:
            part.fp32_precision = value

    return restore


def _values(backend: Any, *names: str) -> list[tuple[Any, str]]:
    """The parts of a backend that have a precision of their own, which torch has since 2.9, and what it is."""
    parts: list[Any] = [getattr(backend, name, None) for name in names]
    return [(part, part.fp32_precision) for part in parts if getattr(part, "fp32_precision", None) is not None]
