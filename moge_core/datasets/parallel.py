"""Work on many instances at once, in order, with progress."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from moge_core.datasets.layout import Progress

T = TypeVar("T")
R = TypeVar("R")

# Decoding, hashing and sorting leave the interpreter's lock, so threads share the cores without processes to fork.
_MAX_WORKERS = 16


def num_cores() -> int:
    """Cores that this process may use, where the system can say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_map(work: Callable[[T], R], items: Sequence[T], progress: Progress | None = None) -> Iterator[R]:
    """Results of `work` for each item, in the order of the items.

    An exception of `work` reaches the caller at its item; nothing further is started then.
    """
    return parallel_stream(work, items, len(items), progress)


def parallel_stream(
    work: Callable[[T], R], items: Iterable[T], total: int, progress: Progress | None = None
) -> Iterator[R]:
    """As `parallel_map`, of items that are taken as they come: a few are under way, the others not made yet.

    Args:
        work: called for each item.
        items: the items, in the order of the results.
        total: how many there are, for progress.
        progress: called as `progress(done, total)`.
    """
    workers = max(1, min(_MAX_WORKERS, num_cores()))
    under_way: deque[Future[R]] = deque()
    done = 0
    with ThreadPoolExecutor(workers, thread_name_prefix="moge-datasets") as pool:
        try:
            for item in items:
                under_way.append(pool.submit(work, item))
                if len(under_way) < 4 * workers:
                    continue
                yield under_way.popleft().result()
                done += 1
                if progress is not None:
                    progress(done, total)
            while under_way:
                yield under_way.popleft().result()
                done += 1
                if progress is not None:
                    progress(done, total)
        except BaseException:
            # Ctrl-C waits for what is under way only.
            pool.shutdown(cancel_futures=True)
            raise
