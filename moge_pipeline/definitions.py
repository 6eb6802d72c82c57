"""The entry point of the Dagster project: everything that `configs/` describes, as assets, jobs and schedules.

dagster dev
dagster asset materialize --select train_sample
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from moge_pipeline.catalog import project_root, read_catalog
from moge_pipeline.defs.datasets.assets import index_asset, raw_asset
from moge_pipeline.defs.finetuning.assets import checkpoint_specs, finetuning_asset
from moge_pipeline.defs.finetuning.schedules import finetuning_schedule
from moge_pipeline.defs.quality.assets import quality_asset
from moge_pipeline.defs.resources.launchers import LocalLauncher
from moge_pipeline.defs.resources.tracking import mlflow_resource
from moge_pipeline.defs.runs.executor import run_executor
from moge_pipeline.defs.runs.sensors import lost_runs
from moge_pipeline.defs.training.assets import training_asset
from moge_pipeline.defs.training.jobs import job_of


def build_definitions(root: Path, resources: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Definitions of the project whose `configs/` folder lies in `root`.

    Args:
        root: the project's folder.
        resources: take the place of the usual `launcher` and `mlflow`.
    """
    catalog = read_catalog(root)
    datasets = catalog.datasets.values()
    trainings = catalog.trainings.values()
    finetunes = catalog.finetunes.values()
    jobs = {name: job_of(name) for name in (*catalog.trainings, *catalog.finetunes)}
    schedules = [finetuning_schedule(entry, jobs[entry.asset_name]) for entry in finetunes]
    return dg.Definitions(
        assets=[
            *(raw_asset(entry) for entry in datasets),
            *(index_asset(entry) for entry in datasets),
            *(quality_asset(entry, catalog) for entry in datasets),
            *(training_asset(entry, catalog) for entry in trainings),
            *(finetuning_asset(entry, catalog) for entry in finetunes),
            *checkpoint_specs(catalog),
        ],
        jobs=list(jobs.values()),
        schedules=[schedule for schedule in schedules if schedule is not None],
        sensors=[lost_runs],
        executor=run_executor,
        resources={"launcher": LocalLauncher(), "mlflow": mlflow_resource, **(resources or {})},
    )


_ROOT = project_root()
if Path.cwd() != _ROOT:
    # Relative dataset paths start at the project's folder, wherever Dagster was started.
    os.environ.setdefault("MOGE_DATA_ROOT", str(_ROOT))

defs = build_definitions(_ROOT)
