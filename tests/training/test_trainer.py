"""The trainer: it learns, resumes to the bit, refuses what cannot go well, and ends with its state on disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from moge_core.datasets import index_dataset
from moge_core.models import load_model
from moge_core.training import ExitCode, RunStatus, Workspace, main

Config = Callable[..., Path]
SPEEDS = {
    "images_per_second",
    "loader.wait_share",
    "loader.images_per_second",
    "loader.ready_batches",
    "loader.cpu_ms_per_image",
}


def train(config: Path, workspace: Path, *flags: str, **kwargs: Any) -> int:
    return main(["--config", str(config), "--workspace", str(workspace), "--enable_mlflow", "False", *flags], **kwargs)


def weights(workspace: Path, name: str) -> dict[str, torch.Tensor]:
    values: dict[str, torch.Tensor] = torch.load(workspace / "checkpoint" / name, weights_only=True)["model"]
    return values


def metrics(workspace: Path) -> list[dict[str, float]]:
    lines = (workspace / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in SPEEDS} for line in lines]


class Recorder:
    """An observer that remembers what it heard."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def on_start(self, workspace: Path, parameters: Mapping[str, Any]) -> None:
        self.events.append(("start", parameters))

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.events.append(("log", step))

    def on_checkpoint(self, step: int, path: Path) -> None:
        self.events.append(("checkpoint", step))

    def on_end(self, status: RunStatus) -> None:
        self.events.append(("end", status.state))


def test_a_run_leaves_checkpoints_metrics_and_its_ending(tiny_config: Config, tmp_path: Path) -> None:
    recorder = Recorder()
    assert train(tiny_config(), tmp_path / "w", "--vis_every", "5", "--num_vis_images", "2", observers=[recorder]) == 0
    workspace = Workspace(tmp_path / "w")
    status = workspace.status()
    assert status is not None and (status.state, status.step, status.resumable) == ("finished", 5, False)
    # Saved after step 0, every third, and the last one although 5 is no multiple of 3.
    assert [checkpoint.step for checkpoint in workspace.checkpoints()] == [0, 3, 5]
    assert [line["step"] for line in metrics(tmp_path / "w")] == [0, 1, 2, 3, 4, 5]
    assert {"loss", "global", "global.delta", "patch_4", "mask", "monitoring.std"} <= metrics(tmp_path / "w")[0].keys()
    steps = [value for name, value in recorder.events if name == "checkpoint"]
    assert (recorder.events[0][0], steps, recorder.events[-1]) == ("start", [0, 3, 5], ("end", "finished"))
    assert recorder.events[0][1]["batch_size_total"] == "2"
    for step in ("gt", "step_00000000", "step_00000005"):
        folder = tmp_path / "w" / "vis" / step / "0001"
        assert {"image.jpg", "depth_vis.png", "points.ply", "points.npz"} <= {path.name for path in folder.iterdir()}


def test_published_files_have_exactly_the_published_contents(tiny_config: Config, tmp_path: Path) -> None:
    train(tiny_config(), tmp_path / "w", "--num_iterations", "1")
    folder = tmp_path / "w" / "checkpoint"
    keys = {path.name: set(torch.load(path, weights_only=True)) for path in folder.glob("*.pt")}
    assert keys == {
        "00000000.pt": {"model_config", "model"},
        "00000000_ema.pt": {"model_config", "model"},
        "00000000_optimizer.pt": {"model_config", "step", "optimizer", "lr_scheduler"},
        "latest.pt": {"model_config", "step"},
    }
    assert load_model(folder / "00000000.pt").num_tokens_range == (12, 20)


