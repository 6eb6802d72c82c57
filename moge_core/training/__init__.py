"""Configuration, preflight, optimisation, checkpoints, tracking and the trainer.

    accelerate launch -m moge_core.training --config configs/train/v1.json --workspace workspace/debug

Names that need torch are imported when they are first used, so that configurations are checked without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moge_core.training.command import main
from moge_core.training.config import (
    FinetuneConfig,
    RunFlags,
    ScheduleConfig,
    TrainConfig,
    load_finetune_config,
    load_train_config,
)
from moge_core.training.preflight import DatasetIdentity, check_training_data, check_training_inputs
from moge_core.training.tracking import Observer
from moge_core.training.workspace import (
    CheckpointInfo,
    ExitCode,
    RunStatus,
    Workspace,
    WorkspaceChoice,
    choose_workspace,
    finished_workspaces,
)

if TYPE_CHECKING:
    from moge_core.training.optimization import build_lr_scheduler, build_optimizer

__all__ = [
    "CheckpointInfo",
    "DatasetIdentity",
    "ExitCode",
    "FinetuneConfig",
    "Observer",
    "RunFlags",
    "RunStatus",
    "ScheduleConfig",
    "TrainConfig",
    "Workspace",
    "WorkspaceChoice",
    "build_lr_scheduler",
    "build_optimizer",
    "check_training_data",
    "check_training_inputs",
    "choose_workspace",
    "finished_workspaces",
    "load_finetune_config",
    "load_train_config",
    "main",
]


def __getattr__(name: str) -> Any:
    if name in ("build_optimizer", "build_lr_scheduler"):
        from moge_core.training import optimization

        return getattr(optimization, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
