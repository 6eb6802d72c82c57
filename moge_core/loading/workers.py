"""Worker processes that load batches ahead, in order, and never outlive their parent.

A worker is a fresh interpreter that imports neither torch nor the parent's main module, so it starts fast and scripts
need no guard. It holds no state: it is killed without loss. It ignores SIGINT and SIGTERM, which reach whole process
trees while the trainer still finishes its step, and ends when the parent's end of its pipe closes.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from moge_core.errors import TrainingError
from moge_core.io.opencv import cv2
from moge_core.loading.batch import LoadedBatch, load_batch
from moge_core.loading.instance import Recipe
from moge_core.loading.sampling import BatchPlan

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
# Signals are ignored from the first moment, before the slow imports.
_START = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
from multiprocessing.connection import Connection
from {__name__} import serve
serve(Connection(int(sys.argv[1])))
"""
# One batch of each worker waits in its pipe; this many more wait in the parent.
_NUM_READY = 2
_POLL_S = 0.2


class WorkerPool:
    """Loads the batches of an endless sequence of plans in worker processes, in the order of the plans.

    Args:
        num_workers: processes, at least 1.
        recipes: of all datasets, in the configuration's order.
        plans: endless.
    """

    def __init__(self, num_workers: int, recipes: Sequence[Recipe], plans: Iterator[BatchPlan]) -> None:
        self._plans = plans
        self._ready: queue.Queue[LoadedBatch | BaseException] = queue.Queue(_NUM_READY)
        self._closing = threading.Event()
        self._workers: list[_Worker] = []
        self._thread = threading.Thread(target=self._collect, name="moge-loader", daemon=True)
        try:
            for _ in range(num_workers):
                self._workers.append(_Worker(recipes))
        except BaseException:
            self.close()
            raise
        self._thread.start()

    def next(self) -> LoadedBatch:
        """The next batch.

        Raises:
            TrainingError: a worker died or failed.
        """
        result = self._ready.get()
        if isinstance(result, BaseException):
            # Whoever asks again gets the same answer instead of waiting for ever.
            self._ready.put(result)
            raise result
        return result

    def close(self) -> None:
        """End all workers. Safe to call more than once."""
        self._closing.set()
        for worker in self._workers:
            worker.kill()
        # The thread may still be at a pipe; without a worker behind it, that ends at once.
        if self._thread.is_alive():
            self._thread.join()
        for worker in self._workers:
            worker.disconnect()

    def _collect(self) -> None:
        """Thread: hand plans to the workers in turn and take their batches in the same order."""
        try:
            for worker in self._workers:
                worker.send(next(self._plans))
            while not self._closing.is_set():
                for worker in self._workers:
                    batch = worker.receive()
                    worker.send(next(self._plans))
                    self._hand_over(batch)
        except BaseException as error:
            self._hand_over(error)

    def _hand_over(self, result: LoadedBatch | BaseException) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(result, timeout=_POLL_S)
                return


class _Worker:
    def __init__(self, recipes: Sequence[Recipe]) -> None:
        self._connection, theirs = Pipe()
        search_path = [str(_PACKAGE_PARENT), *filter(None, [os.environ.get("PYTHONPATH")])]
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **single, "PYTHONPATH": os.pathsep.join(search_path)},
            )
        self.send(list(recipes))

    def send(self, message: object) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise self._death() from error

    def receive(self) -> LoadedBatch:
        try:
            result = self._connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise self._death() from error
        if isinstance(result, str):
            raise TrainingError("data loading worker", "must not fail", found=result)
        assert isinstance(result, LoadedBatch)
        return result

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def disconnect(self) -> None:
        self._connection.close()

    def _death(self) -> TrainingError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.returncode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        fix = "SIGKILL mostly means that memory ran out: use fewer workers." if code == -signal.SIGKILL else None
        return TrainingError(
            "data loading worker",
            "must live as long as the run",
            found=f"process {self._process.pid} ended with {how}",
            fix=fix,
        )


def serve(connection: Connection) -> None:
    """A worker's life: recipes once, then a batch for each plan, until the pipe's other end closes."""
    with contextlib.suppress(EOFError, OSError), connection:
        _answer(connection)


def _answer(connection: Connection) -> None:
    cv2.setNumThreads(0)
    recipes: list[Recipe] = connection.recv()
    while True:
        plan: BatchPlan = connection.recv()
        try:
            result: LoadedBatch | str = load_batch(recipes, plan)
        except Exception:
            result = traceback.format_exc()
        connection.send(result)
