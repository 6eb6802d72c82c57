"""What every launcher promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import dagster as dg


@dataclass(frozen=True)
class LaunchResources:
    """What a command needs of wherever it runs.

    Attributes:
        cwd: working directory: the project's folder.
        run_dir: folder of this run, which every machine of the launch sees; launchers may keep files in it.
        num_processes: training processes in all, usually one per GPU.
        terminate_grace_s: seconds between SIGTERM and SIGKILL when the command is cancelled.
        max_runtime_s: seconds after which the command is ended as if it were cancelled; None for no limit.
        launcher: name of the launcher that is asked for; None leaves that to the deployment.
    """

    cwd: Path
    run_dir: Path
    num_processes: int = 1
    terminate_grace_s: float = 120.0
    max_runtime_s: float | None = None
    launcher: str | None = None


@dataclass(frozen=True)
class LaunchResult:
    """How a launched command ended, and what it reported of itself.

    Attributes:
        exit_code: of the command; negative is a signal.
        metadata: of the materialization that it reported through Pipes.
        messages: what else it reported through Pipes.
        timed_out: whether it was ended because `max_runtime_s` had passed.
        tags: what identifies the launch where it ran, such as the number of a cluster's job.
    """

    exit_code: int
    metadata: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Any] = ()
    timed_out: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)


class Launcher(Protocol):
    """Runs one command to its end, wherever that may be."""

    def run(
        self,
        context: dg.AssetExecutionContext,
        argv: Sequence[str],
        env: Mapping[str, str],
        resources: LaunchResources,
    ) -> LaunchResult:
        """Start `argv` with `env` added to the environment, stream its output into the step's, and wait for it.

        When the run is cancelled the command gets SIGTERM and `terminate_grace_s` seconds, then SIGKILL, before the
        interruption goes on its way. A command that runs longer than `max_runtime_s` is ended in the same manner.

        Args:
            context: of the asset's step.
            argv: the command as one machine would run it, never a shell line. It reports through Dagster Pipes.
            env: variables of the command, beside those of its surroundings.
            resources: what it needs.

        Raises:
            dg.Failure: it could not be started.
        """
        ...
