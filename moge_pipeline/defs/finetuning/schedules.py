"""The schedule that a finetuning's configuration asks for: a tick requests a run only where that changes something.

What a tick decides comes from three places: the folders, files and configurations as they are (`inputs.py`), what the
newest materializations say they were made from, and how the runs that former ticks requested have ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import TYPE_CHECKING

import dagster as dg

from moge_core.errors import MoGeError
from moge_core.training import Workspace
from moge_pipeline.catalog import Catalog, FinetuneEntry, evaluation_name, slug_of
from moge_pipeline.defs.datasets.assets import index_key
from moge_pipeline.defs.finetuning.base import Start
from moge_pipeline.defs.finetuning.inputs import current_inputs, is_evaluated, reread, used_datasets, what_changed
from moge_pipeline.defs.runs.history import failures_of, shortened, unfinished_run_of
from moge_pipeline.defs.training.jobs import refresh_job, run_config_of

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

INPUTS_TAG, REQUEST_TAG, REASON_TAG, PROGRESS_TAG = "moge/inputs", "moge/request", "moge/reason", "moge/progress"
MAX_ATTEMPTS = 3
"""Runs in a row that may end early with the same inputs and without a new checkpoint, before a schedule gives up."""

_PREVIOUS = {"start": Start.previous.value}


def finetuning_refresh_job(entry: FinetuneEntry) -> UnresolvedAssetJobDefinition:
    """The job of a finetuning's schedule: its indexes with their checks, the finetuning, its evaluation."""
    indexes = [index_key(slug) for slug in entry.datasets]
    if entry.train_config is not None:
        indexes = [index_key(slug_of(dataset.name)) for dataset in used_datasets(entry)]
    return refresh_job(entry.asset_name, indexes, _PREVIOUS)


def finetuning_schedule(
    entry: FinetuneEntry, catalog: Catalog, job: UnresolvedAssetJobDefinition
) -> dg.ScheduleDefinition | None:
    """`<asset>_schedule` from the configuration's `schedule`; it runs by itself only where `enabled` says so.

    Args:
        entry: the finetuning.
        catalog: what it belongs to.
        job: what `finetuning_refresh_job` made.
    """
    if entry.error is not None or entry.config is None or entry.config.schedule is None:
        return None
    schedule = entry.config.schedule

    def tick(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        return decide(context.instance, entry, catalog, job.name)

    return dg.ScheduleDefinition(
        name=f"{entry.asset_name}_schedule",
        job=job,
        execution_fn=tick,
        cron_schedule=schedule.cron,
        execution_timezone=schedule.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING if schedule.enabled else dg.DefaultScheduleStatus.STOPPED,
        description=f"Re-indexes, checks, finetunes and evaluates as `configs/finetune/{entry.source.name}` says, when"
        " data, base or configuration have changed since the newest result. Every tick that does not says why.",
    )


def decide(
    instance: dg.DagsterInstance, entry: FinetuneEntry, catalog: Catalog, job_name: str
) -> dg.RunRequest | dg.SkipReason:
    """What a tick does now: request a run, or say why not. Never raises for what a user can mend."""
    asset_name, evaluation = entry.asset_name, evaluation_name(entry.asset_name)
    running = unfinished_run_of(instance, dg.AssetKey(asset_name), {job_name, f"{asset_name}_job"})
    if running is not None:
        return dg.SkipReason(f"Run {running.run_id} of this finetuning has not ended yet.")
    try:
        entry = reread(entry, catalog)
        inputs = current_inputs(entry, catalog)
    except (MoGeError, OSError) as error:
        return dg.SkipReason(f"Cannot run yet. {error}")
    changed = what_changed(instance, entry, inputs)
    if not changed and is_evaluated(instance, asset_name, evaluation):
        return dg.SkipReason("Neither data, base nor configuration have changed since the newest result.")
    request = "finetune" if changed else "evaluate"
    tags = {
        INPUTS_TAG: inputs.digest(),
        REQUEST_TAG: request,
        REASON_TAG: f"changed: {', '.join(changed)}" if changed else "the newest result has not been evaluated",
        PROGRESS_TAG: _progress(catalog, asset_name),
    }
    refusal = _refusal(instance, job_name, tags)
    if refusal is not None:
        return dg.SkipReason(refusal)
    if changed:
        return dg.RunRequest(run_config=run_config_of(asset_name, _PREVIOUS), tags=tags)
    return dg.RunRequest(asset_selection=[dg.AssetKey(evaluation)], tags=tags)


def _refusal(instance: dg.DagsterInstance, job_name: str, tags: Mapping[str, str]) -> str | None:
    """Why the same request is not made again, from how it ended before; None when it may be.

    A run that was refused (bad data, a missing file, non-finite losses) would be refused again. One that merely ended
    early (killed, preempted, cancelled, a lost machine) is gone on with, as long as its attempts get any further. A
    run that somebody launches by hand lifts this.
    """
    last_runs = instance.get_runs(dg.RunsFilter(job_name=job_name), limit=MAX_ATTEMPTS)
    same = list(takewhile(lambda run: _asks_the_same(run, tags), last_runs))
    if not same or same[0].status == dg.DagsterRunStatus.CANCELED:
        return None
    last = same[0]
    if last.status == dg.DagsterRunStatus.SUCCESS:
        return f"Run {last.run_id} has succeeded with these inputs ({tags[REASON_TAG]})."
    mendable = [failure for failure in failures_of(instance, last.run_id) if failure.mendable]
    by_hand = f"Change the data, base or configuration, or launch {job_name} by hand once the cause is mended."
    if mendable:
        told = "; ".join(f"{failure.step}: {failure.text}" for failure in mendable)
        return f"Run {last.run_id} failed with these inputs: {shortened(told)} {by_hand}"
    idle = [run for run in same if run.tags.get(PROGRESS_TAG) == tags[PROGRESS_TAG]]
    if len(idle) >= MAX_ATTEMPTS and all(run.status == dg.DagsterRunStatus.FAILURE for run in idle):
        return f"{len(idle)} runs in a row ended early without a new checkpoint, the last was {last.run_id}. {by_hand}"
    return None


def _asks_the_same(run: dg.DagsterRun, tags: Mapping[str, str]) -> bool:
    return all(run.tags.get(name) == tags[name] for name in (INPUTS_TAG, REQUEST_TAG))


def _progress(catalog: Catalog, asset_name: str) -> str:
    """The newest workspace and step: differs after an attempt that left a checkpoint."""
    root = catalog.workspace_dir / asset_name
    numbers = sorted((int(path.name) for path in root.glob("*") if path.name.isdigit()), reverse=True)
    checkpoint = Workspace(root / str(numbers[0])).latest_checkpoint() if numbers else None
    return f"{numbers[0] if checkpoint else 0}:{checkpoint.step if checkpoint else -1}"
