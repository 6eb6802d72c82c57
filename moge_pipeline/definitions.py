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

from moge_core.accelerators import configure_allocator
from moge_pipeline.catalog import project_root, read_catalog
from moge_pipeline.defs.conditions import automation_sensors
from moge_pipeline.defs.datasets.assets import index_asset, raw_asset
from moge_pipeline.defs.datasets.drift import freshness_check
from moge_pipeline.defs.datasets.sensors import dataset_folder_jobs, dataset_folders_sensor
from moge_pipeline.defs.evaluation.assets import evaluation_asset
from moge_pipeline.defs.finetuning.assets import checkpoint_specs, finetuning_asset
from moge_pipeline.defs.finetuning.schedules import finetuning_refresh_job, finetuning_schedule
from moge_pipeline.defs.notifications.notifiers import notifier_resource
from moge_pipeline.defs.notifications.sensors import failure_sensor
from moge_pipeline.defs.quality.assets import quality_asset
from moge_pipeline.defs.references import with_code
from moge_pipeline.defs.resources.launchers import ConfiguredLauncher
from moge_pipeline.defs.resources.tracking import mlflow_resource
from moge_pipeline.defs.runs.executor import run_executor
from moge_pipeline.defs.runs.sensors import lost_runs
from moge_pipeline.defs.training.assets import training_asset
from moge_pipeline.defs.training.jobs import job_of


def build_definitions(root: Path, resources: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Definitions of the project whose `configs/` folder lies in `root`.

    Args:
        root: the project's folder.
        resources: take the place of the usual `launcher`, `mlflow` and `notifier`.
    """
    catalog = read_catalog(root)
    datasets = catalog.datasets.values()
    trainings = catalog.trainings.values()
    finetunes = catalog.finetunes.values()
    jobs = [job_of(name) for name in (*catalog.trainings, *catalog.finetunes)]
    refreshes = {name: finetuning_refresh_job(entry) for name, entry in catalog.finetunes.items()}
    schedules = [finetuning_schedule(entry, catalog, refreshes[name]) for name, entry in catalog.finetunes.items()]
    folder_jobs = dataset_folder_jobs(catalog)
    return dg.Definitions(
        assets=with_code(
            [
                *(raw_asset(entry) for entry in datasets),
                *(index_asset(entry, catalog) for entry in datasets),
                *(quality_asset(entry, catalog) for entry in datasets),
                *(training_asset(entry, catalog) for entry in trainings),
                *(finetuning_asset(entry, catalog) for entry in finetunes),
                *(evaluation_asset(entry, catalog) for entry in catalog.trained),
                *checkpoint_specs(catalog),
            ]
        ),
        asset_checks=[freshness_check(entry) for entry in datasets],
        jobs=[*jobs, *refreshes.values(), *folder_jobs],
        schedules=[schedule for schedule in schedules if schedule is not None],
        sensors=[
            *automation_sensors(catalog),
            dataset_folders_sensor(catalog, folder_jobs),
            failure_sensor(),
            lost_runs,
        ],
        executor=run_executor,
        resources={
            "launcher": ConfiguredLauncher(root),
            "mlflow": mlflow_resource,
            "notifier": notifier_resource,
            **(resources or {}),
        },
    )


_ROOT = project_root()
if Path.cwd() != _ROOT:
    # Relative dataset paths start at the project's folder, wherever Dagster was started.
    os.environ.setdefault("MOGE_DATA_ROOT", str(_ROOT))

# Steps load this module before they import torch, and hand their environment on.
configure_allocator()

defs = build_definitions(_ROOT)
