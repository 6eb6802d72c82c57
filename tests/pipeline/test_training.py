"""What a training asset does around the launched command."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pipeline_project import FakeLauncher, Project, failure_text, metadata_of

from moge_core.training import RunFlags, RunStatus, Workspace
from moge_pipeline import accelerate_command
from moge_pipeline.accelerate_command import launch_command


@pytest.fixture
def ready(project: Project) -> Project:
    """A project whose only dataset has an index."""
    project.train("sample")
    project.index()
    return project


def test_missing_data_fails_before_any_process_and_says_what_mends_it(project: Project) -> None:
    project.train("sample")
    launcher = FakeLauncher()
    text = failure_text(project.materialize("train_sample", launcher=launcher))
    assert "sample" in text and str(project.root / "data/sample") in text and "moge index" in text
    assert launcher.argv == []


def test_the_command_trains_the_resolved_configuration_in_the_assets_workspace(ready: Project) -> None:
    launcher = FakeLauncher()
    result = ready.materialize(
        "train_sample", launcher=launcher, config={"num_iterations": 9, "mixed_precision": "bf16"}
    )
    assert result.success
    workspace = ready.root / "workspace" / "train_sample" / "1"
    assert launcher.argv[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert launcher.flag("--workspace") == str(workspace)
    assert launcher.flag("--config") == str(workspace / "config.json")
    assert json.loads((workspace / "config.json").read_text())["run"]["num_iterations"] == 4
    assert launcher.flag("--num_iterations") == "9", "the run's own flags win"
    assert launcher.flag("--batch_size_forward") == "2", "flags left out keep those of the file"
    assert launcher.flag("--mixed_precision") == "bf16"
    assert launcher.flag("--checkpoint") is None


def test_a_value_out_of_range_is_refused_by_name(ready: Project) -> None:
    text = failure_text(ready.materialize("train_sample", config={"num_iterations": 0}))
    assert "num_iterations" in text


def test_a_materialization_says_what_was_trained_from_what(ready: Project) -> None:
    metadata = metadata_of(ready.materialize("train_sample"))
    assert metadata["checkpoint"].endswith("workspace/train_sample/1/checkpoint/00000003.pt")
    assert metadata["step"] == 3
    assert metadata["loss"] == 0.5
    (dataset,) = metadata["datasets"].records
    assert dataset.data["dataset"] == "sample" and dataset.data["instances"] == 2 and dataset.data["digest"]
    assert len(metadata["config_digest"]) == 64


def test_an_interrupted_training_is_continued_and_a_finished_one_is_not(ready: Project) -> None:
    interrupted = FakeLauncher("interrupted", "SIGTERM", step=1)
    text = failure_text(ready.materialize("train_sample", launcher=interrupted))
    assert "interrupted after step 1: SIGTERM." in text and "Materialize the asset again" in text

    continued = FakeLauncher()
    assert ready.materialize("train_sample", launcher=continued).success
    assert continued.flag("--workspace") == interrupted.flag("--workspace")
    assert continued.flag("--checkpoint") == "latest"

    anew = FakeLauncher()
    assert ready.materialize("train_sample", launcher=anew).success
    assert anew.flag("--workspace") == str(ready.root / "workspace/train_sample/2")
    assert anew.flag("--checkpoint") is None


def test_a_training_that_was_preempted_goes_on_by_itself_and_one_that_failed_does_not(ready: Project) -> None:
    class Preempted(FakeLauncher):
        workspaces: list[str | None] = []  # noqa: RUF012

        def run(self, context: Any, *arguments: Any) -> Any:
            self.state = "finished" if context.retry_number == 2 else "interrupted"
            result = super().run(context, *arguments)
            self.workspaces.append(self.flag("--workspace"))
            return result

    launcher = Preempted(step=1)
    assert ready.materialize("train_sample", launcher=launcher, config={"resume": "never"}).success
    assert len(launcher.workspaces) == 3 and len(set(launcher.workspaces)) == 1, "a retry keeps its workspace"
    assert launcher.flag("--checkpoint") == "latest"

    failing = FakeLauncher("failed", "NonFiniteError", step=2)
    result = ready.materialize("train_sample", launcher=failing)
    assert not [event for event in result.all_events if event.event_type_value == "STEP_RESTARTED"]


def test_as_many_retries_as_are_asked_for(ready: Project) -> None:
    result = ready.materialize(
        "train_sample", launcher=FakeLauncher("interrupted", "SIGTERM", step=1), config={"max_retries": 1}
    )
    assert len([event for event in result.all_events if event.event_type_value == "STEP_RESTARTED"]) == 1
    assert "interrupted after step 1" in failure_text(result)


def test_a_training_that_reached_its_maximum_runtime_says_so_and_is_not_retried(ready: Project) -> None:
    class Long(FakeLauncher):
        def run(self, *arguments: Any) -> Any:
            return dataclasses.replace(super().run(*arguments), timed_out=True)

    result = ready.materialize(
        "train_sample", launcher=Long("interrupted", "SIGTERM", step=1), config={"max_runtime_s": 5.0}
    )
    assert "It had run for 5 s, its maximum." in failure_text(result)
    assert not [event for event in result.all_events if event.event_type_value == "STEP_RESTARTED"]


def test_resume_never_begins_a_new_workspace(ready: Project) -> None:
    ready.materialize("train_sample", launcher=FakeLauncher("interrupted", "SIGTERM", step=1))
    launcher = FakeLauncher()
    ready.materialize("train_sample", launcher=launcher, config={"resume": "never"})
    assert launcher.flag("--workspace") == str(ready.root / "workspace/train_sample/2")


@pytest.mark.parametrize("tells_dagster", [True, False])
def test_a_failure_tells_the_trainers_own_reason(ready: Project, tells_dagster: bool) -> None:
    launcher = FakeLauncher("failed", "NonFiniteError: 10 steps in a row", step=2)
    launcher.tells_dagster = tells_dagster
    assert "failed after step 2: NonFiniteError: 10 steps in a row." in failure_text(
        ready.materialize("train_sample", launcher=launcher)
    )


def test_a_status_of_an_earlier_run_is_not_taken_for_this_ones(ready: Project) -> None:
    ready.materialize("train_sample", launcher=FakeLauncher("interrupted", "SIGTERM", step=1))
    silent = FakeLauncher("failed", step=-1)
    silent.tells_dagster = False
    assert "before its first step" in failure_text(ready.materialize("train_sample", launcher=silent))


def test_a_workspace_in_use_is_refused(ready: Project) -> None:
    ready.materialize("train_sample", launcher=FakeLauncher("interrupted", "SIGTERM", step=1))
    code = (
        "import sys; from moge_core.training import Workspace\n"
        "with Workspace(sys.argv[1]).lock(): print(flush=True); sys.stdin.read()"
    )
    import subprocess

    holder_argv = [sys.executable, "-c", code, str(ready.root / "workspace/train_sample/1")]
    with subprocess.Popen(holder_argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        launcher = FakeLauncher()
        text = failure_text(ready.materialize("train_sample", launcher=launcher))
        holder.communicate()
    assert "lock" in text and launcher.argv == []


def test_a_finetuning_begins_with_the_newest_finished_run_of_its_base(ready: Project) -> None:
    ready.finetune("sample", overrides={"low_resolution_training_steps": 7})
    ready.materialize("train_sample")
    ready.materialize("train_sample", launcher=FakeLauncher("interrupted", "SIGTERM", step=1))
    launcher = FakeLauncher()
    metadata = metadata_of(ready.materialize("finetune_sample", launcher=launcher))
    parent = ready.root / "workspace/train_sample/1/checkpoint/00000003.pt"
    assert launcher.flag("--checkpoint") == metadata["parent_checkpoint"] == str(parent)
    assert metadata["parent_step"] == 3
    import hashlib

    assert metadata["parent_sha256"] == hashlib.sha256(parent.read_bytes()).hexdigest()
    trained = json.loads((ready.root / "workspace/finetune_sample/1/config.json").read_text())
    assert trained["low_resolution_training_steps"] == 7


def test_a_finetuning_without_a_trained_base_says_how_to_get_one(ready: Project) -> None:
    ready.finetune("sample")
    launcher = FakeLauncher()
    text = failure_text(ready.materialize("finetune_sample", launcher=launcher))
    assert "dagster asset materialize --select train_sample" in text and launcher.argv == []


def test_a_finetuning_of_a_file_names_it_as_parent(ready: Project) -> None:
    ready.finetune("file", base="pretrained/moge.pt")
    assert "pretrained/moge.pt" in failure_text(ready.materialize("finetune_file"))
    (ready.root / "pretrained").mkdir()
    (ready.root / "pretrained/moge.pt").write_bytes(b"weights")
    launcher = FakeLauncher()
    metadata = metadata_of(ready.materialize("finetune_file", launcher=launcher))
    assert launcher.flag("--checkpoint") == metadata["parent_checkpoint"] == str(ready.root / "pretrained/moge.pt")


def test_an_unfinished_finetuning_is_continued_only_from_the_same_base(ready: Project) -> None:
    ready.finetune("file", base="base.pt")
    base = ready.root / "base.pt"
    base.write_bytes(b"one")
    ready.materialize("finetune_file", launcher=FakeLauncher("interrupted", "SIGTERM", step=1))
    again = FakeLauncher("interrupted", "SIGTERM", step=2)
    ready.materialize("finetune_file", launcher=again)
    assert again.flag("--checkpoint") == "latest"
    base.write_bytes(b"two")
    anew = FakeLauncher()
    ready.materialize("finetune_file", launcher=anew)
    assert anew.flag("--workspace") == str(ready.root / "workspace/finetune_file/2")
    assert anew.flag("--checkpoint") == str(base)


def test_a_run_that_was_cancelled_before_its_first_checkpoint_starts_from_its_base_again(ready: Project) -> None:
    ready.finetune("file", base="base.pt")
    (ready.root / "base.pt").write_bytes(b"one")
    launcher = FakeLauncher()
    launcher.error = RuntimeError("gone")
    ready.materialize("finetune_file", launcher=launcher)
    again = FakeLauncher()
    ready.materialize("finetune_file", launcher=again)
    assert again.flag("--workspace") == str(ready.root / "workspace/finetune_file/1")
    assert again.flag("--checkpoint") == str(ready.root / "base.pt")


@pytest.mark.parametrize("num_processes", [None, 1, 3])
def test_accelerate_gets_every_choice_so_that_it_neither_asks_nor_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_processes: int | None
) -> None:
    monkeypatch.setattr(accelerate_command, "has_gpu", lambda: False)
    argv = launch_command(RunFlags(num_processes=num_processes), Workspace(tmp_path), None)
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(argv[3:]))
    assert args.num_processes == (num_processes or 1)
    assert args.training_script == "moge_pipeline.training_process" and args.module
    assert args.cpu == (num_processes in (None, 1))
    assert args.training_script_args == ["--config", str(tmp_path / "config.json"), "--workspace", str(tmp_path)]


def test_a_gpu_is_used_unless_it_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("MOGE_ACCELERATORS", "0")
    assert "--cpu" not in launch_command(RunFlags(), Workspace(tmp_path), None)
    for hidden in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert "--cpu" in launch_command(RunFlags(), Workspace(tmp_path), None)


def test_the_devices_of_a_training_are_not_those_of_accelerates_own_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    mine = tmp_path / "default_config.yaml"
    mine.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\ngpu_ids: '3'\nuse_cpu: false\n")
    monkeypatch.setattr(launch, "default_config_file", str(mine))
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(mine))
    monkeypatch.setattr(accelerate_command, "has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    argv = launch_command(RunFlags(), Workspace(tmp_path), None)
    args, _, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(argv[3:]))
    assert prepare_simple_launcher_cmd_env(args)[1]["CUDA_VISIBLE_DEVICES"] == "1"


def test_the_observer_reports_one_ending_and_the_last_metrics() -> None:
    from unittest.mock import MagicMock

    from moge_pipeline.training_process import ENDING, PipesObserver

    pipes: Any = MagicMock()
    observer = PipesObserver(pipes)
    observer.on_start(Path("w"), {})
    observer.on_log(0, {"loss": 2.0, "global.delta": float("nan")})
    observer.on_log(1, {"loss": 1.0, "global.delta": float("inf")})
    finished = RunStatus("finished", "done", 1, 2, resumable=False)
    observer.on_end(finished)
    observer.on_end(RunStatus("failed", "later trouble", -1, 2, resumable=False))
    (message,) = [call.args[0] for call in pipes.report_custom_message.call_args_list]
    assert RunStatus(**message[ENDING]) == finished
    pipes.report_asset_materialization.assert_called_once_with(metadata={"loss": {"raw_value": 1.0, "type": "float"}})
