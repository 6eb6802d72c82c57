"""A report opened through the server works in a browser as the file does, sandbox and all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from chromium import open_browser
from deployment import HOST, fetch, free_port, wait_until
from pipeline_project import Project

from moge_core.datasets import render_sample_scenes

pytestmark = [
    pytest.mark.services,
    pytest.mark.timeout(300),
    # Dagster asks itself for what it is going to remove.
    pytest.mark.filterwarnings("ignore:Property `OpDefinition.version` is deprecated:DeprecationWarning"),
]


def test_a_served_report_runs_its_scripts_without_complaint_and_its_point_clouds_can_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path))
    project, port = Project(tmp_path), free_port()
    project.train("sample")
    render_sample_scenes(tmp_path / "data" / "sample", 2, 1, size=(96, 72))
    assert project.materialize("index/sample").success and project.materialize("quality/sample").success

    argv = [sys.executable, "-m", "moge_pipeline.report_server", "--port", str(port)]
    env = {**os.environ, "MOGE_PROJECT_ROOT": str(tmp_path)}
    with subprocess.Popen(argv, env=env) as server, open_browser(tmp_path / "profile") as page:
        try:
            wait_until(lambda: fetch(f"http://{HOST}:{port}/health")[0] == 200, 60, server)
            address = f"http://{HOST}:{port}/quality/sample/report.html"
            page.send("Page.navigate", url=address)
            wait_until(lambda: page.evaluate("document.readyState") == "complete", 60)
            wait_until(lambda: page.evaluate("document.querySelectorAll('canvas').length") > 0, 60)
            page.settle(1)
            assert page.evaluate("window.origin") == "null"
            assert page.complaints == []
            clouds = page.evaluate("[...document.querySelectorAll('a[href$=\".ply\"]')].map((link) => link.href)")
            assert len(clouds) == 2
            for cloud in clouds:
                code, content = fetch(cloud)
                assert code == 200 and content.startswith(b"ply\n")
        finally:
            server.terminate()
