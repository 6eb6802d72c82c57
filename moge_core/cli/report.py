"""The quality report of a dataset: `moge report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from moge_core.cli.common import depth_option, index_option, verbose


@click.command("report")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), help="Folder to write to. Default: DATASET/.moge/report."
)
@click.option(
    "--samples", "num_samples", type=click.IntRange(min=1), default=8, show_default=True, help="Instances to show."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed draws other instances.")
@depth_option
@index_option
@click.option("--depth-unit", type=float, help="Metres a unit of depth. Default: what meta.json says.")
@verbose
def report_command(dataset: Path, out: Path | None, **options: Any) -> None:
    """Write one page about DATASET to open in a browser, with pictures, point clouds and what is wrong.

    The page is one file, which opens offline and on a phone. Beside it lie the point clouds as PLY, and the numbers as
    JSON, with which the next report in the same folder compares itself. Run `moge index` before.
    """
    from moge_core.datasets import write_quality_report

    report = write_quality_report(dataset, out, **options)
    click.echo(f"{dataset}: {report.verdict}")
    for instance, problem in report.problems.items():
        click.echo(f"  could not be shown: {instance}: {problem}")
    click.echo(f"{report.html_path}")
