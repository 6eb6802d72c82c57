"""Chromium without a window, driven over its DevTools protocol: opens a page, hears all it says, acts as a user."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Pictures are drawn by the CPU: machines that run tests have no graphics card.
_SOFTWARE_WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
_NO_WEBGL = ("--disable-gpu", "--disable-3d-apis")


class Page:
    """One tab, and what it said and asked for since it was opened.

    Attributes:
        complaints: console messages of level warning or error, uncaught exceptions, violations of the page's policy.
        requests: URLs that were asked for, other than data URIs.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._last_id = 0
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._is_loaded = False
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def open(
        self, path: Path, width: int = 1280, height: int = 900, *, phone: bool = False, dark: bool = False
    ) -> None:
        """Open a file and wait until it is loaded and drawn."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.complaints.clear()
        self.requests.clear()
        self._is_loaded = False
        self.send("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + 60
        while not self._is_loaded:
            self._take(self._receive(deadline))
        self.settle()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; a promise is awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", expression))
        return answer["result"].get("value")

    def settle(self, seconds: float = 0.3) -> None:
        """Let frames be drawn and messages arrive."""
        milliseconds = int(1000 * seconds)
        self.evaluate(f"new Promise((done) => setTimeout(() => requestAnimationFrame(done), {milliseconds}))")

    def drag(self, selector: str, by: tuple[int, int]) -> None:
        """Drag from the middle of an element with the mouse."""
        x, y = self._middle(selector)
        self._mouse("mouseMoved", x, y, 0)
        self._mouse("mousePressed", x, y, 1)
        for step in range(1, 6):
            self._mouse("mouseMoved", x + by[0] * step / 5, y + by[1] * step / 5, 1)
        self._mouse("mouseReleased", x + by[0], y + by[1], 0)
        self.settle()

    def swipe(self, selector: str, by: tuple[int, int]) -> None:
        """Drag from the middle of an element with a finger."""
        x, y = self._middle(selector)
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        for step in range(1, 6):
            point = {"x": x + by[0] * step / 5, "y": y + by[1] * step / 5}
            self.send("Input.dispatchTouchEvent", type="touchMove", touchPoints=[point])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.settle()

    def click(self, selector: str) -> None:
        """Click into the middle of an element."""
        x, y = self._middle(selector)
        self._mouse("mouseMoved", x, y, 0)
        self._mouse("mousePressed", x, y, 1)
        self._mouse("mouseReleased", x, y, 0)
        self.settle()

    def screenshot(self, *, whole: bool = False) -> bytes:
        """PNG of what is seen, or of the whole page."""
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol and its answer."""
        self._last_id += 1
        self._connection.send(json.dumps({"id": self._last_id, "method": method, "params": params}))
        deadline = time.monotonic() + 60
        while True:
            message = self._receive(deadline)
            if message.get("id") == self._last_id:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                answer: dict[str, Any] = message["result"]
                return answer
            self._take(message)

    def _middle(self, selector: str) -> tuple[float, float]:
        box = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'});"
            " const r = e.getBoundingClientRect(); return [r.left + r.width / 2, r.top + r.height / 2]; })()"
        )
        return box[0], box[1]

    def _mouse(self, kind: str, x: float, y: float, buttons: int) -> None:
        button = "none" if kind == "mouseMoved" and not buttons else "left"
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=buttons, clickCount=1)

    def _receive(self, deadline: float) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._connection.recv(timeout=max(0.1, deadline - time.monotonic())))
        return message

    def _take(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._is_loaded = True
        elif method == "Runtime.consoleAPICalled" and params["type"] in {"warning", "error", "assert"}:
            self.complaints.append(" ".join(str(arg.get("value", arg)) for arg in params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in {"warning", "error"}:
            self.complaints.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self.requests.append(params["request"]["url"])


@contextlib.contextmanager
def open_browser(profile: Path, *, webgl: bool = True) -> Iterator[Page]:
    """A browser with one tab; its profile lies in the folder `profile`."""
    assert EXECUTABLE is not None
    flags = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--no-first-run"]
    # Chromium refuses its sandbox to root, who runs tests inside containers; their /dev/shm is small, too.
    flags += ["--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--disable-background-networking"]
    flags += _SOFTWARE_WEBGL if webgl else _NO_WEBGL
    command = [EXECUTABLE, *flags, "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            port = _port(profile / "DevToolsActivePort", process)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
                tabs = json.load(answer)
            address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            with connect(address, max_size=None, proxy=None) as connection:
                yield Page(connection)
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def _port(path: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.is_file() and (lines := path.read_text().splitlines()):
            return int(lines[0])
        if process.poll() is not None:
            raise RuntimeError(f"{EXECUTABLE} ended with {process.returncode} as user {os.getuid()}")
        time.sleep(0.05)
    raise TimeoutError(f"{EXECUTABLE} opened no port")
