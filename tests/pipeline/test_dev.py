"""`make dev`: three servers on one history, and nothing left of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from click.testing import CliRunner
from pipeline_project import Project

from moge_pipeline.dev import HOST, main, plan
from moge_pipeline.process_tree import MARK

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_servers_share_one_absolute_store_and_know_each_others_address(tmp_path: Path) -> None:
    services, env = plan(tmp_path, {}, 3100, 5100, 3101)
    mlflow, reports, dagster = services
    store = f"sqlite:///{tmp_path}/mlflow.db"
    assert mlflow.argv[mlflow.argv.index("--backend-store-uri") + 1] == env["MLFLOW_TRACKING_URI"] == store
    addresses = (env["MOGE_DAGSTER_UI"], env["MOGE_MLFLOW_UI"], env["MOGE_REPORTS_UI"])
    assert addresses == (dagster.url, mlflow.url, reports.url)
    for service in services:
        assert service.argv[service.argv.index("--host") + 1] == HOST == "127.0.0.1"
        assert service.argv[service.argv.index("--port") + 1] == str(service.port)


def test_a_tracking_server_of_the_users_own_is_used_and_none_started(tmp_path: Path) -> None:
    services, env = plan(tmp_path, {"MLFLOW_TRACKING_URI": "https://tracking.example/"}, 3100, 5100, 3101)
    assert [service.name for service in services] == ["reports", "dagster"]
    assert env["MOGE_MLFLOW_UI"] == "https://tracking.example"


def test_the_public_address_of_the_reports_is_the_users_choice(tmp_path: Path) -> None:
    _, env = plan(tmp_path, {"MOGE_REPORTS_UI": "https://moge.example/reports"}, 3100, 5100, 3101)
    assert env["MOGE_REPORTS_UI"] == "https://moge.example/reports"


@pytest.mark.parametrize("taken", ["dagster", "mlflow", "reports"])
def test_a_taken_port_is_named_with_the_way_out(taken: str, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOGE_PROJECT_ROOT", str(project.root))
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        holder.listen()
        port = holder.getsockname()[1]
        result = CliRunner().invoke(main, [f"--{taken}-port", str(port)])
    assert result.exit_code == 1
    assert str(port) in result.output and f"--{taken}-port" in result.output


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _answers(port: int, path: str = "") -> bool:
    try:
        with urlopen(f"http://{HOST}:{port}/{path}", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_all_servers_without_orphans(project: Project, number: signal.Signals) -> None:
    project.train("sample")
    for name in ("workspace.yaml", "dagster.yaml"):
        (project.root / name).write_bytes((REPOSITORY / name).read_bytes())
    page = project.root / "workspace" / "quality" / "sample" / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text("<!doctype html><title>sample</title>")
    dagster, mlflow, reports = _free_port(), _free_port(), _free_port()
    mark = f"test-dev-{os.getpid()}-{number}"
    argv = [sys.executable, "-m", "moge_pipeline.dev", "--reports-port", str(reports)]
    argv += ["--dagster-port", str(dagster), "--mlflow-port", str(mlflow)]
    env = {**os.environ, "MOGE_PROJECT_ROOT": str(project.root), MARK: mark}
    with subprocess.Popen(argv, cwd=project.root, env=env, stdout=subprocess.PIPE, text=True) as dev:
        deadline = time.monotonic() + 150
        while not (_answers(dagster, "server_info") and _answers(mlflow, "health")):
            assert dev.poll() is None and time.monotonic() < deadline
            time.sleep(1)
        assert _answers(reports, "quality/sample/report.html")
        dev.send_signal(number)
        output, _ = dev.communicate(timeout=90)
    assert all(f"http://{HOST}:{port}" in output for port in (dagster, mlflow, reports))
    marked = [
        process for process in psutil.process_iter(["environ"]) if mark in (process.info["environ"] or {}).get(MARK, "")
    ]
    assert marked == []
