"""Command on measured depth: complete."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from moge_core.cli.common import (
    EXIT_FINDINGS,
    depth_option,
    device_option,
    index_option,
    precision_option,
    progress_bar,
    start_on,
    verbose,
)


@click.command("complete")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--model", "model_name", required=True, help="Checkpoint file, or a repository of the Hugging Face Hub.")
@click.option(
    "-o", "--output", "output_name", default="depth_completed.png", show_default=True, help="Name of results."
)
@depth_option
@index_option
@click.option("--sheet", type=click.Path(path_type=Path), help="Write a before/after picture of some instances: a PNG.")
@click.option("--samples", "num_samples", type=click.IntRange(1), default=6, show_default=True, help="Of the sheet.")
@click.option("--resolution-level", type=click.IntRange(0, 9), default=9, show_default=True, help="0 fast, 9 detailed.")
@click.option("--num-tokens", type=click.IntRange(1), help="Replaces the resolution level.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    default=0.15,
    show_default=True,
    help="Relative error after the best local alignment above which depth is dropped.",
)
@click.option("--overwrite", is_flag=True, help="Make results again that are up to date.")
@device_option
@precision_option
@verbose
def complete_command(
    dataset: Path,
    model_name: str,
    output_name: str,
    depth_name: str,
    index_name: str,
    sheet: Path | None,
    num_samples: int,
    resolution_level: int,
    num_tokens: int | None,
    tolerance: float,
    overwrite: bool,
    device_name: str | None,
    precision: Any,
) -> None:
    """Refine the depth of DATASET with a model: drop what it contradicts, fill what is unknown.

    The result lies beside each original. What is up to date is skipped; exits with 1 when an instance failed.

    \b
    Example:
      moge complete data/nyu --model workspace/train_v1/0/checkpoint/00100000_ema.pt --sheet completion.png
    """
    from moge_core.completion import complete_dataset
    from moge_core.models import load_model

    device = start_on(device_name, precision, free_for=f"moge complete {dataset}")
    model = load_model(model_name).to(device)
    with progress_bar("Completing") as progress:
        report = complete_dataset(
            dataset,
            model,
            index_name=index_name,
            depth_name=depth_name,
            output_name=output_name,
            resolution_level=resolution_level,
            num_tokens=num_tokens,
            tolerance=tolerance,
            precision=precision,
            sheet=sheet,
            num_samples=num_samples,
            overwrite=overwrite,
            progress=progress,
        )
    click.echo(f"{dataset}: {len(report.written)} completed, {len(report.skipped)} up to date")
    if report.num_known:
        share = 100 * report.num_dropped / report.num_known
        click.echo(f"  {share:.2f} % of the known pixels dropped, {report.num_filled:,} unknown pixels filled")
    if report.sheet_path is not None:
        click.echo(f"  before and after: {report.sheet_path}")
    for instance, reason in report.failures:
        click.echo(f"  failed: {instance}: {reason}", err=True)
    if report.failures:
        sys.exit(EXIT_FINDINGS)