def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config()
    train(config, tmp_path / "whole", "--num_iterations", "6", "--log_every", "2")
    train(config, tmp_path / "parts", "--num_iterations", "4", "--log_every", "2")
    train(config, tmp_path / "parts", "--num_iterations", "6", "--log_every", "2", "--checkpoint", "latest")
    for name in ("00000005.pt", "00000005_ema.pt"):
        whole, parts = weights(tmp_path / "whole", name), weights(tmp_path / "parts", name)
        assert all(torch.equal(whole[key], parts[key]) for key in whole), name
    whole_last, parts_last = metrics(tmp_path / "whole")[-1], metrics(tmp_path / "parts")[-1]
    assert whole_last["step"] == parts_last["step"] == 5
    optimizers = [
        torch.load(tmp_path / run / "checkpoint" / "00000005_optimizer.pt", weights_only=True)
        for run in ("whole", "parts")
    ]
    for first, second in zip(*(o["optimizer"]["state"].values() for o in optimizers), strict=True):
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert optimizers[0]["lr_scheduler"]["last_epoch"] == optimizers[1]["lr_scheduler"]["last_epoch"] == 6


def test_training_lowers_the_loss(tiny_config: Config, tmp_path: Path) -> None:
    train(tiny_config(), tmp_path / "w", "--num_iterations", "40", "--save_every", "40", "--seed", "3")
    losses = [line["loss"] for line in metrics(tmp_path / "w")]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


