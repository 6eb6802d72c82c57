"""Workspaces: which run a new start continues, what counts as a checkpoint, and metrics that survive a crash."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moge_core.errors import CheckpointError, ConfigError, WorkspaceError
from moge_core.training import RunStatus, Workspace, choose_workspace, load_train_config
from moge_core.training.checkpoints import TrainingState, load_training_state, save_checkpoint
from moge_core.training.tracking import MetricsFile
from moge_core.training.workspace import parse_checkpoint_flag, write_json

Config = Callable[..., Path]


def begin(workspace: Workspace, config: Path, state: str = "interrupted") -> None:
    """What a run leaves on disk that began with `config` and ended as `state`."""
    workspace.path.mkdir(parents=True)
    write_json(workspace.config_path, load_train_config(config).raw)
    workspace.write_status(RunStatus(state, "test", 3, 10, state != "finished"))  # type: ignore[arg-type]


def save(workspace: Workspace, step: int) -> None:
    weights = {"w": torch.full((3,), float(step))}
    save_checkpoint(workspace, TrainingState(step, {"a": 1}, weights, optimizer={}, lr_scheduler={}, ema=weights), {})


def test_the_first_run_is_number_1_and_must_needs_one(tiny_config: Config, tmp_path: Path) -> None:
    config = load_train_config(tiny_config())
    choice = choose_workspace(tmp_path / "train_x", config)
    assert (choice.path.name, choice.resumes) == ("1", False)
    with pytest.raises(WorkspaceError, match="must hold a run"):
        choose_workspace(tmp_path / "train_x", config, "must")


def test_auto_continues_an_unfinished_run_of_the_same_configuration_only(tiny_config: Config, tmp_path: Path) -> None:
    path = tiny_config()
    begin(Workspace(tmp_path / "r" / "1"), path)
    config = load_train_config(path)
    assert choose_workspace(tmp_path / "r", config) == choose_workspace(tmp_path / "r", config, "must")
    assert choose_workspace(tmp_path / "r", config).resumes
    assert choose_workspace(tmp_path / "r", config, "never").path.name == "2"

    # Flags of the run are no change of the configuration; everything else is, and is named.
    assert choose_workspace(tmp_path / "r", load_train_config(tiny_config(run={"seed": 9}))).resumes
    changed = load_train_config(tiny_config(model={"dim_proj": 64}))
    choice = choose_workspace(tmp_path / "r", changed)
    assert (choice.path.name, choice.resumes, choice.changed_keys) == ("2", False, ["model.dim_proj"])
    with pytest.raises(WorkspaceError, match=r"model\.dim_proj"):
        choose_workspace(tmp_path / "r", changed, "must")
    by_path = choose_workspace(tmp_path / "r", changed, str(tmp_path / "r" / "1"))
    assert (by_path.resumes, by_path.changed_keys) == (True, ["model.dim_proj"])


def test_a_finished_run_is_followed_by_the_next_number(tiny_config: Config, tmp_path: Path) -> None:
    path = tiny_config()
    for number in (2, 10):
        begin(Workspace(tmp_path / "r" / str(number)), path, "finished")
    choice = choose_workspace(tmp_path / "r", load_train_config(path))
    assert (choice.path.name, choice.resumes) == ("11", False)


def test_a_damaged_newest_checkpoint_is_passed_over_for_the_previous_complete_one(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    for step in (1, 2, 3, 4):
        save(workspace, step)
    (workspace.checkpoint_dir / "00000004.json").unlink()  # killed before the manifest
    cut = workspace.checkpoint_dir / "00000003_optimizer.pt"
    cut.write_bytes(cut.read_bytes()[:-1])
    assert [checkpoint.step for checkpoint in workspace.checkpoints()] == [1, 2]
    state = load_training_state(workspace, "latest")
    assert state is not None and state.step == 2
    assert torch.equal(state.model["w"], torch.full((3,), 2.0))


def test_a_workspace_of_the_published_tool_has_no_manifests_and_resumes_all_the_same(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    for step in (1, 2):
        save(workspace, step)
    for manifest in workspace.checkpoint_dir.glob("*.json"):
        manifest.unlink()
    state = load_training_state(workspace, "latest")
    assert state is not None and (state.step, state.ema_updates) == (2, 1)
    other = load_training_state(workspace, "1")
    assert other is not None and other.step == 1


def test_a_single_file_with_a_step_is_obeyed_and_a_plain_model_starts_at_0(tmp_path: Path) -> None:
    plain = {"model_config": {"a": 1}, "model": {"w": torch.zeros(1)}}
    torch.save(plain, tmp_path / "plain.pt")
    torch.save(
        {**plain, "step": 7, "optimizer": {}, "lr_scheduler": {}, "ema_model": plain["model"]}, tmp_path / "full.pt"
    )
    first = load_training_state(Workspace(tmp_path), str(tmp_path / "plain.pt"))
    second = load_training_state(Workspace(tmp_path), str(tmp_path / "full.pt"))
    assert first is not None and (first.step, first.optimizer) == (-1, None)
    assert second is not None and second.step == 7 and second.ema is not None


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut"])
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        load_training_state(Workspace(tmp_path), str(tmp_path / "x.pt"))


def test_a_checkpoint_of_an_unknown_step_names_those_there_are(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    save(workspace, 3)
    with pytest.raises(WorkspaceError, match="Complete checkpoints: 3"):
        load_training_state(workspace, "4")
    with pytest.raises(ConfigError, match="--checkpoint"):
        parse_checkpoint_flag("newest")


def test_manifests_hold_the_digest_of_every_file(tmp_path: Path) -> None:
    import hashlib

    workspace = Workspace(tmp_path / "w")
    save(workspace, 5)
    manifest = json.loads((workspace.checkpoint_dir / "00000005.json").read_text())
    assert manifest["files"].keys() == {"00000005.pt", "00000005_optimizer.pt", "00000005_ema.pt"}
    for name, record in manifest["files"].items():
        data = (workspace.checkpoint_dir / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (record["bytes"], record["sha256"])


def test_a_resumed_metrics_file_has_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(Workspace(tmp_path))
    for step in (0, 1, 2, 3):
        first.on_log(step, {"loss": float(step), "undefined": float("nan")})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    second = MetricsFile(Workspace(tmp_path), first_step=2)
    second.on_log(2, {"loss": 20.0})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(0, 0.0), (1, 1.0), (2, 20.0)]
    assert lines[0]["undefined"] is None
