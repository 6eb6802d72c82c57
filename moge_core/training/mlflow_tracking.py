"""MLflow beside the training: whatever its server does, the training goes on and nothing is lost.

A thread sends what the workspace's files hold and remembers in tracking.json how far it got. A server that does not
answer is asked again, less and less often; what it missed follows when it is back, at the next resume, or by
`moge replay-metrics WORKSPACE`. Imports no torch.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moge_core.errors import TrainingError, WorkspaceError
from moge_core.training.tracking import read_lines
from moge_core.training.workspace import RunStatus, Workspace, write_json

logger = logging.getLogger(__name__)

EXPERIMENT = "moge"
GRACE_VARIABLE = "MOGE_TERMINATE_GRACE_S"
"""Environment variable in which a launcher says how long a training that is asked to end has to do so."""

_MOST_METRICS, _MOST_PARAMS, _LONGEST_PARAM = 1000, 100, 6000
_LONGEST_PAUSE_S = 60.0
_MOST_FAILURES = 5
_PICTURE_SUFFIXES = {".jpg", ".png"}
# The training and the sending thread both write tracking.json.
_TRACKING_LOCK = threading.Lock()
_ENDINGS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


def default_tracking_uri(root: Path) -> str:
    """The MLflow store of a project folder."""
    return f"sqlite:///{root.resolve()}/mlflow.db"


def tracking_uri() -> str:
    """Where a training logs to: MLFLOW_TRACKING_URI, or else the store of the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(Path.cwd())


