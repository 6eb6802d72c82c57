"""`dataset_folders`: looks at the folders of datasets, and for new ones where datasets are dropped.

A dataset that a configuration names gets its index and quality report made again when its folder has changed. A
folder that no configuration names cannot be an asset, so the job `new_dataset_job` looks at it and says what to write
into a configuration. Folders are left alone until nothing in them has changed for a while, so that a copy under way is
not read.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from moge_core.errors import MoGeError
from moge_core.loading.config import data_root
from moge_pipeline.catalog import Catalog
from moge_pipeline.defs.automation import automation_status
from moge_pipeline.defs.datasets.assets import index_key
from moge_pipeline.defs.datasets.new_dataset import new_dataset_config, new_dataset_job
from moge_pipeline.defs.runs.history import latest_metadata, unfinished_run_of

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

DROP_DIR_VARIABLE, SETTLE_VARIABLE = "MOGE_DROP_DIR", "MOGE_DROP_SETTLE_S"
DATASETS_JOB = "datasets_job"
_MAX_FOLDERS_LOOKED_AT = 2000


@dataclass(frozen=True)
class _Sight:
    """What was seen of a folder, and since when it has looked like that (seconds since the epoch)."""

    fingerprint: str
    since: float


def drop_dir() -> Path:
    """Folder whose subfolders are datasets: `MOGE_DROP_DIR`, or else `data` where relative dataset paths start."""
    return Path(os.environ.get(DROP_DIR_VARIABLE) or data_root() / "data").resolve()


def settle_s() -> float:
    """Seconds for which a folder must stay as it is before it is read: `MOGE_DROP_SETTLE_S`, or else 60."""
    return float(os.environ.get(SETTLE_VARIABLE) or 60)


def dataset_folder_jobs(catalog: Catalog) -> list[UnresolvedAssetJobDefinition | dg.JobDefinition]:
    """What the sensor launches: `new_dataset_job` and, where there are datasets, `datasets_job`."""
    jobs: list[UnresolvedAssetJobDefinition | dg.JobDefinition] = [new_dataset_job(catalog)]
    if catalog.datasets:
        jobs.append(
            dg.define_asset_job(
                DATASETS_JOB,
                selection=dg.AssetSelection.groups("index", "quality"),
                description="Indexes and checks every dataset, and writes its quality report.",
            )
        )
    return jobs


def dataset_folders_sensor(
    catalog: Catalog, jobs: list[UnresolvedAssetJobDefinition | dg.JobDefinition]
) -> dg.SensorDefinition:
    """The sensor over the catalog's datasets and `drop_dir()`; runs by itself where `MOGE_AUTOMATION` says so.

    Args:
        catalog: what the configurations name.
        jobs: what `dataset_folder_jobs` made.
    """

    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        before = _read_cursor(context.cursor)
        folders = _Folders(before, time.time(), settle_s())
        requests = [
            *_requests_of_known(context.instance, catalog, folders),
            *_requests_of_unknown(catalog, folders),
        ]
        cursor = json.dumps({path: [sight.fingerprint, sight.since] for path, sight in folders.seen.items()})
        reason = "; ".join(folders.notes) or f"Nothing new in {len(folders.seen)} folders."
        return dg.SensorResult(requests, cursor=cursor, skip_reason=None if requests else dg.SkipReason(reason))

    return dg.SensorDefinition(
        name="dataset_folders",
        evaluation_fn=look,
        jobs=jobs,
        minimum_interval_seconds=30,
        default_status=automation_status(),
        description=f"Indexes a dataset again when its folder has changed, and looks at new folders in `{drop_dir()}`."
        " Folders in which something changed less than a minute ago are left alone.",
    )


class _Folders:
    """What one look finds, compared with the looks before."""

    def __init__(self, before: dict[str, _Sight], now: float, settle_s: float) -> None:
        self.before, self.now, self.settle_s = before, now, settle_s
        self.seen: dict[str, _Sight] = {}
        self.notes: list[str] = []

    def settled(self, path: Path) -> str | None:
        """The folder's fingerprint, if it has been the same for long enough."""
        from moge_core.datasets import dataset_fingerprint

        try:
            fingerprint = dataset_fingerprint(path)
        except (MoGeError, OSError) as error:
            self.notes.append(str(error))
            return None
        last = self.before.get(str(path))
        same = last is not None and last.fingerprint == fingerprint
        sight = last if same and last is not None else _Sight(fingerprint, self.now)
        self.seen[str(path)] = sight
        if self.now - sight.since >= self.settle_s:
            return fingerprint
        self.notes.append(f"{path} has changed; waiting until nothing has changed in it for {self.settle_s:g} s")
        return None


def _requests_of_known(instance: dg.DagsterInstance, catalog: Catalog, folders: _Folders) -> Iterator[dg.RunRequest]:
    for entry in catalog.datasets.values():
        if not entry.path.is_dir():
            continue  # it may be dropped yet; whatever needs it says so
        fingerprint = folders.settled(entry.path)
        indexed = latest_metadata(instance, index_key(entry.slug))
        if fingerprint is None or (indexed is not None and indexed.get("fingerprint") == fingerprint):
            continue
        running = unfinished_run_of(instance, index_key(entry.slug), ())
        if running is not None:
            folders.notes.append(f"run {running.run_id} is indexing {entry.name}")
            continue
        yield dg.RunRequest(
            # Dagster makes no second run for a key, so what failed is not tried again until the folder changes.
            run_key=f"{index_key(entry.slug).to_user_string()}:{fingerprint}",
            job_name=DATASETS_JOB,
            asset_selection=[index_key(entry.slug), dg.AssetKey(["quality", entry.slug])],
            tags={"moge/dataset": entry.name, "moge/reason": "the folder has changed since it was indexed"},
        )


def _requests_of_unknown(catalog: Catalog, folders: _Folders) -> Iterator[dg.RunRequest]:
    for path in new_dataset_folders(drop_dir(), catalog):
        fingerprint = folders.settled(path)
        if fingerprint is not None:
            yield dg.RunRequest(
                run_key=f"{path}:{fingerprint}",
                job_name="new_dataset_job",
                run_config=new_dataset_config(path),
                tags={"moge/dataset": path.name, "moge/reason": "no configuration names this folder"},
            )


def new_dataset_folders(folder: Path, catalog: Catalog) -> list[Path]:
    """Subfolders that hold an instance and have nothing to do with a dataset of the catalog, sorted."""
    known = [entry.path.resolve() for entry in catalog.datasets.values()]
    return [
        path
        for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
        if not path.name.startswith(".")
        and path.is_dir()
        and not any(_are_nested(path.resolve(), other) for other in known)
        and looks_like_dataset(path)
    ]


def looks_like_dataset(folder: Path) -> bool:
    """Whether there is an instance below: image.jpg, meta.json and a PNG together. Looks at the first folders only."""
    stack = [folder]
    for _ in range(_MAX_FOLDERS_LOOKED_AT):
        if not stack:
            return False
        current = stack.pop()
        try:
            entries = list(os.scandir(current))
        except OSError:
            continue
        names = {entry.name for entry in entries}
        if current != folder and {"image.jpg", "meta.json"} <= names and any(name.endswith(".png") for name in names):
            return True
        stack += [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return False


def _are_nested(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _read_cursor(cursor: str | None) -> dict[str, _Sight]:
    try:
        return {path: _Sight(str(seen), float(since)) for path, (seen, since) in json.loads(cursor or "{}").items()}
    except (ValueError, TypeError, AttributeError):
        return {}  # of another version: folders settle anew
