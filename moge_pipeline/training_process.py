"""The training command as Dagster launches it: `moge_core.training`, with its progress reported through Pipes."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dagster_pipes import PipesContext, open_dagster_pipes

from moge_core.accelerators import configure_allocator
from moge_core.training import RunStatus, Workspace, main
from moge_pipeline.process_guard import die_with_parent

SECONDS_BETWEEN_LOGS = 5.0
ENDING = "training_ended"
"""Key of the message that carries the trainer's last status."""


class PipesObserver:
    """Tells Dagster how the training goes: log lines on the way, and metadata of the materialization at its end."""

    def __init__(self, pipes: PipesContext) -> None:
        self._pipes = pipes
        self._metrics: dict[str, float] = {}
        self._last_log = -math.inf
        self._has_ended = False

    def on_start(self, workspace: Path, parameters: Mapping[str, Any]) -> None:
        """Say where the training leaves its files."""
        self._pipes.log.info(f"Training in {workspace}")

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One log line every few seconds at most: each is an event in Dagster's database."""
        self._metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        if time.monotonic() - self._last_log >= SECONDS_BETWEEN_LOGS:
            self._last_log = time.monotonic()
            self._pipes.log.info(f"Step {step}: {_short(self._metrics)}")

    def on_system(self, step: int, figures: Mapping[str, float]) -> None:
        """Speed and memory are in the workspace and in MLflow."""

    def on_pictures(self, step: int, folder: Path) -> None:
        """Say where pictures are."""
        self._pipes.log.info(f"Pictures of step {step}: {folder}")

    def on_checkpoint(self, step: int, path: Path) -> None:
        """Say that a checkpoint is complete."""
        self._pipes.log.info(f"Saved {path}")

    def on_end(self, status: RunStatus) -> None:
        """Report how the training ended; of several endings the first is the cause."""
        if self._has_ended:
            return
        self._has_ended = True
        self._pipes.log.info(f"Training {status.state} after step {status.step}: {status.reason}")
        self._pipes.report_custom_message({ENDING: asdict(status)})
        if status.state == "finished":
            metrics = {
                name.replace(".", "/"): {"raw_value": value, "type": "float"} for name, value in self._metrics.items()
            }
            self._pipes.report_asset_materialization(metadata=metrics)


def _short(metrics: Mapping[str, float]) -> str:
    """What a person follows a training by: the loss and its terms, scores, and what was skipped if anything was."""
    told = {
        name: value
        for name, value in metrics.items()
        if not name.startswith("dataset.") and (value or not name.startswith("skipped_"))
    }
    return ", ".join(f"{name} {value:.4g}" for name, value in told.items())


def going_on(argv: Sequence[str]) -> list[str]:
    """`argv`, or what goes on from the workspace's newest checkpoint when this command has been run before.

    A cluster that puts a job back into its queue runs the same command again, that once said where to begin. In a
    workspace with checkpoints of its own, beginning again would set them aside. A step number is left as it is: it
    goes back on purpose.
    """
    flags = list(argv)
    at = flags.index("--workspace") + 1 if "--workspace" in flags else len(flags)
    if at >= len(flags) or Workspace(flags[at]).latest_checkpoint() is None:
        return flags
    if "--checkpoint" not in flags:
        return [*flags, "--checkpoint", "latest"]
    at = flags.index("--checkpoint") + 1
    if not flags[at].isdigit():
        flags[at] = "latest"
    return flags


def run(argv: Sequence[str]) -> int:
    """Train with the flags `argv`, see `going_on`; only rank 0 talks to Dagster."""
    die_with_parent()
    argv = going_on(argv)
    if os.environ.get("RANK", "0") != "0":
        return main(argv)
    with open_dagster_pipes() as pipes:
        return main(argv, observers=[PipesObserver(pipes)])


if __name__ == "__main__":
    configure_allocator()  # before the training imports torch
    sys.exit(run(sys.argv[1:]))
