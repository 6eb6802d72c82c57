"""Rendering on several cores.

Threads would share one interpreter lock and gain a fifth on two cores. Workers are plain child processes rather than a
`multiprocessing` pool: a pool that forks is unsafe below a program that has threads, and one that spawns runs the
caller's script again.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_PACKAGE_PARENT = Path(__file__).resolve().parents[3]


def run_workers(entry: str, orders: Sequence[dict[str, Any]]) -> Iterator[int]:
    """Start a process for each order and yield the numbers that they print, as they come.

    A worker that fails ends early without an error here: the caller sees which numbers are missing. All workers are
    gone when the iterator is exhausted or closed.

    Args:
        entry: "module:function", called in the worker; it takes its order with `take_order`.
        orders: JSON objects.
    """
    module, function = entry.split(":")
    command = [sys.executable, "-c", f"from {module} import {function}; {function}()"]
    search_path = os.pathsep.join(filter(None, [str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH")]))
    printed: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    workers: list[subprocess.Popen[str]] = []
    followers: list[threading.Thread] = []
    try:
        for order in orders:
            worker = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"PYTHONPATH": search_path},
            )
            workers.append(worker)
            followers.append(threading.Thread(target=_follow, args=(worker, order, printed), daemon=True))
            followers[-1].start()
        for _ in workers:
            # Each worker's lines end with None.
            yield from iter(printed.get, None)
    finally:
        for worker in workers:
            worker.terminate()
        for follower in followers:
            follower.join()
        for worker in workers:
            worker.wait()


def take_order() -> dict[str, Any]:
    """In a worker: what it has to do."""
    # One picture a core: OpenCV's own threads would only get into each other's way.
    import cv2

    cv2.setNumThreads(1)
    order: dict[str, Any] = json.load(sys.stdin)
    return order


def report(number: int) -> None:
    """In a worker: tell that a number is done. When the parent is gone this ends the worker."""
    print(number, flush=True)


def _follow(worker: subprocess.Popen[str], order: dict[str, Any], printed: queue.SimpleQueue[int | None]) -> None:
    """Hand a worker its order and pass on what it prints."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        with worker.stdin, worker.stdout:
            try:
                json.dump(order, worker.stdin)
                worker.stdin.close()
            except BrokenPipeError:
                return
            for line in worker.stdout:
                printed.put(int(line))
    finally:
        printed.put(None)
