"""A small project in a temporary folder: configurations, and what stands in for the training command."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg
from tiny_instances import write_tiny_instance

from moge_core.training import RunStatus, Workspace
from moge_core.training.workspace import write_json
from moge_pipeline.definitions import build_definitions
from moge_pipeline.defs.resources.launchers import LaunchResources, LaunchResult
from moge_pipeline.training_process import ENDING

TRAIN_CONFIG: dict[str, Any] = {
    "data": {
        "image_sizes": [[140, 112]],
        "fov_range_absolute": [30, 120],
        "fov_range_relative": [0.7, 1.0],
        "datasets": [{"name": "sample", "path": "data/sample", "label_type": "synthetic"}],
    },
    "model_version": "v1",
    "model": {
        "encoder": "dinov2_vitt14",
        "remap_output": "exp",
        "intermediate_layers": 2,
        "dim_proj": 32,
        "dim_upsample": [16, 16, 8],
        "dim_times_res_block_hidden": 1,
        "num_res_blocks": 1,
        "num_tokens_range": [20, 20],
        "last_conv_channels": 8,
        "last_conv_size": 1,
    },
    "optimizer": {"type": "AdamW", "params": [{"params": {"include": ["*"]}, "lr": 1e-4}]},
    "lr_scheduler": {"type": "ConstantLR", "params": {"factor": 1.0, "total_iters": 1}},
    "loss": {"synthetic": {"global": {"function": "affine_invariant_global_loss", "params": {"align_resolution": 8}}}},
    "run": {"num_iterations": 4, "batch_size_forward": 2, "init": "random", "num_processes": 1},
}


class Project:
    """A project folder whose configurations a test writes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def train(self, stem: str, datasets: Sequence[Mapping[str, Any]] = (), **sections: Any) -> Path:
        """Write `configs/train/<stem>.json`: the small configuration with these datasets and sections."""
        config = {**copy.deepcopy(TRAIN_CONFIG), **sections}
        if datasets:
            config["data"]["datasets"] = [{"label_type": "synthetic", **dataset} for dataset in datasets]
        return self._write(f"configs/train/{stem}.json", config)

    def finetune(self, stem: str, **values: Any) -> Path:
        """Write `configs/finetune/<stem>.json`."""
        return self._write(
            f"configs/finetune/{stem}.json", {"base": "train_sample", "config": "configs/train/sample.json", **values}
        )

    def definitions(self, **resources: Any) -> dg.Definitions:
        """What Dagster makes of the project."""
        return build_definitions(self.root, resources)

    def index(self, dataset: str = "sample", instances: Sequence[str] = ("a", "b")) -> None:
        """Write tiny instances, and a list of them as a user makes it."""
        folder = self.root / "data" / dataset
        for instance in instances:
            write_tiny_instance(folder, instance)
        (folder / ".index.txt").write_text("".join(f"{instance}\n" for instance in instances))

    def materialize(
        self,
        *assets: str,
        launcher: Any = None,
        mlflow: Any = None,
        config: Mapping[str, Any] | None = None,
        instance: dg.DagsterInstance | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Run assets in this process, with stand-ins for the training command and, unless given, for MLflow.

        `config` is the run configuration of the first asset; without an `instance` nothing is remembered.
        """
        definitions = self.definitions(launcher=launcher or FakeLauncher(), mlflow=mlflow or NoTracking())
        ops = {assets[0].replace("/", "__"): {"config": dict(config)}} if config else {}
        with nullcontext(instance) if instance is not None else dg.DagsterInstance.ephemeral() as used:
            return definitions.resolve_implicit_global_asset_job_def().execute_in_process(
                run_config={"ops": ops},
                asset_selection=[dg.AssetKey.from_user_string(asset) for asset in assets],
                instance=used,
                raise_on_error=False,
            )

    def _write(self, name: str, values: Mapping[str, Any]) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
        return path


class NoTracking:
    """Stands in for MLflow where a test is about something else."""

    def asset_run(self, context: Any, name: str) -> Any:
        from moge_pipeline.defs.resources.tracking import TrackedRun

        return nullcontext(TrackedRun("sqlite:///unused.db"))


class FakeLauncher:
    """Stands in for the training command: leaves a checkpoint and a status as the trainer does."""

    def __init__(self, state: str = "finished", reason: str = "reached 4 iterations", step: int = 3) -> None:
        self.state, self.reason, self.step = state, reason, step
        self.argv: list[str] = []
        self.env: dict[str, str] = {}
        self.resources: LaunchResources | None = None
        self.error: BaseException | None = None
        self.tells_dagster = True

    def flag(self, name: str) -> str | None:
        """Value of a flag of the launched command."""
        return self.argv[self.argv.index(name) + 1] if name in self.argv else None

    def run(
        self, context: Any, argv: Sequence[str], env: Mapping[str, str], resources: LaunchResources
    ) -> LaunchResult:
        self.argv, self.env, self.resources = list(argv), dict(env), resources
        if self.error is not None:
            raise self.error
        status = RunStatus(self.state, self.reason, self.step, 4, resumable=self.state == "interrupted")  # type: ignore[arg-type]
        workspace = Workspace(str(self.flag("--workspace")))
        if self.step >= 0:
            save_fake_checkpoint(workspace, self.step)
            workspace.write_status(status)
        messages = [{ENDING: asdict(status)}] if self.tells_dagster else []
        return LaunchResult(0 if self.state == "finished" else 1, {"loss": 0.5}, messages)


class InProcessLauncher:
    """Runs the real trainer inside the test's process, where starting another one would take most of the time."""

    def run(
        self, context: Any, argv: Sequence[str], env: Mapping[str, str], resources: LaunchResources
    ) -> LaunchResult:
        from moge_core.training import main

        flags = list(argv[argv.index("moge_pipeline.training_process") + 1 :])
        return LaunchResult(main([*flags, "--num_workers", "0", "--enable_mlflow", "False"]))


def save_fake_checkpoint(workspace: Workspace, step: int, content: bytes = b"weights") -> None:
    """A complete checkpoint, as far as anything but torch can tell."""
    import hashlib

    workspace.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    (workspace.checkpoint_dir / f"{step:08d}.pt").write_bytes(content)
    file = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_json(workspace.checkpoint_dir / f"{step:08d}.json", {"step": step, "files": {f"{step:08d}.pt": file}})


def failure_text(result: dg.ExecuteInProcessResult) -> str:
    """What Dagster shows of the step that failed."""
    failure = next(event for event in result.all_events if event.is_step_failure)
    data = failure.step_failure_data
    description = data.user_failure_data.description if data.user_failure_data else None
    return description or str(data.error)


def metadata_of(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """Metadata of a run's only materialization, as plain values."""
    (event,) = result.get_asset_materialization_events()
    return {name: value.value for name, value in event.materialization.metadata.items()}


def checks_of(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """What a run's checks found, by their names."""
    return {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}
