"""Which checkpoint a finetuning begins with, decided when it runs."""

from __future__ import annotations

from pathlib import Path

from moge_core.errors import CheckpointError, WeightsError, WorkspaceError
from moge_core.io import file_digest
from moge_core.training import CheckpointInfo, finished_workspaces
from moge_pipeline.catalog import Catalog, FinetuneEntry
from moge_pipeline.defs.training.execution import BaseCheckpoint


def resolve_base(entry: FinetuneEntry, catalog: Catalog) -> BaseCheckpoint:
    """The newest checkpoint of the base asset, the file that the configuration names, or one from the hub.

    Raises:
        MoGeError: there is none; says where it was looked for and how to get one.
    """
    assert entry.config is not None
    if entry.base_asset is not None:
        checkpoint = _newest_of(entry.base_asset, catalog)
        return BaseCheckpoint(checkpoint.model_path.absolute(), _digest(checkpoint), checkpoint.step)
    path = catalog.root / entry.config.base
    if not path.is_file():
        path = _download(entry)
    return BaseCheckpoint(path.absolute(), file_digest(path))


def _newest_of(asset_name: str, catalog: Catalog) -> CheckpointInfo:
    root = catalog.workspace_dir / asset_name
    for workspace in finished_workspaces(root):
        checkpoint = workspace.latest_checkpoint()
        if checkpoint is not None:
            return checkpoint
    raise WorkspaceError(
        root,
        f"needs a finished run of {asset_name} to begin with",
        found="none",
        fix=f"Materialize it first: `dagster asset materialize --select {asset_name}`.",
    )


def _digest(checkpoint: CheckpointInfo) -> str:
    """The digest that the manifest recorded while the file was written, sparing a second reading."""
    recorded = checkpoint.manifest.get("files", {}).get(checkpoint.model_path.name, {}).get("sha256")
    return str(recorded) if recorded else file_digest(checkpoint.model_path)


def _download(entry: FinetuneEntry) -> Path:
    """The checkpoint of a hub repository such as `Ruicheng/moge-vitl`."""
    assert entry.config is not None
    base, where = entry.config.base, f"{entry.source}: base"
    if base.count("/") != 1 or base.endswith((".pt", ".pth", ".safetensors")):
        raise CheckpointError(
            where,
            "must be a checkpoint file, a hub repository or the name of an asset",
            found=f"{base}, which does not exist",
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(base, "model.pt"))
    except Exception as error:  # offline, unknown repository and refused access each have a kind of their own
        raise WeightsError(
            where,
            f"needs model.pt of the hub repository {base}",
            found=error,
            fix="Connect to the hub, or download the file and name its path.",
        ) from error
