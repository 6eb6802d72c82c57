"""When a finetuning's schedule runs, what it begins with, and why it does not run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pipeline_project import FakeLauncher, NoTracking, Project

from moge_core.datasets import index_digest, render_sample_scenes
from moge_core.io import file_digest
from moge_core.training import Workspace
from moge_core.training.workspace import write_json
from moge_pipeline.catalog import evaluation_name, read_catalog
from moge_pipeline.defs.datasets.assets import index_asset
from moge_pipeline.defs.finetuning import base as base_module
from moge_pipeline.defs.finetuning.assets import finetuning_asset
from moge_pipeline.defs.finetuning.schedules import (
    INPUTS_TAG,
    MAX_ATTEMPTS,
    REASON_TAG,
    decide,
    finetuning_refresh_job,
)
from moge_pipeline.defs.resources.launchers import LaunchResources, LaunchResult
from moge_pipeline.defs.training.assets import training_asset
from moge_pipeline.defs.training.jobs import job_of

NAME = "finetune_sample"
EVALUATION = evaluation_name(NAME)


class Trainer(FakeLauncher):
    """Leaves a checkpoint of its own for each workspace and step, which names its data and parent as trainers do."""

    def run(
        self, context: Any, argv: Sequence[str], env: Mapping[str, str], resources: LaunchResources
    ) -> LaunchResult:
        result = super().run(context, argv, env, resources)
        workspace = Workspace(str(self.flag("--workspace")))
        if self.step >= 0:
            content = f"{workspace.path} {self.step} {time.monotonic_ns()}".encode()
            name = f"{self.step:08d}.pt"
            (workspace.checkpoint_dir / name).write_bytes(content)
            data = workspace.path.parents[2] / "data" / "sample"
            manifest = {
                "step": self.step,
                "files": {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}},
                "datasets": [{"name": "sample", "digest": index_digest(data)}],
            }
            write_json(workspace.checkpoint_dir / f"{self.step:08d}.json", manifest)
        return result


class Shop:
    """A project with a scheduled finetuning on rendered scenes, and a Dagster instance that remembers its runs."""

    def __init__(self, project: Project, instance: dg.DagsterInstance) -> None:
        self.project, self.instance = project, instance
        self.trainer = Trainer()
        self.evaluation_error: Exception | None = None
        self.catalog = read_catalog(project.root)
        self.entry = self.catalog.finetunes[NAME]
        self.job_def = finetuning_refresh_job(self.entry)

        @dg.asset(name=EVALUATION, deps=[NAME])
        def evaluation() -> None:
            if self.evaluation_error is not None:
                raise self.evaluation_error

        self.definitions = dg.Definitions(
            assets=[
                *(index_asset(each, self.catalog) for each in self.catalog.datasets.values()),
                *(training_asset(each, self.catalog) for each in self.catalog.trainings.values()),
                finetuning_asset(self.entry, self.catalog),
                evaluation,
            ],
            jobs=[self.job_def, job_of(NAME)],
            resources={"launcher": self.trainer, "mlflow": NoTracking()},
        )

    @property
    def data(self) -> Path:
        return self.project.root / "data" / "sample"

    def train_base(self) -> None:
        keys = [dg.AssetKey(["index", "sample"]), dg.AssetKey("train_sample")]
        job = self.definitions.resolve_implicit_global_asset_job_def()
        assert job.execute_in_process(asset_selection=keys, instance=self.instance).success

    def tick(self) -> dg.RunRequest | str:
        """What the schedule requests now, or why it requests nothing."""
        told = decide(self.instance, self.entry, self.catalog, self.job_def.name)
        return told if isinstance(told, dg.RunRequest) else str(told.skip_message)

    def requested(self) -> dg.RunRequest:
        request = self.tick()
        assert isinstance(request, dg.RunRequest), request
        return request

    def skipped(self) -> str:
        reason = self.tick()
        assert isinstance(reason, str), reason
        return reason

    def run(self, job: str, request: dg.RunRequest | None = None) -> dg.ExecuteInProcessResult:
        request = request or dg.RunRequest()
        return self.definitions.resolve_job_def(job).execute_in_process(
            run_config=request.run_config or None,
            tags=dict(request.tags),
            asset_selection=request.asset_selection,
            instance=self.instance,
            raise_on_error=False,
        )

    def obey(self) -> dg.ExecuteInProcessResult:
        """Run what a tick requests."""
        return self.run(self.job_def.name, self.requested())

    def drop_instance(self, name: str) -> None:
        source = next(path.parent for path in sorted(self.data.rglob("meta.json")))
        shutil.copytree(source, self.data / name)

    def metadata(self) -> dict[str, Any]:
        event = self.instance.get_latest_materialization_event(dg.AssetKey(NAME))
        assert event is not None and event.asset_materialization is not None
        return {key: value.value for key, value in event.asset_materialization.metadata.items()}

    def steps(self, result: dg.ExecuteInProcessResult) -> set[str]:
        return {event.step_key for event in result.all_events if event.is_step_success and event.step_key}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    render_sample_scenes(folder, 2, 1, size=(48, 36))
    return folder


@pytest.fixture
def shop(project: Project, scenes: Path) -> Iterator[Shop]:
    """Data and an untrained base."""
    project.train("sample")
    project.finetune("sample", schedule={"cron": "* * * * *", "enabled": True})
    shutil.copytree(scenes, project.root / "data" / "sample")
    with dg.DagsterInstance.ephemeral() as instance:
        yield Shop(project, instance)


@pytest.fixture
def trained(shop: Shop) -> Shop:
    """And the base trained."""
    shop.train_base()
    return shop


def test_a_schedule_is_off_until_the_configuration_says_otherwise_and_starts_the_whole_chain(project: Project) -> None:
    project.train("sample")
    project.finetune("off", schedule={"cron": "0 3 * * *", "timezone": "Europe/Berlin"})
    project.finetune("on", schedule={"cron": "*/5 * * * *", "enabled": True})
    project.finetune("never")
    definitions = project.definitions()
    off, on = (definitions.resolve_schedule_def(f"finetune_{name}_schedule") for name in ("off", "on"))
    assert (off.default_status, off.execution_timezone) == (dg.DefaultScheduleStatus.STOPPED, "Europe/Berlin")
    assert (on.default_status, on.cron_schedule) == (dg.DefaultScheduleStatus.RUNNING, "*/5 * * * *")
    assert {schedule.name for schedule in definitions.schedules or ()} == {off.name, on.name}
    assert on.job_name == "finetune_on_refresh_job"
    selected = definitions.resolve_job_def("finetune_on_refresh_job").asset_layer.selected_asset_keys
    assert {dg.AssetKey(["index", "sample"]), dg.AssetKey("finetune_on")} <= selected
    assert not selected & {dg.AssetKey("train_sample"), dg.AssetKey("finetune_off")}
    for name, assets in {"train_sample_job": "train_sample", "finetune_never_job": "finetune_never"}.items():
        assert definitions.resolve_job_def(name).asset_layer.selected_asset_keys == {dg.AssetKey(assets)}


def test_the_first_tick_trains_and_evaluates_and_the_second_is_skipped_with_its_reason(trained: Shop) -> None:
    request = trained.requested()
    assert request.tags[REASON_TAG] == "changed: no result yet" and len(request.tags[INPUTS_TAG]) == 64
    result = trained.run(trained.job_def.name, request)
    assert trained.steps(result) == {"index__sample", NAME, EVALUATION}
    checks = {each.asset_check_key.name for each in result.get_asset_check_evaluations()}
    assert "files_present" in checks
    assert trained.skipped() == "Neither data, base nor configuration have changed since the newest result."


def test_new_data_trains_again_from_the_previous_result_in_one_line(trained: Shop) -> None:
    base = trained.project.root / "workspace/train_sample/1/checkpoint/00000003.pt"
    trained.obey()
    first = trained.metadata()
    assert (first["parent_sha256"], first["base_sha256"]) == (file_digest(base), file_digest(base))

    for number, parent in ((2, first["checkpoint"]), (3, None)):
        trained.drop_instance(f"new_{number}")
        request = trained.requested()
        assert request.tags[REASON_TAG] == "changed: dataset sample"
        before = trained.metadata()["checkpoint"]
        assert trained.run(trained.job_def.name, request).success
        now = trained.metadata()
        assert trained.trainer.flag("--checkpoint") == now["parent_checkpoint"] == before == (parent or before)
        assert now["parent_sha256"] == file_digest(Path(before))
        assert now["base_sha256"] == file_digest(base), "the line still began with the base"
        assert now["workspace"].endswith(f"{NAME}/{number}")
        assert "Neither" in trained.skipped()


def test_a_changed_base_begins_a_new_line(trained: Shop) -> None:
    trained.obey()
    trained.train_base()
    request = trained.requested()
    assert request.tags[REASON_TAG] == "changed: base"
    trained.run(trained.job_def.name, request)
    base = trained.project.root / "workspace/train_sample/2/checkpoint/00000003.pt"
    assert trained.trainer.flag("--checkpoint") == str(base)
    assert trained.metadata()["base_sha256"] == file_digest(base)
    assert "Neither" in trained.skipped()


def test_an_edited_configuration_counts_without_reloading_dagster(trained: Shop) -> None:
    trained.obey()
    edited = trained.project.finetune("sample", overrides={"low_resolution_training_steps": 5})
    request = trained.requested()
    assert request.tags[REASON_TAG] == "changed: configuration"
    edited.write_text("{")
    assert str(edited) in trained.skipped()
    trained.project.finetune("sample", schedule={"cron": "* * * * *"}, run={"log_every": 1})
    assert "Neither" in trained.skipped(), "how often it logs does not change what it becomes"


def test_a_configuration_that_names_other_datasets_asks_for_a_reload(trained: Shop) -> None:
    trained.project.train("sample", [{"name": "other", "path": "data/other"}])
    assert "Reload the code location" in trained.skipped()


def test_by_hand_a_finetuning_begins_with_its_base(trained: Shop) -> None:
    trained.obey()
    assert trained.run(f"{NAME}_job").success
    assert trained.trainer.flag("--checkpoint") == str(
        trained.project.root / "workspace/train_sample/1/checkpoint/00000003.pt"
    )


def test_files_that_were_merely_touched_train_nothing_once_they_are_indexed(trained: Shop) -> None:
    trained.obey()
    for path in trained.data.rglob("meta.json"):
        os.utime(path, (1, 1))
    assert trained.requested().tags[REASON_TAG] == "changed: dataset sample", "only the index can tell"
    trained.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        asset_selection=[dg.AssetKey(["index", "sample"])], instance=trained.instance
    )
    assert "Neither" in trained.skipped()


def test_only_the_evaluation_is_requested_when_only_that_is_missing(trained: Shop) -> None:
    trained.evaluation_error = dg.Failure("no benchmark", allow_retries=False)
    assert not trained.obey().success
    trained.evaluation_error = RuntimeError("lost the machine")
    request = trained.requested()
    assert request.asset_selection == [dg.AssetKey(EVALUATION)]
    assert not trained.run(trained.job_def.name, request).success
    trained.evaluation_error = None
    result = trained.obey()
    assert result.success and trained.steps(result) == {EVALUATION}
    assert "Neither" in trained.skipped()


def test_an_interrupted_run_goes_on_from_its_checkpoint_at_the_next_tick(trained: Shop) -> None:
    trained.trainer.state, trained.trainer.step = "interrupted", 1
    assert not trained.obey().success
    trained.trainer.state, trained.trainer.step = "finished", 3
    assert trained.obey().success
    assert trained.trainer.flag("--checkpoint") == "latest"
    assert trained.metadata()["workspace"].endswith(f"{NAME}/1")
    assert "Neither" in trained.skipped()


def test_an_interrupted_run_whose_data_has_changed_since_begins_anew_from_the_previous_result(trained: Shop) -> None:
    trained.obey()
    finished = trained.metadata()["checkpoint"]
    trained.drop_instance("new")
    trained.trainer.state, trained.trainer.step = "interrupted", 1
    assert not trained.obey().success
    trained.drop_instance("newer")
    trained.trainer.state, trained.trainer.step = "finished", 3
    assert trained.obey().success
    assert trained.trainer.flag("--checkpoint") == finished
    assert trained.metadata()["workspace"].endswith(f"{NAME}/3")


def test_a_run_that_was_refused_is_not_tried_again_until_something_changes(trained: Shop) -> None:
    trained.trainer.state, trained.trainer.reason = "failed", "NonFiniteError: 20 steps in a row"
    assert not trained.obey().success
    reason = trained.skipped()
    assert "failed with these inputs" in reason and "20 steps in a row" in reason and "by hand" in reason
    trained.drop_instance("new")
    assert trained.requested().tags[REASON_TAG] == "changed: no result yet"


def test_launching_the_job_by_hand_lifts_a_refusal(trained: Shop) -> None:
    trained.trainer.state = "failed"
    assert not trained.obey().success
    assert "by hand" in trained.skipped()
    assert not trained.run(trained.job_def.name).success
    trained.trainer.state = "finished"
    assert trained.obey().success


def test_a_run_that_keeps_ending_early_without_a_checkpoint_is_given_up_and_one_that_gets_on_is_not(
    trained: Shop,
) -> None:
    trained.trainer.error = RuntimeError("lost the machine")
    for _ in range(MAX_ATTEMPTS):
        assert not trained.obey().success
    assert f"{MAX_ATTEMPTS} runs in a row ended early without a new checkpoint" in trained.skipped()

    trained.drop_instance("new")
    trained.trainer.error, trained.trainer.state = None, "interrupted"
    for step in range(MAX_ATTEMPTS + 1):
        trained.trainer.step = step
        assert not trained.obey().success
    assert isinstance(trained.tick(), dg.RunRequest)


def test_a_run_that_was_cancelled_goes_on_at_the_next_tick(trained: Shop) -> None:
    request = trained.requested()
    job = trained.definitions.resolve_job_def(trained.job_def.name)
    for _ in range(MAX_ATTEMPTS):
        run = trained.instance.create_run_for_job(
            job, run_config=request.run_config, tags=dict(request.tags), status=dg.DagsterRunStatus.STARTED
        )
        trained.instance.report_run_canceled(run)
    assert isinstance(trained.tick(), dg.RunRequest)


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_schedule_waits_while_a_run_of_its_finetuning_is_under_way(trained: Shop, by_hand: bool) -> None:
    name = f"{NAME}_job" if by_hand else trained.job_def.name
    run = trained.instance.create_run_for_job(
        trained.definitions.resolve_job_def(name), status=dg.DagsterRunStatus.STARTED
    )
    assert run.run_id in trained.skipped()
    trained.instance.report_run_failed(run)
    assert isinstance(trained.tick(), dg.RunRequest)


def test_a_tick_without_its_base_or_data_says_what_mends_it(shop: Shop) -> None:
    assert "dagster asset materialize --select train_sample" in shop.skipped()
    shop.train_base()
    shutil.rmtree(shop.data)
    assert str(shop.data) in shop.skipped()


def test_bad_data_stops_a_scheduled_run_before_it_trains_and_the_next_tick_says_so(trained: Shop) -> None:
    trained.obey()
    launched = list(trained.trainer.argv)
    # A list of the user's own is adopted, so that its broken instance would reach the training.
    (trained.data / ".index.txt").write_text("gone\n" + (trained.data / ".index.txt").read_text())
    result = trained.obey()
    assert not result.success and trained.steps(result) == set()
    assert trained.trainer.argv == launched
    assert "failed with these inputs" in trained.skipped() and "files_present" in trained.skipped()


def test_a_base_that_is_a_file_is_hashed_once_while_it_stays_as_it_is(
    project: Project, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.train("sample")
    project.finetune("sample", base="base.pt", schedule={"cron": "* * * * *"})
    shutil.copytree(scenes, project.root / "data" / "sample")
    base = project.root / "base.pt"
    base.write_bytes(b"one")
    read = []
    monkeypatch.setattr(base_module, "file_digest", lambda path: read.append(path) or file_digest(path))
    with dg.DagsterInstance.ephemeral() as instance:
        shop = Shop(project, instance)
        first = shop.requested()
        assert shop.requested().tags == first.tags
        assert read == [str(base)]
        base.write_bytes(b"two and more")
        assert shop.requested().tags[INPUTS_TAG] != first.tags[INPUTS_TAG]
    assert len(read) == 2


def test_a_hub_repository_that_was_never_downloaded_does_not_keep_a_tick_from_running(
    project: Project, scenes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    project.train("sample")
    project.finetune("sample", base="nobody/nothing", schedule={"cron": "* * * * *"})
    shutil.copytree(scenes, project.root / "data" / "sample")
    with dg.DagsterInstance.ephemeral() as instance:
        shop = Shop(project, instance)
        assert isinstance(shop.tick(), dg.RunRequest)


def test_a_tick_needs_neither_torch_nor_mlflow(project: Project, scenes: Path) -> None:
    project.train("sample")
    project.finetune("sample", base="base.pt", schedule={"cron": "* * * * *"})
    shutil.copytree(scenes, project.root / "data" / "sample")
    (project.root / "base.pt").write_bytes(b"weights")
    code = f"""
import sys
import dagster as dg
from pathlib import Path
from moge_pipeline.definitions import build_definitions
schedule = build_definitions(Path({str(project.root)!r})).resolve_schedule_def("{NAME}_schedule")
with dg.DagsterInstance.local_temp({str(project.root)!r}) as instance:
    told = schedule.evaluate_tick(dg.build_schedule_context(instance))
print(told.run_requests[0].tags["{REASON_TAG}"], sorted({{"torch", "mlflow", "dagster_mlflow"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert result.stdout.strip() == "changed: no result yet []"
