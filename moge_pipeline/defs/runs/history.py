"""What the instance remembers: runs under way, why a run has failed, what an asset was last made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dataclass(frozen=True)
class StepFailure:
    """One step of a run that failed.

    Attributes:
        step: its key.
        text: what it said, in one or a few sentences.
        mendable: whether a person has to mend something before it can succeed: it was refused, and did not just end
            early.
    """

    step: str
    text: str
    mendable: bool


def failures_of(instance: dg.DagsterInstance, run_id: str) -> list[StepFailure]:
    """The steps of a run that failed, in the order of their failing; none for a run whose process was lost."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
    return [_failure(event) for record in records if (event := record.event_log_entry.dagster_event) is not None]


def unfinished_run_of(
    instance: dg.DagsterInstance, asset_key: dg.AssetKey, job_names: Collection[str]
) -> dg.DagsterRun | None:
    """A run that is queued or under way, of one of these jobs or with this asset in its selection."""
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        if run.job_name in job_names or asset_key in (run.asset_selection or ()):
            return run
    return None


def latest_metadata(instance: dg.DagsterInstance, key: dg.AssetKey) -> Mapping[str, Any] | None:
    """Metadata of an asset's newest materialization as plain values; None if there is none."""
    newest = newest_materialization(instance, key)
    materialization = newest.asset_materialization if newest is not None else None
    return None if materialization is None else {name: each.value for name, each in materialization.metadata.items()}


def newest_materialization(instance: dg.DagsterInstance, key: dg.AssetKey) -> dg.EventLogRecord | None:
    """Record of an asset's newest materialization; later ones have greater `storage_id`s."""
    return next(iter(instance.fetch_materializations(key, limit=1).records), None)


def _failure(event: dg.DagsterEvent) -> StepFailure:
    step, data = event.step_key or "the run", event.step_failure_data
    told, error = data.user_failure_data, data.error
    if told is not None:
        # A training that may go on from its last checkpoint says so; every other `dg.Failure` is a refusal.
        resumable = told.metadata.get("resumable")
        return StepFailure(step, told.description or told.label, not (resumable is not None and resumable.value))
    if error is None:
        return StepFailure(step, event.message or "no reason was told", False)
    # Steps wrap the error of the code that they ran.
    innermost = error
    while innermost.cause is not None:
        innermost = innermost.cause
    text = innermost.message.strip()
    return StepFailure(step, text, innermost.cls_name == "DagsterAssetCheckFailedError")


def shortened(text: str, limit: int = 400) -> str:
    """`text` in one line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
