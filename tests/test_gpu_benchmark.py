"""The script for a machine with a GPU, tried out on the CPU, so that it works where time on a GPU is dear."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import rows

REPOSITORY = Path(__file__).resolve().parents[1]


def rows_of(text: str) -> dict[str, list[str]]:
    """Cells of a Markdown table by the first one of their row."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


@pytest.mark.slow
def test_the_script_runs_dry_and_measures_every_row(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(REPOSITORY / "benchmarks" / "gpu.sh"), "--dry"],
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows_of((tmp_path / "gpu.md").read_text())
    for what, _ in rows():
        cells = found[what]
        assert any(cells) and not cells[-1].startswith(("failed", "skipped")), f"{what}: {cells}"
    assert "skipped" in (tmp_path / "tests.txt").read_text()
    assert (tmp_path / "gpu.md").read_text() in done.stdout


def test_the_page_of_benchmarks_has_a_place_for_every_row() -> None:
    text = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    documented = rows_of(text[text.index("## On a GPU") :].split("\n## ")[0])
    assert set(documented) == {"what", *(what for what, _ in rows())}
