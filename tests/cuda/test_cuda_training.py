"""Trainings on a real device: plan, steps, checkpoints, scores, what is copied ahead, and where the time goes."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from click.testing import CliRunner
from torch import Tensor

from moge_core.cli import cli
from moge_core.loading import TrainLoader
from moge_core.training import ExitCode, Workspace, load_train_config, main
from moge_core.training.devices import on_device
from moge_core.training.timing import clock_for

pytestmark = pytest.mark.cuda
Config = Callable[..., Path]


def train(config: Path, workspace: Path, *flags: str, **kwargs: Any) -> int:
    argv = ["--config", str(config), "--workspace", str(workspace), "--enable_mlflow", "False", "--num_workers", "0"]
    return main([*argv, *flags], **kwargs)


def lines_of(workspace: Path, name: str = "metrics.jsonl") -> list[dict[str, float]]:
    return [json.loads(line) for line in (workspace / name).read_text().splitlines()]


class Listener:
    """Hears what a training says of itself at its start."""

    def __init__(self) -> None:
        self.parameters: Mapping[str, Any] = {}

    def on_start(self, workspace: Path, parameters: Mapping[str, Any]) -> None:
        self.parameters = parameters


def test_a_dry_run_tells_the_plan(
    tiny_config: Config, tmp_path: Path, device: torch.device, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_config(), tmp_path / "w", "--dry_run") == ExitCode.FINISHED
    assert str(device) in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_training_is_saved_and_goes_on(
    precision: str, tiny_config: Config, tmp_path: Path, device: torch.device
) -> None:
    if precision == "fp16" and device.type == "cpu":
        pytest.skip("a CPU does not train in fp16")
    config, flags, listener = tiny_config(), ["--mixed_precision", precision], Listener()
    assert train(config, tmp_path / "whole", *flags, observers=[listener]) == ExitCode.FINISHED
    assert listener.parameters["mixed_precision"] == precision
    assert train(config, tmp_path / "parts", *flags, "--num_iterations", "4") == ExitCode.FINISHED
    assert train(config, tmp_path / "parts", *flags, "--checkpoint", "latest") == ExitCode.FINISHED
    whole, parts = (lines_of(tmp_path / run) for run in ("whole", "parts"))
    assert [line["step"] for line in parts] == [0, 1, 2, 3, 4, 5]
    assert all(math.isfinite(line["loss"]) for line in whole + parts)
    # Sums of the device come in another order each time, so not to the bit.
    assert parts[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=0.05)
    assert [checkpoint.step for checkpoint in Workspace(tmp_path / "parts").checkpoints()] == [0, 3, 5]


def test_a_gpu_trains_in_bf16_unless_told_otherwise(
    tiny_config: Config, tmp_path: Path, device: torch.device, only_cuda: None
) -> None:
    listener = Listener()
    assert train(tiny_config(), tmp_path / "w", "--num_iterations", "1", observers=[listener]) == ExitCode.FINISHED
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    assert listener.parameters["mixed_precision"] == ("bf16" if has_bf16 else "no")
    assert lines_of(tmp_path / "w", "system.jsonl")[0]["system.gpu_memory_gb"] > 0


def test_the_first_losses_are_those_of_the_cpu(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--num_iterations", "1", "--mixed_precision", "no"]
    assert train(tiny_config(), tmp_path / "device", *flags) == ExitCode.FINISHED
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train(tiny_config(), tmp_path / "cpu", *flags) == ExitCode.FINISHED
    (ours,), (theirs,) = (lines_of(tmp_path / run) for run in ("device", "cpu"))
    for name in ("loss", "global", "patch_4", "mask"):
        assert ours[name] == pytest.approx(theirs[name], rel=0.01)


def test_a_training_learns_in_the_precision_of_the_device(tiny_config: Config, tmp_path: Path) -> None:
    flags = ["--num_iterations", "40", "--save_every", "40", "--mixed_precision", "bf16", "--num_workers", "2"]
    assert train(tiny_config(), tmp_path / "w", *flags) == ExitCode.FINISHED
    losses = [line["loss"] for line in lines_of(tmp_path / "w")]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


def test_it_is_scored_and_drawn_on_the_way_and_the_command_finds_the_same_anywhere(
    tiny_config: Config, scenes: Path, tmp_path: Path, device: torch.device
) -> None:
    flags = ["--num_iterations", "4", "--eval_every", "3", "--eval_fraction", "0.5", "--vis_every", "3"]
    assert train(tiny_config(), tmp_path / "w", *flags, "--num_vis_images", "2") == ExitCode.FINISHED
    assert math.isfinite(lines_of(tmp_path / "w")[-1]["eval.rel"])
    assert (tmp_path / "w" / "best.json").is_file() and (tmp_path / "w" / "vis" / "step_00000003").is_dir()
    checkpoint = tmp_path / "w" / "checkpoint" / "00000003.pt"
    found = []
    for where in (str(device), "cpu"):
        path = tmp_path / "scores.json"
        run("evaluate", str(checkpoint), "--data", str(scenes / "scenes"), "--device", where, "--json", str(path))
        found.append(json.loads(path.read_text())["checkpoints"][str(checkpoint)])
    ours, theirs = found
    assert ours["rel"] == pytest.approx(theirs["rel"], rel=0.01)
    assert ours["delta1"] == pytest.approx(theirs["delta1"], abs=0.01)


def test_preflight_fits_a_few_instances(tiny_config: Config) -> None:
    assert "learns" in run("preflight", str(tiny_config()), "--instances", "4", "--steps", "40", "--minutes", "0.5")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


# --- copies ahead, and time ---


def test_batches_that_are_copied_ahead_are_those_of_the_loader(tiny_config: Config, device: torch.device) -> None:
    data = load_train_config(tiny_config()).data
    with TrainLoader(data, 2, 0, num_workers=2) as plain, TrainLoader(data, 2, 0, num_workers=2) as copied:
        there = on_device(copied, device)
        for expected, batch in itertools.islice(zip(plain, there, strict=False), 12):
            work = batch["image"].flatten() @ batch["image"].flatten()  # the memory of the last one is used meanwhile
            assert batch.keys() == expected.keys()
            for name, value in expected.items():
                if isinstance(value, Tensor):
                    assert batch[name].device.type == device.type
                    assert torch.equal(batch[name].cpu().nan_to_num(-1), value.nan_to_num(-1)), name
                else:
                    assert batch[name] == value
            assert torch.isfinite(work)


def test_phases_add_up_to_the_time_that_the_device_took(device: torch.device, only_cuda: None) -> None:
    clock, matrix = clock_for(device), torch.rand(4096, 4096, device=device)
    (matrix @ matrix).sum().item()  # libraries are loaded
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(20):
        with clock.stage("short"):
            matrix @ matrix
        with clock.stage("long"):
            for _ in range(4):
                matrix @ matrix
    end.record()
    phases = clock.wall
    end.synchronize()
    assert sum(phases.values()) == pytest.approx(begin.elapsed_time(end) / 1e3, rel=0.1)
    assert 2 < phases["long"] / phases["short"] < 8  # handed over by the host in no time, and still told apart


def test_phases_of_a_training_add_up_to_about_its_steps(tiny_config: Config, tmp_path: Path) -> None:
    flags = ["--num_iterations", "21", "--log_every", "10", "--save_every", "100"]
    assert train(tiny_config(), tmp_path / "w", *flags) == ExitCode.FINISHED
    figures = lines_of(tmp_path / "w", "system.jsonl")[1]  # of ten steps after the first
    shares = {name: value for name, value in figures.items() if name.startswith("step.") and name.endswith("_share")}
    assert {"step.wait_share", "step.forward_share", "step.losses_share", "step.backward_share"} <= shares.keys()
    assert 0.5 < sum(shares.values()) < 1.1


def test_two_devices_train_together(tiny_config: Config, tmp_path: Path, only_cuda: None) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "bf16", "--dynamo_backend", "no", "--main_process_port", "0"]
    argv = ["--config", str(tiny_config()), "--workspace", str(tmp_path / "w"), "--enable_mlflow", "False"]
    subprocess.run([*launch, "-m", "moge_core.training", *argv], check=True, timeout=200, env=dict(os.environ))
    status = Workspace(tmp_path / "w").status()
    assert status is not None and status.state == "finished"
