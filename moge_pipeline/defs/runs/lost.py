"""Runs whose worker is gone get their true ending, and processes whose run is over come to their end.

A killed worker tells nobody: its run stays STARTED, its place in the pool taken, its MLflow run RUNNING. To declare a
run lost that is alive would be worse, so a run is lost only when it names its worker, this very machine is where that
worker ran, the process is gone, and no process of the run is left to save a checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import dagster as dg
import psutil

from moge_pipeline.defs.resources.launchers import LAUNCH_TAG, end_abandoned_launch
from moge_pipeline.defs.resources.tracking import TRACKING_CLOSED, TRACKING_OPEN, TRACKING_TAG, TRACKING_URI_TAG
from moge_pipeline.defs.runs.endings import close_runs
from moge_pipeline.defs.runs.worker import Presence, Worker, processes_of
from moge_pipeline.process_tree import MARK

logger = logging.getLogger(__name__)

SECONDS_TO_OBEY = 15.0
"""How long a worker has to end by itself, once its run is over or cancelled."""
SECONDS_UNTIL_SETTLED = 3600.0
"""When the MLflow runs of another machine's run are closed from here: its own reaper comes first."""

_ACTIVE = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_OVER = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


class Outcome(Enum):
    """What became of a lost run."""

    FAILED = "failed"
    CANCELED = "canceled"
    ENDING = "ending"


@dataclass(frozen=True)
class LostRun:
    """A run whose worker is gone. ENDING: something of it still runs, so that it is looked at again later."""

    run_id: str
    outcome: Outcome


def reap_lost_runs(
    instance: dg.DagsterInstance, end_launch: Callable[[Mapping[str, Any]], None] = end_abandoned_launch
) -> list[LostRun]:
    """Record the true ending of lost runs, free their places in pools, and close their MLflow runs.

    Args:
        instance: whose runs are looked at.
        end_launch: ends what a run has on a cluster, as its tag `moge/launch` describes it. While that fails, the run
            stays as it is.

    Returns:
        the lost runs, those that are not yet over included.
    """
    lost = []
    for run in instance.get_runs(dg.RunsFilter(statuses=_ACTIVE)):
        worker = Worker.of_run(run)
        if worker is not None and worker.presence() is Presence.GONE:
            lost.append(LostRun(run.run_id, _end(instance, run, worker, end_launch)))
    _free_slots(instance)
    _close_tracking(instance)
    return lost


def end_unwanted_processes(instance: dg.DagsterInstance) -> list[str]:
    """Ask workers on this machine to end whose run is cancelled or over, and that have not ended by themselves.

    A cancellation does not reach a worker whose code server was killed, and Dagster declares a run over that has
    exceeded its maximum runtime, or is cancelled by force, without asking the worker where a command line started it.

    Returns:
        the ids of their runs.
    """
    asked = []
    for run_id in _runs_with_processes():
        record = instance.get_run_record_by_id(run_id)
        if record is None:
            continue  # of another instance
        run, since = record.dagster_run, time.time() - record.update_timestamp.timestamp()
        unwanted = run.status in (dg.DagsterRunStatus.CANCELING, *_OVER)
        worker = Worker.of_run(run)
        if unwanted and since > SECONDS_TO_OBEY and worker is not None and worker.presence() is Presence.HERE:
            logger.warning("Run %s is %s; asking its worker %d to end", run_id, run.status.value, worker.pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(worker.pid, signal.SIGTERM)
            asked.append(run_id)
    return asked


def _end(
    instance: dg.DagsterInstance, run: dg.DagsterRun, worker: Worker, end_launch: Callable[[Mapping[str, Any]], None]
) -> Outcome:
    if processes_of(run.run_id):
        return Outcome.ENDING
    record = run.tags.get(LAUNCH_TAG)
    if record:
        try:
            end_launch(json.loads(record))
        except Exception as error:  # a cluster that does not answer is asked again
            logger.warning("The launch %s of the lost run %s could not be ended: %s", record, run.run_id, error)
            return Outcome.ENDING
    now = instance.get_run_by_id(run.run_id)
    if now is None or now.is_finished or Worker.of_run(now) != worker:
        return Outcome.ENDING  # someone else was faster
    text = f"Its worker, process {worker.pid} of {worker.host}, is gone: it was killed, or the machine went down."
    if now.status is dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(now, f"The run was cancelled. {text}")
        return Outcome.CANCELED
    instance.report_run_failed(now, text)
    return Outcome.FAILED


def _free_slots(instance: dg.DagsterInstance) -> None:
    """Free the places in pools of runs that are over and have left no process; Dagster frees them late or never."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    for run in _runs(instance, storage.get_concurrency_run_ids()):
        worker = Worker.of_run(run)
        is_gone = worker is not None and worker.presence() is Presence.GONE
        if run.is_finished and is_gone and not processes_of(run.run_id):
            storage.free_concurrency_slots_for_run(run.run_id)


def _close_tracking(instance: dg.DagsterInstance) -> None:
    """Close the MLflow runs that a killed step left open; a store that is down is asked once."""
    unanswered: set[str] = set()
    for record in instance.get_run_records(dg.RunsFilter(statuses=_OVER, tags={TRACKING_TAG: TRACKING_OPEN})):
        run, uri = record.dagster_run, record.dagster_run.tags.get(TRACKING_URI_TAG, "")
        worker = Worker.of_run(run)
        presence = worker.presence() if worker is not None else Presence.UNKNOWN
        is_old = time.time() - record.update_timestamp.timestamp() > SECONDS_UNTIL_SETTLED
        if presence is Presence.HERE or (presence is Presence.UNKNOWN and not is_old) or processes_of(run.run_id):
            continue
        if uri not in unanswered:
            if close_runs(uri, run.run_id):
                instance.add_run_tags(run.run_id, {TRACKING_TAG: TRACKING_CLOSED})
            else:
                unanswered.add(uri)


def _runs(instance: dg.DagsterInstance, run_ids: Iterable[str]) -> list[dg.DagsterRun]:
    ids = sorted(run_ids)
    return list(instance.get_runs(dg.RunsFilter(run_ids=ids))) if ids else []


def _runs_with_processes() -> set[str]:
    """Runs, of any instance, that have a process on this machine."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            marks = process.environ().get(MARK, "").split(":")
            found |= {mark.removeprefix("run-") for mark in marks if mark.startswith("run-")}
    return found
