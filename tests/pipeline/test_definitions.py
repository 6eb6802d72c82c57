"""What a Dagster code location shows of a project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pipeline_project import FakeLauncher, Project, failure_text

from moge_core.training import RunFlags
from moge_pipeline.catalog import read_catalog
from moge_pipeline.defs.training.run_config import LaunchConfig

REPOSITORY = Path(__file__).resolve().parents[2]


SNAPSHOT = Path(__file__).with_name("asset_graph.json")
UPDATE_VARIABLE = "MOGE_UPDATE_SNAPSHOTS"


def graph_of(definitions: dg.Definitions) -> dict[str, Any]:
    """Everything that a person sees in the graph and beside it, as plain values."""
    graph = definitions.resolve_asset_graph()
    keys = sorted(graph.get_all_asset_keys(), key=lambda key: key.to_user_string())
    repository = definitions.get_repository_def()
    return {
        "assets": {key.to_user_string(): _shown(graph.get(key)) for key in keys},
        "jobs": {
            name: sorted(key.to_user_string() for key in repository.get_job(name).asset_layer.selected_asset_keys)
            for name in sorted(repository.job_names)
            if not name.startswith("__")
        },
        "schedules": {each.name: [each.cron_schedule, each.default_status.value] for each in repository.schedule_defs},
        "sensors": {
            each.name: each.default_status.value for each in sorted(repository.sensor_defs, key=lambda each: each.name)
        },
    }


def _shown(node: Any) -> dict[str, Any]:
    return {
        "deps": sorted(parent.to_user_string() for parent in node.parent_keys),
        "group": node.group_name,
        "kinds": sorted(tag.removeprefix("dagster/kind/") for tag in node.tags if "/kind/" in tag),
        "owners": sorted(node.owners),
        "pools": sorted(node.pools or ()),
        "checks": sorted(check.name for check in node.check_keys),
        "automated": node.automation_condition is not None,
        "executable": node.is_executable,
    }


def test_definitions_load_without_torch_mlflow_and_their_kind() -> None:
    heavy = {"torch", "mlflow", "dagster_mlflow", "matplotlib", "scipy", "sympy", "trimesh", "huggingface_hub"}
    code = f"import moge_pipeline.definitions, os, sys; print(sorted({heavy!r} & set(sys.modules)))"
    # What steps import later finds the settings of torch's memory in place.
    code += "; print(os.environ['PYTORCH_ALLOC_CONF'])"
    env = {**os.environ, "MOGE_ACCELERATORS": "0"}
    # Away from the test run's own folder, whose coverage or plugins could import anything.
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert result.stdout.split() == ["[]", "expandable_segments:True"]
    assert result.stderr == ""


def test_the_asset_graph_is_the_one_that_people_know(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOGE_AUTOMATION", raising=False)
    project.train("v1", [{"name": "Tartan-Air", "path": "data/a"}, {"name": "room", "path": "data/room"}])
    project.train("sample", owners=["team:vision", "ada@example.org"], automation="new_data")
    project.finetune("sample", schedule={"cron": "0 3 * * *", "enabled": True})
    project.finetune("hub", base="Ruicheng/moge-vitl")
    graph = graph_of(project.definitions())
    if os.environ.get(UPDATE_VARIABLE):
        SNAPSHOT.write_text(json.dumps(graph, indent=1, sort_keys=True) + "\n")
    assert graph == json.loads(SNAPSHOT.read_text()), f"meant so? {UPDATE_VARIABLE}=1 writes {SNAPSHOT.name} anew"


def test_every_asset_has_a_description_and_the_group_of_its_stage(project: Project) -> None:
    project.train("sample")
    project.finetune("sample", base="pretrained/a.pt")
    graph = project.definitions().resolve_asset_graph()
    groups = {"train": "training", "finetune": "finetuning", "checkpoint": "finetuning", "evaluation": "evaluation"}
    for key in graph.get_all_asset_keys():
        stage = key.path[0].split("_")[0]
        assert graph.get(key).group_name == groups.get(stage, stage)
        assert graph.get(key).description


def test_every_flag_of_a_run_is_in_the_run_configuration_with_its_description(project: Project) -> None:
    project.train("sample")
    key = dg.AssetKey("train_sample")
    (train,) = [each for each in project.definitions().resolve_asset_graph().assets_defs if key in each.keys]
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
