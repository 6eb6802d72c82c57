"""`dagster dev` of a project, and a person in front of it: a browser whose pictures can be kept."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

from chromium import Page, open_browser
from PIL import Image
from pipeline_project import Project
from shop import environment

from moge_pipeline.process_tree import ProcessTree

HOST = "127.0.0.1"


class UserInterface:
    """A browser on a running `dagster dev`.

    Pictures are kept where the environment variable MOGE_SCREENSHOTS names a folder.

    Attributes:
        project: whose `dagster dev` it is.
        page: the browser's tab.
        mark: what the environment of every process of `dagster dev` contains.
    """

    def __init__(self, project: Project, page: Page, url: str, log_path: Path, mark: str) -> None:
        self.project = project
        self.page = page
        self.mark = mark
        self._url = url
        self._log_path = log_path

    def open(self, path: str, width: int = 1280, height: int = 800) -> None:
        """Go to an address below that of `dagster dev`."""
        self.page.open(self._url + path, width, height)

    @property
    def path(self) -> str:
        """The address that the browser has come to, below that of `dagster dev`."""
        return str(self.page.evaluate("location.pathname"))

    def log(self) -> str:
        """All that `dagster dev` has printed."""
        return self._log_path.read_text(errors="replace")

    def picture(self, name: str) -> None:
        """Keep what is seen as `ui-<name>.png`, in few colours, for documentation."""
        folder = os.environ.get("MOGE_SCREENSHOTS")
        if folder is None:
            return
        self.page.settle(1)
        image = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        Path(folder).mkdir(parents=True, exist_ok=True)
        small = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        small.save(Path(folder) / f"ui-{name}.png", optimize=True)


@contextlib.contextmanager
def open_user_interface(project: Project, profile: Path) -> Iterator[UserInterface]:
    """Start `dagster dev` of the project on a free port, and a browser; nothing of both is left afterwards."""
    with _serving(project) as (tree, url, log_path), open_browser(profile, webgl=False) as page:
        yield UserInterface(project, page, url, log_path, tree.mark)


@contextlib.contextmanager
def _serving(project: Project) -> Iterator[tuple[ProcessTree, str, Path]]:
    port = _free_port()
    argv = [sys.executable, "-m", "dagster", "dev", "--host", HOST, "--port", str(port)]
    log_path = project.root / "dagster-dev.log"
    with log_path.open("wb") as log:
        tree = ProcessTree(argv, environment(f"test-{os.getpid()}-dev"), project.root, stdout=log.fileno())
    try:
        deadline = time.monotonic() + 180
        while not _answers(port):
            assert tree.process.poll() is None and time.monotonic() < deadline, log_path.read_text(errors="replace")
            time.sleep(0.5)
        yield tree, f"http://{HOST}:{port}", log_path
    finally:
        if tree.process.poll() is None:
            tree.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                tree.wait(60)
        tree.terminate(20)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        with urlopen(f"http://{HOST}:{port}/server_info", timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False
