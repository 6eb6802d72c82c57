"""What a launched command reports: Dagster Pipes over files, which work without the step's process too."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_pipes import PipesDefaultMessageWriter

from moge_pipeline.defs.resources.launchers.protocol import LaunchResult

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_READS = 0.5

_RESTARTED = "moge_command_restarted"
"""Key of a message of ours: what was reported before it is of an earlier attempt of the same command."""


class RestartableFileReader(dg.PipesMessageReader):
    """Reads messages that another machine appends to a file.

    A cluster may start a job again, for example after a preemption. The command then opens and closes its end of the
    session once for each attempt, which Dagster takes for a mistake, and only the last attempt tells how it ended.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._opened = False
        self._closing: dict[str, Any] | None = None

    @contextlib.contextmanager
    def read_messages(self, handler: Any) -> Iterator[dict[str, Any]]:
        """Read in a thread of its own until the block ends."""
        self._path.write_bytes(b"")
        stop = threading.Event()
        thread = threading.Thread(target=self._read, args=(handler, stop), daemon=True)
        thread.start()
        try:
            yield {PipesDefaultMessageWriter.FILE_PATH_KEY: str(self._path)}
        finally:
            stop.set()
            thread.join()

    def no_messages_debug_text(self) -> str:
        """Where messages were looked for."""
        return f"Attempted to read messages from file {self._path}."

    def _read(self, handler: Any, stop: threading.Event) -> None:
        while True:
            is_last = stop.wait(SECONDS_BETWEEN_READS)
            for line in self._new_lines():
                try:
                    self._handle(handler, line)
                except Exception:
                    # Dagster's database may be away for a moment; the last message is the one that counts.
                    logger.warning("Dagster did not take a message of the training", exc_info=True)
            if is_last:
                break
        if self._closing is not None:
            handler.handle_message(self._closing)

    def _new_lines(self) -> list[bytes]:
        """Lines that are complete; the end of one may still be on its way over the network."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except OSError:  # a network's file system may be away for a moment
            return []
        complete = content[: content.rfind(b"\n") + 1]
        self._offset += len(complete)
        return complete.splitlines()

    def _handle(self, handler: Any, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            # A process that is killed while it writes leaves half a line.
            return
        if message["method"] == "closed":
            self._closing = message
            return
        if message["method"] == "opened" and self._opened:
            self._closing = None
            message = {**message, "method": "report_custom_message", "params": {"payload": {_RESTARTED: True}}}
        self._opened = True
        handler.handle_message(message)


@contextlib.contextmanager
def pipes_session(context: dg.AssetExecutionContext, folder: Path | None = None) -> Iterator[dg.PipesSession]:
    """A Pipes session over files of `folder`, for commands on other machines, or by default over temporary files.

    `session.get_bootstrap_env_vars()` is for the command's environment; once closed, `reported` tells what came.
    """
    if folder is None:
        with open_session(context, dg.PipesTempFileContextInjector(), dg.PipesTempFileMessageReader()) as session:
            yield session
    else:
        injector = dg.PipesFileContextInjector(str(folder / "pipes_context.json"))
        with open_session(context, injector, RestartableFileReader(folder / "pipes_messages.jsonl")) as session:
            yield session


@contextlib.contextmanager
def open_session(
    context: dg.AssetExecutionContext, injector: dg.PipesContextInjector, reader: dg.PipesMessageReader
) -> Iterator[dg.PipesSession]:
    """`dg.open_pipes_session`, without the warnings that Dagster gives of itself."""
    with contextlib.ExitStack() as opened:
        with warnings.catch_warnings():
            # Dagster uses what it calls a preview, and deprecated, itself.
            warnings.simplefilter("ignore", dg.PreviewWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            session = opened.enter_context(
                dg.open_pipes_session(context=context, context_injector=injector, message_reader=reader)
            )
        yield session


def reported(
    session: dg.PipesSession, exit_code: int, *, timed_out: bool = False, tags: Mapping[str, str] | None = None
) -> LaunchResult:
    """The result of a command whose session is closed; of one that was started again, that of the last attempt."""
    results = session.get_reported_results()
    metadata = [result.metadata for result in results if isinstance(result, dg.MaterializeResult)]
    messages: list[Any] = []
    for message in session.get_custom_messages():
        if isinstance(message, dict) and _RESTARTED in message:
            messages.clear()
        else:
            messages.append(message)
    return LaunchResult(exit_code, metadata[-1] or {} if metadata else {}, tuple(messages), timed_out, tags or {})
