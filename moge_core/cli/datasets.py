"""Commands on datasets: index, validate, quarantine, inspect, sample-scenes."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click

from moge_core.cli.common import (
    EXIT_FINDINGS,
    depth_option,
    index_option,
    parse_size,
    print_findings,
    progress_bar,
    verbose,
)


@click.command("index")
@click.argument("dataset", type=click.Path(path_type=Path))
@depth_option
@index_option
@click.option(
    "--rebuild", is_flag=True, help="Read everything again and write the list anew. One of your own is kept as .bak."
)
@click.option(
    "--val-fraction",
    type=float,
    metavar="SHARE",
    help="Also write .train.txt and .val.txt with this share of the scenes held out; of a single video, of its frames.",
)
@click.option("--strict", is_flag=True, help=f"Exit with {EXIT_FINDINGS} if any instance is broken.")
@verbose
def index_command(
    dataset: Path, depth_name: str, index_name: str, rebuild: bool, val_fraction: float | None, strict: bool
) -> None:
    """List the instances of DATASET in .index.txt and record what is known of each.

    Only new and changed instances are read. Broken ones are told and left out. A list that you wrote yourself, or that
    was made for another --depth, is checked and kept as it is.
    """
    from moge_core.datasets import index_dataset, split_dataset

    with progress_bar("Reading") as progress:
        report = index_dataset(
            dataset, index_name=index_name, depth_name=depth_name, rebuild=rebuild, progress=progress
        )
    kind = "your own list" if index_name == ".index.txt" else "a split"
    if report.made_for is not None:
        kind = f"made for {report.made_for} and checked with {depth_name}"
    whose = f"{kind}, left as it is" if report.adopted else "written"
    click.echo(f"{report.index_path}: {len(report.instances)} instances ({whose})")
    click.echo(f"  looked at {report.num_scanned}, read {report.num_read} that were new or changed")
    if report.backup_path is not None:
        click.echo(f"  your own list was kept as {report.backup_path.name}")
    if report.quarantined:
        click.echo(f"  {len(report.quarantined)} in quarantine, left out")
    for note in report.notes:
        click.echo(f"  {note}")
    print_findings(report.findings)
    if report.num_broken:
        what = "in the list, which training skips" if report.adopted else "left out"
        click.echo(f"  {report.num_broken} broken instance{'s' if report.num_broken > 1 else ''} {what}")
    click.echo(f"  digest {report.digest[:16]}")
    if val_fraction is not None:
        split = split_dataset(dataset, val_fraction, rebuild=rebuild)
        held_out, scenes = split.num_scenes
        of_scenes = f"{held_out} of {scenes} scenes" if scenes > 1 else "a block of one scene"
        in_neither = f"; in neither: {len(split.gap)}" if split.gap else ""
        click.echo(
            f"  .train.txt: {len(split.train)} instances; .val.txt: {len(split.validation)} ({of_scenes}){in_neither}"
        )
        for line in split.told:
            click.echo(f"    {line}")
    if strict and report.num_broken:
        sys.exit(EXIT_FINDINGS)


@click.command("validate")
@click.argument("dataset", type=click.Path(path_type=Path))
@depth_option
@index_option
@click.option("--quick", is_flag=True, help="Read headers and meta.json only.")
@click.option("--label-type", help="Of the training configuration. Default: what each meta.json says.")
@click.option("--depth-unit", type=float, help="Metres a unit of depth. Default: what each meta.json says.")
@click.option(
    "--settings",
    type=click.Path(path_type=Path),
    help="Thresholds, a JSON file. Default: the dataset's .moge/validation.json, where it has one.",
)
@click.option("--quarantine", "put_aside", is_flag=True, help="Put instances with errors aside; see `moge quarantine`.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@verbose
def validate_command(
    dataset: Path, depth_name: str, index_name: str, quick: bool, put_aside: bool, as_json: bool, **options: Any
) -> None:
    """Check every instance that a list of DATASET names. Exits with 1 when one is broken.

    Every rule is explained in docs/validation.md.
    """
    import dataclasses

    from moge_core.datasets import quarantine_instances, validate_dataset
    from moge_core.datasets.layout import META_NAME

    counted = [0]
    with progress_bar("Checking") as progress:

        def update(done: int, total: int) -> None:
            counted[0] = total
            progress(done, total)

        findings = validate_dataset(
            dataset, index_name=index_name, depth_name=depth_name, full=not quick, progress=update, **options
        )
    broken = {
        finding.instance: f"{finding.rule}: {finding.evidence}"
        for finding in reversed(findings)
        if finding.severity == "error" and os.path.lexists(dataset / finding.instance / META_NAME)
    }
    num_errors = sum(finding.severity == "error" for finding in findings)
    if as_json:
        rows = [dataclasses.asdict(finding) for finding in findings]
        by_rule = Counter(finding.rule for finding in findings)
        document = {
            "dataset": str(dataset),
            "num_instances": counted[0],
            "num_errors": num_errors,
            "num_warnings": len(findings) - num_errors,
            "rules": dict(sorted(by_rule.items())),
            "findings": rows,
        }
        click.echo(json.dumps(document, indent=2))
    else:
        num_warnings = len(findings) - num_errors
        click.echo(f"{dataset}: {counted[0]} instances, {num_errors} errors, {num_warnings} warnings")
        print_findings(findings)
    if put_aside and broken:
        num_new = quarantine_instances(dataset, broken)
        click.echo(f"{num_new} instances were put into quarantine; `moge index {dataset}` leaves them out", err=as_json)
    if num_errors:
        sys.exit(EXIT_FINDINGS)


@click.command("quarantine")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.argument("instances", nargs=-1)
@click.option("--reason", default="put aside by hand", show_default=True, help="Why; it is kept with each.")
@click.option("--release", "to_release", is_flag=True, help="Take the instances out of quarantine again.")
@verbose
def quarantine_command(dataset: Path, instances: tuple[str, ...], reason: str, to_release: bool) -> None:
    """Keep INSTANCES of DATASET out of its list without deleting them; without instances, list what is put aside.

    A folder of instances stands for all of them. `moge index` obeys it at its next run.
    """
    from moge_core.datasets import quarantine_instances, read_quarantine, release_instances
    from moge_core.datasets.layout import resolve_dataset

    if not instances:
        held = read_quarantine(resolve_dataset(dataset))
        for instance, why in held.items():
            click.echo(f"{instance}: {why}")
        click.echo(f"{len(held)} in quarantine")
        return
    if to_release:
        click.echo(f"{release_instances(dataset, instances)} released\nNext: moge index {dataset}")
    else:
        num_new = quarantine_instances(dataset, dict.fromkeys(instances, reason))
        click.echo(f"{num_new} put into quarantine\nNext: moge index {dataset}")


@click.command("inspect")
@click.argument("path", metavar="INSTANCE_OR_DATASET", type=click.Path(path_type=Path))
@click.option("-o", "--output", "output_dir", type=click.Path(path_type=Path), help="Default: into each instance.")
@click.option("--ply", is_flag=True, help="Write pointcloud.ply.")
@click.option("--depth-vis", "depth_picture", is_flag=True, help="Write depth_vis.png.")
@depth_option
@click.option("-m", "--max-depth", type=float, help="Keep points nearer than this many times the nearest.")
@click.option("--inf", "show_infinity", is_flag=True, help="Show what is infinitely far in the depth picture.")
@click.option("--show", is_flag=True, help="Open a window with each point cloud.")
@click.option("--fov", "fov_x_deg", type=float, help="Horizontal field of view in degrees, instead of meta.json's.")
@click.option("--normals", is_flag=True, help="Give the points normals.")
@click.option("--depth-unit", type=float, help="Metres a unit of depth. Default: what meta.json says.")
@verbose
def inspect_command(path: Path, ply: bool, depth_picture: bool, show: bool, **options: Any) -> None:
    """Write point clouds and depth pictures of an instance, or of every instance below a folder.

    Without --ply, --depth-vis and --show it writes both. With -o the folders of the dataset are mirrored.
    """
    from moge_core.datasets.inspection import inspect_dataset, require_display, show_point_cloud

    if show:
        require_display()
    neither = not (ply or depth_picture or show)
    with progress_bar("Inspecting") as progress:
        inspections = inspect_dataset(
            path, ply=ply or show or neither, depth_picture=depth_picture or neither, progress=progress, **options
        )
    for inspection in inspections:
        camera = "" if inspection.fov_x_deg is None else f"fov {inspection.fov_x_deg:.1f} x {inspection.fov_y_deg:.1f}"
        points = f"{inspection.num_points} points" if inspection.num_points else ""
        files = " ".join(str(file) for file in (inspection.ply_path, inspection.depth_picture_path) if file)
        told = [part for part in (camera, points, files, inspection.problem) if part]
        click.echo(f"{inspection.instance}: {', '.join(told)}")
    num_failed = sum(inspection.fov_x_deg is None for inspection in inspections)
    if num_failed:
        click.echo(f"{num_failed} of {len(inspections)} instances could not be read", err=True)
    if show:
        for inspection in inspections:
            if inspection.ply_path is not None:
                show_point_cloud(inspection.ply_path)
    if num_failed:
        sys.exit(EXIT_FINDINGS)


@click.command("sample-scenes")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(min=1), default=64, show_default=True, help="Scenes to have there.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed gives other scenes.")
@click.option(
    "--size", type=parse_size, metavar="WxH", default="320x240", show_default=True, help="Of landscape images."
)
@verbose
def sample_scenes_command(out: Path, count: int, seed: int, size: tuple[int, int]) -> None:
    """Render rooms and outdoor scenes into OUT, with exact depth, normals and cameras."""
    from moge_core.datasets import render_sample_scenes

    with progress_bar("Rendering") as progress:
        render_sample_scenes(out, count, seed, size=size, progress=progress)
    click.echo(f"{out}: {count} scenes\nNext: moge index {out}")
