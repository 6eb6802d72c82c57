"""What the manifest beside a checkpoint says, read with suspicion: it may be old, damaged or of somebody else.

Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from moge_core.configuration import load_json, parse_as
from moge_core.datasets.layout import DEPTH_NAME
from moge_core.errors import CheckpointError, ConfigError
from moge_core.training.provenance import LaunchRecord

_STEP_FILE = re.compile(r"(\d{8,})(_ema|_optimizer)?\.pt")


def _plain_name(name: str) -> str:
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        raise ValueError("must be the name of a file beside the manifest")
    return name


class _Record(BaseModel):
    # What a later version adds is no mistake.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, AfterValidator(_plain_name)]


PathText = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]+$")]


class FileRecord(_Record):
    """Size in bytes and digest of a file."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class DatasetRecord(_Record):
    """A dataset as the training found it; `depth` is None in manifests that do not tell."""

    name: str
    path: PathText
    index_path: PathText
    digest: str
    num_instances: int
    depth: str | None = None


class ParentRecord(_Record):
    """The checkpoint that a training began with; its step where that was known."""

    path: PathText
    sha256: Sha256
    step: int | None = None


class EarlierRecord(_Record):
    """What a training was trained with until a resume changed it."""

    until_step: int | None = None
    config_digest: str | None = None
    datasets: Annotated[list[DatasetRecord], Field(max_length=1000)] = Field(default_factory=list)
    seed: int | None = None
    batch_size_total: int | None = None
    held_out: str | None = None


class CheckpointManifest(_Record):
    """The manifest of one step. Everything but step and files may be missing in one of an older version."""

    step: Annotated[int, Field(ge=0)]
    files: dict[FileName, FileRecord]
    time: str | None = None
    code_version: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    config_digest: str | None = None
    config: dict[str, Any] | None = None
    datasets: Annotated[list[DatasetRecord], Field(max_length=1000)] = Field(default_factory=list)
    earlier: Annotated[list[EarlierRecord], Field(max_length=1000)] = Field(default_factory=list)
    parent: ParentRecord | None = None
    launch: LaunchRecord | None = None
    seed: int | None = None
    batch_size_total: int | None = None
    held_out: str | None = None
    held_out_rule: int | None = None
    held_out_how: list[str] = Field(default_factory=list)


def manifest_path_of(checkpoint: Path) -> Path | None:
    """The manifest beside a file of a checkpoint, None where there is none."""
    match = _STEP_FILE.fullmatch(checkpoint.name)
    path = checkpoint.with_name(f"{match[1]}.json") if match else None
    return path if path is not None and is_file(path) else None


def is_file(path: Path) -> bool:
    """Whether a path that somebody recorded is a file; no path at all is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or one with a zero byte
        return False


def read_checkpoint_manifest(path: Path) -> CheckpointManifest:
    """Read the manifest at `path`.

    Raises:
        CheckpointError: it is missing, larger than 16 MiB, no JSON, or a key is not what it should be.
    """
    try:
        return parse_as(CheckpointManifest, load_json(path), where=path)
    except ConfigError as error:
        raise CheckpointError(
            error.where, error.rule, found=error.found, fix="The manifest is damaged, or not one of this package."
        ) from error


def depth_name_of(dataset: DatasetRecord, config: Mapping[str, Any] | None) -> str:
    """File name of the depth maps that a dataset was trained with, from its record or else the configuration."""
    return dataset.depth or str(dataset_entry(dataset.name, config).get("depth", DEPTH_NAME))


def dataset_entry(name: str, config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The entry of a dataset in a configuration that may hold anything; empty where there is none."""
    data = (config or {}).get("data")
    entries = data.get("datasets") if isinstance(data, Mapping) else None
    found = [each for each in entries or [] if isinstance(each, Mapping) and each.get("name") == name]
    return found[0] if found else {}
