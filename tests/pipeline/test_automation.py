"""What starts by itself, and what does not."""

from __future__ import annotations

import shutil
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.observe import observe
from pipeline_project import FakeLauncher, NoTracking, Project

from moge_core.datasets import render_sample_scenes
from moge_pipeline.defs.references import beta_features


class Watch:
    """Evaluates the conditions again and again, as the daemon's sensor does, and makes what they ask for."""

    def __init__(self, project: Project, instance: dg.DagsterInstance) -> None:
        self.definitions = project.definitions(launcher=FakeLauncher(), mlflow=NoTracking())
        self.graph = self.definitions.resolve_asset_graph()
        self.instance = instance
        self.cursor: Any = None

    def tick(self) -> set[str]:
        with beta_features():
            result = dg.evaluate_automation_conditions(self.definitions, self.instance, cursor=self.cursor)
        self.cursor = result.cursor
        return {key.to_user_string() for key in self.graph.get_all_asset_keys() if result.get_num_requested(key)}

    def observe(self, dataset: str = "sample") -> None:
        key = dg.AssetKey(["raw", dataset])
        (asset,) = [each for each in self.graph.assets_defs if key in each.keys]
        observe([asset], instance=self.instance)

    def make(self, *assets: str) -> None:
        job = self.definitions.resolve_implicit_global_asset_job_def()
        keys = [dg.AssetKey.from_user_string(asset) for asset in assets]
        assert job.execute_in_process(instance=self.instance, asset_selection=keys).success

    def settle(self) -> set[str]:
        """Everything that is asked for until nothing more is."""
        asked: set[str] = set()
        while now := self.tick() - {"raw/sample"}:
            asked |= now
            self.make(*now)
        return asked


@pytest.fixture
def watch(project: Project, request: pytest.FixtureRequest) -> Any:
    project.train("sample")
    project.train("eager", automation="new_data")
    render_sample_scenes(project.root / "data" / "sample", 2, 1, size=(48, 36))
    with dg.DagsterInstance.ephemeral() as instance:
        watch = Watch(project, instance)
        watch.tick()
        yield watch


def test_new_data_makes_index_and_quality_anew_and_starts_only_the_training_that_asks_for_it(
    watch: Watch, project: Project
) -> None:
    watch.observe()
    asked = watch.settle()
    assert {"index/sample", "quality/sample"} <= asked
    assert "train_sample" not in asked
    watch.observe()
    assert watch.settle() == set(), "the same folder again asks for nothing"
    render_sample_scenes(project.root / "data" / "more", 1, 5, size=(48, 36))
    shutil.move(
        next(path.parent for path in (project.root / "data/more").rglob("meta.json")), project.root / "data/sample/new"
    )
    watch.observe()
    assert watch.settle() == {"index/sample", "quality/sample", "train_eager"}


def test_a_folder_that_is_not_there_is_left_alone(project: Project) -> None:
    project.train("later", [{"name": "later", "path": "data/later"}])
    with dg.DagsterInstance.ephemeral() as instance:
        watch = Watch(project, instance)
        watch.tick()
        watch.observe("later")
        assert watch.tick() - {"raw/later"} == set()
