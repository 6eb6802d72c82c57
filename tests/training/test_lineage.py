"""From a checkpoint one walks back to the bytes it was trained on; what is gone, moved or changed is told."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from moge_core.cli import cli
from moge_core.datasets import index_dataset
from moge_core.errors import CheckpointError, WorkspaceError
from moge_core.io import file_digest
from moge_core.training import Workspace, check_training_inputs, load_train_config
from moge_core.training.checkpoints import TrainingState, load_training_state, parent_of, save_checkpoint
from moge_core.training.lineage import trace_lineage
from moge_core.training.provenance import (
    LAUNCH_VARIABLE,
    LaunchRecord,
    Provenance,
    git_state,
    launch_from_environment,
)
from moge_core.training.workspace import write_json

Config = Callable[..., Path]


def trained(config: Path, folder: Path, step: int, base: Path | None = None, first_step: int = 0) -> Path:
    """What a training leaves that ended with `step`, by the writers of the trainer; returns the model file."""
    workspace, settings = Workspace(folder), load_train_config(config)
    before = load_training_state(workspace, "latest") if first_step else None
    datasets = [dataset.as_dict() for dataset in check_training_inputs(settings)]
    parent = None if base is None else parent_of(base)
    if before is not None:
        parent = before.manifest["parent"]
    lineage = {"config_digest": settings.digest(), "datasets": datasets, "parent": parent, "seed": 0}
    lineage |= {"batch_size_total": 2, "held_out": None}
    provenance = Provenance(workspace, settings)
    if before is not None:
        provenance.continues(before.manifest, lineage)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(workspace.config_path, settings.raw)
    provenance.begin({"first_step": first_step, "continues": before is not None, **lineage, "flags": {"init": "hub"}})
    weights = {"w": torch.full((3,), float(len(str(folder)) + step))}
    state = TrainingState(step, {"a": str(folder)}, weights, optimizer={}, lr_scheduler={}, ema=weights)
    return save_checkpoint(workspace, state, lineage | provenance.as_dict()).model_path


@pytest.fixture
def data(scenes: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the scenes that a test may change, at the data root."""
    shutil.copytree(scenes, tmp_path / "data")
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path / "data"))
    return tmp_path / "data" / "scenes"


@pytest.fixture
def family(data: Path, tiny_config: Config, tmp_path: Path) -> list[Path]:
    """Model files of a training, a finetuning of its average, and a finetuning of that."""
    root = trained(tiny_config(), tmp_path / "ws" / "train_a" / "1", 5)
    child = trained(tiny_config(), tmp_path / "ws" / "finetune_b" / "1", 3, root.with_name("00000005_ema.pt"))
    return [trained(tiny_config(), tmp_path / "ws" / "finetune_c" / "1", 2, child), child, root]


def rewrite(manifest: Path, **changes: Any) -> None:
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))


