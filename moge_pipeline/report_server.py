"""Serves quality reports, since browsers follow no link from a page of Dagster to a file.

    python -m moge_pipeline.report_server --port 3001

Read-only, on the loopback address unless told otherwise, and without a password: beyond this machine it belongs behind
a proxy that asks for one, see docs/deployment.md. Only the folders `quality` and `evaluation` of the project's
workspace are served, and of these only files of the kinds that reports consist of; checkpoints, hidden files and what
symbolic links lead to elsewhere are not.
"""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import click
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moge_core.visualization.pages import render_page, render_template
from moge_pipeline.catalog import project_root

PAGE_FOLDERS = ("quality", "evaluation")
"""Folders of the workspace that hold pages for people."""

CONTENT_TYPES = {
    ".csv": "text/csv",
    ".glb": "model/gltf-binary",
    ".html": "text/html",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".ply": "application/octet-stream",
    ".png": "image/png",
    ".txt": "text/plain",
}
"""What is served, and as what; any other file does not exist here."""

# Pages bring a policy of their own along, which allows their scripts by digest. What stands here is added to it: in a
# sandbox a page has no origin, so whatever it runs cannot speak for the user to Dagster or MLflow behind one proxy.
HEADERS = {
    "Content-Security-Policy": "sandbox allow-scripts allow-downloads allow-popups; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A report is written again under the same name: browsers ask each time whether theirs is the newest.
    "Cache-Control": "no-cache",
}


def build_app(workspace_dir: Path, host: str = "127.0.0.1") -> Starlette:
    """The application that serves the pages of one workspace.

    Args:
        workspace_dir: the project's `workspace`; need not exist yet.
        host: the address that it is bound to. On a loopback address requests must name such an address as their host,
            so that no foreign site gets at the pages by pointing its own name there.
    """

    def index(request: Request) -> HTMLResponse:
        body = render_template("moge_pipeline", "reports.html", folders=_pages(workspace_dir))
        return HTMLResponse(render_page("MoGe reports", body))

    def health(request: Request) -> PlainTextResponse:
        return PlainTextResponse("OK")

    names = ["127.0.0.1", "::1", "[::1]", "localhost"] if _is_loopback(host) else ["*"]
    return Starlette(
        routes=[
            Route("/", index),
            Route("/health", health),
            *(Mount(f"/{name}", _PageFiles(directory=workspace_dir / name, check_dir=False)) for name in PAGE_FOLDERS),
        ],
        middleware=[Middleware(_AddHeaders), Middleware(TrustedHostMiddleware, allowed_hosts=names)],
    )


@click.command(help="Serve the quality reports of the project's workspace, read-only.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind; has no password of its own.")
@click.option("--port", default=3001, envvar="MOGE_REPORTS_PORT", show_default=True, show_envvar=True)
def main(host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    app = build_app(project_root() / "workspace", host)
    uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False)


class _PageFiles(StaticFiles):
    """Files of the kinds that reports consist of. Symbolic links that lead out of the folder lead nowhere."""

    async def check_config(self) -> None:
        """A project without reports has no folder yet, which is no mistake."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """As Starlette's, for visible files whose kind is served."""
        parts = PurePosixPath(path).parts
        if any(part.startswith(".") for part in parts) or Path(path).suffix.lower() not in CONTENT_TYPES:
            return "", None
        found, status = super().lookup_path(path)
        # A link inside the folder must not give a checkpoint the name of a picture.
        return (found, status) if Path(found).suffix.lower() in CONTENT_TYPES else ("", None)

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """As Starlette's, with our content types instead of the machine's."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        if isinstance(response, FileResponse):
            content_type = CONTENT_TYPES[Path(full_path).suffix.lower()]
            charset = "; charset=utf-8" if content_type.startswith("text/") else ""
            response.headers["content-type"] = content_type + charset
        return response


class _AddHeaders:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _pages(workspace_dir: Path) -> Mapping[str, list[dict[str, str]]]:
    """Per folder that has any: its pages as name, relative link and time of writing, sorted by name."""
    found = {}
    for folder in PAGE_FOLDERS:
        root = workspace_dir / folder
        pages = sorted(path for path in root.rglob("*.html") if _is_inside(path, root))
        if pages:
            found[folder] = [
                {
                    "name": path.relative_to(root).as_posix().removesuffix("/report.html"),
                    "link": quote(path.relative_to(workspace_dir).as_posix()),
                    "written": time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime)),
                }
                for path in pages
            ]
    return found


def _is_inside(path: Path, root: Path) -> bool:
    """Whether this is a file of the folder itself that the server would hand out."""
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not hidden and path.is_file() and path.resolve().is_relative_to(root.resolve())


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    main()
