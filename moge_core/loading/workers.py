"""Worker processes that load batches ahead, hand them over in order, and never outlive their parent.

A worker is a fresh interpreter that imports neither torch nor the parent's main module, so it starts fast and scripts
need no guard. It holds no state: one that dies is replaced, and what it was loading is loaded anew. It ignores SIGINT
and SIGTERM, which reach whole process trees while the trainer still finishes its step, and ends when the parent's end
of its pipe closes. Batches come through shared memory; pipes carry plans and what is known of a batch beside its
arrays.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from moge_core.errors import TrainingError
from moge_core.io.opencv import cv2
from moge_core.loading.batch import BlockLayout, LoadedBatch, load_batch
from moge_core.loading.failures import WORKER_DIED, Failure
from moge_core.loading.instance import Recipe
from moge_core.loading.sampling import BatchPlan
from moge_core.loading.shared_memory import Arena, Blocks, anonymous_file, keep_freed_memory

logger = logging.getLogger(__name__)

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
# Signals are ignored from the first moment, before the slow imports.
_START = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
from {__name__} import serve
serve(*map(int, sys.argv[1:]))
"""
# A worker has the next plan in its pipe while it works on one.
_PLANS_PER_WORKER = 2
_POLL_S = 5.0
# An instance during which so many workers died is not touched again; a batch that cost more workers ends the run.
_DEATHS_PER_INSTANCE = 2
_DEATHS_PER_BATCH = 8
_STATUS_BYTES = mmap.PAGESIZE


@dataclass
class _Job:
    """A plan, its number in the order of delivery, and the block of memory that its batch goes to."""

    number: int
    plan: BatchPlan
    layout: BlockLayout
    block: int
    num_deaths: int = 0


@dataclass
class Delivery:
    """A batch and its memory; `block` has a buffer laid out as `layout` says."""

    batch: LoadedBatch
    layout: BlockLayout
    block: Any


