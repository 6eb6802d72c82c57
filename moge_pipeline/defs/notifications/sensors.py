"""`run_failures`: tells the notifier of every failed run, also of one that was failed because its process is gone."""

from typing import Any

import dagster as dg

from moge_pipeline.defs.notifications.notifiers import FailureNotice
from moge_pipeline.defs.resources.tracking import dagster_run_url
from moge_pipeline.defs.runs.history import failures_of


def failure_sensor() -> dg.SensorDefinition:
    """The sensor, which runs by itself wherever a daemon does. A run that was cancelled has not failed."""

    @dg.run_failure_sensor(
        name="run_failures",
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells of every failed run: in the log, or where MOGE_NOTIFY_WEBHOOK or MOGE_NOTIFIER says.",
    )
    def run_failures(context: dg.RunFailureSensorContext, notifier: dg.ResourceParam[Any]) -> None:
        notice = notice_of(context.instance, context.dagster_run, context.failure_event.message)
        try:
            notifier.notify(notice, context.log)
        except Exception as error:  # whatever a notifier does, the next failure is told as well
            context.log.error(f"The notifier failed with {type(error).__name__}: {error}. {notice}")  # noqa: TRY400

    return run_failures


def notice_of(instance: dg.DagsterInstance, run: dg.DagsterRun, message: str | None) -> FailureNotice:
    """What is told of a failed run; `message` is the reason of one without a failed step."""
    failures = failures_of(instance, run.run_id)
    reason = "\n".join(f"{failure.step}: {failure.text}" for failure in failures) or message or "no reason was told"
    return FailureNotice(
        run_id=run.run_id,
        job=run.job_name,
        assets=_assets_of(instance, run),
        reason=reason,
        url=dagster_run_url(run.run_id),
        tags=dict(run.tags),
    )


def _assets_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[str]:
    """The assets that a run was to make; a job's runs do not list them, but its plan does."""
    keys = set(run.asset_selection or ())
    if not keys and run.execution_plan_snapshot_id is not None:
        plan = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
        for step in plan.steps:
            for output in step.outputs:
                key = output.properties.asset_key if output.properties is not None else None
                if key is not None:
                    keys.add(key)
    return sorted(key.to_user_string() for key in keys)
