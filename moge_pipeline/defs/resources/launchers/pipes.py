"""What a launched command reports: Dagster Pipes over files, which work without the step's process too."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from moge_pipeline.defs.resources.launchers.protocol import LaunchResult


@contextlib.contextmanager
def pipes_session(context: dg.AssetExecutionContext, folder: Path | None = None) -> Iterator[dg.PipesSession]:
    """A Pipes session over files of `folder`, for commands on other machines, or by default over temporary files.

    `session.get_bootstrap_env_vars()` is for the command's environment; once closed, `reported` tells what came.
    """
    injector: dg.PipesContextInjector
    reader: dg.PipesMessageReader
    if folder is None:
        injector, reader = dg.PipesTempFileContextInjector(), dg.PipesTempFileMessageReader()
    else:
        folder.mkdir(parents=True, exist_ok=True)
        injector = dg.PipesFileContextInjector(str(folder / "pipes_context.json"))
        reader = dg.PipesFileMessageReader(str(folder / "pipes_messages.jsonl"))
    with contextlib.ExitStack() as opened:
        with warnings.catch_warnings():
            # Dagster uses what it calls a preview, and deprecated, itself.
            warnings.simplefilter("ignore", dg.PreviewWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            session = opened.enter_context(
                dg.open_pipes_session(context=context, context_injector=injector, message_reader=reader)
            )
        yield session


def reported(session: dg.PipesSession, exit_code: int, *, timed_out: bool = False) -> LaunchResult:
    """The result of a command whose session is closed."""
    results = session.get_reported_results()
    metadata = [result.metadata for result in results if isinstance(result, dg.MaterializeResult)]
    return LaunchResult(
        exit_code, metadata[-1] or {} if metadata else {}, session.get_custom_messages(), timed_out=timed_out
    )