class WorkerPool:
    """Loads the batches of an endless sequence of plans in worker processes, in the order of the plans.

    Args:
        num_workers: processes, at least 1.
        recipes: of all datasets, in the configuration's order.
        plans: endless.
        max_batch_bytes: largest size of a batch's arrays.
        prefetch_batches: most batches that are loaded or being loaded and not yet asked for.
        prefetch_bytes: most bytes of these together; one batch may always be loaded.
        stall_timeout_s: how long one batch may take before its worker is taken for stuck and replaced.
        on_round: called by a thread of the pool, every few seconds at least, as long as that looks after the workers.
    """

    def __init__(
        self,
        num_workers: int,
        recipes: Sequence[Recipe],
        plans: Iterator[BatchPlan],
        *,
        max_batch_bytes: int,
        prefetch_batches: int,
        prefetch_bytes: int,
        stall_timeout_s: float = 600.0,
        on_round: Callable[[], None] = lambda: None,
    ) -> None:
        self._recipes, self._plans = list(recipes), plans
        self._max_ahead, self._max_bytes = prefetch_batches, prefetch_bytes
        self._stall_timeout_s, self._on_round = stall_timeout_s, on_round
        self._arena = Arena(max_batch_bytes)
        self._changed = threading.Condition()
        self._ready: dict[int, Delivery] = {}
        self._error: BaseException | None = None
        self._num_planned = self._num_delivered = 0
        self._bytes_ahead: deque[int] = deque()
        self._next_plan: tuple[BatchPlan, BlockLayout] | None = None
        self._deaths: Counter[tuple[str, str]] = Counter()
        self._deeds: dict[tuple[str, str], str] = {}
        self._closing = False
        self.deaths: deque[Failure] = deque()
        """Instances during which a worker died and that nobody has recorded yet."""
        self.num_restarts = 0
        # Written to by `next` and `close` so that the thread looks up from its pipes.
        self._wake_reader, self._wake_writer = Pipe(duplex=False)
        self._workers: list[_Worker] = []
        self._thread = threading.Thread(target=self._run, name="moge-loader", daemon=True)
        try:
            for _ in range(num_workers):
                self._workers.append(_Worker(self._recipes, self._arena))
        except BaseException:
            self.close()
            raise
        self._thread.start()

    @property
    def num_ready(self) -> int:
        """Batches that are loaded and not yet asked for."""
        return len(self._ready)

    def next(self) -> Delivery:
        """The next batch.

        Raises:
            TrainingError: workers keep dying, or one failed in a way that is not the data's fault.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._num_delivered in self._ready or self._error)
            if self._num_delivered not in self._ready:
                assert self._error is not None
                raise self._error
            delivery = self._ready.pop(self._num_delivered)
            self._num_delivered += 1
            self._bytes_ahead.popleft()
        self._wake()
        return delivery

    def close(self) -> None:
        """End all workers. Safe to call more than once."""
        self._closing = True
        for worker in self._workers:
            worker.kill()
        if self._thread.is_alive():
            self._wake()
            self._thread.join()
        for worker in self._workers:
            worker.kill()  # the thread may have started one in the meantime
            worker.disconnect()
        self._ready.clear()
        self._arena.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_writer.send_bytes(b"")

    # --- in the thread ---

    def _run(self) -> None:
        try:
            while not self._closing:
                self._hand_out()
                waiting = {worker.connection: worker for worker in self._workers}
                for source in wait([self._wake_reader, *waiting], timeout=_POLL_S):
                    if source is self._wake_reader:
                        self._wake_reader.recv_bytes()
                    else:
                        self._take_from(waiting[source])  # type: ignore[index]
                self._replace_stuck()
                self._on_round()
        except BaseException as error:
            if not self._closing:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()

    def _hand_out(self) -> None:
        """Give plans to the workers with the fewest, as far as the limits allow."""
        while True:
            worker = min(self._workers, key=lambda worker: len(worker.jobs))
            if len(worker.jobs) >= _PLANS_PER_WORKER:
                return
            if self._next_plan is None:
                plan = next(self._plans)
                self._next_plan = plan, BlockLayout.of(plan, self._recipes)
            plan, layout = self._next_plan
            with self._changed:
                ahead = len(self._bytes_ahead)
                if ahead >= self._max_ahead or (ahead and sum(self._bytes_ahead) + layout.num_bytes > self._max_bytes):
                    return
                self._bytes_ahead.append(layout.num_bytes)
            self._next_plan = None
            job = _Job(self._num_planned, plan, layout, self._arena.reserve())
            self._num_planned += 1
            self._give(worker, job)

    def _give(self, worker: _Worker, job: _Job) -> None:
        try:
            worker.give(job, self._deeds)
        except OSError:
            self._replace(worker, None)

    def _take_from(self, worker: _Worker) -> None:
        try:
            result = worker.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self._replace(worker, None)
            return
        if isinstance(result, str):
            raise TrainingError("data loading worker", "must not fail", found=result)
        job = worker.finished()
        with self._changed:
            self._ready[job.number] = Delivery(
                LoadedBatch(job.plan, *result), job.layout, self._arena.checkout(job.block)
            )
            self._changed.notify_all()

    def _replace_stuck(self) -> None:
        for worker in list(self._workers):
            if worker.jobs and time.monotonic() - worker.busy_since > self._stall_timeout_s:
                self._replace(worker, f"no answer within {self._stall_timeout_s:.0f} s")

    def _replace(self, worker: _Worker, reason: str | None) -> None:
        """A new worker for one that died or is stuck, with the same work before it."""
        if self._closing:
            return
        how = worker.death(reason)
        jobs = list(worker.jobs)
        if jobs:
            self._note_death(worker, jobs[0], how)
        worker.kill()
        worker.disconnect()
        self.num_restarts += 1
        successor = _Worker(self._recipes, self._arena)
        self._workers[self._workers.index(worker)] = successor
        for position, job in enumerate(jobs):
            try:
                successor.give(job, self._deeds)
            except OSError:
                successor.jobs.extend(jobs[position + 1 :])
                self._replace(successor, None)
                return

    def _note_death(self, worker: _Worker, job: _Job, how: str) -> None:
        culprit = worker.current_instance()
        where = "/".join(culprit) if culprit else f"the batch of step {job.plan.step}"
        logger.warning("a data loading worker %s while it loaded %s; another takes its place", how, where)
        job.num_deaths += 1
        if culprit:
            self._deaths[culprit] += 1
            if self._deaths[culprit] >= _DEATHS_PER_INSTANCE:
                self._deeds[culprit] = how
            self.deaths.append(Failure(*culprit, WORKER_DIED, how))
        if job.num_deaths > _DEATHS_PER_BATCH:
            raise TrainingError(
                "data loading worker",
                "must live as long as the run",
                found=f"the last of {job.num_deaths} that died over one batch {how} while it loaded {where}",
                fix="SIGKILL mostly means that memory ran out: use fewer workers.",
            )


class _Worker:
    """The parent's side of a worker process."""

    def __init__(self, recipes: Sequence[Recipe], arena: Arena) -> None:
        self.jobs: deque[_Job] = deque()
        self.busy_since = 0.0
        self.connection, theirs = Pipe()
        status = anonymous_file()
        os.ftruncate(status, _STATUS_BYTES)
        self._status = mmap.mmap(status, _STATUS_BYTES)
        descriptors = (theirs.fileno(), status, arena.descriptor)
        search_path = [str(_PACKAGE_PARENT), *filter(None, [os.environ.get("PYTHONPATH")])]
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **single, "PYTHONPATH": os.pathsep.join(search_path)},
            )
        finally:
            theirs.close()
            os.close(status)
        with contextlib.suppress(OSError):  # its death is noticed where its answer is awaited
            self.connection.send((list(recipes), arena.block_bytes))

    def give(self, job: _Job, deeds: dict[tuple[str, str], str]) -> None:
        if not self.jobs:
            self.busy_since = time.monotonic()
        self.jobs.append(job)
        self.connection.send((job.plan, job.block, dict(deeds)))

    def finished(self) -> _Job:
        """The job that the answer at hand belongs to."""
        self.busy_since = time.monotonic()
        return self.jobs.popleft()

    def current_instance(self) -> tuple[str, str] | None:
        """(dataset, instance) that the worker last began to read."""
        length = int.from_bytes(self._status[:4], "little")
        if not length:
            return None
        dataset, _, instance = self._status[4 : 4 + length].decode("utf-8", "replace").partition("\0")
        return dataset, instance

    def death(self, reason: str | None) -> str:
        """How the worker ended, in words."""
        if reason is not None:
            return f"gave {reason}"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.returncode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return f"ended with {how}"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def disconnect(self) -> None:
        self.connection.close()


