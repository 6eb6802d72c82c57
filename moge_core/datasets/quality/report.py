"""Drawing instances of a list and writing the files of a report."""

from __future__ import annotations

import datetime
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moge_core.datasets.layout import (
    DEPTH_NAME,
    INDEX_NAME,
    POINT_CLOUD_DIR,
    REPORT_DIR,
    STATE_DIR,
    Finding,
    check_state,
    read_index,
    resolve_dataset,
)
from moge_core.datasets.manifest import InstanceRecord, load_manifest
from moge_core.datasets.quality.findings import count_rules, group_findings
from moge_core.datasets.quality.numbers import (
    JSON_NAME,
    PREVIOUS_JSON_NAME,
    ReportNumbers,
    RuleCount,
    compare_with_former,
    write_numbers,
)
from moge_core.datasets.quality.page import ReportContent, report_page
from moge_core.datasets.quality.samples import Sample, read_sample
from moge_core.errors import DatasetError, InputError, MoGeError
from moge_core.io.files import write_bytes

CONTACT_SHEET_NAME = "contact_sheet.png"
HISTOGRAM_NAME = "depth_histogram.png"
PAGE_NAME = "report.html"

# Points of all clouds on the page together, and of one: the page must stay light.
_POINTS_ON_PAGE, _POINTS_OF_CLOUD = 280_000, 40_000


@dataclass(frozen=True)
class QualityReport:
    """Where the report of a dataset lies, and its numbers.

    Attributes:
        instances: the sampled instances, in the order of the contact sheet.
        html_path: the page, one file to open in a browser, offline too.
        json_path: its numbers, with which the next report in this folder compares itself.
        contact_sheet: PNG with image, depth and normals of each of them, a row an instance.
        depth_histogram: PNG of their depths.
        ply_paths: the point cloud of each, by instance.
        statistics: numbers over the whole list where the manifest knows it (`num_measured` says how many instances they
            rest on). Depth is in the dataset's unit, angles are in degrees. `num_left_out` counts broken instances that
            are not in the list.
        problems: instances that were drawn but could not be shown, and why; others were drawn in their place.
        verdict: the report in one sentence.
    """

    instances: list[str]
    html_path: Path
    json_path: Path
    contact_sheet: Path
    depth_histogram: Path
    ply_paths: dict[str, Path]
    statistics: dict[str, int | float]
    problems: dict[str, str]
    verdict: str


def write_quality_report(
    dataset_dir: str | Path,
    out_dir: str | Path | None = None,
    *,
    index_name: str = INDEX_NAME,
    depth_name: str = DEPTH_NAME,
    num_samples: int = 8,
    seed: int = 0,
    depth_unit: float | None = None,
    findings: Sequence[Finding] | None = None,
) -> QualityReport:
    """Draw instances of a list and write what a person wants to see of them.

    Args:
        dataset_dir: the dataset.
        out_dir: folder for the report, wherever it is; by default `.moge/report` in the dataset. Made when missing. A
            report that is there is replaced, and compared with.
        index_name: the list to draw from.
        depth_name: file name of the depth maps.
        num_samples: instances to show; all of a shorter list.
        seed: another seed draws others.
        depth_unit: metres a unit of depth; by default what each meta.json says.
        findings: what to tell of the instances instead of what the manifest holds.

    Raises:
        MissingIndexError: the list does not exist.
        DatasetError: the list is malformed, none of its instances can be shown, or a link in the dataset would lead
            the report out of it.
        InputError: fewer than one sample, or a depth unit that is not positive.
    """
    if num_samples < 1:
        raise InputError("num_samples", "must be at least 1", found=num_samples)
    if depth_unit is not None and not (depth_unit > 0 and np.isfinite(depth_unit)):
        raise InputError("depth_unit", "must be positive, in metres", found=depth_unit)
    root = resolve_dataset(dataset_dir)
    if out_dir is None:
        check_state(root)
    out = (root / STATE_DIR / REPORT_DIR if out_dir is None else Path(out_dir)).resolve()
    listed = list(dict.fromkeys(read_index(root, index_name)))
    out.mkdir(parents=True, exist_ok=True)
    # Clouds of an earlier report would pass for clouds of this one.
    shutil.rmtree(out / POINT_CLOUD_DIR, ignore_errors=True)

    samples, problems = _draw(root, out, listed, depth_name, num_samples, seed, depth_unit)
    _write_pictures(out, root.name, samples, len(listed))
    manifest = load_manifest(root)
    records = manifest.select(listed, depth_name)
    # What is broken is left out of the full list, and told all the same; other lists are a choice of instances.
    others = [record for record in manifest.records.values() if record.depth_name == depth_name]
    known = others if index_name == INDEX_NAME else records
    told = list(findings or ())
    if findings is None:
        told = [finding for record in known for finding in record.findings]
        told += manifest.comparison(index_name, depth_name)
    statistics = _statistics(records, listed, told)
    numbers = ReportNumbers(
        dataset=root.name.encode("utf-8", "replace").decode(),
        written_at=datetime.datetime.now().astimezone().replace(microsecond=0),
        index_name=index_name,
        depth_name=depth_name,
        num_samples=num_samples,
        seed=seed,
        depth_unit=depth_unit,
        list_digest=hashlib.sha256("\n".join(sorted(listed)).encode("utf-8", "surrogateescape")).hexdigest(),
        list_numbers=statistics,
        sample_numbers=_sample_means(samples),
        samples={sample.instance: sample.numbers for sample in samples},
        findings=[
            RuleCount(severity=severity, rule=rule, count=count)
            for (severity, rule), count in sorted(count_rules(told).items())
        ],
    )
    content = ReportContent(
        numbers=numbers,
        samples=samples,
        records=records,
        problems=problems,
        groups=group_findings(told, root, depth_name, frozenset(listed), known),
        checked=findings is not None or bool(records),
        comparison=compare_with_former(out / JSON_NAME, numbers),
        ply_dir=POINT_CLOUD_DIR,
    )
    write_bytes(out / PAGE_NAME, report_page(content))
    if (out / JSON_NAME).is_file():
        (out / JSON_NAME).replace(out / PREVIOUS_JSON_NAME)
    write_numbers(out / JSON_NAME, numbers)
    return QualityReport(
        instances=[sample.instance for sample in samples],
        html_path=out / PAGE_NAME,
        json_path=out / JSON_NAME,
        contact_sheet=out / CONTACT_SHEET_NAME,
        depth_histogram=out / HISTOGRAM_NAME,
        ply_paths={sample.instance: sample.ply_path for sample in samples},
        statistics=statistics,
        problems=problems,
        verdict=content.verdict,
    )


