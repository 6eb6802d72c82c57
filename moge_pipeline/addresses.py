"""Public addresses of pages, for the links in metadata. What serves a page may stand behind a proxy, so that its own
address is not the one that a browser knows: environment variables name that one."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

REPORTS_UI = "http://127.0.0.1:3001"


def report_url(page: Path, workspace_dir: Path) -> str:
    """Address of a page below the project's `workspace`, as `python -m moge_pipeline.report_server` serves it.

    `MOGE_REPORTS_UI` names the public address of that server, such as `https://moge.example/reports`.
    """
    base = os.environ.get("MOGE_REPORTS_UI", REPORTS_UI).rstrip("/")
    return f"{base}/{quote(page.relative_to(workspace_dir).as_posix())}"
