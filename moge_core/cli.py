"""The `moge` command.

    moge import rgbd-folder SRC -o OUT ...    raw data into the dataset format
    moge index DATASET                        list the instances, record what is known of each
    moge validate DATASET                     check every instance of a list
    moge inspect INSTANCE_OR_DATASET          point clouds and depth pictures
    moge sample-scenes OUT --count N          render a dataset that needs no download
    moge train --config FILE ...              one process; `accelerate launch -m moge_core.training` for several
    moge infer -i PHOTOS -o OUT --model FILE  geometry of photos with a trained model
    moge evaluate CHECKPOINT --data DATASET   point scores on a held-out dataset
    moge checkpoint show|convert FILE ...     what a checkpoint is; .pt to .safetensors and back
    moge doctor                               what is missing on this machine

Each command imports what it works with in its body, so that help and completion stay quick. Options may be written with
dashes or underscores. A user's mistake is one line on stderr and exit code 2; `-v` adds the traceback.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moge_core import __version__
from moge_core.errors import MoGeError

if TYPE_CHECKING:
    from moge_core.datasets import Finding

EXIT_FINDINGS = 1
EXIT_ERROR = 2

_EXAMPLES_PER_RULE = 3


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; the entry point of the `moge` script."""
    cli.main(args=None if argv is None else list(argv), prog_name="moge")


