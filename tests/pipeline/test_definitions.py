"""What a Dagster code location shows of a project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from pipeline_project import FakeLauncher, Project, failure_text

from moge_core.training import RunFlags
from moge_pipeline.catalog import read_catalog
from moge_pipeline.defs.training.run_config import LaunchConfig

REPOSITORY = Path(__file__).resolve().parents[2]


def graph_of(definitions: dg.Definitions) -> dict[str, list[str]]:
    graph = definitions.resolve_asset_graph()
    return {
        key.to_user_string(): sorted(parent.to_user_string() for parent in graph.get(key).parent_keys)
        for key in sorted(graph.get_all_asset_keys(), key=lambda key: key.to_user_string())
    }


def test_definitions_load_without_torch_mlflow_and_their_kind() -> None:
    heavy = {"torch", "mlflow", "dagster_mlflow", "matplotlib", "scipy", "sympy", "trimesh", "huggingface_hub"}
    code = f"import moge_pipeline.definitions, sys; print(sorted({heavy!r} & set(sys.modules)))"
    # Away from the test run's own folder, whose coverage or plugins could import anything.
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert result.stdout.strip() == "[]"
    assert result.stderr == ""


def test_the_asset_graph_is_the_one_that_people_know(project: Project) -> None:
    project.train("v1", [{"name": "Tartan-Air", "path": "data/a"}, {"name": "room", "path": "data/room"}])
    project.train("sample")
    project.finetune("sample")
    project.finetune("hub", base="Ruicheng/moge-vitl")
    assert graph_of(project.definitions()) == {
        "checkpoint/Ruicheng_moge_vitl": [],
        "finetune_hub": ["checkpoint/Ruicheng_moge_vitl", "index/sample"],
        "finetune_sample": ["index/sample", "train_sample"],
        "index/Tartan_Air": ["raw/Tartan_Air"],
        "index/room": ["raw/room"],
        "index/sample": ["raw/sample"],
        "quality/Tartan_Air": ["index/Tartan_Air"],
        "quality/room": ["index/room"],
        "quality/sample": ["index/sample"],
        "raw/Tartan_Air": [],
        "raw/room": [],
        "raw/sample": [],
        "train_sample": ["index/sample"],
        "train_v1": ["index/Tartan_Air", "index/room"],
    }


def test_every_asset_has_a_description_and_the_group_of_its_stage(project: Project) -> None:
    project.train("sample")
    project.finetune("sample", base="pretrained/a.pt")
    graph = project.definitions().resolve_asset_graph()
    groups = {"train": "training", "finetune": "finetuning", "checkpoint": "finetuning"}
    for key in graph.get_all_asset_keys():
        stage = key.path[0].split("_")[0]
        assert graph.get(key).group_name == groups.get(stage, stage)
        assert graph.get(key).description


def test_every_flag_of_a_run_is_in_the_run_configuration_with_its_description(project: Project) -> None:
    project.train("sample")
    (train,) = [
        d for d in project.definitions().resolve_asset_graph().assets_defs if d.key == dg.AssetKey("train_sample")
    ]
    fields = train.op.config_schema.config_type.fields
    assert set(fields) == {*RunFlags.model_fields, *LaunchConfig.model_fields}
    assert all(field.description and not field.is_required for field in fields.values())


def test_a_broken_configuration_spoils_its_own_asset_alone(project: Project) -> None:
    project.train("good")
    broken = project.train("broken", low_resolution_trainig_steps=3)
    project.finetune("orphan", base="train_nowhere", config="configs/train/good.json")
    definitions = project.definitions()
    graph = definitions.resolve_asset_graph()
    shown = graph.get(dg.AssetKey("train_broken")).description
    assert "cannot be used" in shown and "low_resolution_training_steps" in shown
    assert "train_nowhere" in graph.get(dg.AssetKey("finetune_orphan")).description

    project.index()
    launcher = FakeLauncher()
    failed = project.materialize("train_broken", launcher=launcher)
    assert failure_text(failed) == str(read_catalog(project.root).trainings["train_broken"].error)
    assert str(broken) in failure_text(failed)
    assert launcher.argv == []
    assert project.materialize("train_good", launcher=launcher).success


@pytest.mark.parametrize("kind", ["train", "finetune"])
def test_the_configurations_of_this_repository_are_usable(kind: str) -> None:
    catalog = read_catalog(REPOSITORY)
    entries = (catalog.trainings if kind == "train" else catalog.finetunes).values()
    assert entries
    assert [str(entry.error) for entry in entries if entry.error is not None] == []
