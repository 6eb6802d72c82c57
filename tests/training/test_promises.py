"""What a training promises, with the fault injected for real: kills, a full disk, a dead MLflow server, NaN, damage."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from launches import LAUNCH, NO_THREADS, wait_for

from moge_core.evaluation import score_model
from moge_core.loading import TrainLoader
from moge_core.models import load_model
from moge_core.training import ExitCode, Workspace, load_train_config, main
from moge_core.training.mlflow_tracking import replay_metrics

Config = Callable[..., Path]


def arguments(config: Path, workspace: Path, *flags: str) -> list[str]:
    return ["--config", str(config), "--workspace", str(workspace), "--enable_mlflow", "False", *flags]


def start(num_processes: int, config: Path, workspace: Path, *flags: str, log: Path | None = None) -> Any:
    """A training in a session of its own, so that all of it can be killed at once."""
    launch = [sys.executable] if num_processes == 1 else [*LAUNCH, "--num_processes", str(num_processes)]
    command = [*launch, "-m", "moge_core.training", *arguments(config, workspace, *flags)]
    with (log or Path(os.devnull)).open("w") as output:
        return subprocess.Popen(
            command, env={**os.environ, **NO_THREADS}, stderr=output, stdout=output, start_new_session=True
        )


def kill(process: Any) -> None:
    """SIGKILL to the launcher and everything below it; accelerate gives its processes sessions of their own."""
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in tree:
        each.send_signal(signal.SIGSTOP)  # so that none starts another or mourns one
    for each in tree:
        each.kill()
    process.wait()
    assert not psutil.wait_procs(tree, timeout=30)[1]


def num_lines(workspace: Path) -> int:
    path = workspace / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{name}.{key}")
        elif isinstance(value, list | tuple):
            for key, item in enumerate(value):
                walk(item, f"{name}.{key}")
        else:
            found[name] = torch.tensor([hash(str(value)) % 2**31])

    walk(torch.load(path, weights_only=True), "")
    return found


def assert_equal_runs(one: Path, other: Path, step: int) -> None:
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    for name in (f"{step:08d}.pt", f"{step:08d}_ema.pt", f"{step:08d}_optimizer.pt"):
        ours, theirs = tensors_of(one / "checkpoint" / name), tensors_of(other / "checkpoint" / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


# --- 1 and 2: kill -9 at any instant, and exact resumption ---


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("num_processes", [1, 2])
def test_promise_1_and_2_five_kills_at_random_instants_change_nothing(
    tiny_config: Config, tmp_path: Path, num_processes: int
) -> None:
    config = tiny_config()
    flags = ["--num_iterations", "60", "--save_every", "4", "--log_every", "3", "--checkpoint", "latest"]
    whole = start(num_processes, config, tmp_path / "whole", *flags)
    killed, rng = tmp_path / "killed", random.Random(num_processes)
    assert whole.wait(timeout=240) == 0
    for _ in range(5):
        before = num_lines(killed)
        process = start(num_processes, config, killed, *flags)
        wait_for(lambda before=before: num_lines(killed) >= before + rng.randint(1, 4) or num_lines(killed) >= 19)
        time.sleep(rng.random() * 0.3)
        kill(process)
        newest = Workspace(killed).latest_checkpoint()
        if newest is not None:
            load_model(newest.model_path)
        # Nothing is half-written under its final name: what has a name and a manifest is whole.
        for manifest in killed.glob("checkpoint/*.json"):
            for name, recorded in json.loads(manifest.read_text())["files"].items():
                assert (killed / "checkpoint" / name).stat().st_size == recorded["bytes"]
    assert start(num_processes, config, killed, *flags).wait(timeout=240) == 0
    assert_equal_runs(tmp_path / "whole", killed, 59)


def test_a_damaged_newest_checkpoint_is_passed_over_and_said(
    tiny_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config()
    main(arguments(config, tmp_path / "w", "--num_iterations", "7"))
    shutil.copytree(tmp_path / "w", tmp_path / "whole")
    newest = tmp_path / "w" / "checkpoint" / "00000006_optimizer.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    assert main(arguments(config, tmp_path / "w", "--num_iterations", "7", "--checkpoint", "latest")) == 0
    assert "checkpoint 6 is damaged and passed over" in caplog.text
    assert_equal_runs(tmp_path / "whole", tmp_path / "w", 6)


def test_a_checkpoint_without_its_manifest_is_passed_over_and_said(
    tiny_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config()
    main(arguments(config, tmp_path / "w", "--num_iterations", "5"))
    (tmp_path / "w" / "checkpoint" / "00000004.json").unlink()
    main(arguments(config, tmp_path / "w", "--num_iterations", "5", "--checkpoint", "latest"))
    assert "checkpoint 4 of" in caplog.text and "not complete" in caplog.text
    newest = Workspace(tmp_path / "w").latest_checkpoint()
    assert newest is not None and newest.step == 4


# --- 4: the stream, on another number of ranks ---


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_promise_4_a_run_resumed_on_two_ranks_goes_on_with_the_same_samples_and_gradients(
    tiny_config: Config, tmp_path: Path, scenes: Path
) -> None:
    config = tiny_config(
        optimizer={"type": "SGD", "params": [{"params": {"include": ["*"]}, "lr": 0.02}]},
        lr_scheduler={"type": "ConstantLR", "params": {"factor": 1.0}},
    )
    flags = ["--save_every", "1", "--checkpoint", "latest"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(arguments(config, one, *flags, "--num_iterations", "6", "--batch_size_forward", "4")) == 0
    shutil.copytree(one, two)
    more = [*flags, "--num_iterations", "26"]
    assert main(arguments(config, one, *more, "--batch_size_forward", "4")) == 0
    assert start(2, config, two, *more, "--batch_size_forward", "2").wait(timeout=240) == 0

    def weights(workspace: Path, step: int) -> torch.Tensor:
        state = torch.load(workspace / "checkpoint" / f"{step:08d}.pt", weights_only=True)["model"]
        return torch.cat([value.double().flatten() for value in state.values()])

    gradients = [weights(workspace, 6) - weights(workspace, 5) for workspace in (one, two)]
    assert gradients[0].norm() > 0
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()
    scores = [
        score_model(load_model(w / "checkpoint" / "00000025.pt"), scenes / "scenes", num_tokens=16)["rel"]
        for w in (one, two)
    ]
    assert scores[1] == pytest.approx(scores[0], rel=0.02)
    data = load_train_config(config).data
    with TrainLoader(data, 4, 0, num_workers=0) as whole:
        samples = [info for _ in range(3) for info in next(whole)["info"]]
    ranks = [TrainLoader(data, 2, 0, rank=rank, world_size=2, num_workers=0) for rank in range(2)]
    assert [info for _ in range(3) for rank in ranks for info in next(rank)["info"]] == samples


# --- 6: what is not finite ---

FAULTY = """
import torch

