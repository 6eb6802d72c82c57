"""The list of a dataset's instances and the manifest beside it.

`index_dataset` finds the instances, reads each that is new or changed, and writes `.index.txt`, sorted, without those
that are broken or in quarantine. A list that this package did not write is the user's own: it is checked and adopted as
it stands, and so is one that was made for other depth maps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moge_core.datasets.layout import (
    DEPTH_NAME,
    INDEX_NAME,
    Finding,
    Progress,
    check_state,
    data_files,
    index_path,
    missing_index_fix,
    read_index,
    resolve_dataset,
    scan_instances,
)
from moge_core.datasets.lists import WrittenLists, back_up
from moge_core.datasets.manifest import (
    MANIFEST_NAME,
    Manifest,
    load_manifest,
    locked,
    manifest_path,
    open_manifest,
    save_manifest,
)
from moge_core.datasets.parallel import parallel_map
from moge_core.datasets.quarantine import read_quarantine
from moge_core.datasets.refresh import compare, contents_digest, digest_of, outdated, read_anew
from moge_core.datasets.splits import trim_splits
from moge_core.datasets.validation import ValidationSettings, find_repeated, instance_fingerprint, load_settings
from moge_core.datasets.validation.dataset import apply_settings, find_put_aside
from moge_core.errors import DatasetError, InputError, MissingIndexError


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
        adopted: True when the list was left as it is: the user's own, a split, or made for other depth maps.
        num_scanned: instances looked at.
        num_read: of these, the ones that were new or had changed.
        backup_path: where `rebuild` put the user's list.
        quarantined: instances that the list leaves out because they were put aside.
        made_for: file name of the depth maps that the list is for, where these are others.
        notes: what else is to be told.
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
    made_for: str | None = None
    notes: tuple[str, ...] = ()

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
        depth_name: file name of the depth maps. `.index.txt` stays the list of those that it was first written for;
            with others it is checked as it stands.
        rebuild: read every instance again and write the list even where the user made one, which is kept as
            `<name>.bak`, or `<name>.bak.1` and so on where that is taken.
        progress: called as `progress(done, total)`.

    Raises:
        MissingIndexError: a split that does not exist.
        DatasetError: no folder, no usable instance, a list of the user's own that is malformed, or a link that would
            lead what is written out of the dataset.
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
    check_state(root)
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
    notes: list[str] = []
    lists = WrittenLists.load(root)
    # At once: what a former version wrote about lists into the manifest is lost when that is written again.
    lists.save()
    manifest, damage = open_manifest(root)
    if damage is not None:
        notes.append(f"{MANIFEST_NAME} was damaged and is made anew ({damage.rule}; found {damage.found})")
    users_own = path.exists() and not lists.is_ours(path)
    if index_name != INDEX_NAME and not path.exists():
        raise MissingIndexError(
            path, "must list the split's instances", found="no such file", fix=missing_index_fix(root, index_name)
        )
    # Splits that `split_dataset` wrote are checked as they are; they are made again by it alone.
    made_for = lists.depth_of(path) if index_name == INDEX_NAME and not rebuild else None
    made_for = None if made_for == depth_name else made_for
    adopted = index_name != INDEX_NAME or made_for is not None or (users_own and not rebuild)
    quarantined = read_quarantine(root)
    if adopted:
        listed = read_index(root, index_name)
        candidates = list(dict.fromkeys(listed))
        scan_findings = find_repeated(listed, index_name, settings) + find_put_aside(candidates, quarantined, settings)
    else:
        found, passed_by = scan_instances(root)
        scan_findings = apply_settings(passed_by, settings)
        candidates = [name for name in found if name not in quarantined]

    to_read = candidates if rebuild else outdated(root, manifest, candidates, depth_name, settings)
    read_anew(root, manifest, to_read, depth_name, settings, progress=progress)
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
            lists.disown(path)
        instances = listed
    else:
        if users_own:
            backup = back_up(path)
        instances = usable
        # What was read is on the disk before the list is.
        lists.write(path, instances, depth_name=depth_name, before=lambda: save_manifest(root, manifest))
    if index_name == INDEX_NAME:
        notes += trim_splits(root, lists, instances)
    lists.save()
    digest = contents_digest(instances, manifest, depth_name)
    digest_of_compared = digest if candidates == instances else contents_digest(candidates, manifest, depth_name)
    findings += compare(
        root, manifest, candidates, index_name, depth_name, settings, digest=digest_of_compared, listed=digest
    )
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
        num_read=len(to_read),
        backup_path=backup,
        quarantined=() if adopted else tuple(sorted(quarantined)),
        made_for=made_for,
        notes=tuple(notes),
    )


def index_digest(dataset_dir: str | Path, index_name: str = INDEX_NAME, *, depth_name: str = DEPTH_NAME) -> str:
    """Digest of a list and of the contents of its instances, equal on every machine that holds the same data.

    The contents are those that the manifest recorded; instances that it does not know count with their names only, so
    that a list which was never indexed has a digest too.

    Raises:
        MissingIndexError, DatasetError: as `read_index`.
    """
    root = resolve_dataset(dataset_dir)
    return contents_digest(read_index(root, index_name), load_manifest(root), depth_name)


def names_digest(dataset_dir: str | Path, index_name: str = INDEX_NAME) -> str:
    """What `index_digest` says of a dataset that was never indexed: of its list alone.

    Raises:
        MissingIndexError, DatasetError: as `read_index`.
    """
    return digest_of(read_index(dataset_dir, index_name), {})


def content_digest(
    dataset_dir: str | Path,
    index_name: str = INDEX_NAME,
    *,
    depth_name: str = DEPTH_NAME,
    progress: Progress | None = None,
) -> str:
    """What `index_digest` would say after indexing now: all instances of the list are read, none decoded.

    Raises:
        MissingIndexError, DatasetError: as `read_index`.
    """
    root = resolve_dataset(dataset_dir)
    instances = read_index(root, index_name)
    names = list(dict.fromkeys(instances))
    read = parallel_map(lambda name: instance_fingerprint(root, name, depth_name), names, progress)
    return digest_of(instances, dict(zip(names, read, strict=True)))


def dataset_fingerprint(dataset_dir: str | Path) -> str:
    """Cheap digest of what lies in a dataset: names, sizes and modification times, no file of an instance is opened.

    It changes when a file of an instance is added, removed or written, and when the user edits a list of their own, the
    quarantine or the thresholds. What is made from these (lists that indexing wrote, the rest of `.moge/`, inspection's
    output, the account that `moge complete` gives of a depth map) does not count.

    Raises:
        DatasetError: there is no such folder.
    """
    root = resolve_dataset(dataset_dir)
    lists = WrittenLists.load(root)
    lines = []
    prefix = len(str(root)) + 1
    for entry in data_files(root):
        where = entry.path[prefix:]
        if "/" not in where and lists.is_ours(root / where):
            continue
        stat = entry.stat()
        lines.append(f"{where}\0{stat.st_size}\0{stat.st_mtime_ns}\n")
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


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
