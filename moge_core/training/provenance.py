"""Where a training comes from: who launched it, with which code and packages, on which machine. Imports no torch.

A launcher hands on what it knows, and the trainer adds what it is itself:

    launch = LaunchRecord(launcher="slurm", dagster_run_id=run_id, asset_key="train_v1", retry=1)
    subprocess.Popen(command, env={**os.environ, **launch.environment()})

The trainer writes the record into the manifest of every checkpoint (key `launch`), so that a checkpoint names its run
wherever it is copied with its manifest, and into the workspace's launches.jsonl, one line for each start and resume.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

import moge_core
from moge_core.training.config import TrainConfig
from moge_core.training.tracking import append_line, read_lines
from moge_core.training.workspace import Workspace

logger = logging.getLogger(__name__)

LAUNCH_VARIABLE = "MOGE_LAUNCH"
"""Environment variable in which a launcher hands on its record, as JSON."""

_MAX_LAUNCH_BYTES = 96 << 10  # Linux takes 128 KiB a variable
_MAX_CHARACTERS, _MAX_WORDS, _MAX_TAGS = 1024, 256, 32
_GIT_TIMEOUT_S = 20.0
_PASSWORD = re.compile(r"(?<=://)[^/@\s]*@")


@dataclass(frozen=True)
class GitState:
    """The commit of a working tree; `dirty` where files differ from it or are new, None where that took too long."""

    commit: str
    dirty: bool | None


def git_state(root: Path) -> GitState | None:
    """The state of the repository that `root` lies in.

    None without git, repository or commit, and where git refuses a repository of another user (`safe.directory`).
    """
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if commit is None or not re.fullmatch(r"[0-9a-f]{40,64}", commit.strip()):
        return None
    changes = _git(root, "status", "--porcelain")
    return GitState(commit.strip(), None if changes is None else bool(changes.strip()))


def code_state() -> GitState | None:
    """The repository of this package where it runs from one, else that of the working directory."""
    checkout = Path(moge_core.__file__).resolve().parents[1]
    # An installed package may lie below a repository that does not hold it, as in `project/.venv`.
    return git_state(checkout if (checkout / ".git").exists() else Path.cwd())


def _git(root: Path, *arguments: str) -> str | None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    # Status must neither wait for another git nor start a program that the repository names.
    command = ["git", "-C", str(root), "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _cut(value: Any) -> Any:
    """At most so many characters, so that no record grows without bounds."""
    return value[:_MAX_CHARACTERS] if isinstance(value, str) else value


def _without_password(value: Any) -> Any:
    return _PASSWORD.sub("", value) if isinstance(value, str) else value


def _first_words(value: Any) -> Any:
    return tuple(value[:_MAX_WORDS]) if isinstance(value, list | tuple) else value


def _first_tags(value: Any) -> Any:
    return dict(list(value.items())[:_MAX_TAGS]) if isinstance(value, dict) else value


Text = Annotated[str, BeforeValidator(_cut)]
_Address = Annotated[str, BeforeValidator(_without_password), BeforeValidator(_cut)]


class LaunchRecord(BaseModel):
    """One start of a training. Texts are cut at 1024 characters; passwords in addresses are left out.

    Attributes:
        launcher: what started the processes: `local`, `slurm`, ...; `direct` where nobody says so.
        dagster_run_id, asset_key: the Dagster run, and the asset that it materialises.
        mlflow_run_id, mlflow_uri: the MLflow run and its store.
        git_commit, git_dirty: of the code.
        config_source: the configuration file as the user knows it.
        tags: whatever else the launcher tells, such as the job's number in its queue.
        retry: how many attempts of the same Dagster step came before.
        host, pid, time, argv, workspace: of the training process itself.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    launcher: Text = "direct"
    dagster_run_id: Text | None = None
    asset_key: Text | None = None
    mlflow_run_id: Text | None = None
    mlflow_uri: _Address | None = None
    git_commit: Text | None = None
    git_dirty: bool | None = None
    config_source: Text | None = None
    tags: Annotated[dict[Text, Text], BeforeValidator(_first_tags)] = Field(default_factory=dict)
    retry: Annotated[int, Field(ge=0)] = 0
    host: Text | None = None
    pid: int | None = None
    time: Text | None = None
    argv: Annotated[tuple[Text, ...], BeforeValidator(_first_words)] = ()
    workspace: Text | None = None

    def environment(self) -> dict[str, str]:
        """What a launcher adds to the environment of the training's processes."""
        text = self.model_dump_json(exclude_defaults=True)
        if len(text.encode()) > _MAX_LAUNCH_BYTES:
            logger.warning("the launcher's tags and arguments are too long to hand on")
            text = self.model_copy(update={"tags": {}, "argv": ()}).model_dump_json(exclude_defaults=True)
        return {LAUNCH_VARIABLE: text}

    def mlflow_tags(self) -> dict[str, str]:
        """How an MLflow run names this launch; only what is known."""
        tags = {
            "launcher": self.launcher,
            "dagster_run_id": self.dagster_run_id,
            "dagster_asset_key": self.asset_key,
            "git_commit": self.git_commit,
            "git_dirty": None if self.git_dirty is None else str(self.git_dirty).lower(),
            "mlflow.source.git.commit": self.git_commit,
        }
        return {key: value for key, value in tags.items() if value is not None}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without what is not known."""
        return self.model_dump(mode="json", exclude_defaults=True) | {"launcher": self.launcher}


def launch_from_environment(environment: Mapping[str, str] | None = None) -> LaunchRecord:
    """The record that a launcher handed on; an empty one without it, and, with a warning, where it is not valid."""
    text = (os.environ if environment is None else environment).get(LAUNCH_VARIABLE)
    if not text:
        return LaunchRecord()
    try:
        if len(text) > _MAX_LAUNCH_BYTES:
            raise ValueError(f"longer than {_MAX_LAUNCH_BYTES} bytes")
        return LaunchRecord.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        reason = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    except ValueError as error:
        reason = str(error)
    logger.warning("%s is not a launcher's record and is ignored: %s", LAUNCH_VARIABLE, reason)
    return LaunchRecord()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a training computes."""
    found = {"python": platform.python_version(), "moge": moge_core.__version__}
    for package in ("torch", "accelerate"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # on a path of its own
            found[package] = "unknown"
    return found


def read_launches(workspace: Workspace) -> list[dict[str, Any]]:
    """The undamaged lines of launches.jsonl, oldest first."""
    return [line for line in read_lines(workspace.launches_path) if isinstance(line, dict)]


class Provenance:
    """What the manifests of one training say of where it comes from.

    Args:
        workspace: of the training.
        config: what is trained.

    Attributes:
        earlier: what a resumed training was trained with before, where that was not what it goes on with: for each
            change, oldest first, `until_step` and configuration digest, datasets, seed and batch until then.
        mlflow_run: asked for the MLflow run, which may be known only when its store has answered.
    """

    def __init__(self, workspace: Workspace, config: TrainConfig) -> None:
        self._workspace, self._config = workspace, config
        self.earlier: list[dict[str, Any]] = []
        self.mlflow_run: Callable[[], tuple[str, str] | None] = lambda: None

    @functools.cached_property
    def launch(self) -> LaunchRecord:
        """What the launcher handed on, completed by what this process knows of itself."""
        given = launch_from_environment()
        git = code_state()
        known: dict[str, Any] = {
            "config_source": given.config_source or str(self._config.source.absolute()),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "argv": sys.orig_argv,
            "workspace": str(self._workspace.path.absolute()),
        }
        if git is not None:  # the code that runs here, whatever lies where the launcher runs
            known |= {"git_commit": git.commit, "git_dirty": git.dirty}
        return LaunchRecord.model_validate({**given.model_dump(), **known})

    def continues(self, manifest: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Remember what the checkpoint of `manifest` was trained with, where the manifests to come say otherwise.

        Args:
            manifest: of the checkpoint that the training continues.
            now: what the next manifests will say.
        """
        self.earlier = list(manifest.get("earlier") or [])
        then = {key: manifest[key] for key in _INPUTS if key in manifest}
        if _essence(then) != _essence({key: now[key] for key in then}):
            self.earlier.append({"until_step": manifest.get("step"), **then})

    def as_dict(self) -> dict[str, Any]:
        """What goes into a manifest."""
        found = self.mlflow_run()
        told = {} if found is None else {"mlflow_uri": found[0], "mlflow_run_id": found[1]}
        launch = LaunchRecord.model_validate({**self.launch.model_dump(), **told})
        return {
            "launch": launch.as_dict(),
            "versions": versions(),
            "earlier": self.earlier,
            "config": self._config.raw,
        }

    def begin(self, start: Mapping[str, Any]) -> None:
        """Add a line to launches.jsonl; a disk that takes none costs a warning, not the training.

        Args:
            start: what the training begins with: `first_step`, `continues`, digests, flags.
        """
        try:
            append_line(self._workspace.launches_path, {**start, "versions": versions(), **self.launch.as_dict()})
        except OSError as error:
            logger.warning("the launch cannot be recorded: %s", error)


_INPUTS = ("config_digest", "datasets", "seed", "batch_size_total", "held_out")


def _essence(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Data that moved is the same data."""
    return {**inputs, "datasets": {each["name"]: each["digest"] for each in inputs.get("datasets") or []}}
