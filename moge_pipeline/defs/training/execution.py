"""One training as an asset runs it: quick checks, a workspace, a launched command, and what is told of its ending."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from moge_core.datasets.parallel import num_cores
from moge_core.errors import WorkspaceError
from moge_core.training import (
    CheckpointInfo,
    DatasetIdentity,
    RunFlags,
    RunStatus,
    TrainConfig,
    Workspace,
    WorkspaceChoice,
    check_training_inputs,
    choose_workspace,
)
from moge_core.training.workspace import write_json
from moge_pipeline.catalog import Catalog, slug_of
from moge_pipeline.defs.errors import mendable_errors
from moge_pipeline.defs.resources.launchers import Launcher, LaunchResources, LaunchResult
from moge_pipeline.defs.resources.tracking import MlflowTracking, TrainingInterruptedError
from moge_pipeline.defs.runs.worker import begin_step
from moge_pipeline.defs.training.run_config import LaunchConfig
from moge_pipeline.training_process import ENDING


@dataclass(frozen=True)
class BaseCheckpoint:
    """The checkpoint that a finetuning begins with. `step` is None where its file does not tell."""

    path: Path
    sha256: str
    step: int | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """How a materialization names the parent."""
        return {
            "parent_checkpoint": dg.MetadataValue.path(self.path),
            "parent_sha256": self.sha256,
            **({"parent_step": self.step} if self.step is not None else {}),
        }


def run_training(
    context: dg.AssetExecutionContext,
    launch: LaunchConfig,
    config: TrainConfig,
    catalog: Catalog,
    launcher: Launcher,
    mlflow: MlflowTracking,
    base: BaseCheckpoint | None = None,
) -> dg.MaterializeResult[Any]:
    """Train as `config` says, with the flags of `launch` over its `run` section, in a workspace of this asset.

    Raises:
        dg.Failure: the training cannot start (told before any process is launched), or it ended before its last step.
    """
    begin_step()
    asset_name = context.asset_key.path[-1]
    with mendable_errors():
        flags = _merged(config.run, launch.flags())
        datasets = check_training_inputs(config)
        choice = _choose_workspace(catalog.workspace_dir / asset_name, config, launch.resume, base)
        _log_choice(context, choice, flags)
        workspace = Workspace(choice.path)
        argv = launch_command(flags, workspace, _start(flags, choice, base))
        with workspace.lock():
            write_json(workspace.config_path, config.raw)
            if base is not None:
                write_json(_base_record(workspace), {"path": str(base.path), "sha256": base.sha256, "step": base.step})

    known: dict[str, Any] = {
        "workspace": dg.MetadataValue.path(workspace.path),
        "config": dg.MetadataValue.path(config.source),
        "config_digest": config.digest(),
        "datasets": _dataset_table(datasets),
        **(base.metadata if base is not None else {}),
    }
    resources = LaunchResources(
        cwd=catalog.root,
        run_dir=workspace.path.absolute(),
        num_processes=flags.num_processes or 1,
        terminate_grace_s=launch.terminate_grace_s,
        max_runtime_s=launch.max_runtime_s,
        launcher=launch.launcher,
    )
    before = workspace.status()
    with mlflow.asset_run(context, f"{asset_name}/{choice.path.name}") as run:
        run.describe(tags=_tags(workspace, config, datasets, base))
        result = launcher.run(context, argv, run.environment, resources)
        known |= run.metadata
        checkpoint = _require_success(result, workspace, before, known)
    return dg.MaterializeResult(metadata={**known, **_checkpoint_metadata(checkpoint), **result.metadata})


def launch_command(flags: RunFlags, workspace: Workspace, checkpoint: str | None) -> list[str]:
    """`accelerate launch` of the training, every choice spelled out so that accelerate neither asks nor warns."""
    num_processes = flags.num_processes or 1
    num_threads = max(1, num_cores() // num_processes)
    accelerate = {
        "--num_processes": num_processes,
        "--num_machines": 1,
        "--mixed_precision": flags.mixed_precision or "no",
        "--dynamo_backend": "no",
        "--num_cpu_threads_per_process": os.environ.get("OMP_NUM_THREADS") or num_threads,
    }
    argv = [sys.executable, "-m", "accelerate.commands.launch"]
    argv += [str(word) for pair in accelerate.items() for word in pair]
    if num_processes > 1:
        # Also on a CPU this is the flag that makes accelerate start more than one process; port 0 takes a free one.
        argv += ["--multi_gpu", "--main_process_port", "0"]
    elif not has_gpu():
        argv += ["--cpu"]
    argv += ["-m", "moge_pipeline.training_process"]
    argv += ["--config", str(workspace.config_path), "--workspace", str(workspace.path)]
    argv += flags.model_copy(update={"checkpoint": None}).as_argv()
    return argv + (["--checkpoint", checkpoint] if checkpoint is not None else [])


def has_gpu() -> bool:
    """Whether an NVIDIA device is visible, told without torch."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and any(Path("/dev").glob("nvidia[0-9]*"))


def _merged(file_flags: RunFlags, run_flags: RunFlags) -> RunFlags:
    return RunFlags(**{**file_flags.model_dump(exclude_none=True), **run_flags.model_dump(exclude_none=True)})


