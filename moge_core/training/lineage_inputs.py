"""What a checkpoint was trained with and on, compared with what lies there now. Imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moge_core.configuration import load_json
from moge_core.datasets import ImportEvent, content_digest, index_digest, names_digest, read_import_log, read_index
from moge_core.datasets.layout import INDEX_NAME, Progress
from moge_core.errors import MoGeError
from moge_core.loading.config import data_root
from moge_core.training.checkpoint_manifest import (
    CheckpointManifest,
    DatasetRecord,
    dataset_entry,
    depth_name_of,
)
from moge_core.training.config import config_digest
from moge_core.training.workspace import Workspace

DatasetState = Literal["unchanged", "verified", "names", "changed", "gone", "unreadable"]
"""Of a dataset: as recorded by what indexing last found; as recorded by its contents; its list as recorded, as its
contents never were, because it was not indexed; otherwise; not there; damaged."""


@dataclass(frozen=True)
class Configuration:
    """The configuration of a training.

    Attributes:
        path: config.json of the workspace; None where that is gone.
        digest: as recorded.
        state: whether the file still has that digest.
        is_in_manifest: whether the manifest holds the configuration itself.
        source: the file that the user trained with, where that is recorded.
        problem: what is not as it was recorded.
    """

    path: Path | None
    digest: str
    state: Literal["unchanged", "changed", "gone"]
    is_in_manifest: bool
    source: str | None
    problem: str | None = None


@dataclass(frozen=True)
class DatasetLink:
    """A dataset of a training.

    Attributes:
        name: as the configuration calls it.
        path: the folder where it was found; where it was, if it is gone.
        index_name: the list.
        depth_name: file name of its depth maps.
        digest: of list and contents, as recorded.
        digest_now: the same as it is now; None where it cannot be had.
        num_instances: as recorded.
        num_instances_now: lines of the list now.
        state: see `DatasetState`.
        moved_from: the recorded folder, where the dataset was found elsewhere.
        imports: where its data came from, oldest first.
        num_damaged_imports: lines of the import log that could not be read.
        problem: what is not as it was recorded.
    """

    name: str
    path: Path
    index_name: str
    depth_name: str
    digest: str
    digest_now: str | None
    num_instances: int
    num_instances_now: int | None
    state: DatasetState
    moved_from: Path | None = None
    imports: tuple[ImportEvent, ...] = ()
    num_damaged_imports: int = 0
    problem: str | None = None


class InputTracer:
    """Compares what was recorded with what is there; each dataset is read once.

    Args:
        verify: read all instances instead of asking what indexing last found.
        progress: called as `progress(done, total)` meanwhile.
    """

    def __init__(self, verify: bool, progress: Progress | None = None) -> None:
        self._verify, self._progress = verify, progress
        self._contents = functools.cache(self._read_contents)

    def configuration(self, manifest: CheckpointManifest, workspace: Path | None) -> Configuration | None:
        """The configuration of a checkpoint; None for manifests that do not tell."""
        digest = manifest.config_digest
        if digest is None:
            return None
        source = manifest.launch.config_source if manifest.launch is not None else None
        is_kept = manifest.config is not None and config_digest(manifest.config) == digest
        path = None if workspace is None else Workspace(workspace).config_path
        if path is None or not path.is_file():
            problem = None if is_kept else f"the configuration with the digest {digest} is gone"
            return Configuration(None, digest, "gone", is_kept, source, problem)
        try:
            found = config_digest(load_json(path))
        except MoGeError as error:
            return Configuration(path, digest, "changed", is_kept, source, str(error))
        if found == digest:
            return Configuration(path, digest, "unchanged", is_kept, source)
        problem = f"{path} has the digest {found}, {digest} was recorded"
        return Configuration(path, digest, "changed", is_kept, source, problem)

    def dataset(self, record: DatasetRecord, config: Mapping[str, Any] | None) -> DatasetLink:
        """A dataset as it was and is. One that is not at its place is looked for where the configuration finds it."""
        recorded = Path(record.path)
        index_name = _relative(record.index_path, recorded)
        depth_name = depth_name_of(record, config)
        place = recorded
        moved_from: Path | None = None
        if not _is_dir(recorded):
            configured = dataset_entry(record.name, config).get("path")
            other = data_root() / configured if isinstance(configured, str) else recorded
            if not _is_dir(other):
                gone = f"dataset {record.name} at {recorded} is gone; its digest was {record.digest}"
                return _without_data(record, index_name, depth_name, "gone", gone)
            place, moved_from = other.resolve(), recorded
        try:
            num_now = len(read_index(place, index_name))
            state, digest_now = self._compare(place, index_name, depth_name, record.digest)
            imports, num_damaged = read_import_log(place)
        except MoGeError as error:
            return _without_data(record, index_name, depth_name, "unreadable", str(error))
        problem: str | None = None
        if state == "changed":
            problem = (
                f"dataset {record.name} at {place} changed: {num_now} instances with the digest {digest_now}, "
                f"{record.num_instances} with {record.digest} were recorded"
            )
        return DatasetLink(
            record.name,
            place,
            index_name,
            depth_name,
            record.digest,
            digest_now,
            record.num_instances,
            num_now,
            state,
            moved_from,
            tuple(imports),
            num_damaged,
            problem,
        )

    def _compare(self, place: Path, index_name: str, depth_name: str, recorded: str) -> tuple[DatasetState, str]:
        names = names_digest(place, index_name)
        if names == recorded:
            return "names", names
        now = self._contents(place, index_name, depth_name)
        if now != recorded:
            return "changed", now
        return "verified" if self._verify else "unchanged", now

    def _read_contents(self, place: Path, index_name: str, depth_name: str) -> str:
        if self._verify:
            return content_digest(place, index_name, depth_name=depth_name, progress=self._progress)
        return index_digest(place, index_name, depth_name=depth_name)


def _without_data(
    record: DatasetRecord, index_name: str, depth_name: str, state: DatasetState, problem: str
) -> DatasetLink:
    return DatasetLink(
        record.name,
        Path(record.path),
        index_name,
        depth_name,
        record.digest,
        None,
        record.num_instances,
        None,
        state,
        problem=problem,
    )


def _relative(index_path: str, root: Path) -> str:
    try:
        return Path(index_path).relative_to(root).as_posix()
    except ValueError:  # only `index_path` of a manifest that was tampered with lies elsewhere
        return INDEX_NAME


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # no path at all
        return False
