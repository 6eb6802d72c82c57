"""kill -9 at any instant of an import, an index or a validation: the next run ends where an undisturbed one does."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from moge_core.datasets.manifest import manifest_path
from moge_core.io import write_image
from moge_core.io.png import encode_png

NUM_FRAMES, SIZE = 120, (96, 128)
NUM_KILLS = 10

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for scene in range(4):
        for frame in range(NUM_FRAMES // 4):
            name = f"scene{scene}/{frame:04d}"
            for kind in ("rgb", "depth"):
                (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
            write_image(folder / "rgb" / f"{name}.png", rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8))
            depth = (1000 + 20 * np.arange(SIZE[1])[None, :] + rng.integers(0, 9, SIZE)).astype(np.uint16)
            (folder / "depth" / f"{name}.png").write_bytes(encode_png(depth))
    return folder


def arguments_of(step: str, source: Path, out: Path) -> list[str]:
    if step == "import":
        camera = ["--intrinsics", "100,100,63.5,47.5", "--depth-scale", "1000"]
        return ["import", "rgbd-folder", str(source), "-o", str(out), *camera]
    return [step, str(out)]


def start(step: str, source: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "moge_core.cli", *arguments_of(step, source, out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def run(step: str, source: Path, out: Path) -> None:
    assert start(step, source, out).wait(timeout=120) == 0


def tree_of(out: Path) -> dict[str, bytes]:
    """Every file but the log of imports, which tells of each run, and the manifest, which knows times."""
    logs = {"import.jsonl", "manifest.parquet"}
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in logs
    }


def manifest_of(out: Path) -> list[dict[str, Any]]:
    table = pq.read_table(manifest_path(out))
    rows = table.drop_columns(["stamp"]).to_pylist()
    header = json.loads(table.schema.metadata[b"moge"])
    return [*rows, header]


def kill_at_random(step: str, source: Path, out: Path, longest_s: float, rng: random.Random) -> None:
    process = start(step, source, out)
    time.sleep(rng.uniform(0.0, longest_s))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_at_ten_instants_each_step_ends_as_if_undisturbed(source: Path, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    rng = random.Random(int.from_bytes(os.urandom(4), "little"))
    for step in ("import", "index", "validate"):
        began = time.monotonic()
        run(step, source, undisturbed)
        lasted = time.monotonic() - began
        killed.mkdir(exist_ok=True)
        for _ in range(NUM_KILLS):
            kill_at_random(step, source, killed, 1.1 * lasted, rng)
        run(step, source, killed)
        assert tree_of(killed) == tree_of(undisturbed), step
        if step != "import":
            assert manifest_of(killed) == manifest_of(undisturbed), step
    assert len([path for path in tree_of(killed) if path.endswith("meta.json")]) == NUM_FRAMES


def test_killed_while_it_writes_files_an_import_leaves_no_torn_instance(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rng = random.Random(1)
    process = start("import", source, out)
    # Wait until instances appear, then kill in the midst of the writing.
    deadline = time.monotonic() + 60
    while not list(out.rglob("meta.json")) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.05))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    complete = list(out.rglob("meta.json"))
    assert 0 < len(complete) < NUM_FRAMES
    for path in complete:
        assert {"image.jpg", "depth.png"} <= {file.name for file in path.parent.iterdir()}
    run("index", source, out)
    run("import", source, out)
    assert list(out.rglob("*.tmp")) == []
    assert len(list(out.rglob("meta.json"))) == NUM_FRAMES