def _choose_workspace(root: Path, config: TrainConfig, resume: str, base: BaseCheckpoint | None) -> WorkspaceChoice:
    """As `choose_workspace`, and an unfinished finetuning is continued by itself only while its base is the same."""
    choice = choose_workspace(root, config, resume)
    if resume == "auto" and choice.resumes and base is not None:
        began_with = _read_base(Workspace(choice.path))
        if began_with is not None and began_with != base.sha256:
            anew = choose_workspace(root, config, "never")
            return WorkspaceChoice(anew.path, anew.resumes, [*anew.changed_keys, "base"])
    return choice


def _base_record(workspace: Workspace) -> Path:
    return workspace.path / "base.json"


def _read_base(workspace: Workspace) -> str | None:
    from moge_core.configuration import load_json

    path = _base_record(workspace)
    return str(load_json(path)["sha256"]) if path.is_file() else None


def _log_choice(context: dg.AssetExecutionContext, choice: WorkspaceChoice, flags: RunFlags) -> None:
    context.log.info(f"{'Continuing' if choice.resumes else 'Beginning'} workspace {choice.path}")
    if choice.changed_keys:
        context.log.info(f"Changed since the newest run: {', '.join(choice.changed_keys)}")
    if choice.resumes and flags.checkpoint not in (None, "latest") and not str(flags.checkpoint).isdigit():
        context.log.info(
            f"The run goes on from its own newest checkpoint, not from `{flags.checkpoint}`;"
            " set `resume` to `never` to begin anew."
        )


def _start(flags: RunFlags, choice: WorkspaceChoice, base: BaseCheckpoint | None) -> str | None:
    """What `--checkpoint` names: a run that goes on has its own, a new one its base or what the flags say."""
    own = {checkpoint.step for checkpoint in Workspace(choice.path).checkpoints()} if choice.resumes else set()
    if flags.checkpoint is not None and flags.checkpoint.isdigit():
        if int(flags.checkpoint) not in own:
            raise WorkspaceError(
                choice.path,
                f"must hold a checkpoint of step {flags.checkpoint}",
                found=f"steps {sorted(own)}" if own else "a new workspace",
                fix="Give `resume` the path of the workspace that has it.",
            )
        return flags.checkpoint
    if own:
        return "latest"
    return str(base.path) if base is not None else flags.checkpoint


def _tags(
    workspace: Workspace, config: TrainConfig, datasets: Iterable[DatasetIdentity], base: BaseCheckpoint | None
) -> dict[str, str]:
    tags = {
        "moge.workspace": str(workspace.path),
        "moge.source": str(config.source),
        "moge.config_digest": config.digest(),
    }
    tags |= {f"moge.dataset.{slug_of(dataset.name)}": dataset.digest for dataset in datasets}
    if base is not None:
        tags |= {"moge.parent_checkpoint": str(base.path), "moge.parent_sha256": base.sha256}
    return tags


def _require_success(
    result: LaunchResult, workspace: Workspace, before: RunStatus | None, known: Mapping[str, Any]
) -> CheckpointInfo:
    """The newest checkpoint of a training that reached its end.

    Raises:
        dg.Failure: it did not. `accelerate launch` hides exit codes, so the trainer's own status tells the reason.
    """
    checkpoint = workspace.latest_checkpoint()
    told = _ending(result, workspace, before)
    if result.exit_code == 0 and told is not None and told.state == "finished" and checkpoint is not None:
        return checkpoint
    metadata = {**known, "exit_code": result.exit_code, **(_checkpoint_metadata(checkpoint) if checkpoint else {})}
    if told is None:
        raise dg.Failure(
            description="The training ended before its first step; the end of this step's stdout and stderr says why.",
            metadata=metadata,
            allow_retries=False,
        )
    when = f" after step {told.step}" if told.step >= 0 else " before its first step"
    text = f"The training {_ENDINGS[told.state]}{when}: {told.reason.rstrip('.')}."
    text += " Materialize the asset again to continue from its last checkpoint." if told.resumable else ""
    # A trainer that was asked to end says so itself; one that is merely gone was killed, for example for its memory.
    failure = TrainingInterruptedError if told.state == "interrupted" and result.messages else dg.Failure
    raise failure(description=text, metadata={**metadata, "resumable": told.resumable}, allow_retries=told.resumable)


def _ending(result: LaunchResult, workspace: Workspace, before: RunStatus | None) -> RunStatus | None:
    """What the trainer said of its end: through Pipes, or in the workspace if it was killed; None if it never began."""
    told = [message[ENDING] for message in result.messages if isinstance(message, dict) and ENDING in message]
    if told:
        return RunStatus(**told[0])
    status = workspace.status()
    return None if status == before else status


_ENDINGS = {"interrupted": "was interrupted", "failed": "failed", "running": "was killed", "finished": "ended"}


def _checkpoint_metadata(checkpoint: CheckpointInfo) -> dict[str, Any]:
    return {"checkpoint": dg.MetadataValue.path(checkpoint.model_path), "step": checkpoint.step}


def _dataset_table(datasets: Iterable[DatasetIdentity]) -> dg.TableMetadataValue:
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "dataset": dataset.name,
                    "instances": dataset.num_instances,
                    "index": str(dataset.index_path),
                    "digest": dataset.digest,
                }
            )
            for dataset in datasets
        ]
    )
