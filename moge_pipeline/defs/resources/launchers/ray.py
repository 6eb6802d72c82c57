"""Trainings as jobs of a Ray cluster, submitted through dagster-ray."""

from __future__ import annotations

import asyncio
import math
import shlex
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from moge_core.errors import MissingDependencyError, TrainingError
from moge_pipeline.defs.resources.launchers.jobs import MARGIN_S, LaunchFolder, record_launch, watch
from moge_pipeline.defs.resources.launchers.pipes import pipes_session, reported
from moge_pipeline.defs.resources.launchers.protocol import LaunchResources, LaunchResult
from moge_pipeline.defs.resources.launchers.settings import RaySettings

_SECONDS_FOR_LAST_LOGS = 30.0


class RayLauncher:
    """Submits the command as the entry point of one Ray job, which reserves the GPUs of one node."""

    def __init__(self, settings: RaySettings) -> None:
        self._settings = settings

    def run(
        self,
        context: dg.AssetExecutionContext,
        argv: Sequence[str],
        env: Mapping[str, str],
        resources: LaunchResources,
    ) -> LaunchResult:
        """See `Launcher.run`.

        Raises:
            MissingDependencyError: the extra `ray` is not installed.
            TrainingError: the cluster does not answer, or refuses the job.
        """
        settings = self._settings
        connection = _connection(settings.address, settings.headers)
        client = connection.client
        folder = LaunchFolder(context, resources)
        with pipes_session(context, folder.path) as session:
            task = folder.task(settings.python or sys.executable, argv, resources, settings.abandoned_after_s)
            parameters = job_parameters(settings, task, {**env, **session.get_bootstrap_env_vars()}, resources)
            parameters |= {
                "submission_id": f"{folder.name}-{int(time.time())}",
                "metadata": connection.get_dagster_tags(context),
            }
            folder.beat()
            try:
                job = RayJob(client, client.submit_job(**parameters), settings.poll_s)
            except RuntimeError as error:
                raise TrainingError(settings.address, "must accept the job", found=error) from None
            record = {"launcher": "ray", "id": job.id, "address": settings.address}
            if settings.headers:
                # A token does not belong into the run's tags, which everybody can read.
                context.log.info("The launch record leaves out the headers; an abandoned job ends by itself.")
            try:
                record_launch(context, record)
            except BaseException:
                job.kill()
                raise
            logs = _LogStream(client, job.id)
            logs.start()
            exit_code, timed_out = watch(context, job, resources, folder.beat)
            logs.join(_SECONDS_FOR_LAST_LOGS)
        tags = {"ray_job_id": job.id, "ray_job_status": job.status}
        return reported(session, exit_code, timed_out=timed_out, tags=tags)


def job_parameters(
    settings: RaySettings, task: Sequence[str], env: Mapping[str, str], resources: LaunchResources
) -> dict[str, Any]:
    """What Ray is told of a job that runs `task`."""
    runtime_env: dict[str, Any] = {
        # Ray itself gives a job that is stopped 3 s.
        "env_vars": {**env, "RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(resources.terminate_grace_s + MARGIN_S))}
    }
    if settings.working_dir is not None:
        runtime_env["working_dir"] = settings.working_dir
    if settings.pip:
        runtime_env["pip"] = list(settings.pip)
    # `exec`: a shell in between would end at once and leave the task without a parent.
    entrypoint = f"exec {shlex.join(task)}"
    if settings.working_dir is None:
        entrypoint = f"cd {shlex.quote(str(resources.cwd))} && {entrypoint}"
    parameters: dict[str, Any] = {
        "entrypoint": entrypoint,
        "runtime_env": runtime_env,
        "entrypoint_num_cpus": settings.num_cpus,
        "entrypoint_num_gpus": settings.num_gpus,
    }
    if settings.memory_mb is not None:
        parameters["entrypoint_memory"] = settings.memory_mb * 2**20
    if settings.resources:
        parameters["entrypoint_resources"] = dict(settings.resources)
    return parameters


class RayJob:
    """A submitted job; see `Job` for the methods.

    Attributes:
        id: its submission id.
        status: as Ray names it.
    """

    def __init__(self, client: Any, job_id: str, poll_s: float) -> None:
        self.id = job_id
        self.status = "PENDING"
        self._client, self._poll_s, self._next_look = client, poll_s, 0.0
        self._stopped = False

    def poll(self) -> int | None:
        """See `Job.poll`. A head that does not answer says nothing about the job."""
        if time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + self._poll_s
        try:
            info = self._client.get_job_info(self.id)
        except (RuntimeError, OSError) as error:
            return 1 if "does not exist" in str(error) else None
        self.status = str(info.status.value)
        if not info.status.is_terminal():
            return None
        if self.status == "SUCCEEDED":
            return 0
        return int(info.driver_exit_code or 1)

    def has_started(self) -> bool:
        """See `Job.has_started`."""
        return self.status != "PENDING"

    def ask_to_end(self) -> None:
        """See `Job.ask_to_end`. Ray kills what has not ended after the grace period."""
        if not self._stopped:
            self.kill()
            self._stopped = True

    def kill(self) -> None:
        """Stop the job; Ray has no harder way, and the task kills what outlives its grace period."""
        try:
            self._client.stop_job(self.id)
        except (RuntimeError, OSError):  # ended already, or asked again when the head answers
            return


def end_abandoned_ray_job(record: Mapping[str, str]) -> None:
    """Stop the job of a launch record, without waiting for it.

    Raises:
        MissingDependencyError: the extra `ray` is not installed.
        TrainingError: the cluster does not answer.
    """
    RayJob(_connection(record["address"], {}).client, record["id"], 1.0).kill()


class _LogStream(threading.Thread):
    """Copies a job's output to that of this process until the job has ended."""

    def __init__(self, client: Any, job_id: str) -> None:
        super().__init__(daemon=True)
        self._client, self._job_id, self._num_copied = client, job_id, 0

    def run(self) -> None:
        """Follow, and follow again from where it was when the connection broke."""
        while not self._has_followed_to_its_end():
            time.sleep(2.0)

    def _has_followed_to_its_end(self) -> bool:
        try:
            asyncio.run(self._follow())
        except Exception as error:  # aiohttp's and Ray's own; a training must not end over its output
            return "does not exist" in str(error)
        return True

    async def _follow(self) -> None:
        position = 0
        async for text in self._client.tail_job_logs(self._job_id):
            new = text[max(0, self._num_copied - position) :]
            position += len(text)
            self._num_copied = max(self._num_copied, position)
            sys.stdout.write(new)
            sys.stdout.flush()


def _connection(address: str, headers: Mapping[str, str]) -> Any:
    """dagster-ray's client of a cluster that answers."""
    try:
        import ray.job_submission  # noqa: F401
        from dagster_ray import PipesRayJobClient
    except ImportError:
        raise MissingDependencyError(
            "launcher `ray`", "needs dagster-ray and ray", fix='pip install "moge-pipeline[ray]"'
        ) from None
    connection = PipesRayJobClient(address=address, headers=dict(headers) or None)
    try:
        connection.client.get_version()
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise TrainingError(
            address,
            "must be the dashboard of a running Ray cluster",
            found=reason[0] if reason else type(error).__name__,
            fix="Start it, or correct `address` in configs/launchers.json.",
        ) from None
    return connection
