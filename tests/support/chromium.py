"""Chromium without a window, driven over its DevTools protocol: opens a page, hears all it says, acts as a user.

What a person points at is named by a CSS selector and, where given, by the text it shows: a string is all of the text,
a pattern is found in it. Actions wait until that is there, in sight, at rest and not covered by anything else.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
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

# Seconds that a page gets to show something; servers on busy machines are slow.
PATIENCE_S = 90.0

# Modifier of `press`, and the keys that it knows.
CTRL = 2
_KEY_CODES = {"Enter": 13, "Escape": 27, "a": 65}

# The innermost visible elements that match a selector and show a text.
_FIND = """((selector, text, flags) => {
  const shown = (e) => (e.innerText ?? e.textContent).replace(/\\s+/g, ' ').trim();
  const fits = (e) => text === null || (flags === null ? shown(e) === text : new RegExp(text, flags).test(shown(e)));
  const found = [...document.querySelectorAll(selector)].filter((e) => e.checkVisibility() && fits(e));
  return found.filter((e) => !found.some((other) => other !== e && e.contains(other)));
})"""
# Where the first of them can be clicked: null while it is absent, disabled, moving or covered.
_AIM = """(async (found) => {
  const e = found[0];
  if (!e || e.disabled || e.getAttribute('aria-disabled') === 'true') return null;
  e.scrollIntoViewIfNeeded();
  const middle = () => { const r = e.getBoundingClientRect(); return [r.left + r.width / 2, r.top + r.height / 2]; };
  const before = middle();
  await new Promise((done) => setTimeout(() => requestAnimationFrame(done), 150));
  const now = middle();
  const hit = document.elementFromPoint(now[0], now[1]);
  return e.isConnected && hit && e.contains(hit) && before[0] === now[0] && before[1] === now[1] ? now : null;
})"""


Text = str | re.Pattern[str] | None


def _named(selector: str, text: Text) -> str:
    shown = text.pattern if isinstance(text, re.Pattern) else text
    return f"`{selector}`" + (f" that shows {shown!r}" if shown is not None else "")


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
        self, page: Path | str, width: int = 1280, height: int = 900, *, phone: bool = False, dark: bool = False
    ) -> None:
        """Open a file or a URL and wait until it is loaded and drawn."""
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
        self.send("Page.navigate", url=page.as_uri() if isinstance(page, Path) else page)
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

    def find(self, selector: str, text: Text = None) -> str:
        """JavaScript of the array of visible elements that match `selector` and show `text`."""
        flags = None if not isinstance(text, re.Pattern) else "i" if text.flags & re.IGNORECASE else ""
        words = text.pattern if isinstance(text, re.Pattern) else text
        return f"{_FIND}({json.dumps(selector)}, {json.dumps(words)}, {json.dumps(flags)})"

    def shows(self, selector: str, text: Text = None) -> bool:
        """Whether such an element is visible now."""
        return bool(self.evaluate(f"{self.find(selector, text)}.length > 0"))

    def wait_for(self, selector: str, text: Text = None, *, patience_s: float = PATIENCE_S) -> None:
        """Wait until such an element is visible."""
        self.wait_until(f"{self.find(selector, text)}.length > 0", _named(selector, text), patience_s=patience_s)

    def wait_until(self, expression: str, what: str, *, patience_s: float = PATIENCE_S) -> Any:
        """Wait until a JavaScript expression is true, and return its value.

        Raises:
            TimeoutError: it did not become true; tells what was waited for, and what the page shows instead.
        """
        deadline = time.monotonic() + patience_s
        while True:
            try:
                if value := self.evaluate(expression):
                    return value
                answer = "no error"
            except RuntimeError as error:
                # A page that is just being replaced by another one answers with errors.
                answer = str(error)
            if time.monotonic() > deadline:
                told = f"In {patience_s:.0f} s the page did not come to: {what} ({answer}). {self._state()}"
                raise TimeoutError(told)
            time.sleep(0.25)

    def click(self, selector: str, text: Text = None) -> None:
        """Click into the middle of an element."""
        x, y = self._point_at(selector, text)
        self._mouse("mousePressed", x, y, 1)
        self._mouse("mouseReleased", x, y, 0)
        self.settle()

    def hover(self, selector: str, text: Text = None) -> None:
        """Move the mouse over an element."""
        self._point_at(selector, text)
        self.settle()

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and release a key, such as Enter or Escape."""
        code = _KEY_CODES[key]
        text = {"text": "\r"} if key == "Enter" else {}
        names = {"key": key, "code": f"Key{key.upper()}" if len(key) == 1 else key, "modifiers": modifiers}
        commands = {"commands": ["selectAll"]} if (key, modifiers) == ("a", CTRL) else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", windowsVirtualKeyCode=code, **names, **text, **commands)
        self.send("Input.dispatchKeyEvent", type="keyUp", windowsVirtualKeyCode=code, **names)
        self.settle()

    def type_text(self, text: str) -> None:
        """Enter text where the cursor is."""
        self.send("Input.insertText", text=text)
        self.settle()

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

    def _point_at(self, selector: str, text: Text) -> tuple[float, float]:
        """Move the mouse to where an element is, which may itself make the page move, until it is found there still."""
        expression = f"{_AIM}({self.find(selector, text)})"
        what = f"{_named(selector, text)}, ready for the mouse"
        x, y = self.wait_until(expression, what)
        for _ in range(20):
            self._mouse("mouseMoved", x, y, 0)
            before, (x, y) = (x, y), self.wait_until(expression, what)
            if before == (x, y):
                return x, y
        raise TimeoutError(f"`{what}` does not stop moving. {self._state()}")

    def _state(self) -> str:
        with tempfile.NamedTemporaryFile("wb", prefix="page-", suffix=".png", delete=False) as file:
            file.write(self.screenshot())
        url, text = self.evaluate("[location.href, document.body.innerText]")
        shown = re.sub(r"\s+", " ", text)[:3000]
        console = [complaint[:200] for complaint in self.complaints[-5:]]
        return f"Picture: {file.name}\nAddress: {url}\nText: {shown}\nConsole: {console}"

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
