"""Whether what a list names is fit for training: everything in it validated, as it lies there now.

`check_listed` goes by the manifest, reads only what is new or changed, and writes nothing but the manifest: the list
stays as it is, whoever made it, and so does the account of whose it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moge_core.datasets.layout import (
    DEPTH_NAME,
    INDEX_NAME,
    Finding,
    Progress,
    check_state,
    index_path,
    read_index,
    resolve_dataset,
)
from moge_core.datasets.lists import WrittenLists
from moge_core.datasets.manifest import MANIFEST_NAME, Manifest, can_be_written, locked, open_manifest, save_manifest
from moge_core.datasets.quarantine import read_quarantine
from moge_core.datasets.refresh import compare, contents_digest, outdated, read_anew, remembered_comparison
from moge_core.datasets.validation import ValidationSettings, find_repeated, finding_of, load_settings
from moge_core.datasets.validation.dataset import find_put_aside
from moge_core.datasets.validation.usage import RULES_OF_USE, DepthNumbers, judge_density, judge_unit

_COLUMNS_OF_USE = (
    *("path", "width", "height", "depth_min", "depth_median", "depth_max", "valid_share", "inf_share"),
    *("camera_height", "depth_unit", "scale_free"),
)


@dataclass(frozen=True)
class ListedReport:
    """What checking a list gave.

    Attributes:
        dataset_dir: the dataset's resolved folder.
        index_path: the list.
        instances: what it names, in its order.
        digest: as `index_digest` tells it.
        findings: what is wrong with the list and with what it names.
        num_read: instances that were new or had changed.
        written_by_us: True for a list that indexing or splitting wrote, False for the user's own.
        notes: what else is to be told.
    """

    dataset_dir: Path
    index_path: Path
    instances: list[str]
    digest: str
    findings: list[Finding]
    num_read: int
    written_by_us: bool
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> list[Finding]:
        """Findings that keep a training from using the list."""
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """Findings to be told."""
        return [finding for finding in self.findings if finding.severity == "warning"]


def check_listed(
    dataset_dir: str | Path,
    *,
    index_name: str = INDEX_NAME,
    depth_name: str = DEPTH_NAME,
    label_type: str | None = None,
    depth_unit: float | None = None,
    progress: Progress | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> ListedReport:
    """Check every instance that a list names, in the state in which its files are now.

    What the manifest knows is believed where the files' names, sizes and times are those that it recorded; then nothing
    is opened or written. The rest is read, and remembered in the manifest unless this user may not write there.

    Args:
        dataset_dir: the dataset's folder.
        index_name: the list.
        depth_name: file name of the depth maps.
        label_type, depth_unit: of the training configuration's entry; by default what each meta.json says.
        progress: called as `progress(done, total)` while instances are read.
        log: told before instances are read, and when another process is at it.

    Raises:
        MissingIndexError: the list does not exist.
        DatasetError: it is empty or malformed, the manifest is of a newer version, or a link would lead what is
            remembered out of the dataset.
        ConfigError: the dataset's thresholds cannot be read.
    """
    root = resolve_dataset(dataset_dir)
    check_state(root)
    settings = load_settings(root)
    listed, manifest, to_read = _look(root, index_name, depth_name, settings)
    digest = "" if to_read else contents_digest(listed, manifest, depth_name)
    compared = remembered_comparison(manifest, index_name, depth_name, settings, digest) if digest else None
    notes: list[str] = []
    if compared is None:
        with _locked_where_written(root, log) as remember:
            # Whoever held the lock may have read the same meanwhile, or written the list anew.
            listed, manifest, to_read = _look(root, index_name, depth_name, settings, notes=notes)
            names = list(dict.fromkeys(listed))
            if to_read:
                log(f"{len(to_read)} of {len(names)} instances of {index_name} are new or changed, and are read now")
            if remember:
                # What a former version wrote about lists into the manifest is lost when that is written again.
                WrittenLists.load(root).save()
            read_anew(root, manifest, to_read, depth_name, settings, remember=remember, progress=progress)
            digest = contents_digest(listed, manifest, depth_name)
            unique = digest if names == listed else contents_digest(names, manifest, depth_name)
            compared = compare(root, manifest, names, index_name, depth_name, settings, digest=unique, listed=digest)
            if remember:
                save_manifest(root, manifest)
            elif to_read:
                notes.append("what was read cannot be remembered, because this user may not write to the dataset")
                # The training itself finds no more than what is on the disk.
                digest = contents_digest(listed, open_manifest(root)[0], depth_name)
    names = list(dict.fromkeys(listed))
    of_list = find_repeated(listed, index_name, settings) + find_put_aside(names, read_quarantine(root), settings)
    of_instances = findings_in_use(manifest, names, depth_name, settings, label_type, depth_unit)
    known = frozenset(names)
    return ListedReport(
        dataset_dir=root,
        index_path=index_path(root, index_name),
        instances=listed,
        digest=digest,
        # An index also compares what it leaves out.
        findings=of_list + of_instances + [finding for finding in compared if finding.instance in known],
        num_read=len(to_read),
        written_by_us=WrittenLists.load(root).is_ours(index_path(root, index_name)),
        notes=tuple(notes),
    )


def findings_in_use(
    manifest: Manifest,
    instances: Sequence[str],
    depth_name: str,
    settings: ValidationSettings,
    label_type: str | None = None,
    depth_unit: float | None = None,
) -> list[Finding]:
    """What the manifest has against instances, judged by a configuration's label type and unit instead of their own.

    Depth of which an importer says that nobody knows its unit, and depth whose meta.json tells another one, is told
    where the configuration gives a unit. A label type or unit of None leaves what meta.json says.

    Args:
        manifest: knows the instances.
        instances: what to judge, each once.
        depth_name: file name of the depth maps.
        settings: thresholds.
        label_type, depth_unit: of the training configuration's entry.

    Returns:
        findings in the order of the instances.
    """
    replaced = {
        rule
        for rule, value in (("density-fits-label", label_type), ("unit-plausible", depth_unit))
        if value is not None and rule in RULES_OF_USE
    }
    found = {
        record.path: [finding for finding in record.findings if finding.rule not in replaced]
        for record in manifest.select_with_findings(instances, depth_name)
    }
    for path, rule, evidence in _judge_use(manifest, instances, depth_name, settings, label_type, depth_unit):
        finding = finding_of(rule, path, evidence, settings)
        if finding is not None:
            found.setdefault(path, []).append(finding)
    return [finding for name in instances if name in found for finding in found[name]]


def _judge_use(
    manifest: Manifest,
    instances: Sequence[str],
    depth_name: str,
    settings: ValidationSettings,
    label_type: str | None,
    depth_unit: float | None,
) -> Iterator[tuple[str, str, str]]:
    """(instance, rule, evidence)."""
    judges_density = label_type in settings.dense_labels
    if not judges_density and depth_unit is None:
        return
    columns = manifest.rows(instances, depth_name, _COLUMNS_OF_USE).to_pydict()
    for path, width, height, least, median, most, known, infinite, camera, own_unit, scale_free in zip(
        *(columns[name] for name in _COLUMNS_OF_USE), strict=True
    ):
        if known is None:
            continue
        if judges_density:
            evidence = judge_density(label_type, known, infinite or 0.0, settings)
            if evidence is not None:
                yield path, "density-fits-label", evidence
        if depth_unit is None or median is None:
            continue
        telling = most > least and known * (width or 0) * (height or 0) >= settings.min_pixels
        if scale_free:
            evidence = f"the import left its unit out as unknown, and the configuration says depth_unit {depth_unit:g}"
        elif own_unit is not None and abs(own_unit / depth_unit - 1) > 1e-6:
            evidence = f"meta.json says depth_unit {own_unit:g}, and the configuration {depth_unit:g}"
        else:
            evidence = judge_unit(DepthNumbers(median, most, camera, telling), depth_unit, settings)
        if evidence is not None:
            yield path, "unit-plausible", evidence


def _look(
    root: Path, index_name: str, depth_name: str, settings: ValidationSettings, notes: list[str] | None = None
) -> tuple[list[str], Manifest, list[str]]:
    """What the list names, the manifest, and which of the instances it does not know as they are now."""
    listed = read_index(root, index_name)
    manifest, damage = open_manifest(root)
    if damage is not None and notes is not None:
        notes.append(f"{MANIFEST_NAME} was damaged and is made anew ({damage.rule}; found {damage.found})")
    return listed, manifest, outdated(root, manifest, list(dict.fromkeys(listed)), depth_name, settings)


@contextlib.contextmanager
def _locked_where_written(root: Path, log: Callable[[str], None]) -> Iterator[bool]:
    """The dataset's lock and True, or False where this user may not write the manifest, and so disturbs nobody."""
    if not can_be_written(root):
        yield False
        return
    with locked(root, lambda: log("waits for another process that indexes or checks this dataset")):
        yield True
