"""How a training's processes are started, watched and ended. One protocol; this machine is its first implementation."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import dagster as dg
import psutil

from moge_pipeline.process_tree import ProcessTree, interrupts_held


@dataclass(frozen=True)
class LaunchResult:
    """How a launched command ended, and what it reported of itself."""

    exit_code: int
    metadata: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Any] = ()


class Launcher(Protocol):
    """Runs one command to its end, wherever that may be."""

    def run(
        self,
        context: dg.AssetExecutionContext,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        cwd: Path,
        terminate_grace_s: float,
    ) -> LaunchResult:
        """Start `argv` with `env` added to this process's environment, stream its output, and wait for it.

        When the run is cancelled the command gets SIGTERM and `terminate_grace_s` seconds, then SIGKILL, before the
        interruption goes on its way.
        """
        ...


class LocalLauncher:
    """Runs the command as a tree of processes on this machine.

    The command writes straight into the captured output of the step, so it can go on writing, and finish its
    checkpoint, when the step's own process has been killed.
    """

    def run(
        self,
        context: dg.AssetExecutionContext,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        cwd: Path,
        terminate_grace_s: float,
    ) -> LaunchResult:
        """See `Launcher.run`."""
        with _pipes_session(context) as session:
            # torchrun's own patience of 30 s is shorter than a large checkpoint may take.
            patience = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(math.ceil(terminate_grace_s))}
            tree = ProcessTree(argv, {**patience, **os.environ, **env, **session.get_bootstrap_env_vars()}, cwd)
            try:
                exit_code = tree.wait()
            except BaseException:
                with interrupts_held():
                    context.log.info(f"Asking the training to save and end; it has {terminate_grace_s:g} s.")
                    if not tree.terminate(terminate_grace_s, spare=_is_accelerate):
                        context.log.warning(f"Killed what was still running after {terminate_grace_s:g} s.")
                raise
            if tree.members():
                context.log.warning("The command left processes behind; ending them.")
                tree.terminate(terminate_grace_s)
        reported = session.get_reported_results()
        metadata = [result.metadata for result in reported if isinstance(result, dg.MaterializeResult)]
        return LaunchResult(exit_code, metadata[-1] or {} if metadata else {}, session.get_custom_messages())


@contextlib.contextmanager
def _pipes_session(context: dg.AssetExecutionContext) -> Iterator[dg.PipesSession]:
    """A Pipes session over files, which work without the step's process too."""
    with contextlib.ExitStack() as opened:
        with warnings.catch_warnings():
            # Dagster uses what it calls a preview, and deprecated, itself.
            warnings.simplefilter("ignore", dg.PreviewWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            session = opened.enter_context(
                dg.open_pipes_session(
                    context=context,
                    context_injector=dg.PipesTempFileContextInjector(),
                    message_reader=dg.PipesTempFileMessageReader(),
                )
            )
        yield session


def _is_accelerate(process: psutil.Process) -> bool:
    """Whether this is `accelerate launch`: it ends with its trainers, but asked to end would give them 30 s only."""
    return "accelerate.commands.launch" in process.cmdline()
