"""Which checkpoint a finetuning begins with, decided when it runs.

Finetunings of one asset form lines: the first of a line begins with the configured base, each further one, if it is
asked to, with the finished result of the one before. A base that changes begins a new line.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import Field

from moge_core.errors import CheckpointError, WeightsError
from moge_core.io import file_digest
from moge_core.training import (
    CheckpointInfo,
    TrainConfig,
    Workspace,
    check_training_inputs,
    choose_workspace,
    finished_workspaces,
)
from moge_pipeline.catalog import Catalog, FinetuneEntry
from moge_pipeline.defs.errors import never_finished
from moge_pipeline.defs.training.execution import BaseCheckpoint, read_base_record
from moge_pipeline.defs.training.run_config import TrainingRunConfig

BASE_SHA256 = "base_sha256"
"""In a materialization's metadata and a workspace's `base.json`: digest of the base that the line began with."""


class Start(Enum):
    """What a new workspace of a finetuning begins with."""

    base = "base"
    previous = "previous"


class FinetuneRunConfig(TrainingRunConfig):
    """Flags left out keep the configuration file's `run` section, or else the published defaults."""

    start: Start = Field(
        Start.base,
        description="What a new workspace begins with: the configured `base`, or the `previous` finished result of"
        " this finetuning, as schedules do; where there is none, or the base has changed since, `previous` begins"
        " with the base as well.",
    )


@dataclass(frozen=True)
class LineStart(BaseCheckpoint):
    """The checkpoint that a finetuning begins with, and the digest of the base that its line began with."""

    base_sha256: str = ""

    @property
    def metadata(self) -> dict[str, Any]:
        """See `BaseCheckpoint.metadata`."""
        return {**super().metadata, BASE_SHA256: self.base_sha256}

    @property
    def record(self) -> dict[str, Any]:
        """See `BaseCheckpoint.record`."""
        return {**super().record, BASE_SHA256: self.base_sha256}


def resolve_start(entry: FinetuneEntry, catalog: Catalog, start: Start = Start.base) -> LineStart:
    """The configured base, or the result to go on from.

    Raises:
        MoGeError: as `resolve_base`.
    """
    base = resolve_base(entry, catalog)
    previous = _previous_result(entry, catalog, base) if start is Start.previous else None
    return previous or LineStart(base.path, base.sha256, base.step, base.sha256)


def resolve_base(entry: FinetuneEntry, catalog: Catalog, *, download: bool = True) -> BaseCheckpoint:
    """The newest checkpoint of the base asset, the file that the configuration names, or one from the hub.

    The digest is the one that a manifest recorded; any other file is hashed once for each size and time of writing.
    Without `download` a hub repository counts as it was last downloaded.

    Raises:
        MoGeError: there is none; says where it was looked for and how to get one.
    """
    assert entry.config is not None
    if entry.base_asset is not None:
        return _as_base(_newest_of(entry.base_asset, catalog))
    path = catalog.root / entry.config.base
    if not path.is_file():
        path = _from_hub(entry, download=download)
    return BaseCheckpoint(path.absolute(), digest_of_file(path))


def continues_other_data(entry: FinetuneEntry, catalog: Catalog, config: TrainConfig) -> bool:
    """Whether `resume` `auto` would go on with a workspace that was trained on data that has changed since.

    A training refuses that, which suits a person, who can decide; a scheduled one begins anew instead.

    Raises:
        MoGeError: a dataset or its index is not there.
    """
    choice = choose_workspace(catalog.workspace_dir / entry.asset_name, config, "auto")
    checkpoint = Workspace(choice.path).latest_checkpoint() if choice.resumes else None
    if checkpoint is None:
        return False
    before = {dataset["name"]: dataset["digest"] for dataset in checkpoint.manifest.get("datasets", [])}
    now = {dataset.name: dataset.digest for dataset in check_training_inputs(config)}
    return any(before.get(name, digest) != digest for name, digest in now.items())


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file, read again only when its size or time of writing has changed."""
    stat = path.stat()
    return _hashed(os.fspath(path.absolute()), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _hashed(path: str, size: int, mtime_ns: int) -> str:
    return file_digest(path)


def _previous_result(entry: FinetuneEntry, catalog: Catalog, base: BaseCheckpoint) -> LineStart | None:
    """The newest finished result of this finetuning, if its line began with this base."""
    for workspace in finished_workspaces(catalog.workspace_dir / entry.asset_name):
        checkpoint = workspace.latest_checkpoint()
        if checkpoint is None:
            continue
        if _line_of(workspace) != base.sha256:
            return None
        previous = _as_base(checkpoint)
        return LineStart(previous.path, previous.sha256, previous.step, base.sha256)
    return None


def _line_of(workspace: Workspace) -> str | None:
    """Digest of the base that the line of a workspace began with; None for one that no asset made."""
    began_with = read_base_record(workspace)
    return None if began_with is None else str(began_with.get(BASE_SHA256) or began_with["sha256"])


def _newest_of(asset_name: str, catalog: Catalog) -> CheckpointInfo:
    root = catalog.workspace_dir / asset_name
    for workspace in finished_workspaces(root):
        checkpoint = workspace.latest_checkpoint()
        if checkpoint is not None:
            return checkpoint
    raise never_finished(root, asset_name, "to begin with")


def _as_base(checkpoint: CheckpointInfo) -> BaseCheckpoint:
    return BaseCheckpoint(checkpoint.model_path.absolute(), _digest(checkpoint), checkpoint.step)


def _digest(checkpoint: CheckpointInfo) -> str:
    """The digest that the manifest recorded while the file was written, sparing a second reading."""
    return checkpoint.recorded_digest(checkpoint.model_path) or digest_of_file(checkpoint.model_path)


def _from_hub(entry: FinetuneEntry, *, download: bool) -> Path:
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
        return Path(hf_hub_download(base, "model.pt", local_files_only=not download))
    except Exception as error:  # offline, unknown repository and refused access each have a kind of their own
        raise WeightsError(
            where,
            f"needs model.pt of the hub repository {base}",
            found=error,
            fix="Connect to the hub, or download the file and name its path.",
        ) from error
