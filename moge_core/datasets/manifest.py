"""`.moge/manifest.parquet`: what is known of each instance.

One row an instance and depth file: where it is, when and how it was read, its sizes, depth statistics and findings.
The table spares later runs from reading unchanged instances again; deleting it costs time, nothing else (which lists
are ours stands in `lists.json`). It stays in columns: a million unchanged instances are compared by their stamps
without becoming a million objects.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moge_core.datasets.layout import LIST_NAMES, STATE_DIR, Finding, check_state
from moge_core.errors import DatasetError
from moge_core.io.files import atomic_open, final_name

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST_NAME = "manifest.parquet"
LOCK_NAME = "lock"
_VERSION = 2
_METADATA_KEY = b"moge"


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """What reading one instance gave. Values are None where the instance did not let them be read.

    Attributes:
        path: the instance as a list names it.
        depth_name: file name of the depth map that was read.
        stamp: names, sizes and modification times of the files; equal stamps mean nothing changed.
        fingerprint: digest of the files' contents, equal on every machine.
        width, height: size of the image in pixels.
        depth_min, depth_median, depth_max: of the finite depth, in the unit of the dataset.
        valid_share, inf_share: shares of all pixels that are finite and infinitely far.
        fov_x, fov_y: fields of view in degrees.
        depth_unit: metres a unit of depth, as meta.json says.
        scale_free: whether an importer left the unit out because nobody knows it.
        camera_height: of the camera above the floor or road, in the unit of the dataset, where one is seen.
        image_digest, depth_digest: of these files alone, to find copies.
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
    fov_y: float | None = None
    depth_unit: float | None = None
    scale_free: bool | None = None
    camera_height: float | None = None
    image_digest: str | None = None
    depth_digest: str | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def presumed_unit(self) -> float | None:
        """Metres a unit of depth: as told, else 1, as data without a unit mostly is; None for what is scale-free."""
        return self.depth_unit if self.depth_unit is not None else (None if self.scale_free else 1.0)

    @property
    def usable(self) -> bool:
        """True when no finding is an error."""
        return all(finding.severity != "error" for finding in self.findings)


