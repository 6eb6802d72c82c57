"""Resuming: what counts as trained, and which process reads what of a checkpoint."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import told_reads
import torch

from moge_core.models.weights import read_tensors
from moge_core.training import main

Config = Callable[..., Path]
REPOSITORY = Path(__file__).resolve().parents[2]
ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
]
TELL = [told_reads.__file__]


def arguments(config: Path, workspace: Path, *flags: str) -> list[str]:
    return ["--config", str(config), "--workspace", str(workspace), "--enable_mlflow", "False", *flags]


def on_two(command: list[str], report: Path, *, code: int = 0) -> list[dict[str, Any]]:
    """Launch two processes, and what each of them reports."""
    ended = subprocess.run(
        command, env={**os.environ, **ALONE}, check=False, timeout=240, stderr=subprocess.PIPE, text=True
    )
    assert ended.returncode == code, ended.stderr[-4000:]
    return [json.loads(Path(f"{report}.{rank}.json").read_text()) for rank in (0, 1)]


def trained_with_a_damaged_last_checkpoint(config: Path, workspace: Path) -> None:
    """Checkpoints of the steps 0 to 2, the last one with a flipped bit."""
    assert main(arguments(config, workspace, "--num_iterations", "3", "--save_every", "1")) == 0
    damaged = workspace / "checkpoint" / "00000002_optimizer.pt"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)


# --- who reads what ---


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_process_hashes_and_all_go_on_from_what_it_found(tiny_config: Config, tmp_path: Path) -> None:
    config, workspace = tiny_config(), tmp_path / "w"
    trained_with_a_damaged_last_checkpoint(config, workspace)
    flags = arguments(config, workspace, "--num_iterations", "3", "--checkpoint", "latest", "--batch_size_forward", "1")
    first, second = on_two([*LAUNCH, *TELL, str(tmp_path / "report"), *flags], tmp_path / "report")
    # The damaged one is found by its optimiser's file, so its average is not even read.
    assert sorted(first["hashed"]) == sorted(
        ["00000002.pt", "00000002_optimizer.pt", "00000001.pt", "00000001_optimizer.pt", "00000001_ema.pt"]
    )
    assert second["hashed"] == []
    assert sorted(second["opened"]) == ["00000001.pt", "00000001_optimizer.pt"], "the average is process 0's alone"
    assert second["mapped_when_read"] == ["00000001.pt", "00000001_optimizer.pt"]
    assert first["mapped_in_training"] == second["mapped_in_training"] == []
    lines = [json.loads(line) for line in (workspace / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_of_spread_weights_one_process_alone_opens_files(tiny_config: Config, tmp_path: Path) -> None:
    config, workspace = tiny_config(lr_scheduler={"params": {"lr_lambda": ["1.0", "1.0"]}}), tmp_path / "w"
    assert main(arguments(config, workspace, "--num_iterations", "2", "--save_every", "1")) == 0
    before = torch.load(workspace / "checkpoint" / "00000001_ema.pt", weights_only=True)["model"]
    flags = ["--num_iterations", "3", "--checkpoint", "latest", "--batch_size_forward", "1"]
    settings = (REPOSITORY / "configs" / "accelerate" / "fsdp.yaml").read_text()
    for old, new in (("num_processes: .*", "num_processes: 2"), ("mixed_precision: .*", "mixed_precision: 'no'")):
        assert len(re.findall(old, settings)) == 1
        settings = re.sub(old, new, settings)
    (tmp_path / "fsdp.yaml").write_text(settings)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "fsdp.yaml")]
    command = [*launch, *TELL, str(tmp_path / "report"), *arguments(config, workspace, *flags)]
    first, second = on_two(command, tmp_path / "report")
    assert {"00000001.pt", "00000001_optimizer.pt", "00000001_ema.pt"} == set(first["opened"]) == set(first["hashed"])
    assert second["hashed"] == second["opened"] == []
    # Its part came to it all the same: the average has moved by a thousandth of a step.
    after = torch.load(workspace / "checkpoint" / "00000002_ema.pt", weights_only=True)["model"]
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-4)
    steps = [
        torch.load(workspace / "checkpoint" / f"{step:08d}_optimizer.pt", weights_only=True)["optimizer"]["state"]
        for step in (1, 2)
    ]
    assert all(steps[1][number]["step"] == values["step"] + 1 for number, values in steps[0].items())


AGREEING = """
import sys
from accelerate import PartialState
from moge_core.errors import CheckpointError, MoGeError
from moge_core.training.agreement import all_or_none, found_by_main

rank = PartialState(cpu=True).process_index
told = []


def fails_on(number):
    if rank == number:
        raise CheckpointError("a.pt", "must be whole", found="half of it", fix=f"Said by {number}.")
    return "found by %d" % rank


for attempt in (
    lambda: found_by_main(lambda: fails_on(None), is_main=rank == 0),
    lambda: found_by_main(lambda: fails_on(0), is_main=rank == 0),
    lambda: all_or_none(lambda: fails_on(None)),
    lambda: all_or_none(lambda: fails_on(1)),
):
    try:
        told.append(str(attempt()))
    except MoGeError as error:
        told.append(f"{type(error).__name__} {error}")
open(sys.argv[1] + f".{rank}", "w").write("\\n".join(told))
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_error_of_one_process_is_raised_by_all(tmp_path: Path) -> None:
    script = tmp_path / "agreeing.py"
    script.write_text(AGREEING)
    subprocess.run([*LAUNCH, str(script), str(tmp_path / "told")], env={**os.environ, **ALONE}, check=True, timeout=100)
    first, second = ((tmp_path / f"told.{rank}").read_text().splitlines() for rank in (0, 1))
    error = "CheckpointError a.pt: must be whole; found half of it. Said by {}."
    assert first == ["found by 0", error.format(0), "found by 0", error.format(1)]
    assert second == ["found by 0", error.format(0), "found by 1", error.format(1)]


# --- mapped files ---


def test_what_is_read_is_mapped_and_outlives_the_removal_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint" / "w.pt"
    path.parent.mkdir()
    torch.save({"model": {"w": torch.arange(100_000.0)}}, path)
    weights = read_tensors(path)["model"]["w"]
    assert told_reads.mapped_files() == ["w.pt"]
    weights += 1  # this process's copy of the pages alone
    assert torch.equal(torch.load(path, weights_only=True)["model"]["w"], torch.arange(100_000.0))
    path.unlink()
    assert torch.equal(weights, torch.arange(100_000.0) + 1)


def test_files_of_old_torch_versions_are_read_all_the_same(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors(tmp_path / "old.pt")["w"], torch.ones(3))


def test_a_resumed_training_keeps_no_file_of_its_checkpoint_mapped(tiny_config: Config, tmp_path: Path) -> None:
    config, report = tiny_config(), tmp_path / "report"
    assert main(arguments(config, tmp_path / "w", "--num_iterations", "1")) == 0
    flags = arguments(config, tmp_path / "w", "--num_iterations", "2", "--checkpoint", "latest")
    assert told_reads.told(str(report), flags) == 0
    told = json.loads((tmp_path / "report.0.json").read_text())
    assert told["mapped_when_read"] == ["00000000.pt", "00000000_ema.pt", "00000000_optimizer.pt"]
    assert told["mapped_in_training"] == []