calls = 0


def faulty_loss(output, truth, bad=()):
    global calls
    calls += 1
    loss = output["points"].flatten(1).abs().mean(dim=1) * 0.01
    return loss * (float("nan") if calls - 1 in bad else 1.0), {}
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: Config) -> Iterator[Callable[..., Path]]:
    """Writes a configuration with a loss that is NaN in the given steps."""
    (tmp_path / "faulty_losses.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)

    def write(*bad: int) -> Path:
        sys.modules.pop("faulty_losses", None)
        term = {"function": "faulty_losses:faulty_loss", "params": {"bad": list(bad)}}
        return tiny_config(loss={"synthetic": {"extra": term}}, loss_modules=["faulty_losses"])

    yield write
    sys.modules.pop("faulty_losses", None)


def test_promise_6_a_non_finite_step_is_skipped_counted_and_its_batch_kept(
    faulty: Callable[..., Path], tmp_path: Path
) -> None:
    assert main(arguments(faulty(2), tmp_path / "w", "--num_iterations", "6", "--save_every", "1")) == 0
    lines = [json.loads(line) for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 1, 1, 1]
    before, after, later = (tensors_of(tmp_path / "w" / "checkpoint" / f"{s:08d}.pt") for s in (1, 2, 3))
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not all(torch.equal(after[key], later[key]) for key in after)
    # Average and schedule are in phase: as many updates as steps.
    manifest = Workspace(tmp_path / "w").checkpoint_at(5).manifest
    optimizer = torch.load(tmp_path / "w" / "checkpoint" / "00000005_optimizer.pt", weights_only=True)
    assert manifest["ema_updates"] == optimizer["lr_scheduler"]["last_epoch"] == 6
    (dump,) = (tmp_path / "w" / "bad_batches").iterdir()
    kept = torch.load(dump, weights_only=True)
    with TrainLoader(load_train_config(tmp_path / "tiny.json").data, 2, 0, num_workers=0) as loader:
        trained = [next(loader) for _ in range(3)][2]
    assert dump.name.startswith("00000002_")
    assert torch.equal(kept["image"], trained["image"]) and kept["info"] == trained["info"]


def test_promise_6_too_many_in_a_row_stop_the_run_with_a_code_of_its_own(
    faulty: Callable[..., Path], tmp_path: Path
) -> None:
    code = main(arguments(faulty(*range(1, 99)), tmp_path / "w", "--num_iterations", "50", "--max_skipped", "4"))
    assert code == ExitCode.NON_FINITE
    status = Workspace(tmp_path / "w").status()
    assert status is not None and (status.state, status.resumable) == ("failed", False)
    assert "must not skip 4 steps in a row" in status.reason


# --- 5: broken data ---


def test_promise_5_too_many_broken_instances_stop_the_run_with_a_code_of_its_own(
    tiny_config: Config, tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    shutil.copytree(scenes / "scenes", tmp_path / "scenes")
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path))
    for path in sorted((tmp_path / "scenes").rglob("depth.png"))[:6]:
        path.write_bytes(path.read_bytes()[:200])
    flags = ["--num_iterations", "500", "--max_failure_share", "0.05"]
    assert main(arguments(config, tmp_path / "w", *flags)) == ExitCode.BAD_DATA
    status = Workspace(tmp_path / "w").status()
    assert status is not None and status.resumable and "depth-decodable" in status.reason


