"""Dataset folders that appear or change: what is looked at, when, and how often."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from pipeline_project import Project

from moge_core.datasets import render_sample_scenes
from moge_core.training import load_train_config
from moge_pipeline.catalog import read_catalog
from moge_pipeline.defs.datasets import sensors
from moge_pipeline.defs.datasets.sensors import dataset_folders_sensor, new_dataset_folders


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    render_sample_scenes(folder, 2, 1, size=(48, 36))
    return folder


class Watcher:
    """The sensor over a project, whose clock a test sets."""

    def __init__(self, project: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
        self.project, self.instance = project, instance
        self.now, self.cursor = 1000.0, None
        monkeypatch.setattr(sensors.time, "time", lambda: self.now)
        self.definitions = project.definitions()

    def look(self, after_s: float = 0.0) -> list[dg.RunRequest] | str:
        """What the sensor requests, or why nothing, `after_s` seconds after the last look."""
        self.now += after_s
        sensor = self.definitions.resolve_sensor_def("dataset_folders")
        told = sensor.evaluate_tick(dg.build_sensor_context(self.instance, cursor=self.cursor))
        self.cursor = told.cursor
        return list(told.run_requests) if told.run_requests else str(told.skip_message)

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        job = self.definitions.resolve_job_def(str(request.job_name))
        return job.execute_in_process(
            run_config=request.run_config or None,
            asset_selection=request.asset_selection,
            instance=self.instance,
            raise_on_error=False,
        )


@pytest.fixture
def watcher(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watcher]:
    """A project whose only dataset is not there yet."""
    monkeypatch.delenv("MOGE_DROP_DIR", raising=False)
    monkeypatch.delenv("MOGE_DROP_SETTLE_S", raising=False)
    project.train("sample")
    with dg.DagsterInstance.local_temp(str(project.root)) as instance:
        yield Watcher(project, instance, monkeypatch)


def one(told: list[dg.RunRequest] | str) -> dg.RunRequest:
    assert isinstance(told, list) and len(told) == 1, told
    return told[0]


def test_a_dataset_of_a_configuration_is_indexed_and_shown_when_it_appears_and_when_it_changes(
    watcher: Watcher, scenes: Path
) -> None:
    data = watcher.project.root / "data" / "sample"
    assert watcher.look() == "Nothing new in 0 folders."
    shutil.copytree(scenes, data)
    assert "waiting until nothing has changed in it for 60 s" in watcher.look()
    request = one(watcher.look(61))
    assert request.asset_selection == [dg.AssetKey(["index", "sample"]), dg.AssetKey(["quality", "sample"])]
    result = watcher.run(request)
    assert result.success
    assert {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()} == {
        "index/sample",
        "quality/sample",
    }
    assert watcher.look(61) == "Nothing new in 1 folders."

    shutil.copytree(next(path.parent for path in data.rglob("meta.json")), data / "another")
    watcher.look(30)
    again = one(watcher.look(61))
    assert again.run_key != request.run_key, "the same key would make no second run"


def test_a_copy_under_way_is_left_alone(watcher: Watcher, scenes: Path) -> None:
    data = watcher.project.root / "data" / "sample"
    instance = next(path.parent for path in scenes.rglob("meta.json"))
    for number in range(4):
        shutil.copytree(instance, data / str(number))
        assert "waiting" in watcher.look(50)
    assert isinstance(watcher.look(61), list)


def test_an_index_that_failed_is_not_made_again_until_the_folder_changes(watcher: Watcher, scenes: Path) -> None:
    data = watcher.project.root / "data" / "sample"
    shutil.copytree(scenes, data)
    for path in data.rglob("depth.png"):
        path.write_bytes(b"no picture")
    watcher.look()
    first, second = one(watcher.look(61)), one(watcher.look(61))
    assert not watcher.run(first).success
    assert first.run_key == second.run_key == one(watcher.look(61)).run_key


def test_a_folder_that_no_configuration_names_is_looked_at_and_told_how_to_name(watcher: Watcher, scenes: Path) -> None:
    folder = watcher.project.root / "data" / "New room"
    shutil.copytree(scenes, folder)
    watcher.look()
    result = watcher.run(one(watcher.look(61)))
    assert result.success
    (output,) = [event for event in result.all_events if event.event_type == dg.DagsterEventType.STEP_OUTPUT]
    metadata = output.event_specific_data.metadata
    assert metadata["instances"].value == 2 and metadata["verdict"].value
    assert Path(metadata["page"].value).is_file()
    assert (folder / ".index.txt").is_file()

    lines = metadata["add to a configuration"].value.removeprefix("```json").removesuffix("```")
    source = watcher.project.train("other", [json.loads(lines)])
    (dataset,) = load_train_config(source).data.datasets
    assert dataset.resolved_path() == folder
    assert new_dataset_folders(folder.parent, read_catalog(watcher.project.root)) == []


def test_a_dropped_folder_that_cannot_be_used_fails_with_its_reason(watcher: Watcher, scenes: Path) -> None:
    folder = watcher.project.root / "data" / "broken"
    shutil.copytree(scenes, folder)
    for path in folder.rglob("depth.png"):
        path.write_bytes(b"no picture")
    watcher.look()
    result = watcher.run(one(watcher.look(61)))
    failure = next(event for event in result.all_events if event.is_step_failure).step_failure_data
    assert failure.user_failure_data is not None and str(folder) in str(failure.user_failure_data.description)


def test_only_folders_with_instances_count_as_new_datasets(project: Project, scenes: Path) -> None:
    project.train("sample", [{"name": "inner", "path": "data/outer/inner"}, {"name": "outside", "path": "elsewhere"}])
    data = project.root / "data"
    for name in ("plain", "outer/inner", "outer/inner/below", ".hidden", "deep/er/still"):
        shutil.copytree(scenes, data / name)
    (data / "photos").mkdir()
    (data / "photos" / "image.jpg").write_bytes(b"")
    (data / "notes.txt").write_text("no folder")
    shutil.copytree(next(path.parent for path in scenes.rglob("meta.json")), data / "single_instance")
    catalog = read_catalog(project.root)
    assert [path.name for path in new_dataset_folders(data, catalog)] == ["deep", "plain"]
    assert new_dataset_folders(project.root / "nowhere", catalog) == []


def test_datasets_can_be_dropped_elsewhere(watcher: Watcher, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOGE_DROP_DIR", str(watcher.project.root / "inbox"))
    monkeypatch.setenv("MOGE_DROP_SETTLE_S", "5")
    shutil.copytree(scenes, watcher.project.root / "inbox" / "room")
    assert "for 5 s" in watcher.look()
    assert one(watcher.look(6)).tags["moge/dataset"] == "room"


@pytest.mark.parametrize(("value", "runs"), [(None, False), ("0", False), ("1", True), ("on", True)])
def test_nothing_is_looked_at_by_itself_unless_automation_is_on(
    project: Project, monkeypatch: pytest.MonkeyPatch, value: str | None, runs: bool
) -> None:
    monkeypatch.delenv("MOGE_AUTOMATION", raising=False)
    if value is not None:
        monkeypatch.setenv("MOGE_AUTOMATION", value)
    sensor = dataset_folders_sensor(read_catalog(project.root), [])
    assert sensor.default_status == (dg.DefaultSensorStatus.RUNNING if runs else dg.DefaultSensorStatus.STOPPED)
