"""Before a training: advice, dry run, preflight. Beside it: held-out scores, retention, saves in the background."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from moge_core.cli import cli
from moge_core.errors import WorkspaceError
from moge_core.io import read_depth, write_depth
from moge_core.models import build_model
from moge_core.training import ExitCode, Workspace, checkpoint_writer, load_finetune_config, load_train_config, main
from moge_core.training.advice import advise
from moge_core.training.checkpoint_writer import CheckpointWriter
from moge_core.training.checkpoints import TrainingState
from moge_core.training.flags import resolve_flags
from moge_core.training.optimization import freeze
from moge_core.training.scoring import HeldOutScores
from moge_core.training.validation import split_datasets

Config = Callable[..., Path]


def arguments(config: Path, workspace: Path, *flags: str) -> list[str]:
    return ["--config", str(config), "--workspace", str(workspace), "--enable_mlflow", "False", *flags]


def lines_of(workspace: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workspace / name).read_text().splitlines()]


# --- advice ---


def advice_of(config: Path, **flags: Any) -> str:
    parsed = load_train_config(config)
    return "\n".join(advise(parsed, resolve_flags({"config": config, **flags}, parsed)))


def test_a_finetuning_above_the_advised_rates_or_below_the_advised_batch_warns_and_says_why(
    tiny_config: Config,
) -> None:
    fast = advice_of(tiny_config(), checkpoint="base.pt", batch_size_forward=8, gradient_accumulation_steps=4)
    assert "0.0001 for the backbone" in fast and "0.001 for the head" in fast and "before the new data" in fast
    assert "batch" not in fast
    rates = [
        {"params": {"include": ["*"], "exclude": ["*backbone.*"]}, "lr": 1e-5},
        {"params": {"include": ["*backbone.*"]}, "lr": 1e-6},
    ]
    gentle = tiny_config(optimizer={"params": rates})
    assert advice_of(gentle, checkpoint="base.pt", batch_size_forward=32) == ""
    small = advice_of(gentle, checkpoint="base.pt", batch_size_forward=31)
    assert "batch of 31 is below 32" in small and "noisy" in small
    # Training from scratch has rates of its own.
    assert advice_of(tiny_config(), batch_size_forward=32) == ""


def test_advice_is_given_by_the_command(tiny_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    main(arguments(tiny_config(), tmp_path / "w", "--num_iterations", "1"))
    assert "the batch of 2 is below 32" in caplog.text


# --- freezing ---


def test_frozen_weights_stay_and_the_others_move(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(
        freeze=["*backbone.*"],
        optimizer={"params": [{"params": {"include": ["*"]}, "lr": 1e-3}]},
        lr_scheduler={"type": "ConstantLR", "params": {"factor": 1.0}},
    )
    values = json.loads(config.read_text())
    values["lr_scheduler"] = {"type": "ConstantLR", "params": {"factor": 1.0}}
    config.write_text(json.dumps(values))
    assert main(arguments(config, tmp_path / "w", "--num_iterations", "3", "--save_every", "1")) == 0
    first, last = (
        torch.load(tmp_path / "w" / "checkpoint" / f"0000000{step}.pt", weights_only=True)["model"] for step in (0, 2)
    )
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved and not any("backbone" in name for name in moved)


def test_a_freeze_pattern_that_matches_nothing_is_refused(tiny_config: Config, tmp_path: Path) -> None:
    assert main(arguments(tiny_config(freeze=["encoder.*"]), tmp_path / "w")) == ExitCode.REFUSED
    model = build_model("v1", **load_train_config(tiny_config()).model)
    assert len(freeze(model, ["backbone.blocks.0.*"])) > 5


# --- dry run ---


def test_a_dry_run_prints_the_plan_and_leaves_nothing(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dry_run", "--num_iterations", "5000", "--save_every", "1000", "--keep_last", "2"]
    assert main(arguments(tiny_config(), tmp_path / "deep" / "w", *flags)) == ExitCode.FINISHED
    plan = capsys.readouterr().out
    for part in (
        "8 instances, 100.0% of the samples",
        "batch          2",
        "s with what is done but once",
        "minutes",
        "GB are free",
        "loss",
    ):
        assert part in plan
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.json"}


def test_a_dry_run_refuses_what_a_training_would(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(data={"datasets": [{"name": "gone", "path": "nowhere", "label_type": "synthetic"}]})
    assert main(arguments(config, tmp_path / "w", "--dry_run")) == ExitCode.REFUSED


def test_a_dry_run_says_when_the_checkpoints_will_not_fit(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dry_run", "--num_iterations", "100000000", "--save_every", "1"]
    assert main(arguments(tiny_config(), tmp_path / "w", *flags)) == ExitCode.STORAGE
    assert "NOT ENOUGH ROOM" in capsys.readouterr().out


# --- preflight ---


def run_preflight(config: Path, *options: str) -> Any:
    return CliRunner().invoke(cli, ["preflight", str(config), "--minutes", "0.5", *options], catch_exceptions=False)


def test_preflight_fits_a_few_instances(tiny_config: Config) -> None:
    result = run_preflight(tiny_config(), "--instances", "4", "--steps", "40")
    assert result.exit_code == 0, result.output
    assert result.output.count("fitted scenes/") == 4 and "learns" in result.output


def test_preflight_fails_loudly_when_weights_do_not_move(tiny_config: Config) -> None:
    rates = [
        {"params": {"include": ["*"], "exclude": ["*backbone.*"]}, "lr": 0.0},
        {"params": {"include": ["*backbone.*"]}, "lr": 0.0},
    ]
    result = run_preflight(tiny_config(optimizer={"params": rates}), "--instances", "2", "--steps", "20")
    assert result.exit_code == 1
    assert "weights did not move" in result.output and "loss fell by" in result.output


def test_preflight_fails_loudly_on_instances_without_a_loss(
    tiny_config: Config, tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(loss={"invalid": {}}, data={"datasets": [_dataset(label_type="invalid")]})
    result = run_preflight(config, "--instances", "2", "--steps", "20")
    assert result.exit_code == 1 and "none of the instances" in result.output


def _dataset(**values: Any) -> dict[str, Any]:
    return {"name": "scenes", "path": "scenes", "label_type": "synthetic", **values}


# --- held-out scores ---


def test_held_out_instances_are_scored_logged_and_never_trained_on(
    tiny_config: Config, tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(scenes / "scenes", tmp_path / "scenes")
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path))
    config = tiny_config()
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path))
    index = (tmp_path / "scenes" / ".index.txt").read_text().splitlines()
    (tmp_path / "scenes" / ".val.txt").write_text("\n".join(index[:3]) + "\n")
    flags = ["--num_iterations", "6", "--eval_every", "2", "--eval_instances", "2", "--save_every", "100"]
    assert main(arguments(config, tmp_path / "w", *flags)) == 0
    scored = [line for line in lines_of(tmp_path / "w") if "eval.rel" in line]
    assert [line["step"] for line in scored] == [2, 4, 5]
    keys = {"eval.scenes.rel", "eval.scenes.delta1", "eval_ema.scenes.rel", "eval_ema.rel", "loss"}
    assert keys <= scored[0].keys()
    workspace = Workspace(tmp_path / "w")
    best = workspace.best()
    assert best is not None
    assert best["value"] == min(line["eval_ema.rel"] for line in scored)
    assert best["step"] in [checkpoint.step for checkpoint in workspace.checkpoints()]
    split = split_datasets(load_train_config(config).data, 0.0, 2)
    assert split.held_out[0].instances == (index[0], index[2]) and split.train["scenes"] == index[3:]


def test_evaluation_does_not_disturb_training(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config()
    shared = ["--num_iterations", "4", "--eval_fraction", "0.4"]
    assert main(arguments(config, tmp_path / "every", *shared, "--eval_every", "1")) == 0
    assert main(arguments(config, tmp_path / "last", *shared, "--eval_every", "100")) == 0
    one, other = (
        torch.load(tmp_path / name / "checkpoint" / "00000003.pt", weights_only=True)["model"]
        for name in ("every", "last")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_another_split_on_resuming_is_warned_of(
    tiny_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config()
    main(arguments(config, tmp_path / "w", "--num_iterations", "1"))
    flags = ["--num_iterations", "2", "--checkpoint", "latest", "--eval_every", "5", "--eval_fraction", "0.4"]
    assert main(arguments(config, tmp_path / "w", *flags)) == 0
    assert "resumed with another held_out" in caplog.text


@pytest.mark.slow
def test_compiled_blocks_train_alike(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config()
    for name, flag in (("plain", "False"), ("compiled", "True")):
        # In a process of its own: torch's compiler warns of itself, which is an error here.
        command = [sys.executable, "-m", "moge_core.training", *arguments(config, tmp_path / name, "--compile", flag)]
        subprocess.run([*command, "--num_iterations", "3"], check=True, timeout=240)
    plain, compiled = lines_of(tmp_path / "plain"), lines_of(tmp_path / "compiled")
    assert [line["loss"] for line in plain] == pytest.approx([line["loss"] for line in compiled], rel=1e-3)
    keys = [
        torch.load(tmp_path / name / "checkpoint" / "00000002.pt", weights_only=True)["model"].keys()
        for name in ("plain", "compiled")
    ]
    assert keys[0] == keys[1]


def test_a_share_is_held_out_by_name_and_grows_with_the_fraction(tiny_config: Config) -> None:
    data = load_train_config(tiny_config()).data
    small, large = (split_datasets(data, fraction, 100) for fraction in (0.3, 0.6))
    assert set(small.held_out[0].instances) <= set(large.held_out[0].instances)
    assert not set(large.held_out[0].instances) & set(large.train["scenes"])
    nothing = split_datasets(data, 0.0, 100)
    assert not nothing.held_out and len(nothing.train["scenes"]) == 8


def test_a_broken_held_out_instance_is_told_and_left_out(
    tiny_config: Config, tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    shutil.copytree(scenes / "scenes", tmp_path / "scenes")
    config = tiny_config()
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path))
    index = (tmp_path / "scenes" / ".index.txt").read_text().splitlines()
    (tmp_path / "scenes" / ".val.txt").write_text("\n".join(index[:2]) + "\n")
    (tmp_path / "scenes" / index[0] / "depth.png").write_bytes(b"")
    assert main(arguments(config, tmp_path / "w", "--num_iterations", "2", "--eval_every", "1")) == 0
    assert f"not scored: scenes/{index[0]}" in caplog.text
    assert "eval.rel" in lines_of(tmp_path / "w")[-1]


def test_a_score_that_is_not_a_number_is_never_the_best(tiny_config: Config, tmp_path: Path) -> None:
    from moge_core.training.flags import TrainFlags
    from moge_core.training.trainer import Trainer

    config = tiny_config()
    trainer = Trainer(load_train_config(config), TrainFlags(config, tmp_path / "w", init="random"), [])
    nan = float("nan")
    values = [{"eval_ema.rel": score, "eval.x": nan} for score in (nan, 0.5, nan, 0.6, 0.4, 0.4)]
    conditions = trainer.scorer.conditions
    found = [trainer._is_best(step, HeldOutScores(each, conditions)) for step, each in enumerate(values)]
    assert found == [False, True, False, False, True, False]
    assert trainer.best is not None and (trainer.best["step"], trainer.best["value"]) == (4, 0.4)
    json.dumps(trainer.best, allow_nan=False)
    trainer.writer.close()


def test_the_best_checkpoint_is_known_again_after_a_resume(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config()
    flags = ["--eval_every", "1", "--eval_fraction", "0.4", "--checkpoint", "latest", "--save_every", "1"]
    main(arguments(config, tmp_path / "w", *flags, "--num_iterations", "4"))
    best = Workspace(tmp_path / "w").best()
    assert best is not None
    (tmp_path / "w" / "best.json").unlink()  # as if killed between the manifest and best.json
    main(arguments(config, tmp_path / "w", *flags, "--num_iterations", "4"))
    assert Workspace(tmp_path / "w").best() == best


# --- saving beside the training ---


def test_nothing_but_fragments_is_deleted(tiny_config: Config, tmp_path: Path) -> None:
    """Checkpoints of the published tool, and one of ours that lost a file, are no fragments."""
    config = tiny_config()
    main(arguments(config, tmp_path / "w", "--num_iterations", "4", "--save_every", "1"))
    folder = tmp_path / "w" / "checkpoint"
    (folder / "00000000.json").unlink()  # the published tool writes none
    (folder / "00000003_optimizer.pt").unlink()
    (folder / "00000007.pt").write_bytes(b"killed before its manifest")
    (folder / ".00000007.pt.1234.tmp").write_bytes(b"half")
    workspace = Workspace(tmp_path / "w")
    workspace.remove_fragments()
    names = {path.name for path in folder.iterdir()}
    assert {"00000000.pt", "00000000_ema.pt", "00000003.pt", "00000003_ema.pt", "00000003.json"} <= names
    assert not {name for name in names if "00000007" in name}


def test_latest_is_refused_when_every_checkpoint_is_damaged(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config()
    main(arguments(config, tmp_path / "w", "--num_iterations", "1"))
    (tmp_path / "w" / "checkpoint" / "00000000_optimizer.pt").write_bytes(b"short")
    assert main(arguments(config, tmp_path / "w", "--checkpoint", "latest")) == ExitCode.REFUSED
    assert "undamaged" in capsys.readouterr().err


def test_an_optimiser_that_does_not_fit_is_refused_with_what_to_do(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(tiny_config(), tmp_path / "w", "--num_iterations", "1"))
    frozen = tiny_config(freeze=["head.projects.*"])
    flags = ["--num_iterations", "2", "--checkpoint", "latest"]
    assert main(arguments(frozen, tmp_path / "w", *flags)) == ExitCode.REFUSED
    assert "same parameter groups" in capsys.readouterr().err


def test_retention_keeps_the_newest_the_spaced_and_the_best(tiny_config: Config, tmp_path: Path) -> None:
    flags = ["--num_iterations", "12", "--save_every", "1", "--keep_last", "2", "--keep_every", "5"]
    assert main(arguments(tiny_config(), tmp_path / "w", *flags)) == 0
    workspace = Workspace(tmp_path / "w")
    assert [checkpoint.step for checkpoint in workspace.checkpoints()] == [0, 5, 10, 11]
    assert not workspace.incomplete_steps()
    workspace.write_best({"step": 5})
    assert workspace.prune(1) == [0, 10]
    assert [checkpoint.step for checkpoint in workspace.checkpoints()] == [5, 11]


def test_saving_waits_for_the_copy_alone_and_never_holds_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def slow(workspace: Workspace, state: TrainingState, lineage: Any) -> Any:
        held.append(state)
        time.sleep(0.5)
        return original(workspace, state, lineage)

    original = checkpoint_writer.save_checkpoint
    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", slow)
    writer = CheckpointWriter(Workspace(tmp_path))
    weights = {"a": torch.ones(1000)}
    start = time.perf_counter()
    writer.save(TrainingState(0, {}, weights), {})
    first = time.perf_counter() - start
    weights["a"] += 1  # what is trained meanwhile does not reach the copy
    start = time.perf_counter()
    writer.save(TrainingState(1, {}, weights), {})
    second = time.perf_counter() - start
    assert first < 0.4 <= second + first, "the second copy is made when the first is written"
    writer.wait()
    assert [info.step for info in writer.take_written()] == [0, 1]
    writer.close()
    values = [torch.load(tmp_path / "checkpoint" / f"0000000{i}.pt", weights_only=True)["model"]["a"] for i in (0, 1)]
    assert torch.equal(values[0], torch.ones(1000)) and torch.equal(values[1], torch.full((1000,), 2.0))


def test_a_failed_save_is_told_at_the_next_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoint").write_text("a file where the folder should be")
    writer = CheckpointWriter(Workspace(tmp_path))
    writer.save(TrainingState(0, {}, {"a": torch.ones(3)}), {})
    with pytest.raises(WorkspaceError, match="must be writable"):
        writer.wait()
    writer.close()


def test_figures_of_speed_are_kept_apart_from_the_metrics(tiny_config: Config, tmp_path: Path) -> None:
    main(arguments(tiny_config(), tmp_path / "w", "--num_iterations", "3"))
    assert not [key for line in lines_of(tmp_path / "w") for key in line if key.startswith(("system.", "loader."))]
    figures = lines_of(tmp_path / "w", "system.jsonl")
    assert [line["step"] for line in figures] == [0, 1, 2]
    assert {"images_per_second", "loader.wait_share", "step.forward_share", "system.memory_gb"} <= figures[0].keys()


class Store:
    """An MLflow client that remembers, and fails at what it is told to."""

    def __init__(self, failing: set[str]) -> None:
        self.failing, self.calls, self.metrics = failing, [], []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.calls.append(name)
            if name in self.failing:
                raise OSError(f"{name} does not work here")
            self.metrics += [(m.key, m.step) for m in keywords.get("metrics", ())]

        return call


def test_an_artifact_that_mlflow_does_not_take_holds_no_metrics_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moge_core.training import RunStatus, mlflow_tracking
    from moge_core.training.tracking import MetricsFile

    workspace, store = Workspace(tmp_path), Store({"log_artifact"})

    def connect(sender: Any) -> None:
        sender._client, sender.run_id = store, "run"

    monkeypatch.setattr(mlflow_tracking.RunSender, "connect", connect)
    monkeypatch.setattr(mlflow_tracking.RunSender, "send_parameters", lambda *_: None)
    monkeypatch.setattr(mlflow_tracking, "_LONGEST_PAUSE_S", 0.05)
    file, tracker = MetricsFile(workspace), mlflow_tracking.MLflowTracker(workspace, {})
    tracker.on_start(tmp_path, {})
    for step in range(3):
        file.on_log(step, {"loss": float(step)})
        tracker.on_log(step, {})
    tracker.on_end(RunStatus("finished", "done", 2, 3, resumable=False))
    assert [pair for pair in store.metrics if pair[0] == "loss"] == [("loss", 0), ("loss", 1), ("loss", 2)]
    assert store.calls[-1] == "set_terminated"


def test_a_damaged_line_spoils_no_other(tmp_path: Path) -> None:
    from moge_core.training.tracking import read_lines

    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "lo{"step": 2, "loss": 3.0}\n{"step": 3, "loss": 4.0}\n{"st')
    assert [line["step"] for line in read_lines(path)] == [0, 3]


# --- finetuning configurations ---


def test_the_finetuning_of_a_published_model_explains_its_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    finetune = load_finetune_config("configs/finetune/v1.json")
    assert finetune.base == "pretrained/moge-vitl.pt" and finetune.base_asset is None
    config = finetune.train_config()
    flags = resolve_flags({"config": Path("x"), "checkpoint": finetune.base}, config)
    assert advise(config, flags) == []
    assert flags.batch_size_forward * flags.gradient_accumulation_steps >= 32


def test_a_base_that_is_missing_is_named_with_the_place_looked_at(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tiny_config(), tmp_path / "w", "--checkpoint", "pretrained/moge-vitl.pt")) == ExitCode.REFUSED
    assert "pretrained/moge-vitl.pt" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_vitl_in_the_published_form_is_finetuned_as_the_recipe_says(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are filled by rule; views are small, so that a step takes seconds."""
    recipe = load_finetune_config("configs/finetune/v1.json").train_config()
    values = json.loads(json.dumps(recipe.raw))
    torch.manual_seed(0)
    model = build_model("v1", **values["model"])
    base = tmp_path / "moge-vitl.pt"
    torch.save({"model_config": model.model_config, "model": model.state_dict()}, base)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    del model
    values["data"] = json.loads(tiny_config().read_text())["data"]
    values["model"]["num_tokens_range"] = [12, 20]
    values.pop("run")
    config = tmp_path / "vitl.json"
    config.write_text(json.dumps(values))
    flags = ["--checkpoint", str(base), "--num_iterations", "2", "--save_every", "100", "--batch_size_forward", "1"]
    assert main(arguments(config, tmp_path / "w", *flags, "--enable_ema", "False")) == 0
    after = torch.load(tmp_path / "w" / "checkpoint" / "00000001.pt", weights_only=True)["model"]
    assert after.keys() == before.keys()
    head = [name for name in before if "backbone" not in name and not torch.equal(before[name], after[name])]
    changes = {name: (after[name] - before[name]).abs().max() for name in head if before[name].ndim > 1}
    assert changes and max(changes.values()) <= 2.1e-5, "two steps of at most the learning rate"
    # The backbone waits: its rate begins at 0.
    assert all(torch.equal(before[name], after[name]) for name in before if "backbone.blocks" in name)
    assert Workspace(tmp_path / "w").checkpoint_at(1).manifest["parent"]["path"] == str(base)


def test_sparse_depth_reaches_preflight_too(
    tiny_config: Config, tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(scenes / "scenes", tmp_path / "scenes")
    config = tiny_config()
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path))
    rng = np.random.default_rng(0)
    for path in (tmp_path / "scenes").rglob("depth.png"):
        depth = read_depth(path)
        depth[rng.random(depth.shape) > 0.1] = np.nan
        write_depth(path, depth)
    result = run_preflight(config, "--instances", "2", "--steps", "30")
    assert result.exit_code == 0, result.output