# --- 7: MLflow ---


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[Callable[[], tuple[str, Any]]]:
    """Starts a real MLflow server, always the same address and store; returns its address and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = f"sqlite:///{tmp_path}/server.db"
    running: list[Any] = []

    def run() -> tuple[str, Any]:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--backend-store-uri", store, "--artifacts-destination", str(tmp_path / "artifacts")]
        process = subprocess.Popen(
            [*command, "--workers", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        running.append(process)
        wait_for(lambda: is_open(port), 90)
        return f"http://127.0.0.1:{port}", process

    run.address = f"http://127.0.0.1:{port}"  # type: ignore[attr-defined]
    yield run
    for process in running:
        if process.poll() is None:
            kill(process)


def is_open(port: int) -> bool:
    import urllib.request

    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def assert_holds_the_file(uri: str, run_id: str, workspace: Path) -> None:
    """Every value of metrics.jsonl is in MLflow at its step, and no other step is."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    lines = [json.loads(line) for line in (workspace / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "global", "dataset.scenes.loss", "learning_rate.group_1"):
        found = {metric.step: metric.value for metric in client.get_metric_history(run_id, name)}
        assert found == {line["step"]: line[name] for line in lines if line.get(name) is not None}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_promise_7_mlflow_down_for_a_runs_whole_life_and_replayed(
    tiny_config: Config, tmp_path: Path, mlflow_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.address)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setattr("moge_core.training.mlflow_tracking.MLflowTracker.flush_s", 3.0)
    flags = [word if word != "False" else "True" for word in arguments(tiny_config(), tmp_path / "w")]
    assert main([*flags, "--num_iterations", "12"]) == ExitCode.FINISHED
    uri, _ = mlflow_server()
    from click.testing import CliRunner

    from moge_core.cli import cli

    for _ in range(2):  # the second time there is nothing left to send
        result = CliRunner().invoke(cli, ["replay-metrics", str(tmp_path / "w")], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    run_id = json.loads((tmp_path / "w" / "tracking.json").read_text())["run_id"]
    assert_holds_the_file(uri, run_id, tmp_path / "w")
    import mlflow

    run = mlflow.MlflowClient(tracking_uri=uri).get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.params["batch_size_total"] == "2"
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "scenes"
    with pytest.raises(Exception, match="metrics"):
        replay_metrics(Workspace(tmp_path / "nothing"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_promise_7_an_mlflow_server_that_dies_and_comes_back_misses_nothing(
    tiny_config: Config, tmp_path: Path, mlflow_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, server = mlflow_server()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    flags = ["--num_iterations", "400", "--save_every", "100"]
    command = [word if word != "False" else "True" for word in arguments(tiny_config(), tmp_path / "w", *flags)]
    training = subprocess.Popen([sys.executable, "-m", "moge_core.training", *command], stderr=subprocess.DEVNULL)
    wait_for(lambda: num_lines(tmp_path / "w") > 40)
    kill(server)
    lines = num_lines(tmp_path / "w")
    wait_for(lambda: num_lines(tmp_path / "w") > lines + 40)
    mlflow_server()
    assert training.wait(timeout=200) == ExitCode.FINISHED
    tracking = json.loads((tmp_path / "w" / "tracking.json").read_text())
    replay_metrics(Workspace(tmp_path / "w"))
    assert_holds_the_file(uri, tracking["run_id"], tmp_path / "w")


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_its_mlflow_run(
    tiny_config: Config, tmp_path: Path, mlflow_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    uri, _ = mlflow_server()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    config = tiny_config()
    for end in ("4", "8"):
        flags = arguments(config, tmp_path / "w", "--num_iterations", end, "--checkpoint", "latest")
        main([word if word != "False" else "True" for word in flags])
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("moge")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert_holds_the_file(uri, run.info.run_id, tmp_path / "w")
    assert any(artifact.path == "config.json" for artifact in client.list_artifacts(run.info.run_id))


# --- 8: a full disk ---


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a few checkpoints of the tiny model."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=130m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_promise_8_a_full_disk_fails_loudly_and_older_checkpoints_load(tiny_config: Config, small_disk: Path) -> None:
    workspace = Workspace(small_disk / "w")
    flags = ["--num_iterations", "100", "--save_every", "1"]
    assert main(arguments(tiny_config(), workspace.path, *flags)) == ExitCode.STORAGE
    complete = workspace.checkpoints()
    assert complete
    for checkpoint in complete:
        load_model(checkpoint.model_path)
    assert not list(workspace.path.rglob("*.tmp"))
    status = workspace.status()
    assert status is not None
    assert status.state == "failed" and "must be writable" in status.reason
    assert status.step == complete[-1].step
    # Within one save: the writer's failure is told at the next step.
    assert num_lines(workspace.path) <= complete[-1].step + 4
    # With less to keep the run goes on where it was.
    for checkpoint in complete[:-1]:
        for path in workspace.checkpoint_dir.glob(f"{checkpoint.step:08d}*"):
            path.unlink()
    end = str(complete[-1].step + 6)
    more = ["--num_iterations", end, "--save_every", "1", "--keep_last", "1", "--checkpoint", "latest"]
    assert main(arguments(tiny_config(), workspace.path, *more)) == ExitCode.FINISHED


# --- several processes ---


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_takes_the_others_down_with_a_clear_message(
    tiny_config: Config, tmp_path: Path, victim: int
) -> None:
    config, workspace = tiny_config(), tmp_path / "w"
    process = start(2, config, workspace, "--num_iterations", "100000", log=tmp_path / "log")
    wait_for(lambda: num_lines(workspace) > 5)
    ranks = {
        int(child.environ()["RANK"]): child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "RANK" in child.environ() and "moge_core.training" in child.cmdline()
    }
    began = time.monotonic()
    ranks[victim].kill()
    assert process.wait(timeout=60) != 0
    assert time.monotonic() - began < 60
    assert not [child for child in ranks.values() if child.is_running() and child.status() != "zombie"]
    status = Workspace(workspace).status()
    assert status is not None and status.resumable
    assert status.state in ("failed", "interrupted")
    if victim == 1:
        assert "needs all other processes" in (tmp_path / "log").read_text() + status.reason
    assert start(2, config, workspace, "--num_iterations", "12", "--checkpoint", "latest").wait(timeout=120) == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_four_processes_train_like_one(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(
        optimizer={"type": "SGD", "params": [{"params": {"include": ["*"]}, "lr": 0.1}]},
        lr_scheduler={"type": "ConstantLR", "params": {"factor": 1.0}},
    )
    flags = ["--num_iterations", "2", "--seed", "5"]
    assert start(4, config, tmp_path / "four", *flags, "--batch_size_forward", "1").wait(timeout=300) == 0
    assert main(arguments(config, tmp_path / "one", *flags, "--batch_size_forward", "4")) == 0
    one, four = (tensors_of(tmp_path / name / "checkpoint" / "00000001.pt") for name in ("one", "four"))
    for key in one:
        torch.testing.assert_close(one[key], four[key], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sharded_weights_train_save_and_resume_like_whole_ones(tiny_config: Config, tmp_path: Path) -> None:
    """FSDP on two CPU processes; a checkpoint goes from whole to sharded and back."""
    config = tiny_config(lr_scheduler={"params": {"lr_lambda": ["1.0", "1.0"]}})
    repository = Path(__file__).resolve().parents[2]
    file = tmp_path / "fsdp.yaml"
    settings = (repository / "configs" / "accelerate" / "fsdp.yaml").read_text()
    replacements = {"num_processes: 8": "num_processes: 2", "bf16": "'no'"}
    for old, new in replacements.items():
        assert old in settings
        settings = settings.replace(old, new)
    file.write_text(settings)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), "-m"]

    def run(workspace: Path, end: int, *, sharded: bool) -> None:
        flags = ["--num_iterations", str(end), "--checkpoint", "latest", "--save_every", "100"]
        flags += ["--eval_every", "2", "--eval_fraction", "0.3"]
        if sharded:
            command = [*launch, "moge_core.training", *arguments(config, workspace, *flags)]
            subprocess.run(
                [*command, "--batch_size_forward", "2"], check=True, timeout=240, env={**os.environ, **NO_THREADS}
            )
        else:
            assert main(arguments(config, workspace, *flags, "--batch_size_forward", "4")) == 0

    run(tmp_path / "whole", 6, sharded=False)
    run(tmp_path / "mixed", 2, sharded=False)
    run(tmp_path / "mixed", 4, sharded=True)
    run(tmp_path / "mixed", 6, sharded=False)
    for name in ("00000005.pt", "00000005_ema.pt"):
        whole, mixed = (tensors_of(tmp_path / run / "checkpoint" / name) for run in ("whole", "mixed"))
        assert whole.keys() == mixed.keys()
        for key in whole:
            torch.testing.assert_close(whole[key], mixed[key], rtol=2e-2, atol=2e-3)
    states = [
        torch.load(tmp_path / "mixed" / "checkpoint" / f"{s:08d}_optimizer.pt", weights_only=True) for s in (1, 3)
    ]
    assert states[0]["optimizer"]["state"].keys() == states[1]["optimizer"]["state"].keys()
    groups = [[len(group["params"]) for group in state["optimizer"]["param_groups"]] for state in states]
    assert groups[0] == groups[1]
    for number, before in states[0]["optimizer"]["state"].items():
        after = states[1]["optimizer"]["state"][number]
        assert after["exp_avg"].shape == before["exp_avg"].shape and after["step"] == before["step"] + 2
    lines = [json.loads(line) for line in (tmp_path / "mixed" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    reference = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    for ours, theirs in zip(lines, reference, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)
