"""Where a checkpoint comes from: `moge lineage`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moge_core.cli.common import EXIT_FINDINGS, progress_bar, verbose

if TYPE_CHECKING:
    from moge_core.training.checkpoint_manifest import EarlierRecord
    from moge_core.training.lineage import Lineage, Link
    from moge_core.training.lineage_inputs import Configuration, DatasetLink
    from moge_core.training.lineage_runs import Run

_MAX_IMPORTS = 10
_LONGEST_TEXT = 300
_FILE_STATES = {
    "recorded": "as recorded by its size; --verify reads it",
    "verified": "read: it is as recorded",
    "differs": "NOT AS RECORDED",
    "unrecorded": "nobody recorded it",
    "gone": "GONE",
}
_DATASET_STATES = {
    "unchanged": "unchanged when it was last indexed; --verify reads it",
    "verified": "read: all instances are as recorded",
    "names": "the list is unchanged; what its instances held was not recorded, as it was never indexed",
    "changed": "CHANGED",
    "gone": "GONE",
    "unreadable": "CANNOT BE READ",
}


@click.command("lineage")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--step", type=click.IntRange(0), help="Which checkpoint of a workspace. Default: the newest.")
@click.option("--best", is_flag=True, help="The checkpoint of a workspace that scored best.")
@click.option(
    "--verify", is_flag=True, help="Read all checkpoints and datasets; exit with 1 where one is not as it was."
)
@click.option(
    "--workspaces",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Further folder to look in for parents that were moved; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@verbose
def lineage_command(
    checkpoint: Path, step: int | None, best: bool, verify: bool, workspaces: tuple[Path, ...], as_json: bool
) -> None:
    """Walk from CHECKPOINT back to the data it was trained on: run, configuration, datasets, imports, parent, root.

    CHECKPOINT is a file (`00001000.pt`, `_ema`, `_optimizer`, `latest.pt`), a workspace, or the folder of a training's
    numbered workspaces. What is not as it was recorded is told at the end; with --verify it gives exit code 1.

    \b
    Example:
      moge lineage workspace/finetune_v1/1 --best --verify
    """
    from moge_core.training.lineage import trace_lineage

    with progress_bar("Reading") as progress:
        lineage = trace_lineage(
            checkpoint, step=step, best=best, verify=verify, workspaces=workspaces, progress=progress
        )
    if as_json:
        click.echo(json.dumps(lineage.as_dict(), indent=2))
    else:
        for line in lines_of(lineage):
            click.echo(line)
    if verify and lineage.problems:
        sys.exit(EXIT_FINDINGS)


def lines_of(lineage: Lineage) -> Iterator[str]:
    """The chain as a person reads it, root last."""
    for number, link in enumerate(lineage.links):
        title = "checkpoint" if number == 0 else f"parent {number}"
        yield f"{title:<12}{_plain(link.path)}"
        yield from (f"  {line}" for line in _lines_of_link(link))
    yield f"root        {lineage.end}"
    for problem in lineage.problems:
        yield f"problem     {_plain(problem, 1000)}"


def _lines_of_link(link: Link) -> Iterator[str]:
    if link.moved_from is not None:
        yield _line("moved", f"recorded at {link.moved_from}, found here by its SHA-256")
    yield _line("sha256", f"{link.sha256 or 'unknown'} ({_FILE_STATES[link.state]})")
    if link.step is not None:
        made_with = " with " + ", ".join(f"{k} {v}" for k, v in link.versions.items()) if link.versions else ""
        saved = f", saved {link.saved_at}{made_with}" if link.saved_at else ""
        yield _line("step", f"{link.step}{saved}")
    if link.seed is not None:
        held_out = f", held out {link.held_out}" if link.held_out else ""
        yield _line("data order", f"seed {link.seed}, batch {link.batch_size_total}{held_out}")
    if link.run is not None:
        yield from _lines_of_run(link.run)
    if link.configuration is not None:
        yield from _lines_of_configuration(link.configuration)
    for dataset in link.datasets:
        yield from _lines_of_dataset(dataset)
    for earlier in link.earlier:
        yield from _lines_of_earlier(earlier)


def _lines_of_run(run: Run) -> Iterator[str]:
    yield _line("run", str(run.workspace or "its workspace is gone"))
    for segment in run.segments:
        launch = segment.launch
        first = "?" if segment.first_step is None else segment.first_step
        git = None
        if launch.git_commit:
            changed = {True: " with uncommitted changes", False: "", None: ""}[launch.git_dirty]
            git = f"git {launch.git_commit[:12]}{changed}"
        told = {
            "launcher": f"{launch.launcher}{f', retry {launch.retry}' if launch.retry else ''}",
            "host": f"on {launch.host}" if launch.host else None,
            "git": git,
            "dagster": f"Dagster run {launch.dagster_run_id}" if launch.dagster_run_id else None,
            "asset": f"asset {launch.asset_key}" if launch.asset_key else None,
            "tags": ", ".join(f"{key}={value}" for key, value in launch.tags.items()),
        }
        yield _line(
            "  launch", f"steps {first}-{segment.last_step}, {launch.time}: " + "; ".join(filter(None, told.values()))
        )
        if launch.argv:
            yield _line("  command", shlex.join(launch.argv))
    if run.mlflow_run_id:
        yield _line("  MLflow", f"run {run.mlflow_run_id} at {run.mlflow_uri}")


def _lines_of_configuration(configuration: Configuration) -> Iterator[str]:
    state = configuration.state if configuration.state == "unchanged" else configuration.state.upper()
    kept = "; the manifest holds it" if configuration.is_in_manifest and state != "unchanged" else ""
    yield _line("config", f"{configuration.path or 'config.json'}: {state}{kept}")
    yield _line("  digest", configuration.digest)
    if configuration.source is not None:
        yield _line("  from", configuration.source)


def _lines_of_dataset(dataset: DatasetLink) -> Iterator[str]:
    yield _line("dataset", f"{dataset.name} at {dataset.path}: {_DATASET_STATES[dataset.state]}")
    if dataset.moved_from is not None:
        yield _line("  moved", f"recorded at {dataset.moved_from}")
    yield _line("  index", f"{dataset.index_name}, {dataset.num_instances:,} instances with {dataset.depth_name}")
    yield _line("  digest", dataset.digest)
    if dataset.state == "changed":
        yield _line("  now", f"{dataset.digest_now}, {dataset.num_instances_now:,} instances")
    for event in dataset.imports[-_MAX_IMPORTS:]:
        written = f"{event.instances:,} instances, {event.written:,} written, {event.num_skipped:,} skipped"
        yield _line("  import", f"{event.time} {event.importer} from {event.source}: {written}")
        options = _short_options(event.options)
        if options:
            yield _line("  with", options)
    if len(dataset.imports) > _MAX_IMPORTS:
        yield _line("  import", f"and {len(dataset.imports) - _MAX_IMPORTS} before; --json has them")
    if not dataset.imports and dataset.state not in ("gone", "unreadable"):
        yield _line("  import", "no import is logged: the data was put there otherwise")
    if dataset.num_damaged_imports:
        yield _line("  import", f"{dataset.num_damaged_imports} damaged lines of the log")


def _lines_of_earlier(earlier: EarlierRecord) -> Iterator[str]:
    yield _line("earlier", f"until step {earlier.until_step} trained with other inputs:")
    yield _line("  config", earlier.config_digest or "unknown")
    for dataset in earlier.datasets:
        yield _line("  dataset", f"{dataset.name}, {dataset.num_instances:,} instances, digest {dataset.digest}")


def _short_options(options: Mapping[str, Any]) -> str:
    told = {key: value for key, value in options.items() if value not in (None, "", False, [], {})}
    return ", ".join(f"{key}={value}" for key, value in told.items())


def _line(name: str, text: str) -> str:
    return f"{name:<12}{_plain(text)}"


def _plain(text: object, longest: int = _LONGEST_TEXT) -> str:
    """What a manifest of somebody else says must neither steer the terminal nor fill it."""
    shown = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in str(text))
    return shown if len(shown) <= longest else f"{shown[: longest - 3]}..."
