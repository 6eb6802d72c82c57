"""`finetune_<stem>` for each `configs/finetune/<stem>.json`, and external assets for bases that are made elsewhere."""

from typing import Any

import dagster as dg

from moge_pipeline.catalog import Catalog, FinetuneEntry
from moge_pipeline.defs.errors import mendable_errors, usable
from moge_pipeline.defs.finetuning.base import FinetuneRunConfig, Start, continues_other_data, resolve_start
from moge_pipeline.defs.references import trained_asset
from moge_pipeline.defs.training.assets import problem
from moge_pipeline.defs.training.execution import run_training


def finetuning_asset(entry: FinetuneEntry, catalog: Catalog) -> dg.AssetsDefinition:
    """The asset of one finetuning, downstream of its datasets' indexes and of its base."""
    base = base_key(entry)

    @trained_asset(
        entry,
        name=entry.asset_name,
        deps=[*(dg.AssetKey(["index", slug]) for slug in entry.datasets), *([base] if base is not None else [])],
        group="finetuning",
        description=_description(entry),
    )
    def finetune(
        context: dg.AssetExecutionContext,
        config: FinetuneRunConfig,
        launcher: dg.ResourceParam[Any],
        mlflow: dg.ResourceParam[Any],
    ) -> dg.MaterializeResult[Any]:
        train_config = usable(entry.train_config, entry.error)
        launch = config
        with mendable_errors():
            start = resolve_start(entry, catalog, config.start)
            unattended = config.start is Start.previous and config.resume == "auto"
            if unattended and continues_other_data(entry, catalog, train_config):
                context.log.info("The data has changed since the unfinished run began; beginning a new one.")
                launch = config.model_copy(update={"resume": "never"})
        return run_training(context, launch, train_config, catalog, launcher, mlflow, start)

    return finetune


def base_key(entry: FinetuneEntry) -> dg.AssetKey | None:
    """Asset of the checkpoint that the finetuning begins with."""
    if entry.base_asset is not None:
        return dg.AssetKey([entry.base_asset])
    return dg.AssetKey(["checkpoint", entry.base_slug]) if entry.base_slug is not None else None


def checkpoint_specs(catalog: Catalog) -> list[dg.AssetSpec]:
    """External assets for the bases that are files or hub repositories."""
    named = {
        entry.base_slug: entry.config.base for entry in catalog.finetunes.values() if entry.base_slug and entry.config
    }
    return [
        dg.AssetSpec(
            ["checkpoint", slug],
            group_name="finetuning",
            kinds={"pytorch"},
            description=f"Checkpoint `{base}`, made elsewhere: a file of the project's folder or a hub repository.",
        )
        for slug, base in named.items()
    ]


def _description(entry: FinetuneEntry) -> str:
    lines = [problem(entry.error)]
    if entry.config is not None:
        overrides = ", ".join(f"`{key}`" for key in sorted(entry.config.overrides))
        exceptions = f", but for {overrides}" if overrides else ""
        lines.append(
            f"`{entry.config.base}` finetuned as `{entry.config.config}` says{exceptions}"
            f" (`configs/finetune/{entry.source.name}`). Each run has a folder `workspace/{entry.asset_name}/<n>`;"
            " its checkpoints name their parent."
        )
        if entry.config.schedule is not None:
            state = "on by default" if entry.config.schedule.enabled else "off until you turn it on"
            lines.append(
                f"Schedule: `{entry.config.schedule.cron}` ({entry.config.schedule.timezone}), {state}; it runs when"
                " data, base or configuration have changed, and begins with the previous result."
            )
    return "\n\n".join(filter(None, lines))
