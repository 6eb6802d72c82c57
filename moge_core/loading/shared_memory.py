"""Memory of batches, shared between the training process and its workers: blocks of a file, used again when free.

The file has no name, so nothing is left behind however the processes end.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import threading
import weakref
from typing import Any


class Blocks:
    """Equal blocks of a shared file, mapped into this process when they are first asked for.

    They are mapped 1, 2, 4, 8, ... at a time, because every mapping holds a file descriptor. Untouched ones take no
    memory.

    Args:
        descriptor: of the file.
        block_bytes: size of a block, a multiple of the page size.
    """

    def __init__(self, descriptor: int, block_bytes: int) -> None:
        self._descriptor, self._block_bytes = descriptor, block_bytes
        self._maps: dict[int, mmap.mmap] = {}

    def place_of(self, number: int) -> tuple[mmap.mmap, int]:
        """The mapping that a block lies in, and where it begins there."""
        level = (number + 1).bit_length() - 1
        first = (1 << level) - 1
        if level not in self._maps:
            self._maps[level] = mmap.mmap(
                self._descriptor, self._block_bytes << level, offset=first * self._block_bytes
            )
        return self._maps[level], (number - first) * self._block_bytes

    def block(self, number: int) -> memoryview:
        """The memory of a block."""
        mapping, start = self.place_of(number)
        return memoryview(mapping)[start : start + self._block_bytes]


class Arena:
    """Equal blocks of shared memory, handed out by the training process.

    A block is free again when everything made from what `checkout` returned is gone, tensors included.

    Args:
        block_bytes: size of a block.
    """

    def __init__(self, block_bytes: int) -> None:
        self.block_bytes = -(-block_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.descriptor = anonymous_file()
        self.num_blocks = 0
        self._lock = threading.Lock()
        self._blocks = Blocks(self.descriptor, self.block_bytes)
        self._free: list[int] = []
        self._close = weakref.finalize(self, os.close, self.descriptor)

    def reserve(self) -> int:
        """Number of a block that nobody uses."""
        with self._lock:
            if self._free:
                return self._free.pop()
            number = self.num_blocks
            # As far as the mapping reaches that the block lies in; what is not touched takes no room.
            os.ftruncate(self.descriptor, ((1 << (number + 1).bit_length()) - 1) * self.block_bytes)
            self._blocks.place_of(number)
            self.num_blocks += 1
            return number

    def checkout(self, number: int) -> Any:
        """The memory of a reserved block, an object with a buffer; the block is free when it is gone."""
        block = (ctypes.c_char * self.block_bytes).from_buffer(*self._blocks.place_of(number))
        weakref.finalize(block, self.release, number)
        return block

    def release(self, number: int) -> None:
        """Make a reserved block free again."""
        with self._lock:
            self._free.append(number)

    def close(self) -> None:
        """Close the file; blocks in use stay valid until they are gone."""
        self._close()


def anonymous_file() -> int:
    """Descriptor of an empty file without a name; it is gone when the last process closes it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("moge-loader", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # where there is no Linux
        return os.dup(file.fileno())


def keep_freed_memory() -> None:
    """Let the allocator keep the memory of freed arrays, of some megabytes each, for the next ones.

    By default glibc gives it back and faults it in again, which costs as much as the work on the arrays does. No other
    allocator is touched.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(trim_threshold, 512 << 20)
    mallopt(mmap_threshold, 32 << 20)  # older versions take no more
