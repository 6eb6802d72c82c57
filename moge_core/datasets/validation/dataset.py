"""Checking a whole list: its lines, each instance, and the instances against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from moge_core.datasets.layout import (
    DEPTH_NAME,
    INDEX_NAME,
    Finding,
    Progress,
    check_index,
    index_path,
    resolve_dataset,
    scan_instances,
)
from moge_core.datasets.manifest import InstanceRecord
from moge_core.datasets.parallel import parallel_map
from moge_core.datasets.quarantine import read_quarantine
from moge_core.datasets.validation.instance import examine_instance, finding_of
from moge_core.datasets.validation.relations import compare_instances
from moge_core.datasets.validation.reprojection import check_reprojection
from moge_core.datasets.validation.settings import ValidationSettings, load_settings


def validate_dataset(
    dataset_dir: str | Path,
    *,
    index_name: str = INDEX_NAME,
    depth_name: str = DEPTH_NAME,
    full: bool = True,
    settings: ValidationSettings | str | Path | None = None,
    label_type: str | None = None,
    depth_unit: float | None = None,
    progress: Progress | None = None,
) -> list[Finding]:
    """Check every instance that a list names, and return what is wrong, in the list's order.

    Findings about the list come first, those of comparing instances with each other last. A dataset without a list is
    checked as a scan finds it.

    Args:
        dataset_dir: the dataset's folder.
        index_name: the list to check.
        depth_name: file name of the depth maps.
        full: decode images and depth maps; otherwise only headers and meta.json are read, which is much faster but sees
            neither damaged pixels nor anything about depth.
        settings: thresholds, or a file of them; by default the dataset's own, see `load_settings`.
        label_type, depth_unit: of the training configuration's entry; by default what each meta.json says.
        progress: called as `progress(done, total)`.

    Raises:
        MissingIndexError: a split does not exist, or there is neither a list nor an instance.
        DatasetError: the list is empty or no text.
        ConfigError: a file of settings that is none.
    """
    root = resolve_dataset(dataset_dir)
    chosen = settings if isinstance(settings, ValidationSettings) else load_settings(root, settings)
    instances, findings = listed_instances(root, index_name, chosen)
    records: list[InstanceRecord] = []

    def examine(instance: str) -> InstanceRecord:
        return examine_instance(
            root, instance, depth_name, full=full, settings=chosen, label_type=label_type, depth_unit=depth_unit
        )

    for record in parallel_map(examine, instances, progress):
        findings.extend(record.findings)
        records.append(record)
    findings += compare_instances(records, chosen)
    if full:
        findings += check_reprojection(root, records, chosen)
    return findings


def listed_instances(root: Path, index_name: str, settings: ValidationSettings) -> tuple[list[str], list[Finding]]:
    """What a list names, each once, and what is wrong with the list itself.

    Raises:
        MissingIndexError, DatasetError: as `validate_dataset`.
    """
    if index_name == INDEX_NAME and not index_path(root, index_name).exists():
        instances, findings = scan_instances(root)
        if instances:
            put_aside = read_quarantine(root)
            instances = [instance for instance in instances if instance not in put_aside]
            return instances, apply_settings(findings, settings)
    named: list[str] = []
    problems: list[Finding | None] = []
    for line, problem in check_index(root, index_name):
        if problem is None:
            named.append(line)
        else:
            problems.append(finding_of("list-entry", problem.where, problem.found, settings, problem.fix))
    findings = [finding for finding in problems if finding is not None] + find_repeated(named, index_name, settings)
    instances = list(dict.fromkeys(named))
    return instances, findings + find_put_aside(instances, read_quarantine(root), settings)


def find_repeated(instances: Sequence[str], index_name: str, settings: ValidationSettings) -> list[Finding]:
    """A warning when a list names instances more than once: they are then drawn more often, which may be meant."""
    counts: dict[str, int] = {}
    for instance in instances:
        counts[instance] = counts.get(instance, 0) + 1
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if not repeated:
        return []
    evidence = f"{len(repeated)} instances stand more than once, such as {repeated[0]}"
    finding = finding_of("listed-once", index_name, evidence, settings)
    return [] if finding is None else [finding]


def find_put_aside(
    instances: Sequence[str], quarantined: Mapping[str, str], settings: ValidationSettings
) -> list[Finding]:
    """A warning for each instance of a list that is in quarantine; `quarantined` says why."""
    told = (
        finding_of("not-quarantined", instance, f"put aside because: {quarantined[instance]}", settings)
        for instance in instances
        if instance in quarantined
    )
    return [finding for finding in told if finding is not None]


def apply_settings(findings: Sequence[Finding], settings: ValidationSettings) -> list[Finding]:
    """Findings of a scan without the rules that are off, with the severities that the settings give the others."""
    return [
        replace(finding, severity=settings.severities.get(finding.rule, finding.severity))
        for finding in findings
        if finding.rule not in settings.off
    ]
