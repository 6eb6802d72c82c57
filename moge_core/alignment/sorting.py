"""Sorting of many short rows, and how many rows to work on at once."""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from moge_core.accelerators import is_accelerator

# Numbers in one intermediate tensor: what a CPU's cache holds, or 16 MB of an accelerator.
_CHUNK_CPU = 2**18
_CHUNK = 2**21
# Below this many numbers a second thread costs more than it saves.
_MIN_NUMBERS_FOR_THREADS = 2**15


def rows_per_chunk(device: torch.device, row_length: int) -> int:
    """Rows of that many numbers to work on at once, at least one."""
    return max(1, (_CHUNK if is_accelerator(device) else _CHUNK_CPU) // max(row_length, 1))


class Scratch:
    """Memory that is made once and used again: on a CPU, fresh memory costs more than the arithmetic on it."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def empty(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """An uninitialised tensor of the type and device of `like`; it replaces the last one of that name."""
        size = math.prod(shape)
        held = self._tensors.get(name)
        if held is None or held.numel() < size:
            held = self._tensors[name] = torch.empty(size, dtype=like.dtype, device=like.device)
        return held[:size].view(shape)


def sort_rows(values: Tensor, scratch: Scratch | None = None) -> tuple[Tensor, Tensor]:
    """Sort finite float64 rows (R, L), on a CPU in place: the sorted values and their places (R, L) in the row.

    On a CPU the place of each value travels in the lowest log2(L) of its 52 mantissa bits, which are lost: NumPy's
    vectorised sort of plain numbers is several times faster than any sort that moves a second array along.
    """
    if is_accelerator(values.device):
        return torch.sort(values, dim=-1)
    length = values.shape[-1]
    place_bits = (1 << max(1, (length - 1).bit_length())) - 1
    packed = values.view(torch.int64)
    packed &= ~place_bits
    packed |= torch.arange(length)
    _sort_in_place(values)
    order = (scratch or Scratch()).empty("order", packed.shape, packed)
    torch.bitwise_and(packed, place_bits, out=order)
    packed &= ~place_bits
    return values, order


def _sort_in_place(values: Tensor) -> None:
    array = values.numpy()
    num_threads = min(torch.get_num_threads(), len(array))
    if num_threads < 2 or array.size < _MIN_NUMBERS_FOR_THREADS:
        array.sort(axis=-1)
        return
    bounds = [len(array) * thread // num_threads for thread in range(num_threads + 1)]
    others = [
        _threads(os.getpid(), num_threads).submit(array[start:stop].sort, axis=-1)
        for start, stop in itertools.pairwise(bounds[1:])
    ]
    array[: bounds[1]].sort(axis=-1)
    for other in others:
        other.result()


@functools.lru_cache(maxsize=1)
def _threads(pid: int, number: int) -> ThreadPoolExecutor:
    """Threads of this process: those of a parent did not survive the fork."""
    return ThreadPoolExecutor(number - 1, thread_name_prefix=f"sort-{pid}")
