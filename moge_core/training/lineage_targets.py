"""Which file is meant by a checkpoint's name on the command line. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from moge_core.errors import CheckpointError, WorkspaceError
from moge_core.training.workspace import Workspace

_SUFFIXES = (".pt", ".pth", ".safetensors")


def locate_checkpoint(path: Path, step: int | None = None, best: bool = False) -> Path:
    """The file that is meant.

    Args:
        path: a file, `latest.pt`, a workspace, or the folder of an asset's numbered workspaces (the newest is meant).
        step: which checkpoint of the workspace; the newest by default.
        best: the checkpoint that best.json names.

    Raises:
        CheckpointError: it is neither file nor folder, or no checkpoint.
        WorkspaceError: the workspace has no such checkpoint.
    """
    if path.is_dir():
        return _in_workspace(_newest_run(path), step, best)
    if step is not None or best:
        raise CheckpointError(path, "must be a workspace where a step or the best is asked for", found="no folder")
    if not path.is_file():
        raise CheckpointError(path, "must be a checkpoint file or a workspace", found="no such file or folder")
    if path.suffix not in _SUFFIXES:
        raise CheckpointError(path, f"must be a checkpoint ({', '.join(_SUFFIXES)})", found=f"a {path.suffix} file")
    if path.name == "latest.pt" and path.parent.name == "checkpoint":
        # It holds nothing but the newest step's number.
        return _in_workspace(Workspace(path.absolute().parent.parent), None, False)
    return path


def _newest_run(folder: Path) -> Workspace:
    if folder.name == "checkpoint":
        folder = folder.absolute().parent
    numbers = [int(each.name) for each in folder.iterdir() if each.name.isdigit() and each.is_dir()]
    holds_runs = numbers and not (folder / "checkpoint").is_dir() and not (folder / "config.json").is_file()
    return Workspace(folder / str(max(numbers))) if holds_runs else Workspace(folder)


def _in_workspace(workspace: Workspace, step: int | None, best: bool) -> Path:
    if best:
        known = workspace.best()
        if known is None or not isinstance(known.get("step"), int):
            raise WorkspaceError(
                workspace.path / "best.json",
                "must name the best checkpoint",
                found="none",
                fix="Only a training with --eval_every knows it.",
            )
        step = known["step"]
    if step is not None:
        return workspace.checkpoint_at(step).model_path
    newest = workspace.latest_checkpoint()
    if newest is not None:
        return newest.model_path
    # Workspaces of the published tool have no manifests.
    files = sorted(path for path in workspace.checkpoint_dir.glob("*.pt") if path.stem.isdigit())
    if not files:
        raise WorkspaceError(workspace.path, "must hold a checkpoint", found="none")
    return files[-1]
