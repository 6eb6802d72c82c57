"""Commands on models: train, infer, evaluate, checkpoint."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from moge_core.cli.common import (
    EXIT_FINDINGS,
    Commands,
    device_option,
    index_option,
    precision_option,
    progress_bar,
    start_on,
    verbose,
)


@click.command("train", context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def train_command(flags: tuple[str, ...]) -> None:
    """Train in one process, with the flags of `accelerate launch -m moge_core.training` (see `moge train --help`)."""
    from moge_core.training import main as train

    sys.exit(train(flags))


@click.command("preflight")
@click.argument("config_path", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--checkpoint", help="Checkpoint file to start from. Default: a finetuning's base, else a new model.")
@click.option("--init", default="random", show_default=True, help="Backbone of a new model: random, hub, a file.")
@click.option("--instances", "num_instances", type=click.IntRange(1), default=8, show_default=True)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=3.0, show_default=True, help="At most.")
@click.option("--steps", "max_steps", type=click.IntRange(20), default=200, show_default=True, help="At most.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--check-data",
    is_flag=True,
    help="Before, check every instance that may be drawn or scored, as the pipeline does before each training.",
)
@device_option
@verbose
def preflight_command(
    config_path: Path,
    checkpoint: str | None,
    init: str,
    num_instances: int,
    minutes: float,
    max_steps: int,
    seed: int,
    check_data: bool,
    device_name: str | None,
) -> None:
    """Overfit a few instances of CONFIG, a training or finetuning configuration, before days are spent on it.

    Exits with 1 and says why when the loss does not fall or weights do not move.
    """
    from moge_core.training.config import load_any_config

    config, base = load_any_config(config_path)
    if check_data:
        from moge_core.training.preflight import check_training_data

        with progress_bar("Checking") as progress:
            check_training_data(config, progress=progress, log=lambda text: click.echo(text, err=True))
    from moge_core.training.overfit import preflight

    device = start_on(device_name)
    with progress_bar("Fitting") as progress:
        result = preflight(
            config,
            checkpoint=checkpoint or base,
            init=init,
            num_instances=num_instances,
            max_steps=max_steps,
            max_seconds=60 * minutes,
            seed=seed,
            device=device,
            progress=progress,
        )
    for instance in result.instances:
        click.echo(f"fitted {instance}")
    first, last = result.losses[0], result.losses[-1]
    click.echo(f"loss {first:.4g} -> {last:.4g} in {len(result.losses)} steps, {result.seconds:.0f} s")
    for problem in result.problems:
        click.echo(f"problem: {problem}", err=True)
    if result.problems:
        sys.exit(EXIT_FINDINGS)
    click.echo("The model learns from these instances.")


@click.command("replay-metrics")
@click.argument("workspace", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--tracking-uri", help="MLflow store. Default: the one that the training logged to.")
@click.option("--run-id", help="An existing run to log to. Default: the training's own, or a new one.")
@verbose
def replay_metrics_command(workspace: Path, tracking_uri: str | None, run_id: str | None) -> None:
    """Send the metrics of WORKSPACE to MLflow, as far as they are not there yet."""
    from moge_core.training.mlflow_tracking import replay_metrics
    from moge_core.training.workspace import Workspace

    run, num_lines = replay_metrics(Workspace(workspace), tracking_uri, run_id)
    click.echo(f"MLflow run {run} has the {num_lines} lines of {workspace / 'metrics.jsonl'}")


@click.command("infer")
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
@device_option
@precision_option
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Images of one size at once.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the encoder: slow start, faster for many images.")
@verbose
def infer_command(
    source: Path,
    out: Path,
    model_name: str,
    threshold: float,
    device_name: str | None,
    precision: str,
    compiled: bool,
    **options: Any,
) -> None:
    """Predict depth, points, normals and camera of photos: pictures and fov.json for each, and what else is asked for.

    \b
    Example:
      moge infer -i photos -o out --model workspace/train_v1/0/checkpoint/00100000_ema.pt --glb
    """
    from moge_core.errors import InputError
    from moge_core.inference import infer_path
    from moge_core.models import load_model

    if not threshold > 0:
        raise InputError("--threshold", "must be positive", found=threshold)
    device = start_on(device_name, precision)
    model = load_model(model_name).to(device)
    model.use_channels_last()
    if compiled:
        model.compile_blocks()
    edge = None if math.isinf(threshold) else threshold
    with progress_bar("Predicting") as progress:
        report = infer_path(model, source, out, threshold=edge, precision=precision, progress=progress, **options)
    click.echo(f"{out}: {len(report.written)} image{'s' if len(report.written) != 1 else ''} done")
    for image, reason in report.failures:
        click.echo(f"  failed: {image}: {reason}", err=True)
    if report.failures:
        sys.exit(EXIT_FINDINGS)


@click.command("export")
@click.argument("model_name", metavar="MODEL")
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="The .onnx file to write.")
@click.option("--check/--no-check", default=True, help="Compare the graph with torch on three image sizes.")
@verbose
def export_command(model_name: str, out: Path, check: bool) -> None:
    """Write MODEL (a checkpoint or repository) as an ONNX graph for any image size and number of tokens."""
    from moge_core.models import load_model
    from moge_core.models.export import export_onnx

    difference = export_onnx(load_model(model_name), out, check=check)
    told = "" if difference is None else f", within {difference:.1e} of torch"
    click.echo(f"{out}: written{told}")


@click.group("checkpoint", cls=Commands)
def checkpoint_group() -> None:
    """Look at checkpoint files and convert them."""


@checkpoint_group.command("show")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@verbose
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
@verbose
def checkpoint_convert_command(source: Path, target: Path) -> None:
    """Write SOURCE as TARGET: `.pt` or `.safetensors`, by its name. The weights stay bit-equal."""
    from moge_core.models.checkpoint import convert_model_file

    convert_model_file(source, target)
    click.echo(f"{target}: written from {source}")


@click.command("evaluate")
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", "dataset", required=True, type=click.Path(path_type=Path), help="Held-out dataset.")
@index_option
@click.option("--num-tokens", type=click.IntRange(1), help="Resolution of the prediction. Default: the model's finest.")
@click.option(
    "--constant-from",
    type=click.Path(path_type=Path),
    help="Also score the best constant point map, made from this training dataset.",
)
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Images of one size at once.")
@device_option
@precision_option
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the scores to this file too.")
@verbose
def evaluate_command(
    checkpoints: tuple[Path, ...],
    dataset: Path,
    index_name: str,
    num_tokens: int | None,
    constant_from: Path | None,
    batch_size: int,
    device_name: str | None,
    precision: Any,
    json_path: Path | None,
) -> None:
    """Score CHECKPOINTS on a held-out dataset: affine-invariant points, mean over its instances."""
    from moge_core.datasets import read_index
    from moge_core.errors import DatasetError
    from moge_core.evaluation import (
        HeldOutInstance,
        ScoringConditions,
        digest_instances,
        mean_scores,
        score_constant,
        score_instances,
    )
    from moge_core.io import atomic_open
    from moge_core.models import load_model
    from moge_core.models.base import MAX_RESOLUTION_LEVEL

    device = start_on(device_name, precision, free_for=f"moge evaluate {dataset}")
    names = read_index(dataset, index_name)
    if not names:
        raise DatasetError(dataset, "must list at least one instance", found="none")
    instances = [HeldOutInstance(dataset / name) for name in names]
    scores: dict[str, Any] = {"dataset": str(dataset), "checkpoints": {}}
    for path in checkpoints:
        model = load_model(path).to(device)
        tokens = num_tokens or model.num_tokens_at(MAX_RESOLUTION_LEVEL)
        how: dict[str, Any] = {"num_tokens": tokens, "batch_size": batch_size, "precision": precision}
        with progress_bar(path.name) as progress:
            found = score_instances(model, instances, progress=progress, **how)
        score = mean_scores(found)
        not_scored = [name for name, each in zip(names, found, strict=True) if math.isnan(each["rel"])]
        conditions = ScoringConditions(precision, tokens, digest_instances(names), not_scored)
        for name in not_scored:
            click.echo(f"not scored, no pixel counts: {name}", err=True)
        scores["checkpoints"][str(path)] = {**score, **asdict(conditions)}
        click.echo(f"{path}: rel {score['rel']:.4f}, delta1 {score['delta1']:.4f}")
    if constant_from is not None:
        with progress_bar("constant") as progress:
            score = score_constant(constant_from, dataset, index_name=index_name, progress=progress)
        scores["constant"] = score
        click.echo(f"best constant point map: rel {score['rel']:.4f}, delta1 {score['delta1']:.4f}")
    if json_path is not None:
        with atomic_open(json_path) as file:
            file.write((json.dumps(scores, indent=2) + "\n").encode())