def _draw(
    root: Path,
    out: Path,
    listed: list[str],
    depth_name: str,
    num_samples: int,
    seed: int,
    depth_unit: float | None,
) -> tuple[list[Sample], dict[str, str]]:
    rng = np.random.default_rng(seed)
    samples: list[Sample] = []
    problems: dict[str, str] = {}
    max_points = min(_POINTS_OF_CLOUD, max(1, _POINTS_ON_PAGE // min(num_samples, len(listed))))
    for position in rng.permutation(len(listed)):
        if len(samples) == num_samples:
            break
        instance = listed[position]
        try:
            sample = read_sample(
                root,
                instance,
                depth_name,
                out / POINT_CLOUD_DIR,
                depth_unit=depth_unit,
                max_points=max_points,
                rng=rng,
            )
        except (MoGeError, OSError) as error:
            problems[instance] = str(error)
            continue
        samples.append(sample)
    if not samples:
        instance, reason = next(iter(problems.items()))
        raise DatasetError(
            root,
            "must hold an instance that can be shown",
            found=f"{len(problems)} drawn, none readable. First: {instance}: {reason}",
            fix=f"Run `moge index {root}`.",
        )
    return samples, problems


def _write_pictures(out: Path, name: str, samples: list[Sample], num_listed: int) -> None:
    from moge_core.io import write_image
    from moge_core.visualization import contact_sheet, plot_histogram

    rows = [[sample.image, sample.depth_picture, sample.normal_picture] for sample in samples]
    write_image(out / CONTACT_SHEET_NAME, contact_sheet(rows, captions=[sample.caption for sample in samples]))
    plot_histogram(
        np.concatenate([sample.depths for sample in samples]),
        out / HISTOGRAM_NAME,
        title=f"{name}: depth of {len(samples)} of {num_listed} instances",
        x_label="depth in metres" if all(sample.metric for sample in samples) else "depth, unit unknown",
        log=True,
    )


def _statistics(
    records: list[InstanceRecord], listed: list[str], findings: Sequence[Finding]
) -> dict[str, int | float]:
    broken = {finding.instance for finding in findings if finding.severity == "error"}
    names = set(listed)
    statistics: dict[str, int | float] = {
        "num_instances": len(listed),
        "num_measured": len(records),
        "num_broken": len(broken & names),
        "num_left_out": len(broken - names),
    }
    columns: dict[str, Any] = {
        "depth_min": min,
        "depth_median": np.median,
        "depth_max": max,
        "valid_share": np.mean,
        "inf_share": np.mean,
    }
    for name, summarise in columns.items():
        values = [value for record in records if (value := getattr(record, name)) is not None]
        if values:
            statistics[name] = float(summarise(values))
    fovs = [record.fov_x for record in records if record.fov_x is not None]
    areas = [record.width * record.height for record in records if record.width and record.height]
    if fovs:
        statistics |= {"fov_x_min": min(fovs), "fov_x_median": float(np.median(fovs)), "fov_x_max": max(fovs)}
    if areas:
        statistics |= {"area_min": min(areas), "area_max": max(areas)}
    return statistics


def _sample_means(samples: list[Sample]) -> dict[str, int | float]:
    """The mean of each number over the samples that have it; of the depths their median."""
    means: dict[str, int | float] = {}
    for name in samples[0].numbers:
        values = [value for sample in samples if (value := sample.numbers[name]) is not None]
        if values:
            means[name] = float(np.median(values) if name == "depth_median" else np.mean(values))
    return means
