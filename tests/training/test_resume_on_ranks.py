"""Resuming: what counts as trained, and which process reads what of a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import told_reads
import torch
from launches import SPREAD, run_two
from played_training import played_training

from moge_core.errors import DatasetError, InputError, MoGeError
from moge_core.loading import TrainLoader
from moge_core.models.weights import read_tensors
from moge_core.training import Workspace, load_train_config, main
from moge_core.training.devices import on_device

Config = Callable[..., Path]


def arguments(config: Path, workspace: Path, *flags: str) -> list[str]:
    return ["--config", str(config), "--workspace", str(workspace), "--enable_mlflow", "False", *flags]


def told_by_two(config: Path, workspace: Path, *flags: str, **environment: str) -> list[dict[str, Any]]:
    """Train in two processes; what each of them read."""
    report = workspace.with_name("report")
    for code, _, errors in run_two(
        told_reads.__file__, str(report), *arguments(config, workspace, *flags), **environment
    ):
        assert code == 0, errors
    return [json.loads(Path(f"{report}.{rank}.json").read_text()) for rank in (0, 1)]


def trained_with_a_damaged_last_checkpoint(config: Path, workspace: Path) -> None:
    """Checkpoints of the steps 0 to 2, the last one with a flipped bit."""
    assert main(arguments(config, workspace, "--num_iterations", "3", "--save_every", "1")) == 0
    damaged = workspace / "checkpoint" / "00000002_optimizer.pt"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)


# --- what counts as trained ---


@pytest.mark.slow
def test_a_batch_that_was_read_ahead_counts_once_though_it_is_loaded_again(
    tiny_config: Config, tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    values = json.loads(config.read_text())
    values["loss"] = {"synthetic": {"mask": {"function": "mask_l2_loss"}}}
    config.write_text(json.dumps(values))
    shutil.copytree(scenes / "scenes", tmp_path / "scenes")
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path))
    for path in sorted((tmp_path / "scenes").rglob("depth.png"))[:4]:
        path.write_bytes(path.read_bytes()[:200])
    flags = ["--save_every", "100", "--enable_ema", "False", "--checkpoint", "latest", "--num_iterations"]
    # Without an accelerator nothing is read ahead.
    assert main(arguments(config, tmp_path / "whole", *flags, "4")) == 0
    with played_training():
        assert main(arguments(config, tmp_path / "parts", *flags, "2")) == 0
    with played_training():
        assert main(arguments(config, tmp_path / "parts", *flags, "4")) == 0
    logged, counters = [], []
    for name in ("whole", "parts"):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        logged.append([json.loads(line)["skipped_instances"] for line in lines])
        saved = Workspace(tmp_path / name).checkpoint_at(3).manifest["counters"]
        counters.append({key: saved[key] for key in ("num_failures", "failure_window")})
    assert logged[0] == logged[1] and counters[0] == counters[1]
    assert counters[0]["num_failures"] > 0


def test_failures_are_told_as_of_a_step_whatever_was_handed_out_since(
    tiny_config: Config, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_train_config(tiny_config())
    shutil.copytree(scenes / "scenes", tmp_path / "scenes")
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path))
    for path in sorted((tmp_path / "scenes").rglob("depth.png"))[:4]:
        path.write_bytes(path.read_bytes()[:200])

    def stream(step: int, window: tuple[int, int]) -> TrainLoader:
        loader = TrainLoader(config.data, 2, 0, accumulation=2, num_workers=0)
        loader.load_state_dict({**loader.state_dict(), "step": step})
        loader.go_on_counting(*window)
        return loader

    with stream(0, (0, 0)) as whole, stream(0, (0, 0)) as first:
        for _ in range(6):
            next(whole)
        for _ in range(5):  # the first batch of step 2 is read ahead
            next(first)
        assert first.failures_before(0) == (0, 0, 0)
        assert 0 < first.failures_before(2).total < whole.failures_before(3).total
        assert first.failures_before(99) == first.failures_before(2) == whole.failures_before(2)
        with stream(2, first.failures_before(2)[1:]) as second:
            assert second.failures_before(2).total == 0
            next(second), next(second)
            total = first.failures_before(2).total + second.failures_before(3).total
            assert (total, *second.failures_before(3)[1:]) == whole.failures_before(3)
            with pytest.raises(InputError, match="must be at least 2"):
                second.failures_before(1)


@pytest.mark.parametrize("device", [torch.device("cpu"), torch.device("meta")])
def test_a_batch_that_cannot_be_had_is_told_to_who_asks_for_it(device: torch.device) -> None:
    def batches(error: MoGeError | None) -> Iterator[dict[str, Any]]:
        yield {"image": torch.zeros(1)}
        yield {"image": torch.ones(1)}
        if error is not None:
            raise error

    with played_training():
        assert len(list(on_device(batches(None), device))) == 2
        failing = on_device(batches(DatasetError("data", "must be usable")), device)
        assert [next(failing)["image"].device, next(failing)["image"].device] == [device, device]
        with pytest.raises(DatasetError, match="must be usable"):
            next(failing)


# --- who reads what ---


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_process_hashes_and_all_go_on_from_what_it_found(tiny_config: Config, tmp_path: Path) -> None:
    config, workspace = tiny_config(), tmp_path / "w"
    trained_with_a_damaged_last_checkpoint(config, workspace)
    flags = ["--num_iterations", "3", "--checkpoint", "latest", "--batch_size_forward", "1"]
    first, second = told_by_two(config, workspace, *flags)
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
    first, second = told_by_two(config, workspace, *flags, **SPREAD)
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
PartialState().destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_error_of_one_process_is_raised_by_all(tmp_path: Path) -> None:
    script = tmp_path / "agreeing.py"
    script.write_text(AGREEING)
    for code, _, errors in run_two(str(script), str(tmp_path / "told")):
        assert code == 0, errors
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
