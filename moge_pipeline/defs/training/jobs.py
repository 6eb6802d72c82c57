"""A job per training and finetuning, to launch and to schedule it by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


def job_of(asset_name: str) -> UnresolvedAssetJobDefinition:
    """`<asset_name>_job`: materializes that asset, and nothing else."""
    return dg.define_asset_job(f"{asset_name}_job", selection=[asset_name], description=f"Runs {asset_name} alone.")
