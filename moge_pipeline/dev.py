"""The user interfaces on this machine, over one history: `python -m moge_pipeline.dev`, or `make dev`.

Starts `mlflow server`, `dagster dev` and the server of reports on the loopback address, on the same stores that the
command line uses, so that the links in the metadata open. Ctrl-C ends all, and the runs they started, which get the
time to save a checkpoint.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlparse

import click

from moge_core.training.mlflow_tracking import default_tracking_uri
from moge_pipeline.catalog import project_root
from moge_pipeline.defs.resources.tracking import artifact_folder
from moge_pipeline.process_tree import ProcessTree, interrupts_held

HOST = "127.0.0.1"
SECONDS_FOR_DAGSTER = 20.0


@dataclass(frozen=True)
class Service:
    """One of the servers: what it is called in the log, how it is started, where it answers."""

    name: str
    argv: list[str]
    port: int

    @property
    def url(self) -> str:
        """Address of its user interface."""
        return f"http://{HOST}:{self.port}"


@click.command(help="Start the user interfaces of Dagster and MLflow, and the reports; Ctrl-C ends all.")
@click.option("--dagster-port", default=3000, envvar="MOGE_DAGSTER_PORT", show_default=True, show_envvar=True)
@click.option("--mlflow-port", default=5000, envvar="MOGE_MLFLOW_PORT", show_default=True, show_envvar=True)
@click.option("--reports-port", default=3001, envvar="MOGE_REPORTS_PORT", show_default=True, show_envvar=True)
@click.option(
    "--terminate-grace-s",
    default=120.0,
    show_default=True,
    help="Seconds that running trainings get to save when this ends.",
)
def main(dagster_port: int, mlflow_port: int, reports_port: int, terminate_grace_s: float) -> None:
    """Run the services until one ends or the user does."""
    root = project_root()
    services, env = plan(root, dict(os.environ), dagster_port, mlflow_port, reports_port)
    for service in services:
        if not _is_free(service.port):
            option = f"--{service.name}-port or MOGE_{service.name.upper()}_PORT"
            raise click.ClickException(
                f"Port {service.port} of {HOST}, meant for {service.name}, is taken."
                f" End what uses it or choose another: {option}."
            )
    # A plain `kill` ends everything as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    trees: dict[str, ProcessTree] = {}
    try:
        for service in services:
            trees[service.name] = ProcessTree(service.argv, env, root, stdout=subprocess.PIPE)
            threading.Thread(
                target=_copy_lines, args=(service.name, trees[service.name].process.stdout), daemon=True
            ).start()
        threading.Thread(target=_announce, args=(services, env), daemon=True).start()
        name = _first_to_end(trees)
        raise click.ClickException(f"{name} ended by itself; its last lines above say why.")
    except KeyboardInterrupt:
        print("Ending; running trainings save a checkpoint first.", flush=True)
    finally:
        with interrupts_held():
            _end(trees, terminate_grace_s)


def plan(
    root: Path, env: Mapping[str, str], dagster_port: int, mlflow_port: int, reports_port: int
) -> tuple[list[Service], dict[str, str]]:
    """The services to start and the environment they share.

    A tracking server of the user's own (MLFLOW_TRACKING_URI with http) is used as it is, and none is started beside it.
    Likewise a public address of the reports (MOGE_REPORTS_UI) stays what the links begin with.
    """
    store = env.get("MLFLOW_TRACKING_URI") or default_tracking_uri(root)
    dagster_argv = [sys.executable, "-m", "dagster", "dev", "--host", HOST, "--port", str(dagster_port)]
    dagster = Service("dagster", dagster_argv, dagster_port)
    reports_argv = [sys.executable, "-m", "moge_pipeline.report_server", "--host", HOST, "--port", str(reports_port)]
    reports = Service("reports", reports_argv, reports_port)
    # The history is where `dagster.yaml` says, with and without this variable; without it Dagster says otherwise.
    home = {"DAGSTER_HOME": str(root)} if (root / "dagster.yaml").is_file() else {}
    shared = {
        "MOGE_REPORTS_UI": reports.url,
        **home,
        **env,
        "MLFLOW_TRACKING_URI": store,
        "MOGE_DAGSTER_UI": dagster.url,
    }
    if urlparse(store).scheme in ("http", "https"):
        return [reports, dagster], {**shared, "MOGE_MLFLOW_UI": store.rstrip("/")}
    # Artifacts are not served by proxy: then trainings read and write them with and without this server.
    mlflow_argv = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        HOST,
        "--port",
        str(mlflow_port),
        "--workers",
        "1",
    ]
    mlflow_argv += ["--backend-store-uri", store, "--no-serve-artifacts"]
    folder = artifact_folder(store)
    mlflow_argv += ["--default-artifact-root", folder] if folder is not None else []
    mlflow = Service("mlflow", mlflow_argv, mlflow_port)
    return [mlflow, reports, dagster], {**shared, "MOGE_MLFLOW_UI": mlflow.url}


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers themselves do: a port that an ended connection still lingers on is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _copy_lines(name: str, lines: IO[bytes] | None) -> None:
    assert lines is not None
    for line in lines:
        print(f"{name:>7} | {line.decode(errors='replace').rstrip()}", flush=True)


def _announce(services: list[Service], env: Mapping[str, str]) -> None:
    """Print the addresses once every service accepts connections."""
    for service in services:
        while _is_free(service.port):
            time.sleep(0.5)
    print(
        f"\n  Dagster  {env['MOGE_DAGSTER_UI']}\n  MLflow   {env['MOGE_MLFLOW_UI']}"
        f"\n  Reports  {env['MOGE_REPORTS_UI']}\n\n  Ctrl-C ends all.\n",
        flush=True,
    )


def _first_to_end(trees: Mapping[str, ProcessTree]) -> str:
    while True:
        for name, tree in trees.items():
            if tree.process.poll() is not None:
                return name
        time.sleep(0.5)


def _end(trees: Mapping[str, ProcessTree], grace_s: float) -> None:
    """Dagster first, by the interrupt that it expects, and last the store that its runs still write to."""
    dagster = trees.get("dagster")
    if dagster is not None:
        if dagster.process.poll() is None:
            dagster.process.send_signal(signal.SIGINT)
            try:
                dagster.process.wait(SECONDS_FOR_DAGSTER)
            except subprocess.TimeoutExpired:
                print("dagster does not end by itself; ending its processes.", flush=True)
        dagster.terminate(grace_s)
    for name, tree in trees.items():
        if name != "dagster":
            tree.terminate(10)


if __name__ == "__main__":
    main()
