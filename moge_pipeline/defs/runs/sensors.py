"""What a daemon does for runs whose processes were killed."""

from __future__ import annotations

import dagster as dg

from moge_pipeline.defs.runs.lost import Outcome, end_unwanted_processes, reap_lost_runs

SECONDS_BETWEEN_LOOKS = 30


@dg.sensor(
    name="lost_runs",
    minimum_interval_seconds=SECONDS_BETWEEN_LOOKS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Gives runs whose worker was killed their true ending, in Dagster and in MLflow, frees their places in"
    " pools, and ends processes of this machine whose run is over. Runs of other machines are theirs to look after.",
)
def lost_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Look once."""
    lost = reap_lost_runs(context.instance)
    asked = end_unwanted_processes(context.instance)
    over = [f"{run.run_id} ({run.outcome.value})" for run in lost if run.outcome is not Outcome.ENDING]
    ending = [run.run_id for run in lost if run.outcome is Outcome.ENDING]
    said = [
        f"Lost runs: {', '.join(over)}." if over else "",
        f"Lost, with processes that are still ending: {', '.join(ending)}." if ending else "",
        f"Asked to end, because their run is over: {', '.join(asked)}." if asked else "",
    ]
    return dg.SkipReason(" ".join(filter(None, said)) or "No run has lost its worker.")
