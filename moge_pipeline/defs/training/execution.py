"""One training as an asset runs it: quick checks, a workspace, a launched command, and what is told of its ending."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from moge_core.configuration import load_json
from moge_core.errors import WorkspaceError
from moge_core.training import (
    CheckpointInfo,
    DatasetIdentity,
    RunFlags,
    RunStatus,
    TrainConfig,
    Workspace,
    WorkspaceChoice,
    check_training_data,
    choose_workspace,
)
from moge_core.training.provenance import LaunchRecord, code_state
from moge_core.training.workspace import write_json
from moge_pipeline.accelerate_command import launch_command
from moge_pipeline.catalog import Catalog, slug_of
from moge_pipeline.defs.errors import mendable_errors
from moge_pipeline.defs.resources.launchers import Launcher, LaunchResources, LaunchResult
from moge_pipeline.defs.resources.launchers.settings import read_launcher_settings
from moge_pipeline.defs.resources.tracking import MlflowTracking, TrackedRun, TrainingInterruptedError
from moge_pipeline.defs.runs.worker import begin_step
from moge_pipeline.defs.training.pictures import training_pictures
from moge_pipeline.defs.training.run_config import LaunchConfig
from moge_pipeline.training_process import ENDING

RETRY_DELAY_S = 5.0


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

    @property
    def record(self) -> dict[str, Any]:
        """How a workspace remembers what it began with."""
        return {"path": str(self.path), "sha256": self.sha256, "step": self.step}


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
        dg.RetryRequested: it ended before its last step and goes on in a retry.
    """
    begin_step()
    asset_name = context.asset_key.path[-1]
    with mendable_errors():
        flags = _merged(config.run, launch.flags())
        datasets = check_training_data(config, flags, log=context.log.info)
        # A retry goes on with what its first attempt began.
        resume = "auto" if launch.resume == "never" and context.retry_number > 0 else launch.resume
        choice = _choose_workspace(catalog.workspace_dir / asset_name, config, resume, base)
        _log_choice(context, choice, flags)
        workspace = Workspace(choice.path)
        argv = launch_command(flags, workspace, _start(flags, choice, base))
        launcher_name = read_launcher_settings(catalog.root).choose(asset_name, launch.launcher)
        with workspace.lock():
            write_json(workspace.config_path, config.raw)
            if base is not None:
                write_json(_base_record(workspace), base.record)

    known: dict[str, Any] = {
        "datasets": _dataset_table(datasets),
        "workspace": dg.MetadataValue.path(workspace.path),
        "config": dg.MetadataValue.path(config.source),
        **(base.metadata if base is not None else {}),
        "config_digest": config.digest(),
    }
    resources = LaunchResources(
        cwd=catalog.root,
        run_dir=workspace.path.absolute(),
        num_processes=flags.num_processes or 1,
        terminate_grace_s=launch.terminate_grace_s,
        max_runtime_s=launch.max_runtime_s,
        launcher=launcher_name,
    )
    before = workspace.status()
    with mlflow.asset_run(context, f"{asset_name}/{choice.path.name}") as run:
        record = _launch_record(context, run, config, launcher_name)
        run.describe(tags={**_tags(workspace, config, datasets, base), **record.mlflow_tags()})
        result = launcher.run(context, argv, {**run.environment, **record.environment()}, resources)
        run.describe(tags={f"moge.launch.{name}": value for name, value in result.tags.items()})
        known |= {**run.metadata, **result.tags}
        checkpoint = _require_success(context, launch, result, workspace, before, known)
    # What a person wants to know stands first.
    shown = {**_checkpoint_metadata(checkpoint), **run.metadata, **training_pictures(workspace)}
    return dg.MaterializeResult(metadata={**shown, **result.metadata, **known})


def _launch_record(
    context: dg.AssetExecutionContext, run: TrackedRun, config: TrainConfig, launcher: str
) -> LaunchRecord:
    """What the trainer writes into its checkpoints of who launched it."""
    code = code_state()
    return LaunchRecord(
        launcher=launcher,
        dagster_run_id=context.run.run_id,
        asset_key=context.asset_key.to_user_string(),
        mlflow_run_id=run.run_id,
        mlflow_uri=run.tracking_uri,
        git_commit=code.commit if code else None,
        git_dirty=code.dirty if code else None,
        config_source=str(config.source),
        retry=context.retry_number,
    )


def _merged(file_flags: RunFlags, run_flags: RunFlags) -> RunFlags:
    return RunFlags(**{**file_flags.model_dump(exclude_none=True), **run_flags.model_dump(exclude_none=True)})


def _choose_workspace(root: Path, config: TrainConfig, resume: str, base: BaseCheckpoint | None) -> WorkspaceChoice:
    """As `choose_workspace`, and an unfinished finetuning is continued by itself only while its base is the same."""
    choice = choose_workspace(root, config, resume)
    if resume == "auto" and choice.resumes and base is not None:
        began_with = read_base_record(Workspace(choice.path))
        if began_with is not None and str(began_with["sha256"]) != base.sha256:
            anew = choose_workspace(root, config, "never")
            return WorkspaceChoice(anew.path, anew.resumes, [*anew.changed_keys, "base"])
    return choice


def _base_record(workspace: Workspace) -> Path:
    return workspace.path / "base.json"


def read_base_record(workspace: Workspace) -> dict[str, Any] | None:
    """What a workspace began with, see `BaseCheckpoint.record`; None for one that began with no checkpoint."""
    path = _base_record(workspace)
    return load_json(path) if path.is_file() else None


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
    context: dg.AssetExecutionContext,
    launch: LaunchConfig,
    result: LaunchResult,
    workspace: Workspace,
    before: RunStatus | None,
    known: Mapping[str, Any],
) -> CheckpointInfo:
    """The newest checkpoint of a training that reached its end.

    Raises:
        dg.RetryRequested: it ended early, can go on and may be retried.
        dg.Failure: it did not, and that stays. `accelerate launch` hides exit codes, so the trainer's own status tells
            the reason.
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
    if result.timed_out:
        text += f" It had run for {launch.max_runtime_s:g} s, its maximum."
    # A trainer that was asked to end says so itself; one that is merely gone was killed, for example for its memory.
    interrupted = told.state == "interrupted" and bool(result.messages)
    kind = TrainingInterruptedError if interrupted else dg.Failure
    if told.resumable and not result.timed_out and context.retry_number < launch.max_retries:
        context.log.warning(f"{text} It goes on from its latest checkpoint, retry {context.retry_number + 1}.")
        cause = kind(description=text, metadata=metadata)
        raise dg.RetryRequested(max_retries=launch.max_retries, seconds_to_wait=RETRY_DELAY_S) from cause
    text += " Materialize the asset again to continue from its last checkpoint." if told.resumable else ""
    raise kind(description=text, metadata={**metadata, "resumable": told.resumable}, allow_retries=False)


def _ending(result: LaunchResult, workspace: Workspace, before: RunStatus | None) -> RunStatus | None:
    """What the trainer said of its end: through Pipes, or in the workspace if it was killed; None if it never began."""
    told = [message[ENDING] for message in result.messages if isinstance(message, dict) and ENDING in message]
    if told:
        return RunStatus(**told[0])
    status = workspace.status()
    return None if status == before else status


_ENDINGS = {"interrupted": "was interrupted", "failed": "failed", "running": "was killed", "finished": "ended"}


def _checkpoint_metadata(checkpoint: CheckpointInfo) -> dict[str, Any]:
    return {"step": checkpoint.step, "checkpoint": dg.MetadataValue.path(checkpoint.model_path)}


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