def fail_fast() -> None:
    """Let a store that is down cost seconds, not MLflow's default of minutes; to be called before its import."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def metric_name(name: str) -> str:
    """A metric's or parameter's name as MLflow accepts it."""
    return re.sub(r"[^\w .:/-]", "_", name)


class RunSender:
    """Sends one workspace to one MLflow run; every call goes on where the last one, or one in the past, ended.

    Args:
        workspace: whose metrics are sent.
        uri: the MLflow store.
        tags: of the run, when one is opened.
        run_id: an existing run to log to; None opens one, or goes on with the one that tracking.json names.
        is_training: whether it is the training that sends; where that logs to is remembered.
    """

    def __init__(
        self,
        workspace: Workspace,
        uri: str,
        tags: Mapping[str, str],
        run_id: str | None = None,
        *,
        is_training: bool = False,
    ) -> None:
        fail_fast()
        self._is_training = self._is_remembered = is_training
        self._workspace, self._tags, self._given_run = workspace, dict(tags), run_id
        self.uri = uri
        self._client: Any = None
        self.run_id: str | None = None
        self._files = {"metrics": workspace.metrics_path, "system": workspace.system_path}
        # The last step that was sent. A resumed run has forgotten the lines that it will write again.
        self._sent = {kind: _last_step(path) for kind, path in self._files.items()}

    @property
    def owns_run(self) -> bool:
        """Whether whoever sends here also ends the run."""
        return self._given_run is None

    def connect(self) -> None:
        """Find or open the run."""
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=self.uri)
        before = _read_tracking(self._workspace)
        remembered = before.get("run_id") if before.get("uri") == self.uri else None
        run_id = self._given_run or (remembered if _exists(client, remembered) else None)
        if run_id is None:
            found = client.get_experiment_by_name(EXPERIMENT)
            experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
            run_id = client.create_run(experiment, run_name=self._tags.get("mlflow.runName")).info.run_id
        elif self.owns_run:
            client.update_run(run_id, status="RUNNING")
        for key, value in self._tags.items():
            if self.owns_run or key != "mlflow.runName":
                client.set_tag(run_id, key, value)
        client.set_tag(run_id, "moge.workspace", str(self._workspace.path.resolve()))
        sent = before.get("sent", {}) if remembered == run_id else {}
        self._sent = {kind: min(sent.get(kind, -1), limit) for kind, limit in self._sent.items()}
        self._client, self.run_id = client, run_id
        self._is_remembered = self._is_training or before.get("run_id") in (None, run_id)
        self._remember()

    def send_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Log the parameters; a resumed run keeps those it began with."""
        from mlflow.entities import Param

        known = self._client.get_run(self.run_id).data.params
        params = [
            Param(metric_name(key), str(value)[:_LONGEST_PARAM])
            for key, value in parameters.items()
            if metric_name(key) not in known
        ]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self.run_id, params=params[start : start + _MOST_PARAMS])

    def send_datasets(self, datasets: Sequence[Mapping[str, Any]]) -> None:
        """Log the datasets as inputs of the run: name, digest, place, weight, number of instances."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(
                    name=each["name"],
                    digest=str(each["digest"])[:36],
                    source_type="local",
                    source=json.dumps({"uri": each["path"]}),
                    profile=json.dumps({"num_instances": each["num_instances"]}),
                ),
                tags=[InputTag("mlflow.data.context", "training"), InputTag("moge.weight", str(each["weight"]))],
            )
            for each in datasets
        ]
        self._client.log_inputs(self.run_id, datasets=inputs)

    def send_lines(self) -> None:
        """Log all lines of metrics.jsonl and system.jsonl that have not been sent."""
        from mlflow.entities import Metric

        for kind, path in self._files.items():
            lines = [line for line in read_lines(path) if line["step"] > self._sent[kind]]
            now = int(time.time() * 1000)
            batch: list[Any] = []
            for line in lines:
                step = line.pop("step")
                batch += [Metric(metric_name(key), v, now, step) for key, v in line.items() if v is not None]
                if len(batch) > _MOST_METRICS - 200 or line is lines[-1]:
                    for start in range(0, len(batch), _MOST_METRICS):
                        self._client.log_batch(self.run_id, metrics=batch[start : start + _MOST_METRICS])
                    self._sent[kind], batch = step, []
                    self._remember()

    def send_file(self, path: Path, folder: str | None = None) -> None:
        """Log a file as an artifact."""
        self._client.log_artifact(self.run_id, str(path), folder)

    def send_tag(self, key: str, value: str) -> None:
        """Set a tag."""
        self._client.set_tag(self.run_id, key, value)

    def finish(self, status: RunStatus) -> None:
        """Record how the run ended; who opened the run closes it."""
        self.send_tag("moge.ending", f"{status.state}: {status.reason}"[:5000])
        if self.owns_run:
            self._client.set_terminated(self.run_id, _ENDINGS.get(status.state, "FAILED"))

    def _remember(self) -> None:
        if not self._is_remembered:
            return  # a copy for somewhere else: the training goes on in its own run
        _update_tracking(self._workspace, {"uri": self.uri, "run_id": self.run_id, "sent": self._sent})


class MLflowTracker:
    """An observer that leaves the sending to a thread.

    Joins the run that `MLFLOW_RUN_ID` names; else goes on with the run that this workspace's training had, or opens
    one.

    Args:
        workspace: of the training.
        tags: of the run.
        datasets: what is trained on, for the inputs of the run.
    """

    flush_s = 30.0
    """How long the end of a training waits for what is left to be sent."""

    def __init__(
        self, workspace: Workspace, tags: Mapping[str, str], datasets: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self._workspace, self._datasets = workspace, datasets
        self._sender = RunSender(workspace, tracking_uri(), tags, os.environ.get("MLFLOW_RUN_ID"), is_training=True)
        self._work: deque[tuple[str, Callable[[], None]]] = deque([("connect", self._sender.connect)])
        self._changed = threading.Condition()
        self._lines_waiting = self._ending = self._told = self._given_up = False
        self._failures_in_a_row = 0
        self._thread = threading.Thread(target=self._run, name="moge-mlflow", daemon=True)
        self._thread.start()

    @property
    def run(self) -> tuple[str, str] | None:
        """Store and id of the run that this training logs to; None while the store has not answered."""
        return None if self._sender.run_id is None else (self._sender.uri, self._sender.run_id)

    def on_start(self, workspace: Path, parameters: Mapping[str, Any]) -> None:
        """Send parameters, datasets and the configuration."""
        known = {"parameters": dict(parameters), "datasets": [dict(each) for each in self._datasets]}
        _update_tracking(self._workspace, known)
        self._add("parameters", lambda: self._sender.send_parameters(parameters))
        self._add("datasets", lambda: self._sender.send_datasets(self._datasets))
        self._add("configuration", lambda: self._sender.send_file(self._workspace.config_path))

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the new lines of the files."""
        with self._changed:
            self._lines_waiting = True
            self._changed.notify()

    def on_system(self, step: int, figures: Mapping[str, float]) -> None:
        """Send the new lines of the files."""
        self.on_log(step, figures)

    def on_checkpoint(self, step: int, path: Path) -> None:
        """Name the newest checkpoint."""
        self._add("checkpoint", lambda: self._sender.send_tag("moge.checkpoint", str(path.resolve())))

    def on_pictures(self, step: int, folder: Path) -> None:
        """Send the pictures."""
        for picture in sorted(path for path in folder.rglob("*") if path.suffix in _PICTURE_SUFFIXES):
            place = f"vis/{folder.name}/{picture.parent.name}"
            self._add("picture", functools.partial(self._sender.send_file, picture, place))

    def on_end(self, status: RunStatus) -> None:
        """Send what is left, as long as that takes no more than `flush_s` seconds.

        A training that was asked to end takes a quarter of the time that it is given: it must not be killed over this.
        """
        self._add("ending", lambda: self._sender.finish(status))
        with self._changed:
            self._ending = True
            self._changed.notify()
        seconds = self.flush_s
        if status.state == "interrupted":
            seconds = min(seconds, _grace_s() / 4)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._given_up = True
            logger.warning(
                "MLflow did not get everything; send it later with `moge replay-metrics %s`", self._workspace.path
            )

    def _add(self, what: str, work: Callable[[], None]) -> None:
        with self._changed:
            self._work.append((what, work))
            self._changed.notify()

    # --- in the thread ---

    def _run(self) -> None:
        pause = 0.5
        while not self._given_up:
            with self._changed:
                self._changed.wait_for(lambda: self._work or self._lines_waiting or self._ending)
                if self._ending and not self._work and not self._lines_waiting:
                    return
            try:
                self._send_next()
                pause = 0.5
            except Exception as error:  # whatever a store does, it is asked again
                if not self._told:
                    logger.warning("MLflow does not answer; metrics are in metrics.jsonl and follow later: %s", error)
                    self._told = True
                with self._changed:
                    self._changed.wait_for(lambda: self._ending, timeout=pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S) if not self._ending else 1.0
                if self._ending:
                    time.sleep(pause)

    def _send_next(self) -> None:
        """Metrics before anything else; what fails again and again is left out, so that it holds nothing up."""
        if self._lines_waiting and self._sender.run_id is not None:
            self._lines_waiting = False
            try:
                self._sender.send_lines()
            except Exception:
                self._lines_waiting = True
                raise
            return
        if self._work:
            what, work = self._work[0]
            try:
                work()
            except Exception as error:
                self._failures_in_a_row += 1
                if what in ("connect", "ending") or self._failures_in_a_row < _MOST_FAILURES:
                    raise
                logger.warning("MLflow does not take the %s, which is left out: %s", what, error)
            self._failures_in_a_row = 0
            with self._changed:
                self._work.popleft()


