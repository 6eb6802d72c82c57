"""Commands that bring raw data into the dataset format, and what they share: report and configuration entry.

A layout's command names its own options and leaves the rest to three helpers:

    @import_group.command("layout")
    @click.argument("source", type=click.Path(exists=True, path_type=Path))
    @value_options()
    @common_import_options(label_type="synthetic")
    def import_layout_command(source: Path, out: Path, strict: bool, **options: Any) -> None:
        run_importer(import_layout, source, out, strict, **options)
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moge_core.cli.common import EXIT_FINDINGS, Commands, parse_size, print_findings, progress_bar
from moge_core.cli.import_options import SourcePath, common_import_options, typable, value_options
from moge_core.errors import MoGeError

if TYPE_CHECKING:
    from moge_core.datasets.importers import ImportReport
    from moge_core.datasets.importers.dry_run import Understood

_LEFTOVERS_SHOWN = 5


def print_import(report: ImportReport, out: Path) -> None:
    """What an import did, the entry to paste into a training configuration, and what comes next."""
    num_kept = len(report.instances) - report.num_written
    replaced = f"{report.num_replaced} replaced, " if report.num_replaced else ""
    num_new = report.num_written - report.num_replaced
    click.echo(f"{report.out_dir}: {num_new} instances written, {replaced}{num_kept} already there")
    if report.median_depth_m is not None and report.valid_share is not None:
        unit = {True: " m", False: " without unit", None: " in m or without unit"}[report.metric]
        click.echo(
            f"  typical median depth {report.median_depth_m:.3f}{unit}, {report.valid_share:.1%} of the pixels known,"
            f" field of view {report.fov_x_deg:.1f} degrees"
        )
    for line in report.taken_for:
        click.echo(f"  {line}")
    for note in report.notes:
        click.echo(f"  note: {note}")
    print_findings(report.skipped, of="file")
    if report.skipped:
        click.echo(f"  all of it: {report.log_path}")
    if report.num_removed:
        click.echo(f"  {report.num_removed} instances that an earlier import left were removed")
    if report.leftovers:
        _print_leftovers(report)
    entry: dict[str, Any] = {
        "name": report.out_dir.name,
        "path": _data_path(report.out_dir),
        "label_type": report.label_type,
        "weight": 1.0,
    }
    if report.depth_unit is not None:
        entry["depth_unit"] = report.depth_unit
    elif report.metric is None:
        click.echo(
            "  note: Instances differ in their unit, or some have none. The entry leaves depth_unit out, so that none"
            " is taken as metric; import those of one unit into a dataset of their own to use their scale."
        )
    click.echo("\nEntry for `data.datasets` of a training configuration:\n")
    click.echo(json.dumps(entry, indent=4))
    click.echo(f"\nNext: moge index {out}")


def print_understood(report: ImportReport, understood: Understood, strict: bool) -> None:
    """What a dry run found, and the command that imports."""
    click.echo(f"Dry run: nothing is written into {report.out_dir}.")
    for line in report.taken_for:
        click.echo(line)
    for line in understood.lines:
        click.echo(line)
    for note in report.notes:
        click.echo(f"  note: {note}")
    print_findings(report.skipped, of="file")
    if understood.command is not None:
        added = f", with {' and '.join(understood.missing)} added" if understood.missing else ""
        click.echo(f"\nTo import{added}:\n  {understood.command}{' --strict' if strict else ''}")


def _print_leftovers(report: ImportReport) -> None:
    names = report.leftovers
    more = f" and {len(names) - _LEFTOVERS_SHOWN} more" if len(names) > _LEFTOVERS_SHOWN else ""
    click.echo(
        f"  note: {len(names)} instances that an earlier import made of this source are not made by this one, and are"
        f" in the dataset still: {', '.join(names[:_LEFTOVERS_SHOWN])}{more}"
    )
    if report.command is not None:
        click.echo(f"  to remove exactly these: {report.command} --prune")


def run_importer(importer: Callable[..., ImportReport], source: Path, out: Path, strict: bool, **options: Any) -> None:
    """Import with progress, print the report, and leave with an exit code that says whether all frames came in if
    `strict` asks it. What is printed names only options of this command.
    """
    command = click.get_current_context().command
    try:
        with progress_bar("Importing") as progress:
            report = importer(source, out, progress=progress, **options)
    except MoGeError as error:
        error.fix = typable(error.fix, command) if error.fix else None
        raise
    report = replace(
        report,
        notes=[told for note in report.notes if (told := typable(note, command))],
        skipped=[replace(finding, fix=typable(finding.fix, command)) for finding in report.skipped],
    )
    if report.understood is not None:
        print_understood(report, report.understood, strict)
    else:
        print_import(report, out)
    if strict and any(finding.severity == "error" for finding in report.skipped):
        sys.exit(EXIT_FINDINGS)


@click.group("import", cls=Commands)
def import_group() -> None:
    """Bring raw data into the dataset format.

    Every command is resumable: running it again does only what is new, or what an interrupted run left.
    """


@import_group.command("rgbd-folder")
@click.argument("source", type=SourcePath("folder"))
@click.option(
    "--preset",
    metavar="NAME",
    help="A known source, which answers what the other options do not; see `moge import presets`.",
)
@click.option(
    "--intrinsics",
    help="Camera in pixels: fx,fy,cx,cy; or a file: JSON, YAML, text, NPY, NPZ or COLMAP's cameras, with :NAME behind"
    " it for one of several cameras; or a pattern of files, one a frame, or one a folder as **/camera.txt.",
)
@click.option(
    "--image",
    "image_glob",
    metavar="GLOB",
    help="Images, relative to SOURCE. Default: all pictures that are not depth, nor named masks, normals and so on."
    " With --depth, what * matches tells frames apart.",
)
@click.option("--depth", "depth_glob", metavar="GLOB", help="Depth maps. Default: 16-bit grey, and floats.")
@click.option(
    "--max-time-difference",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    default=0.02,
    show_default=True,
    help="Time stamps in names, or in rgb.txt and depth.txt, that differ by less are one frame.",
)
@click.option(
    "--intrinsics-size",
    type=parse_size,
    metavar="WxH",
    help="Resolution that the intrinsics refer to, if not the images'.",
)
@click.option("--flip-y", is_flag=True, help="Turn image and depth upside down.")
@value_options()
@common_import_options(label_type=None, label_help="Default: sfm, or what the preset says.")
def import_rgbd_folder_command(source: Path, out: Path, strict: bool, **options: Any) -> None:
    """Images and depth maps in a folder.

    They are paired by the frame number or name that both carry. Running it again does only what is new.

    \b
    Examples, a sequence of TUM, and a scene of ScanNet:
      moge import rgbd-folder rgbd_dataset_freiburg1_desk -o data/desk --preset tum
      moge import rgbd-folder scene0000_00 -o data/scannet --preset scannet
    """
    from moge_core.datasets import import_rgbd_folder

    if options["label_type"] is None:
        del options["label_type"]
    run_importer(import_rgbd_folder, source, out, strict, **options)


@import_group.command("presets")
@click.argument("name", required=False)
def import_presets_command(name: str | None) -> None:
    """Known sources for rgbd-folder: what each preset sets, what it still wants, and where that was confirmed."""
    from moge_core.datasets.importers.presets import MISSING, PRESETS, preset_named

    chosen = PRESETS if name is None else {name: preset_named(name)}
    for known, preset in chosen.items():
        assert preset is not None
        click.echo(f"{known}\n  {preset.layout}\n  sets: {preset.options()}")
        if preset.wants:
            click.echo(f"  wants: {preset.wants}")
        if preset.note:
            click.echo(f"  tells: {preset.note}")
        click.echo(f"  from: {preset.source}")
    if name is None:
        click.echo("\nWithout a preset, because it could not be confirmed or is not there:")
        for what, why in MISSING.items():
            click.echo(f"  {what}: {why}")


@import_group.command("table")
@click.argument("source", metavar="TABLE", type=SourcePath("file"))
@value_options()
@common_import_options(label_type="sfm")
def import_table_command(source: Path, out: Path, strict: bool, **options: Any) -> None:
    """Frames that a CSV or JSONL table names, one a row.

    Columns: name image depth fx fy cx cy, and where needed width height (the size that the intrinsics refer to),
    camera_model k1 k2 p1 p2 k3 ... of its lens, normal, mask, segmentation, and the options below that say what values
    mean (infinite_from for --infinite-from; several values are separated by blanks). A row goes before an option. Paths
    are relative to the table.

    \b
    Example:
      moge import table frames.csv -o data/kitchen --label-type lidar
    """
    from moge_core.datasets.importers.table import import_table

    run_importer(import_table, source, out, strict, **options)


@import_group.command("kitti")
@click.argument("source", type=SourcePath("folder"))
@click.option("--layout", type=click.Choice(["object", "raw", "depth"]), help="Default: the one that is found.")
@click.option(
    "--camera", "cameras", multiple=True, metavar="image_02|image_03", help="May be repeated. Default: both, if there."
)
@click.option(
    "--images",
    "images_dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The raw recordings, whose images belong to the depth maps. Default: SOURCE.",
)
@value_options()
@common_import_options(label_type="lidar")
def import_kitti_command(source: Path, out: Path, strict: bool, **options: Any) -> None:
    """KITTI: object and raw recordings with velodyne sweeps, or depth maps.

    \b
    Examples:
      moge import kitti object/training -o data/kitti_object
      moge import kitti raw/2011_09_26 -o data/kitti_raw --camera image_02
      moge import kitti data_depth_annotated -o data/kitti_depth --images raw
    """
    from moge_core.datasets.importers.kitti import import_kitti

    run_importer(import_kitti, source, out, strict, **options)


@import_group.command("dgp")
@click.argument("source", type=SourcePath("folder"))
@click.option("--camera", "cameras", multiple=True, metavar="NAME", help="May be repeated. Default: all with images.")
@click.option("--lidar", metavar="NAME", help="Default: the only one.")
@common_import_options(label_type="lidar")
def import_dgp_command(source: Path, out: Path, strict: bool, **options: Any) -> None:
    """Scenes in DGP's layout, such as DDAD: scene_*.json with calibration, images and point clouds.

    \b
    Example:
      moge import dgp ddad_train_val -o data/ddad --camera CAMERA_01 --camera CAMERA_05
    """
    from moge_core.datasets.importers.dgp import import_dgp

    run_importer(import_dgp, source, out, strict, **options)


@import_group.command("nuscenes")
@click.argument("source", type=SourcePath("folder"))
@click.option("--version", metavar="NAME", help="Folder of the tables, such as v1.0-mini. Default: the only one.")
@click.option("--camera", "cameras", multiple=True, metavar="CHANNEL", help="May be repeated. Default: all.")
@click.option("--lidar", metavar="CHANNEL", help="Default: LIDAR_TOP, or the only one.")
@common_import_options(label_type="lidar")
def import_nuscenes_command(source: Path, out: Path, strict: bool, **options: Any) -> None:
    """Key frames in nuScenes' layout: tables of tokens, camera images and LiDAR sweeps.

    \b
    Example:
      moge import nuscenes nuscenes -o data/nuscenes --version v1.0-trainval --camera CAM_FRONT
    """
    from moge_core.datasets.importers.nuscenes import import_nuscenes

    run_importer(import_nuscenes, source, out, strict, **options)


@import_group.command("stereo")
@click.argument("source", type=SourcePath("folder"))
@click.option("--layout", type=click.Choice(["middlebury", "kitti", "plain"]), help="Default: the one that is found.")
@click.option("--left", metavar="GLOB", help="Left pictures, relative to SOURCE, where it has no known layout.")
@click.option("--disparity", metavar="GLOB", help="Their disparity maps.")
@click.option("--intrinsics", help="Left camera in pixels: fx,fy,cx,cy or a file.")
@click.option("--intrinsics-size", type=parse_size, metavar="WxH", help="Resolution that the intrinsics refer to.")
@click.option(
    "--calib",
    "calib_dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="KITTI's calibrations, one file a frame. Default: beside the pictures.",
)
@value_options()
@common_import_options(label_type="sfm")
def import_stereo_command(source: Path, out: Path, strict: bool, **options: Any) -> None:
    """Left pictures with disparity: Middlebury, ETH3D, KITTI, or any.

    \b
    Examples:
      moge import stereo middlebury2014 -o data/middlebury
      moge import stereo scenes -o data/scenes --left '*_left.png' --disparity '*_disp.npz' --baseline 0.193001
        --intrinsics 994.978,994.978,311.193,254.877 --doffs 31.086
    """
    from moge_core.datasets.importers.stereo import import_stereo

    run_importer(import_stereo, source, out, strict, **options)


def _data_path(path: Path) -> str:
    """A dataset's path as a configuration would say it: relative to the data root where it lies below that."""
    root = Path(os.environ.get("MOGE_DATA_ROOT") or Path.cwd()).resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
