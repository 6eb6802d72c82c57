"""Endings in MLflow of runs that nobody was left to close."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from moge_core.training import Workspace
from moge_pipeline.defs.resources.tracking import unreachable_because

logger = logging.getLogger(__name__)

_STATUS = {"failed": "FAILED", "finished": "FINISHED"}


def close_runs(tracking_uri: str, dagster_run_id: str) -> bool:
    """Give the MLflow runs of a Dagster run that is over, and that still look as if they went on, their true ending.

    FAILED where the trainer said that it failed, FINISHED where it said that it finished, else KILLED. Runs that have
    an ending keep it.

    Returns:
        False if the store did not answer; that costs seconds, not MLflow's minutes.
    """
    reason = unreachable_because(tracking_uri)
    if reason is None:
        try:
            _close(tracking_uri, dagster_run_id)
        except Exception as error:  # any failure of the store: it is asked again later
            reason = str(error) or type(error).__name__
    if reason is not None:
        logger.warning("MLflow at %s does not take the endings of run %s: %s", tracking_uri, dagster_run_id, reason)
    return reason is None


def _close(tracking_uri: str, dagster_run_id: str) -> None:
    from moge_core.training.mlflow_tracking import fail_fast

    fail_fast()
    import mlflow

    client = mlflow.MlflowClient(tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments, f"tags.dagster_run_id = '{dagster_run_id}'"):
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, _true_status(run))


def _true_status(run: Any) -> str:
    told = run.data.tags.get("moge.ending", "").partition(":")[0]
    workspace = run.data.tags.get("moge.workspace")
    if not told and workspace and Path(workspace).is_dir():
        status = Workspace(workspace).status()
        told = status.state if status is not None else ""
    return _STATUS.get(told, "KILLED")
