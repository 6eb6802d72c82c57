"""The list of a dataset's instances and the manifest beside it.

`index_dataset` finds the instances, reads each that is new or changed, and writes `.index.txt`, sorted, without those
that are broken or in quarantine; `split_dataset` writes `.train.txt` and `.val.txt` by scene. A list that this package
did not write is the user's own: it is checked and adopted as it stands.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from moge_core.datasets.layout import (
    DEPTH_NAME,
    INDEX_NAME,
    Finding,
    Progress,
    data_files,
    index_path,
    missing_index_fix,
    read_index,
    resolve_dataset,
    scan_instances,
)
from moge_core.datasets.manifest import (
    InstanceRecord,
    Manifest,
    comparison_key,
    load_manifest,
    locked,
    manifest_path,
    save_manifest,
)
from moge_core.datasets.parallel import parallel_map
from moge_core.datasets.quarantine import read_quarantine
from moge_core.datasets.splits import TRAIN_NAME, VALIDATION_NAME, split_scenes
from moge_core.datasets.validation import (
    ValidationSettings,
    compare_instances,
    examine_instance,
    find_repeated,
    finding_of,
    instance_stamp,
    load_settings,
)
from moge_core.errors import DatasetError, InputError, MissingIndexError
from moge_core.io.files import atomic_open

# What was read is written down so often, so that a killed run of hours loses a minute.
_SAVE_EVERY_S = 60.0


@dataclass(frozen=True)
class IndexReport:
    """What indexing a dataset gave.

    Attributes:
        dataset_dir: the dataset's resolved folder.
        index_path: the list.
        manifest_path: the table of instances.
        instances: what the list names, in its order.
        digest: of the list and the contents of its instances; see `index_digest`.
        findings: what is wrong, with broken instances that the list leaves out or, when adopted, names.
        adopted: True when the list is the user's own and was left as it is.
        num_scanned: instances looked at.
        num_read: of these, the ones that were new or had changed.
        backup_path: where `rebuild` put the user's list.
        quarantined: instances that the list leaves out because they were put aside.
    """

    dataset_dir: Path
    index_path: Path
    manifest_path: Path
    instances: list[str]
    digest: str
    findings: list[Finding]
    adopted: bool
    num_scanned: int
    num_read: int
    backup_path: Path | None = None
    quarantined: tuple[str, ...] = ()

    @property
    def num_broken(self) -> int:
        """Instances with an error among the findings."""
        return len({finding.instance for finding in self.findings if finding.severity == "error"})


def index_dataset(
    dataset_dir: str | Path,
    *,
    index_name: str = INDEX_NAME,
    depth_name: str = DEPTH_NAME,
    rebuild: bool = False,
    progress: Progress | None = None,
) -> IndexReport:
    """Bring the list and the manifest of a dataset up to date.

    Args:
        dataset_dir: the dataset's folder.
        index_name: the list. Only `.index.txt` is written from a scan; another name is a split, which must exist and
            is checked like any list of the user's own.
        depth_name: file name of the depth maps.
        rebuild: read every instance again and write the list even where the user made one, which is kept as
            `<name>.bak`, or `<name>.bak.1` and so on where that is taken.
        progress: called as `progress(done, total)`.

    Raises:
        MissingIndexError: a split that does not exist.
        DatasetError: no folder, no usable instance, or a list of the user's own that is malformed.
        InputError: `rebuild` of a split.
    """
    root = resolve_dataset(dataset_dir)
    path = index_path(root, index_name)
    if rebuild and index_name != INDEX_NAME:
        raise InputError(
            "rebuild",
            f"only {INDEX_NAME} can be made from a scan",
            found=index_name,
            fix="A split is a choice: write it yourself, then index it without rebuilding.",
        )
    settings = load_settings(root)
    with locked(root):
        return _index(root, path, index_name, depth_name, settings, rebuild=rebuild, progress=progress)


def _index(
    root: Path,
    path: Path,
    index_name: str,
    depth_name: str,
    settings: ValidationSettings,
    *,
    rebuild: bool,
    progress: Progress | None,
) -> IndexReport:
    manifest = load_manifest(root)
    users_own = path.exists() and not _is_ours(manifest, path)
    if index_name != INDEX_NAME and not path.exists():
        raise MissingIndexError(
            path, "must list the split's instances", found="no such file", fix=missing_index_fix(root, index_name)
        )
    # Splits that `split_dataset` wrote are checked as they are; they are made again by it alone.
    adopted = index_name != INDEX_NAME or (users_own and not rebuild)
    quarantined = read_quarantine(root)
    scan_findings: list[Finding] = []
    if adopted:
        listed = read_index(root, index_name)
        scan_findings = find_repeated(listed, index_name, settings)
        candidates = list(dict.fromkeys(listed))
        for name in candidates:
            if name in quarantined:
                told = finding_of("not-quarantined", name, f"put aside because: {quarantined[name]}", settings)
                scan_findings += [told] if told is not None else []
    else:
        found, scan_findings = scan_instances(root)
        candidates = [name for name in found if name not in quarantined]

    num_read = _refresh(root, manifest, candidates, depth_name, settings, anew=rebuild, progress=progress)
    if not adopted:
        _forget_lost(manifest, {*candidates, *quarantined}, root)
    flagged = manifest.select_with_findings(candidates, depth_name)
    findings = scan_findings + [finding for record in flagged for finding in record.findings]
    broken = {record.path for record in flagged if not record.usable}
    usable = [name for name in candidates if name not in broken] if broken else candidates
    if not usable:
        save_manifest(root, manifest)
        raise _nothing_usable(root, depth_name, candidates, findings)

    backup: Path | None = None
    if adopted:
        if users_own:
            manifest.written_lists.pop(index_name, None)
        instances = listed
    else:
        if users_own:
            backup = _back_up(path)
        instances = usable
        _write_list(root, manifest, path, instances)
    digest = _digest(instances, manifest, depth_name)
    findings += _comparison(manifest, candidates, index_name, depth_name, settings)
    save_manifest(root, manifest)
    return IndexReport(
        dataset_dir=root,
        index_path=path,
        manifest_path=manifest_path(root),
        instances=instances,
        digest=digest,
        findings=findings,
        adopted=adopted,
        num_scanned=len(candidates),
        num_read=num_read,
        backup_path=backup,
        quarantined=() if adopted else tuple(sorted(quarantined)),
    )


@dataclass(frozen=True)
class SplitReport:
    """What splitting a dataset gave.

    Attributes:
        train, validation: instances of each list.
        num_scenes: how many scenes were held out for validation, and of how many.
    """

    train: list[str]
    validation: list[str]
    num_scenes: tuple[int, int]


def split_dataset(dataset_dir: str | Path, val_fraction: float, *, rebuild: bool = False) -> SplitReport:
    """Write `.train.txt` and `.val.txt` from `.index.txt`, scene by scene; see `splits.split_scenes`.

    Args:
        dataset_dir: the dataset, with a list.
        val_fraction: share of the scenes for validation.
        rebuild: write them even where the user made one of these lists, which is kept as `<name>.bak`.

    Raises:
        MissingIndexError: there is no list.
        DatasetError: a single scene, or a split of the user's own.
        InputError: a fraction outside its domain.
    """
    from moge_core.datasets.splits import scene_of

    root = resolve_dataset(dataset_dir)
    with locked(root):
        manifest = load_manifest(root)
        train, validation = split_scenes(list(dict.fromkeys(read_index(root))), val_fraction)
        paths = [root / TRAIN_NAME, root / VALIDATION_NAME]
        own = [path for path in paths if path.exists() and not _is_ours(manifest, path)]
        if own and not rebuild:
            raise DatasetError(
                own[0],
                "must not be replaced: this list is your own",
                fix="Say --rebuild to have it written anew; yours is kept as .bak.",
            )
        for path in own:
            _back_up(path)
        for path, instances in zip(paths, (train, validation), strict=True):
            _write_list(root, manifest, path, instances)
        save_manifest(root, manifest)
    held_out, scenes = ({scene_of(name) for name in names} for names in (validation, [*train, *validation]))
    return SplitReport(train, validation, (len(held_out), len(scenes)))


def index_digest(dataset_dir: str | Path, index_name: str = INDEX_NAME, *, depth_name: str = DEPTH_NAME) -> str:
    """Digest of a list and of the contents of its instances, equal on every machine that holds the same data.

    The contents are those that the manifest recorded; instances that it does not know count with their names only, so
    that a list which was never indexed has a digest too.

    Raises:
        MissingIndexError, DatasetError: as `read_index`.
    """
    root = resolve_dataset(dataset_dir)
    return _digest(read_index(root, index_name), load_manifest(root), depth_name)


def dataset_fingerprint(dataset_dir: str | Path) -> str:
    """Cheap digest of what lies in a dataset: names, sizes and modification times, no file of an instance is opened.

    It changes when a file of an instance is added, removed or written, or when the user edits a list of their own.
    What is made from these (lists that indexing wrote, `.moge/`, inspection's output) does not count.

    Raises:
        DatasetError: there is no such folder.
    """
    root = resolve_dataset(dataset_dir)
    manifest = load_manifest(root)
    lines = []
    prefix = len(str(root)) + 1
    for entry in data_files(root):
        where = entry.path[prefix:]
        if "/" not in where and _is_ours(manifest, root / where):
            continue
        stat = entry.stat()
        lines.append(f"{where}\0{stat.st_size}\0{stat.st_mtime_ns}\n")
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _refresh(
    root: Path,
    manifest: Manifest,
    instances: Sequence[str],
    depth_name: str,
    settings: ValidationSettings,
    *,
    anew: bool,
    progress: Progress | None,
) -> int:
    """Read the instances whose files are not those that the manifest knows; return how many."""
    if manifest.notes.get("settings") != settings.digest():
        # Records of former thresholds go, those of other depth files too: they are read again when they are indexed.
        for path, other in list(manifest.keys()):
            manifest.drop(path, other)
        manifest.notes["settings"] = settings.digest()
    known = {} if anew else manifest.column("stamp", depth_name)
    base = f"{root}/"
    outdated = [name for name in instances if known.get(name) != instance_stamp(base + name, depth_name)]

    def read(instance: str) -> InstanceRecord:
        return examine_instance(root, instance, depth_name, settings=settings)

    saved_at = time.monotonic()
    try:
        for record in parallel_map(read, outdated, progress):
            manifest.put(record)
            if time.monotonic() - saved_at > _SAVE_EVERY_S:
                save_manifest(root, manifest)
                saved_at = time.monotonic()
    except BaseException:
        # What was read so far is not read again next time.
        save_manifest(root, manifest)
        raise
    return len(outdated)


def _comparison(
    manifest: Manifest, instances: Sequence[str], index_name: str, depth_name: str, settings: ValidationSettings
) -> list[Finding]:
    """Findings of comparing the instances; remembered, because comparing a million takes longer than finding no change.

    Instances are compared with those beside them, so the remembered ones hold as long as nothing changed anywhere.
    """
    key = comparison_key(index_name, depth_name)
    digest = _digest(instances, manifest, depth_name)
    remembered = manifest.notes.get(key)
    if remembered is not None and remembered["digest"] == digest and remembered["settings"] == settings.digest():
        return manifest.comparison(index_name, depth_name)
    found = compare_instances(manifest.select(instances, depth_name), settings)
    manifest.notes[key] = {
        "digest": digest,
        "settings": settings.digest(),
        "findings": [asdict(finding) for finding in found],
    }
    return found


def _forget_lost(manifest: Manifest, kept: set[str], root: Path) -> None:
    for path, depth_name in list(manifest.keys()):
        if path not in kept and not (root / path).is_dir():
            manifest.drop(path, depth_name)


def _nothing_usable(
    root: Path, depth_name: str, candidates: Sequence[str], findings: Sequence[Finding]
) -> DatasetError:
    if not candidates:
        return DatasetError(
            root,
            "must hold instances: folders with image.jpg, a depth map and meta.json",
            found="none",
            fix="Import data into it, for example with `moge import rgbd-folder`.",
        )
    first = "; ".join(f"{finding.instance}: {finding.evidence}" for finding in findings[:3])
    return DatasetError(
        root,
        f"must hold a usable instance (depth map {depth_name})",
        found=f"{len(candidates)} instances, all broken. First: {first}",
        fix=findings[0].fix if findings else None,
    )


def _back_up(path: Path) -> Path:
    backup = path.with_name(f"{path.name}.bak")
    number = 0
    while backup.exists():
        number += 1
        backup = path.with_name(f"{path.name}.bak.{number}")
    # A copy, not a move: at no instant is the dataset without a list.
    with atomic_open(backup) as file:
        file.write(path.read_bytes())
    return backup


def _write_list(root: Path, manifest: Manifest, path: Path, instances: Sequence[str]) -> None:
    data = "".join(f"{instance}\n" for instance in instances).encode()
    digest = hashlib.sha256(data).hexdigest()
    if not path.exists() or path.read_bytes() != data:
        # The manifest knows the new list before it stands there, and the old one until it is gone: whenever this is
        # interrupted, the list on disk is still known as ours.
        manifest.written_lists[path.name] = [*manifest.written_lists.get(path.name, ()), digest]
        save_manifest(root, manifest)
        with atomic_open(path) as file:
            file.write(data)
    manifest.written_lists[path.name] = [digest]


def _is_ours(manifest: Manifest, path: Path) -> bool:
    return hashlib.sha256(path.read_bytes()).hexdigest() in manifest.written_lists.get(path.name, ())


def _digest(instances: Sequence[str], manifest: Manifest, depth_name: str) -> str:
    fingerprints = manifest.column("fingerprint", depth_name)
    digest = hashlib.sha256()
    for instance in instances:
        digest.update(f"{instance}\0{fingerprints.get(instance, '')}\n".encode())
    return digest.hexdigest()
