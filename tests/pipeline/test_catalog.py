"""What the catalog makes of configuration files, the broken ones above all."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline_project import Project

from moge_pipeline.catalog import DatasetVariant, project_root, read_catalog, slug_of


def test_a_dataset_of_several_configurations_is_one_with_all_its_variants(project: Project) -> None:
    project.train("a", [{"name": "sample", "path": "data/sample"}])
    project.train(
        "b", [{"name": "sample", "path": "data/../data/sample", "index": ".train.txt", "depth": "filled.png"}]
    )
    catalog = read_catalog(project.root)
    (entry,) = catalog.datasets.values()
    assert entry.variants == [DatasetVariant(".index.txt", "depth.png"), DatasetVariant(".train.txt", "filled.png")]
    assert entry.used_by == ["train_a", "train_b"]
    assert [training.error for training in catalog.trainings.values()] == [None, None]


def test_a_name_with_another_path_is_an_error_of_the_later_file_alone(project: Project) -> None:
    project.train("a", [{"name": "sample", "path": "data/one"}])
    later = project.train("b", [{"name": "other", "path": "data/other"}, {"name": "sample", "path": "data/two"}])
    catalog = read_catalog(project.root)
    assert catalog.trainings["train_a"].error is None
    text = str(catalog.trainings["train_b"].error)
    assert str(later) in text and "data/one" in text and "data/two" in text
    assert list(catalog.datasets) == ["sample"], "a file in conflict adds none of its datasets"


def test_a_broken_file_keeps_its_place_and_the_others_stay_usable(project: Project) -> None:
    project.train("good")
    project.train("misspelt", low_resolution_trainig_steps=3)
    (project.root / "configs/train/torn.json").write_text('{"data": ')
    catalog = read_catalog(project.root)
    assert list(catalog.trainings) == ["train_good", "train_misspelt", "train_torn"]
    assert catalog.trainings["train_good"].error is None
    assert "low_resolution_training_steps" in str(catalog.trainings["train_misspelt"].error)
    assert "torn.json" in str(catalog.trainings["train_torn"].error)


@pytest.mark.parametrize(
    ("name", "slug"),
    [("TartanAir", "TartanAir"), ("GTA-SfM", "GTA_SfM"), ("my data (v2)", "my_data_v2"), ("日本", "unnamed")],
)
def test_names_become_identifiers(name: str, slug: str) -> None:
    assert slug_of(name) == slug


def test_two_names_with_one_slug_are_told_apart_by_an_error(project: Project) -> None:
    project.train("a", [{"name": "GTA-SfM", "path": "data/one"}])
    project.train("b", [{"name": "GTA SfM", "path": "data/one"}])
    catalog = read_catalog(project.root)
    assert catalog.trainings["train_a"].error is None
    assert "GTA_SfM" in str(catalog.trainings["train_b"].error)


def test_two_files_with_one_asset_name_both_have_an_asset(project: Project) -> None:
    project.train("v-1")
    project.train("v_1")
    catalog = read_catalog(project.root)
    assert catalog.trainings["train_v_1"].error is None
    assert "Rename" in str(catalog.trainings["train_v_1_2"].error)


def test_a_finetuning_finds_the_asset_of_its_base(project: Project) -> None:
    project.train("sample")
    project.finetune("one")
    project.finetune("two", base="finetune_one")
    project.finetune("file", base="pretrained/moge-vitl.pt")
    catalog = read_catalog(project.root)
    assert [entry.error for entry in catalog.finetunes.values()] == [None] * 3
    assert catalog.finetunes["finetune_one"].base_asset == "train_sample"
    assert catalog.finetunes["finetune_two"].base_asset == "finetune_one"
    assert catalog.finetunes["finetune_file"].base_asset is None
    assert catalog.finetunes["finetune_file"].base_slug == "pretrained_moge_vitl_pt"
    assert catalog.finetunes["finetune_one"].datasets == ["sample"]


def test_an_unknown_base_names_the_known_ones(project: Project) -> None:
    project.train("sample")
    project.finetune("lost", base="train_smaple")
    assert "train_sample" in str(read_catalog(project.root).finetunes["finetune_lost"].error)


def test_finetunings_in_a_circle_are_errors_and_those_beside_them_are_not(project: Project) -> None:
    project.train("sample")
    project.finetune("a", base="finetune_b")
    project.finetune("b", base="finetune_a")
    project.finetune("c", base="train_sample")
    finetunes = read_catalog(project.root).finetunes
    assert "descend" in str(finetunes["finetune_a"].error)
    assert "descend" in str(finetunes["finetune_b"].error)
    assert finetunes["finetune_c"].error is None


def test_a_cron_expression_that_never_comes_touches_its_finetuning_alone(project: Project) -> None:
    project.train("sample")
    project.finetune("bad", schedule={"cron": "99 * * * *"})
    project.finetune("good", schedule={"cron": "0 3 * * *"})
    finetunes = read_catalog(project.root).finetunes
    assert "99 * * * *" in str(finetunes["finetune_bad"].error)
    assert finetunes["finetune_good"].error is None


def test_the_root_is_named_or_where_configs_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "configs").mkdir(parents=True)
    (tmp_path / "named").mkdir()
    monkeypatch.delenv("MOGE_PROJECT_ROOT", raising=False)
    monkeypatch.chdir(tmp_path / "here")
    assert project_root() == tmp_path / "here"
    monkeypatch.chdir(tmp_path / "named")
    assert project_root() == Path(__file__).resolve().parents[2]
    monkeypatch.setenv("MOGE_PROJECT_ROOT", str(tmp_path / "named"))
    assert project_root() == tmp_path / "named"