class Manifest:
    """The table in memory: columns as they were read, and what was read anew since.

    Attributes:
        notes: what else is remembered between runs, by name: values that JSON has.
    """

    def __init__(self, table: pa.Table | None = None, notes: dict[str, Any] | None = None) -> None:
        self._table = table
        self._fresh: dict[tuple[str, str], InstanceRecord] = {}
        self._dropped: set[tuple[str, str]] = set()
        self._rows: dict[str, dict[str, int]] | None = None
        self.notes = notes or {}
        self._saved_header = self._header()

    @property
    def records(self) -> dict[tuple[str, str], InstanceRecord]:
        """All records by (instance, depth file name), as objects."""
        merged = {} if self._table is None else {_key(row): _record(row) for row in self._table.to_pylist()}
        for key in self._dropped:
            merged.pop(key, None)
        return merged | self._fresh

    def put(self, record: InstanceRecord) -> None:
        """Remember what reading an instance gave."""
        key = (record.path, record.depth_name)
        self._dropped.discard(key)
        self._fresh[key] = record

    def drop(self, path: str, depth_name: str) -> None:
        """Forget an instance."""
        self._fresh.pop((path, depth_name), None)
        self._dropped.add((path, depth_name))

    def keys(self) -> Iterator[tuple[str, str]]:
        """(instance, depth file name) of every record."""
        for depth_name, rows in self._positions().items():
            for path in rows:
                key = (path, depth_name)
                if key not in self._fresh and key not in self._dropped:
                    yield key
        yield from self._fresh

    def column(self, name: str, depth_name: str) -> dict[str, Any]:
        """One column by instance, for a depth file."""
        values: dict[str, Any] = {}
        if self._table is not None:
            column = self._table[name].to_pylist()
            dropped = {path for path, other in self._dropped if other == depth_name}
            rows = self._positions().get(depth_name, {})
            values = {path: column[row] for path, row in rows.items() if path not in dropped}
        values |= {path: getattr(record, name) for (path, other), record in self._fresh.items() if other == depth_name}
        return values

    def rows(self, instances: Iterable[str], depth_name: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of those of `instances` that are known, in their order; quick for a million of them."""
        import pyarrow as pa

        if self._fresh or self._dropped or self._table is None:
            return Manifest(self.merged()).rows(instances, depth_name, columns)
        positions = self._positions().get(depth_name, {})
        wanted = [positions[path] for path in instances if path in positions]
        return self._table.select(list(columns)).take(pa.array(wanted, pa.int64()))

    def select(self, instances: Iterable[str], depth_name: str) -> list[InstanceRecord]:
        """Records of `instances` in their order, without those that were never read."""
        import pyarrow as pa

        rows = self._positions().get(depth_name, {})
        wanted = list(instances)
        stored = [rows[path] for path in wanted if path in rows and (path, depth_name) not in self._dropped]
        found: dict[str, InstanceRecord] = {}
        if stored and self._table is not None:
            found = {row["path"]: _record(row) for row in self._table.take(pa.array(stored, pa.int64())).to_pylist()}
        found |= {path: record for (path, other), record in self._fresh.items() if other == depth_name}
        return [found[path] for path in wanted if path in found]

    def select_with_findings(self, instances: Iterable[str], depth_name: str) -> list[InstanceRecord]:
        """As `select`, of the instances with findings only; quick where few have any."""
        import pyarrow.compute as pc

        flagged: set[str] = set()
        if self._table is not None and self._table.num_rows:
            lengths = pc.list_value_length(self._table["findings"])
            flagged = set(self._table.filter(pc.greater(pc.fill_null(lengths, 0), 0))["path"].to_pylist())
        flagged |= {path for path, _ in self._fresh}
        records = self.select((path for path in instances if path in flagged), depth_name)
        return [record for record in records if record.findings]

    def comparison(self, index_name: str, depth_name: str) -> list[Finding]:
        """What comparing the instances of a list with each other gave, when it was last indexed."""
        remembered = self.notes.get(comparison_key(index_name, depth_name))
        return [] if remembered is None else [Finding(**finding) for finding in remembered["findings"]]

    @property
    def changed(self) -> bool:
        """True when the file does not hold this yet."""
        return bool(self._fresh or self._dropped) or self._header() != self._saved_header

    def merged(self) -> pa.Table:
        """The table with what was read anew, sorted by instance and depth file."""
        import pyarrow as pa
        import pyarrow.compute as pc

        schema = _schema()
        parts = []
        if self._table is not None:
            gone = {*self._fresh, *self._dropped}
            rows = self._positions()
            lost = {rows[name][path] for path, name in gone if path in rows.get(name, {})}
            kept = [row for row in range(self._table.num_rows) if row not in lost] if lost else None
            parts.append(self._table if kept is None else self._table.take(pa.array(kept, pa.int64())))
        if self._fresh:
            rows_anew = [dataclasses.asdict(record) for record in self._fresh.values()]
            parts.append(pa.Table.from_pylist(rows_anew, schema=schema))
        table = pa.concat_tables(parts).combine_chunks() if parts else schema.empty_table()
        if self._fresh:
            table = table.take(pc.sort_indices(table, sort_keys=[("path", "ascending"), ("depth_name", "ascending")]))
        return table.replace_schema_metadata({_METADATA_KEY: self._header().encode()})

    def saved(self, table: pa.Table) -> None:
        """The file now holds `table`, which `merged` gave."""
        self._table, self._rows = table, None
        self._fresh.clear()
        self._dropped.clear()
        self._saved_header = self._header()

    def _header(self) -> str:
        return json.dumps({"version": _VERSION, "notes": self.notes}, sort_keys=True)

    def _positions(self) -> dict[str, dict[str, int]]:
        """Row of each instance in the stored table, by depth file."""
        if self._rows is None:
            self._rows = {}
            if self._table is not None:
                paths, names = self._table["path"].to_pylist(), self._table["depth_name"].to_pylist()
                for row, (path, name) in enumerate(zip(paths, names, strict=True)):
                    self._rows.setdefault(name, {})[path] = row
        return self._rows


def comparison_key(index_name: str, depth_name: str) -> str:
    """Under which of the notes the findings of comparing a list's instances are remembered."""
    return f"comparison of {index_name} with {depth_name}"


def manifest_path(root: Path) -> Path:
    """Path of a dataset's manifest."""
    return root / STATE_DIR / MANIFEST_NAME


def load_manifest(root: Path) -> Manifest:
    """The dataset's manifest, empty when there is none yet or an older version wrote it.

    Raises:
        DatasetError: the file is damaged or of a newer version.
    """
    manifest, damage = open_manifest(root)
    if damage is not None:
        raise damage
    return manifest


def load_rows(root: Path, instances: Iterable[str], depth_name: str, columns: Sequence[str]) -> pa.Table:
    """As `Manifest.rows` of the dataset's manifest, without reading the other columns.

    Raises:
        DatasetError: as `load_manifest`.
    """
    manifest, damage = open_manifest(root, ("path", "depth_name", *columns))
    if damage is not None:
        raise damage
    return manifest.rows(instances, depth_name, columns)


def open_manifest(root: Path, columns: Sequence[str] | None = None) -> tuple[Manifest, DatasetError | None]:
    """As `load_manifest`, for who makes a damaged one anew: an empty one, and what is wrong with the file.

    One with some of the columns only is for looking at, not for saving.

    Raises:
        DatasetError: the file is of a newer version, or no file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = manifest_path(root)
    if not path.exists():
        return Manifest(), None
    if not path.is_file():
        raise DatasetError(path, "must be a file", fix="Rename or remove it.")
    fix = "Delete the file; `moge index` makes it again."
    try:
        # Into memory: a table that maps the file would change under our hands when it is replaced.
        table = pq.read_table(path, memory_map=False, columns=None if columns is None else list(columns))
        header = json.loads((table.schema.metadata or {})[_METADATA_KEY])
        version = int(header["version"])
        if version == _VERSION:
            schema = _schema()
            expected = schema if columns is None else pa.schema([schema.field(name) for name in columns])
            if table.schema.remove_metadata() != expected:
                problem = "must have the columns of its version"
                return Manifest(), DatasetError(path, problem, found=table.schema.names, fix=fix)
            return Manifest(table, dict(header["notes"])), None
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        return Manifest(), DatasetError(path, "must be a readable manifest", found=error, fix=fix)
    if version > _VERSION:
        raise DatasetError(path, f"must be a manifest of version {_VERSION} or older", found=version, fix=fix)
    return Manifest(), None


def header_lists(root: Path) -> dict[str, list[str]]:
    """Digests of the lists that a former version wrote, by the list's name; it kept them in the manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = manifest_path(root)
    try:
        metadata = pq.read_metadata(path).metadata if path.is_file() else None
        lists = json.loads((metadata or {})[_METADATA_KEY])["written_lists"]
        return {str(name): [str(digest) for digest in digests] for name, digests in lists.items()}
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def save_manifest(root: Path, manifest: Manifest) -> Path:
    """Write the manifest in one step, where it changed, and return its path.

    Raises:
        DatasetError: `.moge/` cannot be written.
    """
    import pyarrow.parquet as pq

    path = manifest_path(root)
    if path.exists() and not manifest.changed:
        return path
    table = manifest.merged()
    try:
        path.parent.mkdir(exist_ok=True)
        with atomic_open(path) as file:
            pq.write_table(table, file, compression="zstd")
    except OSError as error:
        raise DatasetError(path, "must be writable", found=error) from error
    manifest.saved(table)
    return path


def can_be_written(root: Path) -> bool:
    """Whether this user may write the dataset's manifest: data may lie on a medium that is only read."""
    state = root / STATE_DIR
    places = (state, state / LOCK_NAME) if state.exists() else (root,)
    return all(os.access(place, os.W_OK) for place in places if place.exists())


@contextlib.contextmanager
def locked(root: Path, on_wait: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Keep other processes from changing a dataset's manifest and lists meanwhile; they wait.

    Temporary files of these that a killed process left behind are removed, since nobody else can be writing them.

    Args:
        root: the dataset's resolved folder.
        on_wait: called when another process has the lock, which may take as long as indexing does.

    Raises:
        DatasetError: `.moge/` cannot be written, or a link there or in place of a list leads out of the dataset.
    """
    check_state(root)
    path = root / STATE_DIR / LOCK_NAME
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        path.parent.mkdir(exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise DatasetError(path.parent, "must be writable", found=error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        for folder in (root, path.parent):
            _remove_leftovers(folder, lists_only=folder == root)
        yield


def _remove_leftovers(folder: Path, *, lists_only: bool) -> None:
    for entry in os.scandir(folder):
        name = final_name(entry.name)
        # Beside the lists a user's own hidden files may lie.
        is_list = name is not None and name.partition(".bak")[0] in LIST_NAMES
        if name is not None and (is_list or not lists_only) and entry.is_file(follow_symlinks=False):
            Path(entry.path).unlink(missing_ok=True)


def _schema() -> pa.Schema:
    import pyarrow as pa

    finding = pa.struct([(name, pa.string()) for name in ("instance", "rule", "severity", "evidence", "fix")])
    columns = [(name, pa.string()) for name in ("path", "depth_name", "stamp", "fingerprint")]
    columns += [(name, pa.int32()) for name in ("width", "height")]
    columns += [(name, pa.float64()) for name in ("depth_min", "depth_median", "depth_max", "valid_share", "inf_share")]
    columns += [(name, pa.float64()) for name in ("fov_x", "fov_y", "depth_unit", "camera_height")]
    columns += [("scale_free", pa.bool_())]
    columns += [(name, pa.string()) for name in ("image_digest", "depth_digest")]
    return pa.schema([*columns, ("findings", pa.list_(finding))])


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["path"], row["depth_name"]


def _record(row: dict[str, Any]) -> InstanceRecord:
    findings = tuple(Finding(**finding) for finding in row.pop("findings") or ())
    return InstanceRecord(**row, findings=findings)
