"""The report server hands out reports and nothing else."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline_project import Project, metadata_of

from moge_core.datasets import render_sample_scenes

CHECKPOINT = "train_sample/0/checkpoint/00000003.pt"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a report, a checkpoint, and what somebody might plant among reports."""
    root = tmp_path_factory.mktemp("project")
    files = {
        "quality/sample set/report.html": b"<!doctype html><title>caf\xc3\xa9</title>",
        "quality/sample set/report.json": b"{}",
        "quality/sample set/contact_sheet.png": b"\x89PNG",
        "quality/sample set/sheet.jpg": b"\xff\xd8",
        "quality/sample set/ply/a.ply": b"ply\n",
        "quality/sample set/weights.pt": b"secret",
        "quality/.hidden/report.html": b"secret",
        "evaluation/train_sample/report.html": b"<!doctype html><title>scores</title>",
        CHECKPOINT: b"secret",
        "train_sample/0/metrics.html": b"secret",
    }
    for name, content in files.items():
        path = root / "workspace" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "outside.html").write_bytes(b"secret")
    quality = root / "workspace" / "quality"
    (quality / "file.html").symlink_to(root / "outside.html")
    (quality / "folder").symlink_to(root, target_is_directory=True)
    (quality / "training").symlink_to(root / "workspace" / "train_sample", target_is_directory=True)
    (quality / "disguised.png").symlink_to(quality / "sample set" / "weights.pt")
    return root / "workspace"


@pytest.fixture(scope="module")
def port(workspace: Path) -> Iterator[int]:
    """Port of a report server of this workspace."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = int(probe.getsockname()[1])
    argv = [sys.executable, "-m", "moge_pipeline.report_server", "--port", str(number)]
    env = {**os.environ, "MOGE_PROJECT_ROOT": str(workspace.parent)}
    with subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True) as server:
        deadline = time.monotonic() + 60
        while server.poll() is None and time.monotonic() < deadline:
            try:
                ask(number, "/health")
                break
            except OSError:
                time.sleep(0.1)
        yield number
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=30)
    assert errors == ""


def ask(
    port: int, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer to exactly this path, which no client library tidies up."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/quality/sample%20set/report.html", "text/html; charset=utf-8", b"<!doctype html><title>caf\xc3\xa9</title>"),
        ("/quality/sample%20set/report.json", "application/json", b"{}"),
        ("/quality/sample%20set/contact_sheet.png", "image/png", b"\x89PNG"),
        ("/quality/sample%20set/sheet.jpg", "image/jpeg", b"\xff\xd8"),
        ("/quality/sample%20set/ply/a.ply", "application/octet-stream", b"ply\n"),
        (
            "/evaluation/train_sample/report.html",
            "text/html; charset=utf-8",
            b"<!doctype html><title>scores</title>",
        ),
    ],
)
def test_reports_are_served_with_their_content_type(port: int, path: str, content_type: str, body: bytes) -> None:
    status, headers, content = ask(port, path)
    assert (status, headers["content-type"], content) == (200, content_type, body)


@pytest.mark.parametrize(
    "path",
    [
        f"/{CHECKPOINT}",
        f"/quality/../{CHECKPOINT}",
        f"/quality/%2e%2e/{CHECKPOINT}",
        f"/quality/..%2f{CHECKPOINT}",
        "/quality/../../outside.html",
        "/quality/%2e%2e%2f%2e%2e%2foutside.html",
        "/quality/..%5c..%5coutside.html",
        "/quality//etc/passwd",
        "/quality/%2fetc%2fpasswd",
        "/quality/sample%20set/weights.pt",
        "/quality/.hidden/report.html",
        "/quality/file.html",
        "/quality/folder/outside.html",
        "/quality/training/0/metrics.html",
        "/quality/disguised.png",
        "/quality/report.html%00.png",
        "/quality/" + 300 * "a" + ".html",
        "/quality/sample%20set/",
        "/quality/sample%20set",
        "/quality",
        "/train_sample/0/metrics.html",
        "/workspace/quality/sample%20set/report.html",
    ],
)
def test_nothing_else_of_the_workspace_or_the_machine_is_served(port: int, path: str) -> None:
    status, _, content = ask(port, path)
    assert status in (400, 404, 307)
    assert b"secret" not in content and b"root:" not in content


def test_every_answer_carries_the_security_headers(port: int) -> None:
    for path in ("/", "/quality/sample%20set/report.html", "/quality/absent.html", "/nowhere"):
        _, headers, _ = ask(port, path)
        policy = headers["content-security-policy"]
        # A page without an origin cannot speak for the user to what else the proxy's address serves.
        assert "sandbox" in policy and "allow-same-origin" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-cache"


def test_head_tells_the_size_without_the_content(port: int) -> None:
    for path in ("/", "/quality/sample%20set/report.html", "/health"):
        _, full, content = ask(port, path)
        status, headers, body = ask(port, path, "HEAD")
        assert (status, body) == (200, b"")
        assert headers["content-length"] == full["content-length"] == str(len(content))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_the_server_only_reads(port: int, workspace: Path, method: str) -> None:
    status, _, _ = ask(port, "/quality/sample%20set/report.html", method)
    assert status == 405
    assert (workspace / "quality/sample set/report.html").is_file()


def test_a_page_that_has_not_changed_is_not_sent_again(port: int) -> None:
    path = "/quality/sample%20set/report.html"
    _, headers, _ = ask(port, path)
    status, _, body = ask(port, path, headers={"If-None-Match": headers["etag"]})
    assert (status, body) == (304, b"")


def test_the_index_page_leads_to_every_report_and_only_there(port: int) -> None:
    status, headers, content = ask(port, "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    links = re.findall(r'href="([^"]+)"', content.decode())
    assert [link for link in links if not link.startswith("data:")] == [
        "quality/sample%20set/report.html",
        "evaluation/train_sample/report.html",
    ]


def test_a_foreign_name_that_points_here_gets_nothing(port: int) -> None:
    status, _, content = ask(port, "/quality/sample%20set/report.html", headers={"Host": "evil.example"})
    assert (status, content) == (400, b"Invalid host header")


def test_a_workspace_that_does_not_exist_yet_has_an_index_that_says_how_to_begin(tmp_path: Path) -> None:
    import asyncio

    from starlette.types import Message

    from moge_pipeline.report_server import build_app

    async def status_and_body(path: str) -> tuple[int, bytes]:
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
        }
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        await build_app(tmp_path / "workspace")(scope, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)

    status, body = asyncio.run(status_and_body("/"))
    assert status == 200 and b"Materialize" in body
    assert asyncio.run(status_and_body("/quality/sample/report.html"))[0] == 404
    assert not (tmp_path / "workspace").exists()


def test_the_quality_asset_links_to_its_report(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.train("sample")
    render_sample_scenes(project.root / "data" / "sample", 2, 1, size=(96, 72))
    result = project.materialize("index/sample")
    assert result.success
    monkeypatch.setenv("MOGE_REPORTS_UI", "https://moge.example/reports/")
    metadata = metadata_of(project.materialize("quality/sample"))
    assert metadata["report_page"] == "https://moge.example/reports/quality/sample/report.html"
    page = Path(metadata["page"])
    assert page == project.root / "workspace" / "quality" / "sample" / "report.html" and page.is_file()
    monkeypatch.delenv("MOGE_REPORTS_UI")
    metadata = metadata_of(project.materialize("quality/sample"))
    assert metadata["report_page"] == "http://127.0.0.1:3001/quality/sample/report.html"
