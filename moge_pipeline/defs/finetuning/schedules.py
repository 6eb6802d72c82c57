"""The schedule that a finetuning's configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from moge_pipeline.catalog import FinetuneEntry

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def finetuning_schedule(entry: FinetuneEntry, job: UnresolvedAssetJobDefinition) -> dg.ScheduleDefinition | None:
    """`<asset>_schedule` from the configuration's `schedule`; it runs by itself only where `enabled` says so."""
    if entry.error is not None or entry.config is None or entry.config.schedule is None:
        return None
    schedule = entry.config.schedule

    def tick(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        unfinished = dg.RunsFilter(job_name=job.name, statuses=_UNFINISHED)
        running = context.instance.get_runs(unfinished, limit=1)
        if running:
            return dg.SkipReason(f"Run {running[0].run_id} of this finetuning has not ended yet.")
        return dg.RunRequest()

    return dg.ScheduleDefinition(
        name=f"{entry.asset_name}_schedule",
        job=job,
        execution_fn=tick,
        cron_schedule=schedule.cron,
        execution_timezone=schedule.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING if schedule.enabled else dg.DefaultScheduleStatus.STOPPED,
        description=f"Finetunes as `configs/finetune/{entry.source.name}` says; waits while its last run is under way.",
    )
