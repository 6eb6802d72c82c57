"""Who answers for an asset, and where what it does is written."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from moge_pipeline.catalog import Catalog, DatasetEntry, FinetuneEntry, TrainingEntry

GPU_POOL = "gpu"
"""The pool of what uses a device: how many of them run at a time."""


def owners_of(entry: TrainingEntry | FinetuneEntry) -> list[str]:
    """The owners that a configuration names."""
    config = entry.config if isinstance(entry, TrainingEntry) else entry.train_config
    return list(config.owners) if config is not None else []


def owners_of_dataset(entry: DatasetEntry, catalog: Catalog) -> list[str]:
    """The owners of all configurations that use a dataset."""
    users: Mapping[str, TrainingEntry | FinetuneEntry] = {**catalog.trainings, **catalog.finetunes}
    return list(dict.fromkeys(owner for name in entry.used_by for owner in owners_of(users[name])))


def trained_asset(
    entry: TrainingEntry | FinetuneEntry,
    *,
    name: str,
    group: str,
    deps: Sequence[dg.AssetKey],
    description: str,
    check_specs: Sequence[dg.AssetCheckSpec] = (),
    automation_condition: dg.AutomationCondition[Any] | None = None,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """As `dg.asset`, for what uses a device and leaves a run in MLflow."""
    return dg.asset(
        name=name,
        group_name=group,
        deps=deps,
        description=description,
        check_specs=check_specs or None,
        automation_condition=automation_condition,
        kinds={"pytorch", "mlflow"},
        pool=GPU_POOL,
        owners=owners_of(entry),
        metadata=code_references(entry.source),
    )


def code_references(source: Path) -> dict[str, Any]:
    """Metadata by which the user interface opens the configuration file of an asset."""
    with beta_features():
        reference = dg.LocalFileCodeReference(file_path=str(source), line_number=1, label=source.name)
        return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[reference])}


def with_code(assets: list[Any]) -> list[Any]:
    """The same assets, each with a link to the function that makes it, beside that to its configuration."""
    with beta_features():
        return list(dg.with_source_code_references(assets))


@contextlib.contextmanager
def beta_features() -> Iterator[None]:
    """Use what Dagster calls beta without its note of that, which every asset would print."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        yield
