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


class Arena:
    """Equal blocks of shared memory, handed out by the training process.

    A block is free again when everything made from what `checkout` returned is gone, tensors included.

    Args:
        block_bytes: size of a block.
    """

    def __init__(self, block_bytes: int) -> None:
        self.block_bytes = -(-block_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.descriptor = anonymous_file()
        self._lock = threading.Lock()
        self._maps: list[mmap.mmap] = []
        self._free: list[int] = []
        self._close = weakref.finalize(self, os.close, self.descriptor)

    def reserve(self) -> int:
        """Number of a block that nobody uses."""
        with self._lock:
            if self._free:
                return self._free.pop()
            number = len(self._maps)
            os.ftruncate(self.descriptor, (number + 1) * self.block_bytes)
            self._maps.append(map_block(self.descriptor, number, self.block_bytes))
            return number

    def checkout(self, number: int) -> Any:
        """The memory of a reserved block, an object with a buffer; the block is free when it is gone."""
        block = (ctypes.c_char * self.block_bytes).from_buffer(self._maps[number])
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


def map_block(descriptor: int, number: int, block_bytes: int) -> mmap.mmap:
    """A block of the arena's file, mapped into this process."""
    return mmap.mmap(descriptor, block_bytes, offset=number * block_bytes)


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