class _Commands(click.Group):
    """A group that turns errors which a person can mend into one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # `moge ... | head`: click ends quietly
        except (MoGeError, OSError, ImportError) as error:
            if ctx.find_root().meta.get("verbose"):
                traceback.print_exc()
            click.echo(f"Error: {_one_line(error)}", err=True)
            ctx.exit(EXIT_ERROR)


def _parse_size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise click.BadParameter(f"{text!r} is not a size such as 640x480")
    return int(width), int(height)


def _remember_verbose(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().meta["verbose"] = True


_verbose = click.option(
    "-v", "--verbose", is_flag=True, expose_value=False, callback=_remember_verbose, help="Show tracebacks of errors."
)
_depth_option = click.option(
    "--depth", "depth_name", default="depth.png", show_default=True, help="Name of depth files."
)
_index_option = click.option(
    "--index", "index_name", default=".index.txt", show_default=True, help="The list, for example .train.txt."
)


@click.group(
    cls=_Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),
        "max_content_width": 110,
    },
)
@click.version_option(__version__, prog_name="moge")
@_verbose
def cli() -> None:
    """Datasets, training and evaluation of MoGe monocular geometry models."""


@cli.group("import", cls=_Commands)
def import_group() -> None:
    """Bring raw data into the dataset format."""


@import_group.command("rgbd-folder")
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="The dataset to make.")
@click.option(
    "--intrinsics",
    required=True,
    help="Camera in pixels: fx,fy,cx,cy, or a file: text with a 3x3 matrix, or JSON with fx, fy, cx, cy or a matrix.",
)
@click.option(
    "--depth-scale",
    required=True,
    type=float,
    help="Stored units a metre: depth = value / scale. 1000 for millimetres, 5000 for TUM and ICL-NUIM.",
)
@click.option(
    "--image", "image_glob", metavar="GLOB", help="Images, relative to SOURCE. Default: all that is not depth."
)
@click.option("--depth", "depth_glob", metavar="GLOB", help="Depth maps. Default: every 16-bit grey PNG or PGM.")
@click.option(
    "--intrinsics-size",
    type=_parse_size,
    metavar="WxH",
    help="Resolution that the intrinsics refer to, if not the images'.",
)
@click.option(
    "--invalid", multiple=True, type=int, help="Stored value that means unknown; may be repeated. 0 always does."
)
@click.option("--max-depth", type=float, metavar="METRES", help="Depth beyond this becomes unknown.")
@click.option("--flip-y", is_flag=True, help="Turn image and depth upside down.")
@click.option("--name-prefix", default="", help="Put before every instance's path, for example 'desk/'.")
@click.option(
    "--label-type", default="sfm", show_default=True, help="Loss set named in the printed configuration entry."
)
@click.option("--strict", is_flag=True, help=f"Exit with {EXIT_FINDINGS} if any frame could not be imported.")
@_verbose
def import_rgbd_folder_command(source: Path, out: Path, label_type: str, strict: bool, **options: Any) -> None:
    """Images and 16-bit depth maps with one camera.

    They are paired by the frame number or name that both carry. Running it again does only what is new.

    \b
    Example, a TUM sequence whose files carry equal names:
      moge import rgbd-folder desk -o data/desk --intrinsics 517.3,516.5,318.6,255.3 --depth-scale 5000
    """
    from moge_core.datasets import import_rgbd_folder

    with _progress("Importing") as progress:
        report = import_rgbd_folder(source, out, progress=progress, **options)
    num_kept = len(report.instances) - report.num_written
    click.echo(f"{report.out_dir}: {report.num_written} instances written, {num_kept} already there")
    if report.median_depth_m is not None and report.valid_share is not None:
        click.echo(
            f"  typical median depth {report.median_depth_m:.3f} m, {report.valid_share:.1%} of the pixels known,"
            f" field of view {report.fov_x_deg:.1f} degrees"
        )
    for note in report.notes:
        click.echo(f"  note: {note}")
    _print_findings(report.skipped, of="file")
    if report.skipped:
        click.echo(f"  all of it: {report.log_path}")
    entry = {"name": report.out_dir.name, "path": _data_path(report.out_dir), "label_type": label_type}
    click.echo("\nEntry for `data.datasets` of a training configuration:\n")
    click.echo(json.dumps({**entry, "weight": 1.0, "depth_unit": 1.0}, indent=4))
    click.echo(f"\nNext: moge index {out}")
    if strict and any(finding.severity == "error" for finding in report.skipped):
        sys.exit(EXIT_FINDINGS)


@cli.command("index")
@click.argument("dataset", type=click.Path(path_type=Path))
@_depth_option
@_index_option
@click.option(
    "--rebuild", is_flag=True, help="Read everything again and replace a list of your own, which is kept as .bak."
)
@click.option("--strict", is_flag=True, help=f"Exit with {EXIT_FINDINGS} if any instance is broken.")
@_verbose
def index_command(dataset: Path, depth_name: str, index_name: str, rebuild: bool, strict: bool) -> None:
    """List the instances of DATASET in .index.txt and record what is known of each.

    Only new and changed instances are read. Broken ones are told and left out. A list that you wrote yourself is
    checked and kept as it is.
    """
    from moge_core.datasets import index_dataset

    with _progress("Reading") as progress:
        report = index_dataset(
            dataset, index_name=index_name, depth_name=depth_name, rebuild=rebuild, progress=progress
        )
    whose = "your own list, left as it is" if report.adopted else "written"
    click.echo(f"{report.index_path}: {len(report.instances)} instances ({whose})")
    click.echo(f"  looked at {report.num_scanned}, read {report.num_read} that were new or changed")
    if report.backup_path is not None:
        click.echo(f"  your own list was kept as {report.backup_path.name}")
    _print_findings(report.findings)
    if report.num_broken:
        what = "in your list, which training skips" if report.adopted else "left out"
        click.echo(f"  {report.num_broken} broken instance{'s' if report.num_broken > 1 else ''} {what}")
    click.echo(f"  digest {report.digest[:16]}")
    if strict and report.num_broken:
        sys.exit(EXIT_FINDINGS)


@cli.command("validate")
@click.argument("dataset", type=click.Path(path_type=Path))
@_depth_option
@_index_option
@click.option("--quick", is_flag=True, help="Read headers and meta.json only.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@_verbose
def validate_command(dataset: Path, depth_name: str, index_name: str, quick: bool, as_json: bool) -> None:
    """Check every instance that a list of DATASET names. Exits with 1 when one is broken."""
    import dataclasses

    from moge_core.datasets import read_index, validate_dataset

    with _progress("Checking") as progress:
        findings = validate_dataset(
            dataset, index_name=index_name, depth_name=depth_name, full=not quick, progress=progress
        )
    num_errors = sum(finding.severity == "error" for finding in findings)
    num_instances = len(read_index(dataset, index_name))
    if as_json:
        rows = [dataclasses.asdict(finding) for finding in findings]
        click.echo(json.dumps({"dataset": str(dataset), "num_instances": num_instances, "findings": rows}, indent=2))
    else:
        num_warnings = len(findings) - num_errors
        click.echo(f"{dataset}: {num_instances} instances, {num_errors} errors, {num_warnings} warnings")
        _print_findings(findings)
    if num_errors:
        sys.exit(EXIT_FINDINGS)


@cli.command("inspect")
@click.argument("path", metavar="INSTANCE_OR_DATASET", type=click.Path(path_type=Path))
@click.option("-o", "--output", "output_dir", type=click.Path(path_type=Path), help="Default: into each instance.")
@click.option("--ply", is_flag=True, help="Write pointcloud.ply.")
@click.option("--depth-vis", "depth_picture", is_flag=True, help="Write depth_vis.png.")
@_depth_option
@click.option("-m", "--max-depth", type=float, help="Keep points nearer than this many times the nearest.")
@click.option("--inf", "show_infinity", is_flag=True, help="Show what is infinitely far in the depth picture.")
@click.option("--show", is_flag=True, help="Open a window with each point cloud.")
@click.option("--fov", "fov_x_deg", type=float, help="Horizontal field of view in degrees, instead of meta.json's.")
@click.option("--normals", is_flag=True, help="Give the points normals.")
@click.option("--depth-unit", type=float, help="Metres a unit of depth. Default: what meta.json says.")
@_verbose
def inspect_command(path: Path, ply: bool, depth_picture: bool, show: bool, **options: Any) -> None:
    """Write point clouds and depth pictures of an instance, or of every instance below a folder.

    Without --ply, --depth-vis and --show it writes both. With -o the folders of the dataset are mirrored.
    """
    from moge_core.datasets.inspection import inspect_dataset, require_display, show_point_cloud

    if show:
        require_display()
    neither = not (ply or depth_picture or show)
    with _progress("Inspecting") as progress:
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


@cli.command("sample-scenes")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(min=1), default=64, show_default=True, help="Scenes to have there.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed gives other scenes.")
@click.option(
    "--size", type=_parse_size, metavar="WxH", default="320x240", show_default=True, help="Of landscape images."
)
@_verbose
def sample_scenes_command(out: Path, count: int, seed: int, size: tuple[int, int]) -> None:
    """Render rooms and outdoor scenes into OUT, with exact depth, normals and cameras."""
    from moge_core.datasets import render_sample_scenes

    with _progress("Rendering") as progress:
        render_sample_scenes(out, count, seed, size=size, progress=progress)
    click.echo(f"{out}: {count} scenes\nNext: moge index {out}")


@cli.command("train", context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def train_command(flags: tuple[str, ...]) -> None:
    """Train in one process, with the flags of `accelerate launch -m moge_core.training` (see `moge train --help`)."""
    from moge_core.training import main as train

    sys.exit(train(flags))


@cli.command("infer")
@click.option(
    "-i", "--input", "source", required=True, type=click.Path(path_type=Path), help="Image or folder of images."
)
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="Folder of the results.")
@click.option("--model", "model_name", required=True, help="Checkpoint file, or a repository of the Hugging Face Hub.")
@click.option("--fov-x", type=float, help="Horizontal field of view in degrees. Default: found from the image.")
@click.option("--resolution-level", type=click.IntRange(0, 9), default=9, show_default=True, help="0 fast, 9 detailed.")
@click.option("--num-tokens", type=click.IntRange(1), help="Replaces the resolution level.")
@click.option("--resize", type=click.IntRange(1), metavar="PIXELS", help="Reduce images to this longest side first.")
@click.option("--maps", is_flag=True, help="Write maps.npz and depth.png (and normal.png).")
@click.option("--ply", is_flag=True, help="Write pointcloud.ply.")
@click.option("--glb", is_flag=True, help="Write mesh.glb, textured.")
@click.option(
    "--threshold",
    type=float,
    default=0.04,
    show_default=True,
    help="Relative change of depth that is an edge, where point cloud and mesh are cut; `inf` cuts nowhere.",
)
@click.option("--panorama", is_flag=True, help="Images are equirectangular panoramas.")
@click.option("--device", default=None, help="cpu, cuda, cuda:1, ... Default: a GPU where there is one.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32", show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Images of one size at once.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the network: slow start, faster for many images.")
@_verbose
def infer_command(
    source: Path,
    out: Path,
    model_name: str,
    threshold: float,
    device: str | None,
    compiled: bool,
    **options: Any,
) -> None:
    """Predict depth, points, normals and camera of photos: pictures and fov.json for each, and what else is asked for.

    \b
    Example:
      moge infer -i photos -o out --model workspace/train_v1/0/checkpoint/00100000_ema.pt --glb
    """
    import math

    import torch

    from moge_core.errors import InputError
    from moge_core.inference import infer_path
    from moge_core.models import load_model

    if not threshold > 0:
        raise InputError("--threshold", "must be positive", found=threshold)
    try:
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = load_model(model_name).to(target)
    except (RuntimeError, AssertionError) as error:  # torch's own words for a device that is not there
        raise InputError("--device", "must be a device of this machine", found=f"{device}: {error}") from error
    if compiled:
        model.compile(dynamic=True)
    edge = None if math.isinf(threshold) else threshold
    with _progress("Predicting") as progress:
        report = infer_path(model, source, out, threshold=edge, progress=progress, **options)
    click.echo(f"{out}: {len(report.written)} image{'s' if len(report.written) != 1 else ''} done")
    for image, reason in report.failures:
        click.echo(f"  failed: {image}: {reason}", err=True)
    if report.failures:
        sys.exit(EXIT_FINDINGS)


@cli.group("checkpoint", cls=_Commands)
def checkpoint_group() -> None:
    """Look at checkpoint files and convert them."""


@checkpoint_group.command("show")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@_verbose
def checkpoint_show_command(path: Path, as_json: bool) -> None:
    """Print version, configuration, number of parameters, step and digest of a checkpoint."""
    from moge_core.models.checkpoint import describe_model_file

    description = describe_model_file(path)
    if as_json:
        click.echo(json.dumps(description, indent=2))
        return
    for key in ("path", "version", "num_parameters", "dtypes", "step", "sha256"):
        value = description[key]
        click.echo(f"{key.replace('_', ' ') + ':':16} {f'{value:,}' if isinstance(value, int) else value}")
    click.echo(json.dumps(description["model_config"], indent=2))


@checkpoint_group.command("convert")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@_verbose
def checkpoint_convert_command(source: Path, target: Path) -> None:
    """Write SOURCE as TARGET: `.pt` or `.safetensors`, by its name. The weights stay bit-equal."""
    from moge_core.models.checkpoint import convert_model_file

    convert_model_file(source, target)
    click.echo(f"{target}: written from {source}")


@cli.command("evaluate")
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", "dataset", required=True, type=click.Path(path_type=Path), help="Held-out dataset.")
@_index_option
@click.option("--num-tokens", type=click.IntRange(1), help="Resolution of the prediction. Default: the model's finest.")
@click.option(
    "--constant-from",
    type=click.Path(path_type=Path),
    help="Also score the best constant point map, made from this training dataset.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the scores to this file too.")
@_verbose
def evaluate_command(
    checkpoints: tuple[Path, ...],
    dataset: Path,
    index_name: str,
    num_tokens: int | None,
    constant_from: Path | None,
    json_path: Path | None,
) -> None:
    """Score CHECKPOINTS on a held-out dataset: affine-invariant points, mean over its instances."""
    from moge_core.evaluation import score_constant, score_model
    from moge_core.io import atomic_open
    from moge_core.models import load_model

    scores: dict[str, Any] = {"dataset": str(dataset), "checkpoints": {}}
    for path in checkpoints:
        with _progress(path.name) as progress:
            score = score_model(
                load_model(path), dataset, index_name=index_name, num_tokens=num_tokens, progress=progress
            )
        scores["checkpoints"][str(path)] = score
        click.echo(f"{path}: rel {score['rel']:.4f}, delta1 {score['delta1']:.4f}")
    if constant_from is not None:
        with _progress("constant") as progress:
            score = score_constant(constant_from, dataset, index_name=index_name, progress=progress)
        scores["constant"] = score
        click.echo(f"best constant point map: rel {score['rel']:.4f}, delta1 {score['delta1']:.4f}")
    if json_path is not None:
        with atomic_open(json_path) as file:
            file.write((json.dumps(scores, indent=2) + "\n").encode())


@cli.command("doctor")
@click.option("--path", type=click.Path(path_type=Path), default=Path(), help="Folder whose disk is looked at.")
@_verbose
def doctor_command(path: Path) -> None:
    """Say what is missing on this machine, and how to get it. Exits with 1 when something needed is."""
    from moge_core.doctor import check_machine

    checks = check_machine(path)
    for check in checks:
        mark = "ok     " if check.ok else ("missing" if check.needed else "note   ")
        click.echo(f"{mark} {check.name}: {check.detail}")
        if not check.ok and check.fix:
            click.echo(f"        {check.fix}")
    if any(check.needed and not check.ok for check in checks):
        sys.exit(EXIT_FINDINGS)


@contextlib.contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal."""
    from tqdm import tqdm

    with tqdm(desc=label, unit="", disable=None, leave=False) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


def _print_findings(findings: Sequence[Finding], of: str = "instance") -> None:
    counts = Counter((finding.severity, finding.rule) for finding in findings)
    for (severity, rule), count in sorted(counts.items()):
        click.echo(f"  {severity} {rule}: {count} {of}{'s' if count > 1 else ''}")
        shown = [finding for finding in findings if (finding.severity, finding.rule) == (severity, rule)]
        for finding in shown[:_EXAMPLES_PER_RULE]:
            click.echo(f"    {finding.instance}: {finding.evidence}. {finding.fix}")
        if count > _EXAMPLES_PER_RULE:
            click.echo(f"    and {count - _EXAMPLES_PER_RULE} more")


def _data_path(path: Path) -> str:
    """A dataset's path as a configuration would say it: relative to the data root where it lies below that."""
    root = Path(os.environ.get("MOGE_DATA_ROOT") or Path.cwd()).resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _one_line(error: Exception) -> str:
    text = str(error) if isinstance(error, MoGeError) else f"{type(error).__name__}: {error}"
    if isinstance(error, ImportError):
        text += ". Run `moge doctor` to see what is missing."
    return " ".join(text.split())


if __name__ == "__main__":
    main()
