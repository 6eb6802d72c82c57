"""The `moge` command.

    moge import LAYOUT SRC -o OUT ...         raw data into the dataset format; `moge import -h` lists the layouts
    moge index DATASET                        list the instances, record what is known of each
    moge validate DATASET                     check every instance of a list
    moge quarantine DATASET [INSTANCE...]     keep instances out of the list without deleting them
    moge inspect INSTANCE_OR_DATASET          point clouds and depth pictures
    moge report DATASET                       one page about a dataset, to open in a browser
    moge sample-scenes OUT --count N          render a dataset that needs no download
    moge preview-batches CONFIG -o FILE.png   what a training sees, as a picture
    moge profile-loader CONFIG                how fast its data loads here, and what would help
    moge train --config FILE ...              one process; `accelerate launch -m moge_core.training` for several
    moge preflight CONFIG                     can the model fit eight of its instances?
    moge replay-metrics WORKSPACE             send to MLflow what it missed of a training
    moge infer -i PHOTOS -o OUT --model FILE  geometry of photos with a trained model
    moge complete DATASET --model FILE        drop wrong depth, fill unknown depth with a model's help
    moge evaluate CHECKPOINT --data DATASET   point scores on a held-out dataset
    moge lineage CHECKPOINT                   where a checkpoint comes from, back to the data and to the root
    moge checkpoint show|convert FILE ...     what a checkpoint is; .pt to .safetensors and back
    moge export MODEL -o FILE.onnx            an ONNX graph for any image size
    moge doctor                               what is missing on this machine

Each command imports what it works with in its body, so that help and completion stay quick. Options may be written with
dashes or underscores. A user's mistake is one line on stderr and exit code 2; `-v` adds the traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from moge_core import __version__
from moge_core.accelerators import configure_allocator
from moge_core.cli import completion, datasets, importing, importing_scenes, lineage, loading, models, report
from moge_core.cli.common import EXIT_FINDINGS, Commands, verbose


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; the entry point of the `moge` script."""
    configure_allocator()  # before a command imports torch
    cli.main(args=None if argv is None else list(argv), prog_name="moge")


@click.group(
    cls=Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),
        "max_content_width": 110,
    },
)
@click.version_option(__version__, prog_name="moge")
@verbose
def cli() -> None:
    """Datasets, training and evaluation of MoGe monocular geometry models."""


@cli.command("doctor")
@click.option("--path", type=click.Path(path_type=Path), default=Path(), help="Folder whose disk is looked at.")
@verbose
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


for command in importing_scenes.COMMANDS:
    importing.import_group.add_command(command)
for command in (
    importing.import_group,
    datasets.index_command,
    datasets.validate_command,
    datasets.quarantine_command,
    datasets.inspect_command,
    report.report_command,
    datasets.sample_scenes_command,
    loading.preview_batches_command,
    loading.profile_loader_command,
    models.train_command,
    models.preflight_command,
    models.replay_metrics_command,
    models.infer_command,
    completion.complete_command,
    models.evaluate_command,
    models.export_command,
    lineage.lineage_command,
    models.checkpoint_group,
):
    cli.add_command(command)
