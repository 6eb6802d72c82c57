"""FSDP with the configuration that users are given: which part runs in what, in two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_sharded_model_in_bf16_keeps_point_maps_and_averages_gradients_in_float32(
    version: str, tmp_path: Path
) -> None:
    settings = (REPOSITORY / "configs" / "accelerate" / "fsdp.yaml").read_text()
    assert "num_processes: 8" in settings and "mixed_precision: bf16" in settings
    file = tmp_path / "fsdp.yaml"
    file.write_text(settings.replace("num_processes: 8", "num_processes: 2"))
    path = os.pathsep.join([str(REPOSITORY / "tests" / "support"), str(REPOSITORY)])
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), "-m"]
    done = subprocess.run(
        [*launch, "sharded_model", version],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = sorted(
        (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")), key=lambda each: each["rank"]
    )
    for found in (first, second):
        assert found["normals"] < 0.5 and found["rel"] < 1e-3 and found["edge"] < 0.1
        assert "torch.bfloat16" in found["in_blocks"]
        assert found["elsewhere"] == found["gradients"] == ["torch.float32"]
        assert found["off"] < 0.05
    assert first["units"] < 25  # six blocks, the parts of the head and the rest
    assert first["digest"] == second["digest"]
