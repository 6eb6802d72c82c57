"""`train_<stem>` for each `configs/train/<stem>.json`."""

from typing import Any

import dagster as dg

from moge_pipeline.catalog import Catalog, TrainingEntry
from moge_pipeline.defs.conditions import on_new_data
from moge_pipeline.defs.errors import usable
from moge_pipeline.defs.references import trained_asset
from moge_pipeline.defs.training.execution import run_training
from moge_pipeline.defs.training.run_config import TrainingRunConfig


def training_asset(entry: TrainingEntry, catalog: Catalog) -> dg.AssetsDefinition:
    """The asset of one training configuration, downstream of exactly the indexes that it reads."""

    @trained_asset(
        entry,
        name=entry.asset_name,
        deps=[dg.AssetKey(["index", slug]) for slug in entry.datasets],
        group="training",
        automation_condition=_automation(entry),
        description=_description(entry),
    )
    def train(
        context: dg.AssetExecutionContext,
        config: TrainingRunConfig,
        launcher: dg.ResourceParam[Any],
        mlflow: dg.ResourceParam[Any],
    ) -> dg.MaterializeResult[Any]:
        train_config = usable(entry.config, entry.error)
        return run_training(context, config, train_config, catalog, launcher, mlflow)

    return train


def _automation(entry: TrainingEntry) -> dg.AutomationCondition[Any] | None:
    """Trainings wait to be started, except where their configuration says that new data starts them."""
    if entry.config is None or entry.config.automation != "new_data":
        return None
    return on_new_data() & ~dg.AutomationCondition.any_deps_missing()


def problem(error: Exception | None) -> str:
    """How a description shows that a configuration cannot be used."""
    return f"**This configuration cannot be used.** {error}" if error is not None else ""


def _description(entry: TrainingEntry) -> str:
    lines = [problem(entry.error)]
    if entry.config is not None:
        lines.append(
            f"A MoGe {entry.config.model_version} model ({entry.config.model.get('encoder', 'custom encoder')}) as"
            f" `configs/train/{entry.source.name}` has it. Each run has a folder `workspace/{entry.asset_name}/<n>`"
            " with its checkpoints, metrics and pictures; an unfinished run is continued unless `resume` says no."
        )
    return "\n\n".join(filter(None, lines))
