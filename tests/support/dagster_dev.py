"""A running `dagster dev`, used as its user interface uses it: through GraphQL."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any
from urllib.request import Request, urlopen

import psutil
from pipeline_project import Project
from shop import environment

from moge_pipeline.process_tree import marked

HOST = "127.0.0.1"
_LAUNCH = """mutation ($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  ... on RunConfigValidationInvalid { errors { message } } } }"""
_STATUS = "query ($run: ID!) { runOrError(runId: $run) { ... on Run { status canTerminate } } }"
_TERMINATE = """mutation ($run: String!) { terminateRun(runId: $run) {
  __typename ... on TerminateRunFailure { message } ... on PythonError { message } } }"""
_LOADED = "{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { __typename } } } } }"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class DagsterDev:
    """`dagster dev` of a project, in a session of its own as in a terminal."""

    def __init__(self, project: Project, mark: str) -> None:
        self.project, self.mark, self.port = project, mark, free_port()
        self.log_path = project.root / f"dev-{self.port}.log"
        argv = [sys.executable, "-m", "dagster", "dev", "--host", HOST, "--port", str(self.port)]
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                argv,
                cwd=project.root,
                env=environment(mark),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 150
        while not self._is_ready():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log_path.read_text()
            time.sleep(0.5)

    def query(self, text: str, **variables: Any) -> Any:
        """The data that GraphQL answers."""
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = Request(f"http://{HOST}:{self.port}/graphql", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as response:  # noqa: S310  # the address is ours
            answer = json.load(response)
        assert "errors" not in answer, answer
        return answer["data"]

    def launch(self, job: str, config: dict[str, Any]) -> str:
        """Start a run; its id."""
        selector = {"repositoryLocationName": "moge", "repositoryName": "__repository__", "pipelineName": job}
        params = {"selector": selector, "runConfigData": json.dumps(config), "mode": "default"}
        answer = self.query(_LAUNCH, params=params)["launchPipelineExecution"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def status(self, run_id: str) -> str:
        """The run's status as the page of the run shows it."""
        return str(self.query(_STATUS, run=run_id)["runOrError"]["status"])

    def terminate(self, run_id: str) -> None:
        """What the button Terminate does."""
        answer = self.query(_TERMINATE, run=run_id)["terminateRun"]
        assert answer["__typename"] == "TerminateRunSuccess", answer

    def interrupt(self) -> None:
        """Ctrl-C in its terminal, which reaches the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def close(self) -> None:
        """End it and everything that bears its mark."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        for process in marked(self.mark):
            process.kill()
        psutil.wait_procs(marked(self.mark), 10)
        self.process.wait(10)

    def _is_ready(self) -> bool:
        try:
            entries = self.query(_LOADED)["workspaceOrError"]["locationEntries"]
        except OSError:
            return False
        return bool(entries) and all(
            (entry["locationOrLoadError"] or {}).get("__typename") == "RepositoryLocation" for entry in entries
        )
