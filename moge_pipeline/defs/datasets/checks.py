"""Checks of an index, made in the same run as the index and blocking what is downstream of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import dagster as dg

from moge_pipeline.catalog import DatasetEntry, DatasetVariant

if TYPE_CHECKING:
    from moge_core.datasets import Finding, IndexReport

CHECKS: Mapping[str, tuple[str, frozenset[str]]] = {
    "files_present": (
        "Every listed instance is there once, with its image, depth map and meta.json.",
        frozenset(
            {
                "list-entry",
                "listed-once",
                "not-quarantined",
                "files-present",
                "files-known",
                "inside-root",
                "listable-path",
                "folder-readable",
                "files-readable",
            }
        ),
    ),
    "sizes_agree": ("Image and depth map of an instance have the same width and height.", frozenset({"sizes-agree"})),
    "depth_decodable": (
        "Images and depth maps can be decoded, and a depth map knows at least one depth.",
        frozenset(
            {"depth-decodable", "depth-16-bit", "depth-has-range", "depth-known", "image-decodable", "maps-decodable"}
        ),
    ),
    "intrinsics_normalised": (
        "meta.json holds intrinsics relative to the image's size.",
        frozenset(
            {
                "meta-readable",
                "intrinsics-normalised",
                "intrinsics-row-major",
                "focal-positive",
                "principal-point-inside",
            }
        ),
    ),
    "cameras_plausible": (
        "Intrinsics are those of this image: field of view, pixel shape and principal point are a camera's.",
        frozenset({"intrinsics-of-this-size", "pixels-square", "fov-plausible"}),
    ),
    "depth_plausible": (
        "Depth is z in the unit it claims, finely measured, without markers, walls or finite sky; it fits its image and"
        " its further maps.",
        frozenset(
            {
                "image-varies",
                "depth-mostly-known",
                "depth-varies",
                "depth-unsaturated",
                "sky-infinite",
                "marker-not-depth",
                "depth-levels",
                "depth-steps",
                "depth-not-disparity",
                "depth-not-inverted",
                "depth-along-axis",
                "depth-bits-in-order",
                "depth-not-float16-bits",
                "infinity-is-sky",
                "registered",
                "normals-fit-depth",
                "mask-fits-depth",
                "segmentation-fits",
                "unit-plausible",
                "density-fits-label",
            }
        ),
    ),
    "instances_consistent": (
        "Instances are no copies of each other, and agree on unit, cameras and density.",
        frozenset({"not-duplicated", "unit-consistent", "intrinsics-consistent", "density-consistent", "reprojects"}),
    ),
}
"""Check name: what it promises, and the rules of `moge_core.datasets` that it covers."""


def index_check_specs(index_key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """The checks that an index asset carries."""
    return [
        dg.AssetCheckSpec(name, asset=index_key, blocking=True, description=promise)
        for name, (promise, _) in CHECKS.items()
    ]


def as_used(report: IndexReport, entry: DatasetEntry, variant: DatasetVariant) -> IndexReport:
    """`report` with the findings that depend on a label type or unit judged by the configurations that use the list.

    Raises:
        MoGeError: the dataset cannot be read.
    """
    from moge_core.datasets import check_listed
    from moge_core.datasets.validation.usage import RULES_OF_USE

    uses = [use for use in entry.uses if use.variant == variant]
    findings = [finding for finding in report.findings if finding.rule not in RULES_OF_USE]
    for use in uses:
        listed = check_listed(
            entry.path,
            index_name=variant.index,
            depth_name=variant.depth,
            label_type=use.label_type,
            depth_unit=use.depth_unit,
        )
        findings += [each for each in listed.findings if each.rule in RULES_OF_USE and each not in findings]
    return replace(report, findings=findings) if uses else report


def check_results(reports: Sequence[IndexReport]) -> list[dg.AssetCheckResult]:
    """Result of each check over all lists of a dataset.

    A broken instance that a list names would reach training, so its error blocks; one that indexing has left out, and
    a warning, are told without blocking.
    """
    return [_result(name, rules, reports) for name, (_, rules) in CHECKS.items()]


def findings_table(findings: Iterable[Finding], limit: int = 200) -> dg.TableMetadataValue:
    """The first findings as a table of the UI."""
    rows = [
        {
            "instance": finding.instance,
            "severity": finding.severity,
            "rule": finding.rule,
            "evidence": finding.evidence,
            "fix": finding.fix,
        }
        for finding, _ in zip(findings, range(limit), strict=False)
    ]
    columns = [dg.TableColumn(name) for name in ("instance", "severity", "rule", "evidence", "fix")]
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rows], schema=dg.TableSchema(columns=columns))


def _result(name: str, rules: frozenset[str], reports: Sequence[IndexReport]) -> dg.AssetCheckResult:
    found, blocking = [], 0
    for report in reports:
        listed = set(report.instances)
        for finding in report.findings:
            if finding.rule in rules:
                found.append(finding)
                blocking += finding.severity == "error" and finding.instance in listed
    left_out = sum(finding.severity == "error" for finding in found) - blocking
    warnings = len(found) - blocking - left_out
    told = {
        f"{blocking} in listed instances": blocking,
        f"{left_out} in instances left out": left_out,
        f"{warnings} warnings": warnings,
    }
    num_checked = sum(report.num_scanned for report in reports)
    return dg.AssetCheckResult(
        check_name=name,
        passed=not found,
        severity=dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN,
        description=", ".join(text for text, count in told.items() if count) or f"{num_checked} instances checked",
        metadata={
            "errors": blocking + left_out,
            "warnings": warnings,
            **({"findings": findings_table(found)} if found else {}),
        },
    )
