"""A dataset with faults reaches no training step, whichever way the training is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pipeline_project import FakeLauncher, NoTracking, Project, failure_text
from planted_faults import FAULTS
from shop import materialize, open_shop, output_of

from moge_core.datasets import index_dataset, read_index

Result = dg.ExecuteInProcessResult
FAULTY = ("depth truncated", "intrinsics in pixels", "image missing", "meta missing")
VICTIM = "b"


@pytest.fixture
def listed(project: Project) -> Project:
    """A training and a scheduled finetuning on two good instances, listed by the user."""
    project.train("sample")
    project.finetune("sample", base="base.pt", schedule={"cron": "0 3 * * *", "enabled": True})
    (project.root / "base.pt").write_bytes(b"weights")
    project.index(instances=("a", VICTIM, "c"))
    return project


def data_of(project: Project) -> Path:
    return project.root / "data" / "sample"


def run_job(project: Project, launcher: FakeLauncher, name: str, **options: Any) -> Result:
    """What the UI does when a job is launched."""
    definitions = project.definitions(launcher=launcher, mlflow=NoTracking())
    with dg.DagsterInstance.ephemeral() as instance:
        return definitions.resolve_job_def(name).execute_in_process(instance=instance, raise_on_error=False, **options)


def tick(project: Project, launcher: FakeLauncher) -> Result:
    """What the daemon does when the schedule of the finetuning is due."""
    definitions = project.definitions(launcher=launcher, mlflow=NoTracking())
    schedule = definitions.resolve_schedule_def("finetune_sample_schedule")
    repository = definitions.get_repository_def()
    with (
        dg.DagsterInstance.local_temp(str(project.root)) as instance,
        dg.build_schedule_context(instance, repository_def=repository) as context,
    ):
        (request,) = schedule.evaluate_tick(context).run_requests or ()
    options = {"run_config": request.run_config, "tags": request.tags, "asset_selection": request.asset_selection}
    return run_job(project, launcher, schedule.job_name, **{name: value for name, value in options.items() if value})


ROUTES: Mapping[str, Callable[[Project, FakeLauncher], Result]] = {
    "full graph": lambda project, launcher: project.materialize("index/sample", "train_sample", launcher=launcher),
    "lone training": lambda project, launcher: project.materialize("train_sample", launcher=launcher),
    "lone finetuning": lambda project, launcher: project.materialize("finetune_sample", launcher=launcher),
    "job of the training": lambda project, launcher: run_job(project, launcher, "train_sample_job"),
    "job of the finetuning": lambda project, launcher: run_job(project, launcher, "finetune_sample_job"),
    "schedule": tick,
}


@pytest.mark.parametrize("route", ROUTES)
def test_good_data_reach_the_training(listed: Project, route: str) -> None:
    launcher = FakeLauncher()
    assert ROUTES[route](listed, launcher).success
    assert launcher.argv != []


@pytest.mark.parametrize(
    ("route", "fault"),
    [*((route, FAULTY[0]) for route in ROUTES), *(("lone training", fault) for fault in FAULTY[1:])],
)
def test_bad_data_do_not_and_what_is_wrong_is_told(listed: Project, route: str, fault: str) -> None:
    FAULTS[fault].plant(data_of(listed) / VICTIM)
    launcher = FakeLauncher()
    result = ROUTES[route](listed, launcher)
    assert not result.success
    assert launcher.argv == [], "no training was launched"
    assert not list((listed.root / "workspace").glob("*/*/config.json")), "no workspace was begun"
    told = [
        *(failure_text(result) for event in result.all_events if event.is_step_failure),
        *(str(check.metadata) for check in result.get_asset_check_evaluations() if not check.passed),
    ]
    assert any(VICTIM in text and FAULTS[fault].rule in text for text in told), told


def test_a_fault_that_came_after_indexing_is_seen_by_a_lone_training(listed: Project) -> None:
    (data_of(listed) / ".index.txt").unlink()
    assert listed.materialize("index/sample").success
    FAULTS["depth truncated"].plant(data_of(listed) / VICTIM)
    launcher = FakeLauncher()
    text = failure_text(listed.materialize("train_sample", launcher=launcher))
    assert "1 broken of 3: b: depth-decodable" in text and f"moge index {data_of(listed)}" in text
    assert launcher.argv == []

    assert listed.materialize("index/sample", "train_sample", launcher=launcher).success
    assert read_index(data_of(listed)) == ["a", "c"], "the full graph trains without the broken instance"
    assert launcher.argv != []


def test_an_interrupted_training_is_not_continued_on_data_that_broke_meanwhile(listed: Project) -> None:
    listed.materialize("train_sample", launcher=FakeLauncher("interrupted", "SIGTERM", step=1))
    FAULTS["depth truncated"].plant(data_of(listed) / VICTIM)
    launcher = FakeLauncher()
    assert "b: depth-decodable" in failure_text(
        listed.materialize("train_sample", launcher=launcher, config={"resume": "must"})
    )
    assert launcher.argv == []


def test_a_retry_looks_at_the_data_again(listed: Project) -> None:
    class Breaking(FakeLauncher):
        launches = 0

        def run(self, *args: Any, **options: Any) -> Any:
            self.launches += 1
            result = super().run(*args, **options)
            FAULTS["depth truncated"].plant(data_of(listed) / VICTIM)
            return result

    launcher = Breaking("interrupted", "SIGTERM", step=1)
    assert not listed.materialize("train_sample", launcher=launcher, config={"max_retries": 1}).success
    assert launcher.launches == 1


def test_held_out_data_that_are_scored_are_checked_too(listed: Project) -> None:
    (data_of(listed) / ".index.txt").write_text("a\nc\n")
    (data_of(listed) / ".val.txt").write_text(f"{VICTIM}\n")
    FAULTS["depth truncated"].plant(data_of(listed) / VICTIM)
    launcher = FakeLauncher()
    assert ".val.txt" in failure_text(listed.materialize("train_sample", launcher=launcher, config={"eval_every": 2}))
    assert launcher.argv == []
    assert listed.materialize("train_sample", launcher=launcher).success, "they are not scored unless asked"


@pytest.mark.slow
def test_bad_data_are_refused_on_the_command_line(tmp_path: Path) -> None:
    shop = open_shop(tmp_path)
    data = tmp_path / "data" / "sample"
    victim = index_dataset(data).instances[1]
    FAULTS["depth truncated"].plant(data / victim)
    assert materialize(shop, "train_sample").wait(180) != 0
    assert f"1 broken of 4: {victim}: depth-decodable" in output_of(shop)
    assert not (tmp_path / "workspace" / "train_sample").exists()
