"""A pod is watched to its end: its log, its reports, its failure and its cancellation. The API server is played."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from kubernetes.client import ApiException

from moge_pipeline.defs.resources.launchers import LAUNCH_TAG, LaunchResources, LaunchResult, end_abandoned_launch
from moge_pipeline.defs.resources.launchers.kubernetes import KubernetesLauncher
from moge_pipeline.defs.resources.launchers.settings import KubernetesSettings

SETTINGS = KubernetesSettings.model_validate(
    {
        "type": "kubernetes",
        "image": "moge",
        "python": sys.executable,
        "poll_s": 0.2,
        "volumes": [{"mount_path": "/project", "claim": "project"}],
    }
)
COMMAND = """
import signal, sys, time
from dagster_pipes import open_dagster_pipes
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
with open_dagster_pipes() as pipes:
    print("it trains", flush=True)
    pipes.report_custom_message({"n": 1})
    while sys.argv[1] == "forever" and not asked:
        time.sleep(0.05)
    pipes.report_custom_message({"asked": bool(asked)})
    pipes.report_asset_materialization(metadata={"loss": 0.5})
sys.exit(int(sys.argv[2]))
"""


class ApiServer:
    """Plays the API server and the node behind it: a pod is a process of this machine, its log a file."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "pod.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.deleted: list[int | None] = []

    def create_namespaced_pod(self, namespace: str, manifest: Mapping[str, Any]) -> None:
        if namespace == "forbidden":
            raise ApiException(status=403, reason="may not create pods")
        (container,) = manifest["spec"]["containers"]
        env = {**os.environ, **{entry["name"]: entry["value"] for entry in container["env"]}}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                container["command"], env=env, cwd=container["workingDir"], stdout=log, stderr=log
            )

    def read_namespaced_pod(self, name: str, namespace: str) -> Any:
        assert self._process is not None
        code = self._process.poll()
        if code is not None and self.deleted:
            raise ApiException(status=404)
        phase = "Running" if code is None else "Failed" if code else "Succeeded"
        ended = None if code is None else SimpleNamespace(exit_code=code, reason="Error" if code else "Completed")
        statuses = [SimpleNamespace(state=SimpleNamespace(terminated=ended))]
        return SimpleNamespace(status=SimpleNamespace(phase=phase, reason=None, container_statuses=statuses))

    def read_namespaced_pod_log(self, name: str, namespace: str, **_: Any) -> Iterator[bytes]:
        assert self._process is not None
        with self._log.open("rb") as log:
            while True:
                is_over = self._process.poll() is not None
                for line in log:
                    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
                    yield f"{stamp} ".encode() + line
                if is_over:
                    return
                time.sleep(0.05)

    def delete_namespaced_pod(self, name: str, namespace: str, grace_period_seconds: int | None = None) -> None:
        self.deleted.append(grace_period_seconds)
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL if grace_period_seconds == 0 else signal.SIGTERM)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    server = ApiServer(tmp_path)
    monkeypatch.setattr("moge_pipeline.defs.resources.launchers.kubernetes.core_api", lambda context: server)
    return server


def launch(
    folder: Path, *arguments: str, settings: KubernetesSettings = SETTINGS, instance: dg.DagsterInstance, **values: Any
) -> LaunchResult:
    results: list[LaunchResult] = []

    @dg.asset
    def launched(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        resources = LaunchResources(folder, folder, terminate_grace_s=20, **values)
        argv = [sys.executable, "-c", COMMAND, *arguments]
        results.append(KubernetesLauncher(settings).run(context, argv, {}, resources))
        yield dg.MaterializeResult()

    dg.materialize([launched], instance=instance)
    return results[0]


def test_what_a_pod_reports_and_its_exit_code_come_back(
    tmp_path: Path, server: ApiServer, capfd: pytest.CaptureFixture[str]
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        result = launch(tmp_path, "once", "7", instance=instance)
        assert LAUNCH_TAG in instance.get_runs()[0].tags
    assert result.exit_code == 7
    assert result.messages == ({"n": 1}, {"asked": False})
    assert result.metadata["loss"].value == 0.5
    assert result.tags["kubernetes_reason"] == "Error"
    assert "it trains" in capfd.readouterr().out, "the log is the step's output"
    assert server.deleted == [0], "nothing is left in the namespace"


def test_a_pod_at_its_maximum_runtime_is_asked_to_save_and_says_so(tmp_path: Path, server: ApiServer) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        result = launch(tmp_path, "forever", "75", instance=instance, max_runtime_s=6)
    assert result.timed_out
    assert result.messages == ({"n": 1}, {"asked": True})
    assert server.deleted == [20, 0], "asked with its grace period, then removed"


def test_a_cluster_that_refuses_the_pod_says_why(tmp_path: Path, server: ApiServer) -> None:
    settings = SETTINGS.model_copy(update={"namespace": "forbidden"})
    with (
        dg.DagsterInstance.ephemeral() as instance,
        pytest.raises(Exception, match=r"namespace forbidden.*may not create pods"),
    ):
        launch(tmp_path, "once", "0", settings=settings, instance=instance)


def test_an_abandoned_pod_is_deleted_with_its_own_grace_period(server: ApiServer) -> None:
    end_abandoned_launch({"launcher": "kubernetes", "id": "train-1", "namespace": "vision"})
    assert server.deleted == [None]
