"""Raw folders, indexes with their checks, and quality reports, on rendered scenes."""

import base64
import io
import os
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from PIL import Image
from pipeline_project import FakeLauncher, Project, checks_of, metadata_of

from moge_core.datasets import RULES, read_index, render_sample_scenes
from moge_pipeline.defs.datasets.checks import CHECKS
from moge_pipeline.defs.quality.thumbnails import small_png


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "sample"
    render_sample_scenes(folder, 3, 1, size=(64, 48))
    return folder


@pytest.fixture
def scenes(project: Project, rendered: Path) -> Path:
    """The dataset of the project's only training."""
    project.train("sample")
    return Path(shutil.copytree(rendered, project.root / "data" / "sample"))


def instances_of(folder: Path) -> list[str]:
    return sorted(path.parent.relative_to(folder).as_posix() for path in folder.rglob("meta.json"))


def observe(project: Project) -> Any:
    result = project.materialize("raw/sample")
    (event,) = [event for event in result.all_events if event.event_type_value == "ASSET_OBSERVATION"]
    return event.asset_observation_data.asset_observation


def test_observing_a_raw_folder_tells_when_it_has_changed(project: Project, scenes: Path) -> None:
    first, again = observe(project).data_version, observe(project).data_version
    assert first == again
    image = next(scenes.rglob("image.jpg"))
    os.utime(image, (1, 1))
    assert observe(project).data_version != first


def test_a_raw_folder_that_is_missing_is_observed_as_absent(project: Project) -> None:
    project.train("sample")
    observation = observe(project)
    assert observation.data_version == "absent"
    assert str(project.root / "data" / "sample") in observation.metadata["state"].value


def test_an_index_lists_the_instances_and_passes_its_checks(project: Project, scenes: Path) -> None:
    result = project.materialize("index/sample")
    metadata = metadata_of(result)
    assert metadata["instances"] == metadata["scanned"] == 3
    assert metadata["path"] == str(scenes / ".index.txt")
    assert read_index(scenes) == instances_of(scenes)
    passed = {name: check.passed for name, check in checks_of(result).items()}
    assert passed == dict.fromkeys([*CHECKS, "size_stable", "depth_stable"], True)


def test_every_rule_of_a_dataset_belongs_to_one_check() -> None:
    covered = [rule for _, rules in CHECKS.values() for rule in rules]
    assert sorted(covered) == sorted(RULES)


def test_a_broken_instance_of_the_users_own_list_blocks_what_is_downstream(project: Project, scenes: Path) -> None:
    listed = instances_of(scenes)
    (scenes / ".index.txt").write_text("".join(f"{instance}\n" for instance in listed))
    (scenes / listed[1] / "meta.json").write_text('{"intrinsics": [[500, 0, 320], [0, 500, 240], [0, 0, 1]]}')
    launcher = FakeLauncher()
    result = project.materialize("index/sample", "train_sample", launcher=launcher)
    checks = checks_of(result)
    assert {name for name, check in checks.items() if not check.passed} == {"intrinsics_normalised"}
    assert checks["intrinsics_normalised"].severity == dg.AssetCheckSeverity.ERROR
    assert listed[1] in str(checks["intrinsics_normalised"].metadata["findings"].value)
    assert not result.success
    assert launcher.argv == [], "training was not started"


def test_a_broken_instance_that_is_left_out_is_told_and_does_not_block(project: Project, scenes: Path) -> None:
    broken = instances_of(scenes)[0]
    (scenes / broken / "depth.png").write_bytes(b"no picture")
    result = project.materialize("index/sample")
    assert result.success
    assert broken not in read_index(scenes)
    checks = checks_of(result)
    assert not checks["depth_decodable"].passed
    assert checks["depth_decodable"].severity == dg.AssetCheckSeverity.WARN
    assert checks["depth_decodable"].description == "1 in instances left out"


def test_an_index_is_judged_by_what_configurations_take_it_for(project: Project, scenes: Path) -> None:
    dataset = {"name": "sample", "path": "data/sample", "label_type": "synthetic"}
    project.train("sample", [{**dataset, "depth_unit": 1.0}])
    assert checks_of(project.materialize("index/sample"))["depth_plausible"].passed
    project.train("other", [{**dataset, "depth_unit": 0.000001}])
    check = checks_of(project.materialize("index/sample"))["depth_plausible"]
    assert not check.passed and check.severity == dg.AssetCheckSeverity.WARN
    assert "unit-plausible" in str(check.metadata["findings"].value)


def test_each_list_that_configurations_read_is_indexed(project: Project, scenes: Path) -> None:
    project.train("split", [{"name": "sample", "path": "data/sample", "index": ".train.txt"}])
    (scenes / ".train.txt").write_text(instances_of(scenes)[0] + "\n")
    metadata = metadata_of(project.materialize("index/sample"))
    rows = {record.data["index"]: record.data["instances"] for record in metadata["lists"].records}
    assert rows == {".index.txt": 3, ".train.txt": 1}


def test_quality_shows_pictures_and_names_the_point_cloud_of_every_sample(project: Project, scenes: Path) -> None:
    project.materialize("index/sample")
    metadata = metadata_of(project.materialize("quality/sample", config={"num_samples": 2}))
    clouds = {record.data["instance"]: Path(record.data["ply"]) for record in metadata["point_clouds"].records}
    assert len(clouds) == 2
    assert set(clouds) <= set(instances_of(scenes))
    for path in clouds.values():
        assert path.read_bytes().startswith(b"ply")
        assert project.root / "workspace" / "quality" / "sample" in path.parents
    for name in ("contact_sheet", "depth_histogram"):
        data = metadata[name].split("base64,")[1].rstrip(")")
        assert len(data) <= 80_000
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.width > 100
    assert metadata["statistics"]
    page = Path(metadata["page"])
    assert page == project.root / "workspace" / "quality" / "sample" / "report.html"
    assert page.read_bytes().startswith(b"<!doctype html>")
    assert metadata["verdict"] == "3 instances, none broken, no warnings."


@pytest.mark.parametrize("size", [(600, 450), (3000, 20), (1, 1)])
def test_a_thumbnail_fits_into_its_bytes(tmp_path: Path, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    data = small_png((tmp_path / "noise.png").read_bytes(), 20_000)
    assert len(data) <= 20_000
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
