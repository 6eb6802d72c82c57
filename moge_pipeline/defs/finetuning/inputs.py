"""What a finetuning would be made from now, and what has changed since it was last made. Cheap: reads no data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import dagster as dg

from moge_core.errors import ConfigError, WeightsError
from moge_core.loading.config import DatasetConfig
from moge_pipeline.catalog import Catalog, FinetuneEntry, read_catalog, slug_of
from moge_pipeline.defs.datasets.assets import index_key
from moge_pipeline.defs.finetuning.base import BASE_SHA256, resolve_base
from moge_pipeline.defs.runs.history import latest_metadata, newest_materialization


@dataclass(frozen=True)
class Inputs:
    """Everything that decides what a finetuning becomes.

    Attributes:
        config: digest of the training configuration with its overrides.
        base: SHA-256 of the base, or the name of a hub repository that has not been downloaded yet.
        data: slug of each dataset -> cheap fingerprint of its folder.
    """

    config: str
    base: str
    data: Mapping[str, str]

    def digest(self) -> str:
        """One name for all of it, the same for the same inputs."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def used_datasets(entry: FinetuneEntry) -> list[DatasetConfig]:
    """The datasets that instances are drawn from: those of weight 0 need not even be there."""
    assert entry.train_config is not None
    return [dataset for dataset in entry.train_config.data.datasets if dataset.weight != 0]


def reread(entry: FinetuneEntry, catalog: Catalog) -> FinetuneEntry:
    """The entry as its file describes it now, which may have been edited since the code location was loaded.

    Raises:
        MoGeError: the file cannot be used, or it names other assets than those that Dagster has loaded.
    """
    now = read_catalog(catalog.root).finetunes.get(entry.asset_name)
    if now is not None and now.error is not None:
        raise now.error
    if now is None or (now.datasets, now.base_asset) != (entry.datasets, entry.base_asset):
        raise ConfigError(
            entry.source,
            "must name the datasets and the base that Dagster has loaded",
            found="no such file" if now is None else "others",
            fix="Reload the code location (Deployment > Reload), or start Dagster again.",
        )
    return now


def current_inputs(entry: FinetuneEntry, catalog: Catalog) -> Inputs:
    """What a run would use if it began now.

    Raises:
        MoGeError: a dataset's folder or the base is not there.
    """
    from moge_core.datasets import dataset_fingerprint

    assert entry.config is not None and entry.train_config is not None
    try:
        base = resolve_base(entry, catalog, download=False).sha256
    except WeightsError:
        base = f"hub:{entry.config.base}"
    data = {slug_of(dataset.name): dataset_fingerprint(dataset.resolved_path()) for dataset in used_datasets(entry)}
    return Inputs(entry.train_config.digest(), base, data)


def what_changed(instance: dg.DagsterInstance, entry: FinetuneEntry, inputs: Inputs) -> list[str]:
    """What differs from the newest result, in words; empty when that is what these inputs would give."""
    made = latest_metadata(instance, dg.AssetKey(entry.asset_name))
    if made is None:
        return ["no result yet"]
    changed = []
    if made.get("config_digest") != inputs.config:
        changed.append("configuration")
    if made.get(BASE_SHA256, made.get("parent_sha256")) != inputs.base:
        changed.append("base")
    trained_on = {(row.data["dataset"], str(row.data["index"])): row.data["digest"] for row in made["datasets"].records}
    for dataset in used_datasets(entry):
        slug = slug_of(dataset.name)
        indexed = latest_metadata(instance, index_key(slug))
        digest = trained_on.get((dataset.name, str(dataset.resolved_path() / dataset.index)))
        # An index that is up to date with its folder tells by its digest whether that is the data of the result.
        up_to_date = indexed is not None and indexed.get("fingerprint") == inputs.data[slug]
        if not up_to_date or digest is None or digest != _digest_of(indexed or {}, dataset):
            changed.append(f"dataset {dataset.name}")
    return changed


def is_evaluated(instance: dg.DagsterInstance, asset_name: str, evaluation: str) -> bool:
    """Whether the newest result has been scored."""
    made, scored = (newest_materialization(instance, dg.AssetKey(name)) for name in (asset_name, evaluation))
    return made is not None and scored is not None and scored.storage_id > made.storage_id


def _digest_of(indexed: Mapping[str, Any], dataset: DatasetConfig) -> str | None:
    """Digest that an index materialization tells of the list that this configuration reads."""
    lists = indexed.get("lists")
    for row in lists.records if lists is not None else ():
        if (row.data["index"], row.data["depth"]) == (dataset.index, dataset.depth):
            return str(row.data["digest"])
    return None