def replay_metrics(workspace: Workspace, uri: str | None = None, run_id: str | None = None) -> tuple[str, int]:
    """Send a workspace's parameters and metrics to MLflow, what has been sent there already left out.

    Args:
        workspace: of a training, past or at rest.
        uri: the store; by default where the training logged to, or would have.
        run_id: an existing run; by default the one that the training had at this store, or a new one.

    Returns:
        The run's id, and how many lines of metrics.jsonl it holds.

    Raises:
        WorkspaceError: there are no metrics.
        TrainingError: the store does not take them.
    """
    lines = read_lines(workspace.metrics_path)
    if not lines:
        raise WorkspaceError(workspace.metrics_path, "must hold metrics to replay", found="no line")
    known = _read_tracking(workspace)
    store = uri or known.get("uri") or tracking_uri()
    sender = RunSender(workspace, store, {"mlflow.runName": workspace.path.as_posix(), "moge.replayed": "true"}, run_id)
    try:
        sender.connect()
        sender.send_lines()
        sender.send_parameters(known.get("parameters", {}))
        if known.get("datasets"):
            sender.send_datasets(known["datasets"])
    except Exception as error:  # MLflow has many kinds of them
        raise TrainingError(store, "must take the metrics", found=str(error).splitlines()[0]) from error
    try:
        if workspace.config_path.is_file():
            sender.send_file(workspace.config_path)
    except Exception as error:
        logger.warning("the configuration could not be sent: %s", error)
    status = workspace.status()
    if status is not None and status.state != "running":
        sender.finish(status)
    assert sender.run_id is not None
    return sender.run_id, len(lines)


def known_run(workspace: Workspace) -> tuple[str | None, str | None]:
    """Store and id of the MLflow run that a workspace's training logged to; None twice without one."""
    known = _read_tracking(workspace)
    uri, run_id = known.get("uri"), known.get("run_id")
    return (uri, run_id) if isinstance(uri, str) and isinstance(run_id, str) else (None, None)


def _grace_s() -> float:
    """Seconds that this process has to end once it is asked to, as its launcher says."""
    try:
        return float(os.environ.get(GRACE_VARIABLE, "inf"))
    except ValueError:
        return math.inf


def _read_tracking(workspace: Workspace) -> dict[str, Any]:
    try:
        values = json.loads(workspace.tracking_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _last_step(path: Path) -> int:
    lines = read_lines(path)
    return int(lines[-1]["step"]) if lines else -1


def _exists(client: Any, run_id: str | None) -> bool:
    """Whether a store has a run; an answer that does not come is an error."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return False
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _update_tracking(workspace: Workspace, values: Mapping[str, Any]) -> None:
    with _TRACKING_LOCK:
        write_json(workspace.tracking_path, {**_read_tracking(workspace), **values})
