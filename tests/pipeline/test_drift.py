"""A dataset is compared with what it was, and its index with what is there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest
from pipeline_project import Project, checks_of

from moge_core.datasets import render_sample_scenes
from moge_core.io import read_depth, write_depth

KEY = dg.AssetKey(["index", "sample"])


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "sample"
    render_sample_scenes(folder, 6, 1, size=(48, 36))
    return folder


@pytest.fixture
def scenes(project: Project, rendered: Path) -> Path:
    project.train("sample")
    return Path(shutil.copytree(rendered, project.root / "data" / "sample"))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


def staleness(project: Project, instance: dg.DagsterInstance) -> str:
    graph = project.definitions().resolve_asset_graph()
    return str(CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance)).get_status(KEY).value)


def indexed(project: Project, instance: dg.DagsterInstance) -> dg.AssetCheckEvaluation:
    definitions = project.definitions()
    (checks,) = [each for each in definitions.resolve_asset_graph().assets_defs if each.check_keys and not each.keys]
    result = dg.materialize([checks], instance=instance, selection=dg.AssetSelection.all_asset_checks())
    (evaluation,) = result.get_asset_check_evaluations()
    return evaluation


def test_the_same_folder_again_has_not_drifted(project: Project, scenes: Path, instance: dg.DagsterInstance) -> None:
    for _ in range(2):
        checks = checks_of(project.materialize("index/sample", instance=instance))
        assert checks["size_stable"].passed and checks["depth_stable"].passed


def test_a_dataset_that_shrank_is_told_without_blocking(
    project: Project, scenes: Path, instance: dg.DagsterInstance
) -> None:
    project.materialize("index/sample", instance=instance)
    for meta in sorted(scenes.rglob("meta.json"))[:4]:
        shutil.rmtree(meta.parent)
    result = project.materialize("index/sample", instance=instance)
    check = checks_of(result)["size_stable"]
    assert result.success and not check.passed and not check.blocking
    assert (check.metadata["instances before"].value, check.metadata["instances now"].value) == (6, 2)


def test_depth_in_another_unit_is_told(project: Project, scenes: Path, instance: dg.DagsterInstance) -> None:
    project.materialize("index/sample", instance=instance)
    for path in scenes.rglob("depth.png"):
        write_depth(path, 1000 * read_depth(path))
    check = checks_of(project.materialize("index/sample", instance=instance))["depth_stable"]
    assert not check.passed and "median depth" in str(check.description)


def test_a_changed_folder_makes_its_index_stale_and_indexing_makes_it_fresh_again(
    project: Project, scenes: Path, instance: dg.DagsterInstance
) -> None:
    assert not indexed(project, instance).passed, "never indexed"
    project.materialize("index/sample", instance=instance)
    assert staleness(project, instance) == "FRESH", "indexing has looked at the folder itself"
    assert indexed(project, instance).passed

    shutil.rmtree(next(scenes.rglob("meta.json")).parent)
    check = indexed(project, instance)
    assert not check.passed and "index/sample" in str(check.description)
    project.materialize("raw/sample", instance=instance)
    assert staleness(project, instance) == "STALE"
    project.materialize("index/sample", instance=instance)
    assert staleness(project, instance) == "FRESH"
    assert indexed(project, instance).passed
