"""A dataset at one glance: a contact sheet, a histogram of depth, point clouds to open, and numbers."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.inspection import PLY_NAME, LoadedInstance, load_instance, write_point_cloud
from moge_core.datasets.layout import DEPTH_NAME, INDEX_NAME, read_index, resolve_dataset
from moge_core.datasets.manifest import InstanceRecord, load_manifest, select_records
from moge_core.errors import DatasetError, InputError, InstanceError, MoGeError

CONTACT_SHEET_NAME = "contact_sheet.png"
HISTOGRAM_NAME = "depth_histogram.png"
POINT_CLOUD_DIR = "pointclouds"

# Enough pixels an instance for a smooth histogram, few enough to keep all of them in memory.
_HISTOGRAM_PIXELS = 1 << 17


@dataclass(frozen=True)
class QualityReport:
    """Where the report of a dataset lies, and its numbers.

    Attributes:
        instances: the sampled instances, in the order of the contact sheet.
        contact_sheet: PNG with image, depth and normals of each of them, a row an instance.
        depth_histogram: PNG of their depths.
        ply_paths: the point cloud of each, by instance.
        statistics: numbers over the whole list where the manifest knows it, else over the samples (`num_measured` says
            how many instances they rest on). Depth is in the dataset's unit, angles are in degrees.
        problems: instances that were drawn but could not be shown, and why; others were drawn in their place.
    """

    instances: list[str]
    contact_sheet: Path
    depth_histogram: Path
    ply_paths: dict[str, Path]
    statistics: dict[str, int | float]
    problems: dict[str, str]


def write_quality_report(
    dataset_dir: str | Path,
    out_dir: str | Path,
    *,
    index_name: str = INDEX_NAME,
    depth_name: str = DEPTH_NAME,
    num_samples: int = 8,
    seed: int = 0,
    depth_unit: float | None = None,
) -> QualityReport:
    """Draw instances of a list and write what a person wants to see of them.

    Args:
        dataset_dir: the dataset.
        out_dir: folder for the report; made when missing.
        index_name: the list to draw from.
        depth_name: file name of the depth maps.
        num_samples: instances to show; all of a shorter list.
        seed: another seed draws others.
        depth_unit: metres a unit of depth; by default what each meta.json says.

    Raises:
        MissingIndexError: the list does not exist.
        DatasetError: the list is malformed, or none of its instances can be shown.
        InputError: fewer than one sample.
    """
    from moge_core.io import write_image
    from moge_core.visualization import contact_sheet, plot_histogram

    if num_samples < 1:
        raise InputError("num_samples", "must be at least 1", found=num_samples)
    root, out = resolve_dataset(dataset_dir), Path(out_dir).resolve()
    listed = list(dict.fromkeys(read_index(root, index_name)))
    out.mkdir(parents=True, exist_ok=True)
    # Clouds of an earlier report would pass for clouds of this one.
    shutil.rmtree(out / POINT_CLOUD_DIR, ignore_errors=True)

    rows: list[list[npt.NDArray[np.uint8]]] = []
    captions: list[str] = []
    depths: list[npt.NDArray[np.float32]] = []
    shown: list[str] = []
    ply_paths: dict[str, Path] = {}
    problems: dict[str, str] = {}
    metric = True
    rng = np.random.default_rng(seed)
    for position in rng.permutation(len(listed)):
        if len(shown) == num_samples:
            break
        instance = listed[position]
        try:
            loaded = load_instance(root / instance, depth_name, depth_unit=depth_unit)
            ply_paths[instance] = _write_cloud(out / POINT_CLOUD_DIR / instance, loaded)
        except (MoGeError, OSError) as error:
            problems[instance] = str(error)
            continue
        shown.append(instance)
        metric &= loaded.metric
        rows.append(_pictures(loaded))
        captions.append(_caption(instance, loaded))
        finite = loaded.depth[np.isfinite(loaded.depth)]
        depths.append(finite if finite.size <= _HISTOGRAM_PIXELS else rng.choice(finite, _HISTOGRAM_PIXELS))
    if not shown:
        instance, reason = next(iter(problems.items()))
        raise DatasetError(
            root,
            "must hold an instance that can be shown",
            found=f"{len(problems)} drawn, none readable. First: {instance}: {reason}",
            fix=f"Run `moge index {root}`.",
        )
    write_image(out / CONTACT_SHEET_NAME, contact_sheet(rows, captions=captions))
    plot_histogram(
        np.concatenate(depths),
        out / HISTOGRAM_NAME,
        title=f"{root.name}: depth of {len(shown)} of {len(listed)} instances",
        x_label="depth in metres" if metric else "depth, unit unknown",
        log=True,
    )
    records = select_records(load_manifest(root), listed, depth_name)
    return QualityReport(
        instances=shown,
        contact_sheet=out / CONTACT_SHEET_NAME,
        depth_histogram=out / HISTOGRAM_NAME,
        ply_paths=ply_paths,
        statistics=_statistics(records, len(listed)),
        problems=problems,
    )


def _write_cloud(folder: Path, loaded: LoadedInstance) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if not write_point_cloud(folder / PLY_NAME, loaded):
        folder.rmdir()
        raise InstanceError(loaded.folder, "must have a pixel of finite depth", found="none")
    return folder / PLY_NAME


def _pictures(loaded: LoadedInstance) -> list[npt.NDArray[np.uint8]]:
    from moge_core.geometry import depth_map_to_normal_map
    from moge_core.visualization import colorize_depth, colorize_normal

    normals, valid = depth_map_to_normal_map(loaded.depth, loaded.intrinsics)
    return [loaded.image, colorize_depth(loaded.depth), colorize_normal(normals, valid)]


def _caption(instance: str, loaded: LoadedInstance) -> str:
    from moge_core.geometry import intrinsics_to_fov

    finite = loaded.depth[np.isfinite(loaded.depth)]
    unit = " m" if loaded.metric else ""
    fov_x = float(np.degrees(intrinsics_to_fov(loaded.intrinsics)[0]))
    return (
        f"{instance}: {finite.min():.3g} to {finite.max():.3g}{unit}, {finite.size / loaded.depth.size:.0%} known,"
        f" fov {fov_x:.0f}°"
    )


def _statistics(records: list[InstanceRecord], num_listed: int) -> dict[str, int | float]:
    statistics: dict[str, int | float] = {"num_instances": num_listed, "num_measured": len(records)}
    statistics["num_broken"] = sum(not record.usable for record in records)
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