# --- in the worker ---


def serve(pipe: int, status: int, arena: int) -> None:
    """A worker's life: recipes once, then a batch for each plan, until the pipe's other end closes."""
    with contextlib.suppress(EOFError, OSError), Connection(pipe) as connection:
        _answer(connection, _tell_in(mmap.mmap(status, _STATUS_BYTES)), arena)


def _answer(connection: Connection, on_instance: Callable[[str, str], None], arena: int) -> None:
    cv2.setNumThreads(0)
    keep_freed_memory()
    recipes, block_bytes = connection.recv()
    blocks = Blocks(arena, block_bytes)
    while True:
        plan, number, barred = connection.recv()
        try:
            arrays = BlockLayout.of(plan, recipes).arrays_in(blocks.block(number))
            batch = load_batch(recipes, plan, arrays, barred=barred, on_instance=on_instance)
            # Not the plan: the parent has it, and an answer must be short enough for the pipe while it sends the next.
            result: tuple[Any, ...] | str = (batch.labels, batch.infos, batch.failures, batch.clock)
        except Exception:
            result = traceback.format_exc()
        connection.send(result)


def _tell_in(status: mmap.mmap) -> Callable[[str, str], None]:
    """A function that leaves the instance at hand where the parent finds it if this process dies."""

    def tell(dataset: str, instance: str) -> None:
        text = f"{dataset}\0{instance}".encode()[: _STATUS_BYTES - 4]
        status[:4] = (0).to_bytes(4, "little")
        status[4 : 4 + len(text)] = text
        status[:4] = len(text).to_bytes(4, "little")

    return tell
