"""`.moge/manifest.parquet`: what is known of each instance, and which lists this package wrote.

One row an instance and depth file: where it is, when and how it was read, its sizes, depth statistics and findings.
The table spares later runs from reading unchanged instances again; deleting it costs time, nothing else.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moge_core.datasets.layout import STATE_DIR, Finding
from moge_core.errors import DatasetError
from moge_core.io.files import atomic_open

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST_NAME = "manifest.parquet"
_VERSION = 1
_METADATA_KEY = b"moge"


@dataclass(frozen=True)
class InstanceRecord:
    """What reading one instance gave. Numbers are None where the instance did not let them be read.

    Attributes:
        path: the instance as a list names it.
        depth_name: file name of the depth map that was read.
        stamp: names, sizes and modification times of the files; equal stamps mean nothing changed.
        fingerprint: digest of the files' contents, equal on every machine.
        width, height: size of the image in pixels.
        depth_min, depth_median, depth_max: of the finite depth, in the unit of the dataset.
        valid_share, inf_share: shares of all pixels that are finite and infinitely far.
        fov_x: horizontal field of view in degrees.
        findings: what is wrong.
    """

    path: str
    depth_name: str
    stamp: str
    fingerprint: str
    width: int | None = None
    height: int | None = None
    depth_min: float | None = None
    depth_median: float | None = None
    depth_max: float | None = None
    valid_share: float | None = None
    inf_share: float | None = None
    fov_x: float | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def usable(self) -> bool:
        """True when no finding is an error."""
        return all(finding.severity != "error" for finding in self.findings)


@dataclass
class Manifest:
    """The table in memory.

    Attributes:
        records: by (instance, depth file name).
        written_lists: digests of each list that this package wrote, by the list's name; two while a list is being
            replaced. A list on disk with another digest is the user's own.
    """

    records: dict[tuple[str, str], InstanceRecord] = field(default_factory=dict)
    written_lists: dict[str, list[str]] = field(default_factory=dict)


def manifest_path(root: Path) -> Path:
    """Path of a dataset's manifest."""
    return root / STATE_DIR / MANIFEST_NAME


def load_manifest(root: Path) -> Manifest:
    """The dataset's manifest, empty when there is none yet.

    Raises:
        DatasetError: the file is damaged or of another version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = manifest_path(root)
    if not path.exists():
        return Manifest()
    fix = "Delete the file; `moge index` makes it again."
    try:
        table = pq.read_table(path)
        header = json.loads((table.schema.metadata or {})[_METADATA_KEY])
        version = header["version"]
        rows = table.to_pylist()
        records = [_record(row) for row in rows] if version == _VERSION else []
        written_lists = dict(header["written_lists"])
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise DatasetError(path, "must be a readable manifest", found=error, fix=fix) from error
    if version != _VERSION:
        raise DatasetError(path, f"must be a manifest of version {_VERSION}", found=version, fix=fix)
    return Manifest({(record.path, record.depth_name): record for record in records}, written_lists)


def save_manifest(root: Path, manifest: Manifest) -> Path:
    """Write the manifest in one step and return its path.

    Raises:
        DatasetError: `.moge/` cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    header = json.dumps({"version": _VERSION, "written_lists": manifest.written_lists}, sort_keys=True)
    schema = _schema().with_metadata({_METADATA_KEY: header.encode()})
    rows = [dataclasses.asdict(record) for _, record in sorted(manifest.records.items())]
    table = pa.Table.from_pylist(rows, schema=schema)
    path = manifest_path(root)
    try:
        path.parent.mkdir(exist_ok=True)
        with atomic_open(path) as file:
            pq.write_table(table, file, compression="zstd")
    except OSError as error:
        raise DatasetError(path, "must be writable", found=error) from error
    return path


def select_records(manifest: Manifest, instances: Iterable[str], depth_name: str) -> list[InstanceRecord]:
    """Records of `instances` in their order, without those that were never read."""
    found = (manifest.records.get((instance, depth_name)) for instance in instances)
    return [record for record in found if record is not None]


def _schema() -> pa.Schema:
    import pyarrow as pa

    finding = pa.struct([(name, pa.string()) for name in ("instance", "rule", "severity", "evidence", "fix")])
    columns = [(name, pa.string()) for name in ("path", "depth_name", "stamp", "fingerprint")]
    columns += [(name, pa.int32()) for name in ("width", "height")]
    columns += [
        (name, pa.float64()) for name in ("depth_min", "depth_median", "depth_max", "valid_share", "inf_share", "fov_x")
    ]
    return pa.schema([*columns, ("findings", pa.list_(finding))])


def _record(row: dict[str, Any]) -> InstanceRecord:
    findings = tuple(Finding(**finding) for finding in row.pop("findings") or ())
    return InstanceRecord(**row, findings=findings)
