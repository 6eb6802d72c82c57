"""Jobs of trainings and finetunings, to launch and to schedule them by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from moge_pipeline.catalog import evaluation_name

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

ASSET_TAG = "moge/asset"
"""Tag of every run of these jobs: the training or finetuning that it is about."""


def job_of(asset_name: str) -> UnresolvedAssetJobDefinition:
    """`<asset_name>_job`: materializes that asset, and nothing else."""
    return dg.define_asset_job(
        f"{asset_name}_job",
        selection=[asset_name],
        tags={ASSET_TAG: asset_name},
        description=f"Runs {asset_name} alone: its data is checked, but not indexed anew, and nothing is evaluated.",
    )


def refresh_job(
    asset_name: str, indexes: Sequence[dg.AssetKey], config: dict[str, Any]
) -> UnresolvedAssetJobDefinition:
    """`<asset_name>_refresh_job`: re-indexes the data with its checks, trains, and evaluates, as one run.

    Args:
        asset_name: the training or finetuning.
        indexes: the assets of its datasets' lists; their blocking checks guard the training.
        config: run configuration of `asset_name` where a person launches the job without changing it.
    """
    keys = [*indexes, dg.AssetKey(asset_name), dg.AssetKey(evaluation_name(asset_name))]
    return dg.define_asset_job(
        f"{asset_name}_refresh_job",
        selection=dg.AssetSelection.assets(*keys),
        config=run_config_of(asset_name, config),
        tags={ASSET_TAG: asset_name},
        description=f"Re-indexes and checks the data of {asset_name}, runs it from its previous result, and evaluates.",
    )


def run_config_of(asset_name: str, config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration that configures one asset."""
    return {"ops": {asset_name: {"config": config}}}