def run_command(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["lineage", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


# --- the chain ---


def test_the_chain_leads_over_every_parent_to_the_root_its_data_and_their_import(family: list[Path]) -> None:
    lineage = trace_lineage(family[0], verify=True)
    assert [link.path for link in lineage.links] == [*family[:2], family[2].with_name("00000005_ema.pt")]
    assert [link.step for link in lineage.links] == [2, 3, 5]
    assert (lineage.end, lineage.problems) == ("its training began anew, with --init hub", [])
    for link in lineage.links:
        assert (link.state, link.sha256) == ("verified", file_digest(link.path))
        assert link.configuration is not None and link.configuration.state == "unchanged"
        (dataset,) = link.datasets
        assert (dataset.name, dataset.state, dataset.num_instances_now) == ("scenes", "verified", 8)
        assert [event.importer for event in dataset.imports] == ["sample-scenes"]
        assert dataset.imports[0].options["seed"] == 7
        assert link.run is not None and link.run.workspace == link.path.parents[1]
        assert [(each.first_step, each.last_step) for each in link.run.segments] == [(0, link.step)]


def test_every_name_of_a_checkpoint_finds_it(family: list[Path], tmp_path: Path, tiny_config: Config) -> None:
    newest, folder = family[0], family[0].parent
    names = [folder / "latest.pt", folder, folder.parent, folder.parent.parent]
    assert [trace_lineage(name).links[0].path.name for name in names] == [newest.name] * 4
    for name in ("00000002_ema.pt", "00000002_optimizer.pt"):
        link = trace_lineage(folder / name, verify=True).links[0]
        assert (link.path.name, link.step, link.state) == (name, 2, "verified")
    trained(tiny_config(), folder.parent, 7, first_step=3)
    Workspace(folder.parent).write_best({"step": 2})
    assert trace_lineage(folder.parent).links[0].step == 7
    assert trace_lineage(folder.parent, best=True).links[0].step == 2
    assert trace_lineage(folder.parent, step=2).links[0].step == 2
    with pytest.raises(WorkspaceError, match="Complete checkpoints: 2, 7"):
        trace_lineage(folder.parent, step=4)
    with pytest.raises(CheckpointError, match="no such file"):
        trace_lineage(tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match=r"a \.json file"):
        trace_lineage(folder / "00000002.json")


def test_a_resumed_training_tells_who_trained_which_steps(data: Path, tiny_config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "w"
    trained(tiny_config(), folder, 3)
    trained(tiny_config(), folder, 9, first_step=4)
    trained(tiny_config(), folder, 12, first_step=4)  # went back: steps 4 to 9 are trained anew

    def segments(step: int) -> list[tuple[int | None, int]]:
        run = trace_lineage(folder, step=step).links[0].run
        assert run is not None
        return [(each.first_step, each.last_step) for each in run.segments]

    assert (segments(3), segments(12)) == ([(0, 3)], [(0, 3), (4, 12)])
    with (folder / "launches.jsonl").open("a") as file:
        file.write('{"first_step": -1}\n[]\n{"first_step": 2, "retry": "x"}\n{"first_st')  # damaged, and cut short
    assert segments(12) == [(0, 3), (4, 12)]


def test_a_resume_on_other_data_leaves_the_data_before_in_every_later_manifest(
    data: Path, tiny_config: Config, tmp_path: Path
) -> None:
    folder = tmp_path / "w"
    trained(tiny_config(), folder, 3)
    (before,) = trace_lineage(folder).links[0].datasets
    shutil.rmtree(data / "room" / "000000")
    index_dataset(data)
    trained(tiny_config(), folder, 5, first_step=4)
    trained(tiny_config(), folder, 7, first_step=6)
    (link,) = trace_lineage(folder, verify=True).links
    assert (link.datasets[0].num_instances, link.datasets[0].state) == (7, "verified")
    assert [(each.until_step, each.datasets[0].digest) for each in link.earlier] == [(3, before.digest)]
    assert "until step 3 trained with other inputs" in run_command(folder)


# --- what is not as it was ---


def test_a_moved_parent_is_found_by_its_digest_and_a_deleted_one_is_told(family: list[Path], tmp_path: Path) -> None:
    parent = family[1].parents[2]
    parent.rename(parent.with_name("kept"))
    lineage = trace_lineage(family[0], verify=True)
    assert lineage.links[1].path == parent.with_name("kept") / "1" / "checkpoint" / family[1].name
    assert (lineage.links[1].moved_from, len(lineage.links)) == (family[1], 3)
    assert lineage.problems == []

    elsewhere = tmp_path / "archive" / "2026"
    elsewhere.parent.mkdir()
    parent.with_name("kept").rename(elsewhere)
    gone = trace_lineage(family[0])
    assert (gone.links[-1].path, gone.links[-1].state, gone.links[-1].step) == (family[1], "gone", 3)
    assert gone.end == "this parent is gone"
    assert gone.links[-1].sha256 is not None and gone.links[-1].sha256 in gone.problems[0]
    assert len(trace_lineage(family[0], workspaces=[elsewhere.parent]).links) == 3
    assert "GONE" in run_command(family[0])
    run_command(family[0], "--verify", code=1)


def test_another_file_in_the_parents_place_is_not_taken_for_it(family: list[Path], tiny_config: Config) -> None:
    shutil.rmtree(family[1].parents[1])
    trained(tiny_config(), family[1].parents[1], 13)
    for path in family[1].parent.glob("00000013*"):
        path.rename(path.with_name(path.name.replace("00000013", "00000003")))
    manifest = family[1].with_suffix(".json")
    manifest.write_text(manifest.read_text().replace("00000013", "00000003"))
    lineage = trace_lineage(family[0])
    assert [link.state for link in lineage.links] == ["recorded", "differs"]
    assert "another file stands" in lineage.end

    manifest.unlink()  # nothing tells but the contents
    assert trace_lineage(family[0], verify=True).links[1].state == "differs"


def test_a_checkpoint_copied_away_with_its_manifest_names_run_and_data(family: list[Path], tmp_path: Path) -> None:
    away = tmp_path / "far" / "away"
    away.mkdir(parents=True)
    for path in (family[0], family[0].with_suffix(".json")):
        shutil.copy(path, away)
    assert len(trace_lineage(away / family[0].name, verify=True).links) == 3
    shutil.rmtree(tmp_path / "ws")
    (link, parent) = trace_lineage(away / family[0].name, verify=True).links
    assert (link.state, parent.state, link.datasets[0].state) == ("verified", "gone", "verified")
    assert link.run is not None and link.run.workspace is None
    assert link.run.segments[0].launch.workspace == str(family[0].parents[1])
    assert link.configuration is not None and link.configuration.is_in_manifest and not link.configuration.problem
    assert link.versions is not None and link.versions.keys() >= {"python", "torch", "accelerate", "moge"}


def test_a_changed_dataset_is_detected_with_and_without_being_indexed_again(family: list[Path], data: Path) -> None:
    picture = data / "room" / "000000" / "image.jpg"
    stat = picture.stat()
    content = bytearray(picture.read_bytes())
    content[-20] ^= 1
    picture.write_bytes(content)
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as the worst of tools would do it
    assert trace_lineage(family[2]).problems == []  # nothing was read
    verified = trace_lineage(family[2], verify=True)
    assert (verified.links[0].datasets[0].state, len(verified.problems)) == ("changed", 1)
    assert "changed" in run_command(family[2], "--verify", code=1)

    shutil.rmtree(data / "room" / "000002")
    index_dataset(data)
    (dataset,) = trace_lineage(family[2]).links[0].datasets
    assert (dataset.state, dataset.num_instances, dataset.num_instances_now) == ("changed", 8, 7)
    run_command(family[2])  # telling is no failure


def test_a_manifest_of_the_data_that_was_deleted_hides_nothing(family: list[Path], data: Path) -> None:
    shutil.rmtree(data / ".moge")
    (dataset,) = trace_lineage(family[2], verify=True).links[0].datasets
    assert (dataset.state, dataset.imports) == ("verified", ())


def test_data_that_was_never_indexed_is_said_to_be_known_by_its_names_only(
    data: Path, tiny_config: Config, tmp_path: Path
) -> None:
    shutil.rmtree(data / ".moge")
    link = trace_lineage(trained(tiny_config(), tmp_path / "w", 1), verify=True).links[0]
    assert (link.datasets[0].state, link.problems) == ("names", ())


def test_a_moved_dataset_is_found_at_the_data_root_and_a_lost_one_is_told(
    family: list[Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.parent.rename(tmp_path / "other")
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path / "other"))
    (dataset,) = trace_lineage(family[2], verify=True).links[0].datasets
    assert (dataset.state, dataset.path, dataset.moved_from) == ("verified", tmp_path / "other" / "scenes", data)
    monkeypatch.setenv("MOGE_DATA_ROOT", str(tmp_path / "nowhere"))
    lost = trace_lineage(family[2])
    assert (lost.links[0].datasets[0].state, len(lost.problems)) == ("gone", 1)


def test_a_changed_checkpoint_or_configuration_is_detected(family: list[Path]) -> None:
    assert run_command(family[2], "--verify").count("problem") == 0
    content = bytearray(family[2].read_bytes())
    content[len(content) // 2] ^= 1
    family[2].write_bytes(content)
    assert trace_lineage(family[2]).links[0].state == "recorded"
    assert trace_lineage(family[2], verify=True).links[0].state == "differs"
    family[2].write_bytes(content[:-1])
    assert trace_lineage(family[2]).links[0].state == "differs"  # its size tells

    config = family[1].parents[1] / "config.json"
    rewrite(config, run={"seed": 3})  # flags of a run are no change
    assert trace_lineage(family[1]).links[0].problems == ()
    rewrite(config, model_version="v2")
    (problem,) = trace_lineage(family[1]).links[0].problems
    assert str(config) in problem


# --- old, published and hostile ---


def test_a_manifest_of_an_older_version_and_a_published_file_tell_what_they_can(
    family: list[Path], tmp_path: Path
) -> None:
    manifest = family[1].with_suffix(".json")
    values = json.loads(manifest.read_text())
    kept = ("step", "files", "ema_updates", "counters", "code_version", "time", "config_digest", "datasets", "parent")
    values["datasets"][0].pop("depth")
    manifest.write_text(json.dumps({key: values[key] for key in kept}))
    (family[1].parents[1] / "launches.jsonl").unlink()
    assert load_training_state(Workspace(family[1].parents[1]), "latest") is not None
    lineage = trace_lineage(family[1], verify=True)
    assert (len(lineage.links), lineage.problems) == (2, [])
    assert lineage.links[0].run is not None and lineage.links[0].run.segments == ()
    assert run_command(family[1])

    published = tmp_path / "model.pt"
    torch.save({"model_config": {}, "model": {}}, published)
    lineage = trace_lineage(published)
    assert (len(lineage.links), lineage.links[0].state) == (1, "unrecorded")
    assert "published" in lineage.end


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "5"},
        {"files": []},
        {"files": {"../../../etc/passwd": {"bytes": 1, "sha256": "0" * 64}}},
        {"datasets": [{"name": "x"}]},
        {"datasets": "many"},
        {"parent": {"path": "x", "sha256": "short"}},
        {"parent": ["x"]},
        {"parent": {"path": "a\0b", "sha256": "0" * 64}},
        {"earlier": [{"datasets": 3}]},
        {"launch": {"argv": 3}},
        {"versions": {"torch": {}}},
        {"held_out": "x" * (17 << 20)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_hostile_manifest_is_refused_by_name(family: list[Path], changes: dict[str, Any]) -> None:
    rewrite(family[2].with_suffix(".json"), **changes)
    with pytest.raises(CheckpointError, match=r"00000005\.json"):
        trace_lineage(family[2])
    told = trace_lineage(family[1])  # the child's own record still stands
    assert told.links[0].step == 3 and len(told.problems) == 1


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\0", '{"step": NaN}'])
def test_what_is_no_manifest_is_refused_by_name(family: list[Path], text: str) -> None:
    family[2].with_suffix(".json").write_text(text)
    with pytest.raises(CheckpointError, match=r"00000005\.json"):
        trace_lineage(family[2])
    assert Workspace(family[2].parents[1]).checkpoints() == []


def test_records_that_go_in_a_circle_end(family: list[Path]) -> None:
    youngest = {"path": str(family[0]), "sha256": file_digest(family[0]), "step": 2}
    rewrite(family[2].with_suffix(".json"), parent=youngest)
    lineage = trace_lineage(family[0])
    assert (len(lineage.links), lineage.end) == (3, "the records go in a circle")
    assert len(lineage.problems) == 1
    run_command(family[0], "--verify", code=1)


def test_a_manifest_cannot_steer_the_terminal(family: list[Path]) -> None:
    launch = {"launcher": "\x1b[2J\x1b]0;gone\x07", "argv": ["a\nb"], "workspace": "/\0" + "y" * 900}
    rewrite(family[2].with_suffix(".json"), launch=launch, parent={"path": "/" + "x" * 3000, "sha256": "0" * 64})
    output = run_command(family[2])
    assert "\x1b" not in output and "\x07" not in output and "\0" not in output
    assert max(map(len, output.splitlines())) < 1100


# --- the command ---


def test_the_command_prints_the_chain_and_the_same_as_json(family: list[Path]) -> None:
    text = run_command(family[0].parents[1])
    for told in ("checkpoint", "parent 2", "config", "import", "sample-scenes", "root", "--init hub"):
        assert told in text
    values = json.loads(run_command(family[0], "--json", "--verify"))
    assert [link["step"] for link in values["links"]] == [2, 3, 5]
    assert (values["verified"], values["problems"]) == (True, [])
    assert values["links"][2]["datasets"][0]["imports"][0]["importer"] == "sample-scenes"


def test_the_command_imports_no_torch(family: list[Path]) -> None:
    code = (
        "import sys\nfrom moge_core.cli import main\n"
        f"try:\n    main(['lineage', {str(family[0])!r}, '--verify'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "assert 'torch' not in sys.modules and 'dagster' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


# --- what a launcher hands on ---


def test_a_launchers_record_reaches_the_manifest_and_the_list_of_launches(
    data: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = LaunchRecord(
        launcher="slurm",
        dagster_run_id="run-1",
        asset_key="train_v1",
        mlflow_run_id="m1",
        mlflow_uri="https://user:secret@mlflow.example/x",
        config_source="configs/train/v1.json",
        tags={"job": "77"},
        retry=2,
    )
    for name, value in record.environment().items():
        monkeypatch.setenv(name, value)
    path = trained(tiny_config(), tmp_path / "w", 1)
    for launch in (
        json.loads(path.with_suffix(".json").read_text())["launch"],
        json.loads((tmp_path / "w" / "launches.jsonl").read_text()),
    ):
        told = {key: launch[key] for key in ("launcher", "dagster_run_id", "asset_key", "mlflow_run_id", "retry")}
        assert told == record.model_dump(include=told.keys())
        assert (launch["mlflow_uri"], launch["tags"]) == ("https://mlflow.example/x", {"job": "77"})
        assert (launch["config_source"], launch["pid"]) == ("configs/train/v1.json", os.getpid())
    output = run_command(path)
    for told in ("slurm, retry 2", "Dagster run run-1", "asset train_v1", "job=77", "run m1 at https://mlflow"):
        assert told in output


@pytest.mark.parametrize("text", ["{", "[]", '{"retry": -1}', '{"tags": 3}', '{"argv": [{}]}', "x" * 200_000])
def test_an_invalid_record_is_ignored_with_a_warning(text: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert launch_from_environment({LAUNCH_VARIABLE: text}) == LaunchRecord()
    assert LAUNCH_VARIABLE in caplog.text


def test_a_record_is_bounded_whatever_it_is_given() -> None:
    record = LaunchRecord(asset_key="é" * 10_000, tags={f"{'k' * 900}{n}": "\U0001f600" * 5000 for n in range(500)})
    environment = record.environment()
    assert len(environment[LAUNCH_VARIABLE].encode()) < 128 << 10
    assert launch_from_environment(environment).asset_key == "é" * 1024


def test_git_tells_commit_and_changes_and_nothing_where_there_is_no_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path / "r"), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "r").mkdir()
    assert git_state(tmp_path / "r") is None
    git("init", "-q")
    assert git_state(tmp_path / "r") is None  # no commit yet
    (tmp_path / "r" / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    state = git_state(tmp_path / "r")
    assert state is not None and (state.commit, state.dirty) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "r" / "new_loss.py").write_text("2")  # code that no commit holds
    state = git_state(tmp_path / "r")
    assert state is not None and state.dirty
    if os.geteuid() == 0:  # a repository of another user, which git refuses
        os.chown(tmp_path / "r", 12345, 12345)
        os.chown(tmp_path / "r" / ".git", 12345, 12345)
        assert git_state(tmp_path / "r") is None
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path / "r") is None


# --- with real trainings ---


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"
)  # in MLflow's store
def test_real_trainings_are_traced_from_the_last_finetuning_to_the_root(
    data: Path, tiny_config: Config, tmp_path: Path
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}

    def train(name: str, *flags: str, mlflow: bool = False) -> Path:
        folder = tmp_path / "ws" / name / "1"
        command = [sys.executable, "-m", "moge_core.training", "--config", str(tiny_config()), "--num_workers", "0"]
        command += ["--workspace", str(folder), "--enable_mlflow", str(mlflow), "--save_every", "1", *flags]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        return folder / "checkpoint"

    root = train("train_a", "--num_iterations", "2", mlflow=True)
    middle = train("finetune_b", "--num_iterations", "1", "--checkpoint", str(root / "00000001_ema.pt"))
    train("finetune_b", "--num_iterations", "3", "--checkpoint", "latest")  # resumed
    last = train("finetune_c", "--num_iterations", "1", "--checkpoint", str(middle / "00000002.pt"))

    (tmp_path / "ws" / "finetune_b").rename(tmp_path / "ws" / "finetune_b_of_may")
    lineage = trace_lineage(last.parent, verify=True)
    assert [link.path.name for link in lineage.links] == ["00000000.pt", "00000002.pt", "00000001_ema.pt"]
    assert {link.state for link in lineage.links} == {"verified"}
    assert {each.state for link in lineage.links for each in link.datasets} == {"verified"}
    assert (lineage.problems, lineage.end) == ([], "its training began anew, with --init random")
    assert lineage.links[1].moved_from == middle / "00000002.pt"

    runs = [link.run for link in lineage.links]
    assert all(run is not None for run in runs)
    resumed, first = runs[1], runs[2]
    assert resumed is not None and [(s.first_step, s.last_step) for s in resumed.segments] == [(0, 0), (1, 2)]
    assert [s.launch.argv[1:3] for s in resumed.segments] == [("-m", "moge_core.training")] * 2
    assert first is not None and first.mlflow_run_id
    import mlflow

    run = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(first.mlflow_run_id)
    assert run.data.tags["launcher"] == "direct"
    launch = first.segments[0].launch
    assert run.data.tags.get("git_commit") == launch.git_commit
    # Nothing of this is in the files that the published tools read.
    assert torch.load(root / "00000001.pt", weights_only=True).keys() == {"model_config", "model"}