def test_gradient_accumulation_equals_the_larger_batch(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(
        optimizer={"type": "SGD", "params": [{"params": {"include": ["*"]}, "lr": 0.1}]},
        lr_scheduler={"type": "ConstantLR", "params": {"factor": 1.0}},
    )
    train(config, tmp_path / "large", "--num_iterations", "2", "--batch_size_forward", "4")
    train(
        config,
        tmp_path / "split",
        "--num_iterations",
        "2",
        "--batch_size_forward",
        "1",
        "--gradient_accumulation_steps",
        "4",
    )
    large, split = weights(tmp_path / "large", "00000001.pt"), weights(tmp_path / "split", "00000001.pt")
    for key in large:
        torch.testing.assert_close(large[key], split[key], rtol=1e-4, atol=1e-6)
    assert metrics(tmp_path / "large")[0]["loss"] == pytest.approx(metrics(tmp_path / "split")[0]["loss"], rel=1e-5)


def test_a_finetuning_begins_at_step_0_with_the_weights_of_its_parent_and_names_it(
    tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config()
    train(config, tmp_path / "base", "--num_iterations", "2")
    parent = tmp_path / "base" / "checkpoint" / "00000001.pt"
    frozen = tiny_config(
        optimizer={"type": "SGD", "params": [{"params": {"include": ["*"]}, "lr": 0.0}]},
        lr_scheduler={"type": "ConstantLR", "params": {"factor": 1.0}},
    )
    train(frozen, tmp_path / "fine", "--num_iterations", "1", "--checkpoint", str(parent))
    manifest = Workspace(tmp_path / "fine").checkpoint_at(0).manifest
    assert manifest["parent"]["path"] == str(parent)
    base_manifest = json.loads(parent.with_suffix(".json").read_text())
    assert manifest["parent"]["sha256"] == base_manifest["files"]["00000001.pt"]["sha256"]
    ours, theirs = weights(tmp_path / "fine", "00000000.pt"), weights(tmp_path / "base", "00000001.pt")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_checkpoint_of_another_model_lends_what_fits_when_told_to(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_config(), tmp_path / "parent", "--num_iterations", "3")
    changed = tiny_config(model={"last_conv_channels": 12})
    parent = str(tmp_path / "parent" / "checkpoint" / "00000002.pt")
    assert train(changed, tmp_path / "w", "--checkpoint", parent) == ExitCode.REFUSED
    assert "mis-shaped" in capsys.readouterr().err
    flags = ["--checkpoint", parent, "--checkpoint_strict", "False", "--num_iterations", "1"]
    with pytest.warns(UserWarning, match=r"not everything was loaded(.|\n)*mis-shaped"):
        assert train(changed, tmp_path / "w", *flags) == ExitCode.FINISHED
    assert [line["step"] for line in metrics(tmp_path / "w")] == [0]
    newest = Workspace(tmp_path / "w").latest_checkpoint()
    assert newest is not None
    assert newest.manifest["parent"]["path"] == parent


def test_a_checkpoint_of_the_other_version_is_refused_as_such(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = tmp_path / "v2.pt"
    torch.save({"model_config": {"encoder": {"backbone": "dinov2_vitt14"}}, "model": {}}, parent)
    assert train(tiny_config(), tmp_path / "w", "--checkpoint", str(parent)) == ExitCode.REFUSED
    assert "must be a v1 checkpoint; found a v2 one" in capsys.readouterr().err


def test_a_missing_dataset_is_told_in_seconds_with_the_command_that_mends_it(
    tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config(data={"datasets": [{"name": "gone", "path": "nowhere/gone", "label_type": "synthetic"}]})
    code = (
        "import sys; from moge_core.training import main;"
        f"code = main(['--config', {str(config)!r}, '--workspace', {str(tmp_path / 'w')!r}]);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == ExitCode.REFUSED
    assert "(gone)" in result.stderr and "nowhere/gone" in result.stderr and "moge index" in result.stderr
    assert not (tmp_path / "w").exists()


def test_resuming_on_changed_data_is_refused_unless_accepted(
    tiny_config: Config, tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path))
    shutil.copytree(scenes / "scenes", tmp_path / "scenes")
    config = tiny_config()
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path))
    train(config, tmp_path / "w", "--num_iterations", "1")
    victim = next((tmp_path / "scenes").rglob("meta.json")).parent
    shutil.rmtree(victim)
    index_dataset(tmp_path / "scenes")
    resume = ("--num_iterations", "2", "--checkpoint", "latest")
    assert train(config, tmp_path / "w", *resume) == ExitCode.REFUSED
    assert train(config, tmp_path / "w", *resume, "--accept_index_change", "True") == ExitCode.FINISHED


def test_resuming_a_run_that_has_reached_its_end_finishes_at_once(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config()
    train(config, tmp_path / "w", "--num_iterations", "2")
    before = weights(tmp_path / "w", "00000001.pt")
    assert train(config, tmp_path / "w", "--num_iterations", "2", "--checkpoint", "latest") == ExitCode.FINISHED
    status = Workspace(tmp_path / "w").status()
    assert status is not None and (status.state, status.step) == ("finished", 1)
    assert all(torch.equal(value, before[key]) for key, value in weights(tmp_path / "w", "00000001.pt").items())


def test_beginning_anew_in_a_used_workspace_keeps_the_old_results_out_of_the_way(
    tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config()
    train(config, tmp_path / "w", "--num_iterations", "4")
    train(config, tmp_path / "w", "--num_iterations", "2", "--seed", "1")
    workspace = Workspace(tmp_path / "w")
    assert [checkpoint.step for checkpoint in workspace.checkpoints()] == [0, 1]
    kept = {path.name for path in (tmp_path / "w" / "set_aside" / "1").iterdir()}
    assert {"00000003.pt", "00000003.json", "00000003_optimizer.pt", "metrics.jsonl"} <= kept
    # Going back to a step sets aside what came after it, and nothing else.
    train(config, tmp_path / "w", "--num_iterations", "3", "--seed", "1", "--checkpoint", "0")
    assert [checkpoint.step for checkpoint in workspace.checkpoints()] == [0, 2]
    assert (tmp_path / "w" / "set_aside" / "2" / "00000001.pt").is_file()
    assert [line["step"] for line in metrics(tmp_path / "w")] == [0, 1, 2]


def test_a_broken_picture_does_not_end_a_training(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("moge_core.training.pictures.write_image", fail)
    assert train(tiny_config(), tmp_path / "w", "--num_iterations", "1", "--vis_every", "1") == ExitCode.FINISHED


def test_skipped_instances_are_counted_in_the_metrics_and_listed(
    tiny_config: Config, tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    shutil.copytree(scenes / "scenes", tmp_path / "scenes")
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path))
    for path in sorted((tmp_path / "scenes").rglob("depth.png"))[:4]:
        path.write_bytes(path.read_bytes()[:200])
    assert train(config, tmp_path / "w", "--num_iterations", "4") == ExitCode.FINISHED
    assert metrics(tmp_path / "w")[-1]["skipped_instances"] > 0
    listed = [json.loads(line) for line in (tmp_path / "w" / "failures.jsonl").read_text().splitlines()]
    assert listed and {entry["rule"] for entry in listed} == {"depth-decodable"}


def test_fp16_without_a_gpu_is_refused(tiny_config: Config, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert train(tiny_config(), tmp_path / "w", "--mixed_precision", "fp16") == ExitCode.REFUSED


def test_flags_may_be_written_with_dashes(tiny_config: Config, tmp_path: Path) -> None:
    assert train(tiny_config(), tmp_path / "w", "--num-iterations", "1", "--enable-ema", "False") == 0
    assert not (tmp_path / "w" / "checkpoint" / "00000000_ema.pt").exists()


def start(config: Path, workspace: Path, *flags: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "moge_core.training", "--config", str(config), "--workspace", str(workspace)]
    return subprocess.Popen([*command, "--enable_mlflow", "False", *flags], stderr=subprocess.DEVNULL)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the training did not get there"
        time.sleep(0.05)


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_and_ends_with_a_code_of_its_own(tiny_config: Config, tmp_path: Path) -> None:
    process = start(tiny_config(), tmp_path / "w", "--num_iterations", "100000", "--save_every", "100000")
    wait_for(lambda: (tmp_path / "w" / "metrics.jsonl").exists() and len(metrics(tmp_path / "w")) > 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == ExitCode.INTERRUPTED
    workspace = Workspace(tmp_path / "w")
    status, newest = workspace.status(), workspace.latest_checkpoint()
    assert status is not None and newest is not None
    assert (status.state, status.resumable, newest.step) == ("interrupted", True, status.step)
    assert newest.step > 0


@pytest.mark.slow
def test_a_killed_run_is_seen_as_interrupted_and_its_newest_complete_checkpoint_loads(
    tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config()
    process = start(config, tmp_path / "w", "--num_iterations", "100000", "--save_every", "1")
    workspace = Workspace(tmp_path / "w")
    wait_for(lambda: len(workspace.checkpoints()) >= 3)
    process.kill()
    process.wait()
    status, newest = workspace.status(), workspace.latest_checkpoint()
    assert status is not None and newest is not None
    assert (status.state, status.resumable) == ("interrupted", True)
    load_model(newest.model_path)
    end = str(newest.step + 2)
    assert train(config, tmp_path / "w", "--num_iterations", end, "--checkpoint", "latest") == ExitCode.FINISHED


@pytest.mark.slow
def test_two_trainings_never_share_a_workspace(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config()
    process = start(config, tmp_path / "w", "--num_iterations", "100000")
    try:
        wait_for((tmp_path / "w" / "metrics.jsonl").exists)
        second = start(config, tmp_path / "w", "--num_iterations", "2")
        assert second.wait(timeout=60) == ExitCode.REFUSED
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_same_global_batch(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(
        optimizer={"type": "SGD", "params": [{"params": {"include": ["*"]}, "lr": 0.1}]},
        lr_scheduler={"type": "ConstantLR", "params": {"factor": 1.0}},
    )
    flags = ["--config", str(config), "--enable_mlflow", "False", "--num_iterations", "2", "--seed", "5"]
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",  # what makes accelerate start several processes; without GPUs they talk through gloo
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
        "-m",
        "moge_core.training",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*launch, *flags, "--workspace", str(tmp_path / "two")], check=True, env=environment, timeout=240)
    assert main([*flags, "--workspace", str(tmp_path / "one"), "--batch_size_forward", "4"]) == 0
    one, two = weights(tmp_path / "one", "00000001.pt"), weights(tmp_path / "two", "00000001.pt")
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-6)
    assert metrics(tmp_path / "one")[0]["loss"] == pytest.approx(metrics(tmp_path / "two")[0]["loss"], rel=1e-5)
