"""Trainings as jobs of Slurm: sbatch, and srun that starts one `accelerate launch` for each task."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import dagster as dg

from moge_core.errors import ConfigError, MissingDependencyError, TrainingError
from moge_pipeline.defs.resources.launchers.jobs import LaunchFolder, OutputTail, record_launch, watch
from moge_pipeline.defs.resources.launchers.pipes import pipes_session, reported
from moge_pipeline.defs.resources.launchers.protocol import LaunchResources, LaunchResult
from moge_pipeline.defs.resources.launchers.settings import SlurmSettings
from moge_pipeline.job_task import RENDEZVOUS_HOST

_COMMAND_TIMEOUT_S = 60.0
_ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT", "CONFIGURING"}


class SlurmLauncher:
    """Submits the command as a batch job, streams its output, and sees it through preemptions to its end."""

    def __init__(self, settings: SlurmSettings) -> None:
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
            ConfigError: the processes cannot be shared out evenly among the tasks.
            MissingDependencyError: there is no Slurm on this machine.
            TrainingError: Slurm refuses the job.
        """
        settings = self._settings
        _check_num_processes(settings, resources.num_processes)
        folder = LaunchFolder(context, resources)
        output = OutputTail(folder.path / "output.log")
        with pipes_session(context, folder.path) as session:
            task = folder.task(settings.python or sys.executable, argv, resources, settings.abandoned_after_s)
            script = folder.path / "job.sh"
            script.touch(mode=0o600)  # the environment may hold passwords of the tracking store
            script.write_text(
                batch_script(settings, folder, task, {**env, **session.get_bootstrap_env_vars()}, resources)
            )
            folder.beat()
            job = SlurmJob.submit(script, folder.name, settings.poll_s)
            try:
                record_launch(context, {"launcher": "slurm", "id": job.id})
            except BaseException:
                job.kill()
                raise

            told = ""

            def tick() -> None:
                nonlocal told
                folder.beat()
                output.copy()
                state = f"{job.state}, restart {job.num_restarts}" if job.num_restarts else job.state
                if state != told:
                    told = state
                    context.log.info(f"Slurm job {job.id}: {state}")

            exit_code, timed_out = watch(context, job, resources, tick)
        tags = {"slurm_job_id": job.id, "slurm_job_state": job.state, "slurm_restarts": str(job.num_restarts)}
        return reported(session, exit_code, timed_out=timed_out, tags=tags)


def batch_script(
    settings: SlurmSettings,
    folder: LaunchFolder,
    task: Sequence[str],
    env: Mapping[str, str],
    resources: LaunchResources,
) -> str:
    """The batch script of a job whose tasks all run `task`."""
    grace_s = max(1, round(resources.terminate_grace_s))
    options = [
        f"--job-name={folder.name}",
        f"--chdir={resources.cwd}",
        f"--output={folder.path / 'output.log'}",
        "--open-mode=append",  # a job that is started again goes on in the same file
        f"--nodes={settings.nodes}",
        f"--ntasks-per-node={settings.tasks_per_node}",
        f"--partition={settings.partition}" if settings.partition else "",
        f"--cpus-per-task={settings.cpus_per_task}" if settings.cpus_per_task else "",
        f"--mem={settings.memory_mb}M" if settings.memory_mb else "",
        f"--time={settings.time_limit}" if settings.time_limit else "",
        # Slurm itself gives a job that has reached its limit 30 s; a large checkpoint needs more.
        f"--signal=TERM@{grace_s}" if settings.time_limit else "",
        "--requeue" if settings.requeue else "--no-requeue",
        *_gpu_options(settings),
        *settings.options,
    ]
    # A task that ends early, killed for its memory for example, leaves the others waiting for it; not for long.
    srun = ["srun", f"--wait={grace_s}", "--kill-on-bad-exit=0"]
    srun += [f"--cpus-per-task={settings.cpus_per_task}"] if settings.cpus_per_task else []
    exports = [f"export {name}={shlex.quote(value)}" for name, value in {"PYTHONUNBUFFERED": "1", **env}.items()]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {shlex.quote(option)}" for option in options if option),
            "",
            *exports,
            f'export {RENDEZVOUS_HOST}="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"',
            *settings.setup,
            "",
            "# Preemption signals this shell too; it must live to tell how the training ended.",
            "trap : TERM",
            shlex.join([*srun, *task]),
            "code=$?",
            f'echo "$code" > {shlex.quote(str(folder.path))}/exit_code."${{SLURM_RESTART_COUNT:-0}}"',
            'exit "$code"',
            "",
        ]
    )


class SlurmJob:
    """A job and what is known of it.

    Attributes:
        id: its number.
        state: as Slurm names it.
        num_restarts: how often it was put back into the queue.
    """

    def __init__(self, job_id: str, folder: Path, poll_s: float) -> None:
        self.id = job_id
        self.state = "PENDING"
        self.num_restarts = 0
        self._folder, self._poll_s = folder, poll_s
        self._next_look = 0.0
        self._started = False
        self._ending: tuple[str, int] | None = None
        self._asked: tuple[int, bool] | None = None

    @classmethod
    def submit(cls, script: Path, name: str, poll_s: float) -> SlurmJob:
        """Hand a batch script to Slurm.

        Raises:
            MissingDependencyError: there is no Slurm on this machine.
            TrainingError: Slurm refuses it.
        """
        try:
            answer = _slurm("sbatch", "--parsable", str(script))
        except FileNotFoundError:
            raise MissingDependencyError(
                "launcher `slurm`",
                "needs the commands of Slurm (sbatch, scontrol, scancel) on the machine that runs Dagster's steps",
                fix="On Debian: apt-get install slurm-client.",
            ) from None
        except BaseException:
            # Interrupted while Slurm answered: the job may be there, under this name.
            _slurm("scancel", f"--name={name}")
            raise
        if answer.returncode != 0:
            raise TrainingError("sbatch", f"must accept {script}", found=answer.stderr.strip() or "no reason")
        return cls(answer.stdout.strip().split(";")[0], script.parent, poll_s)

    def poll(self) -> int | None:
        """See `Job.poll`. A controller that does not answer says nothing about the job, which may well go on."""
        if time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + self._poll_s
        answer = _slurm("scontrol", "show", "job", "--oneliner", self.id)
        if answer.returncode != 0:
            return self._forgotten() if "Invalid job id" in answer.stderr else None
        told = dict(re.findall(r"\b(JobState|ExitCode|Restarts)=(\S+)", answer.stdout))
        self.state = told.get("JobState", self.state)
        self.num_restarts = int(told.get("Restarts", self.num_restarts))
        self._started = self._started or self.state not in _WAITING
        # A job that is put back into the queue is seen as ended for an instant.
        before, self._ending = self._ending, None
        if self.state in _ENDED:
            self._ending = (self.state, _exit_code(self.state, told.get("ExitCode", "")))
            self._next_look = time.monotonic() + min(self._poll_s, 1.0)
            return self._ending[1] if before == self._ending else None
        return None

    def has_started(self) -> bool:
        """See `Job.has_started`."""
        return self._started

    def ask_to_end(self) -> None:
        """See `Job.ask_to_end`. The tasks hear it, and end what has not ended after the grace period."""
        # Once for each attempt: torchrun takes a second signal for the wish to leave its workers alone.
        asked = (self.num_restarts, self.state in _WAITING)
        if asked != self._asked:
            self._asked = asked
            _ask_to_end(self.id, self.state)

    def kill(self) -> None:
        """See `Job.kill`."""
        _slurm("scancel", "--signal=KILL", "--full", self.id)
        _slurm("scancel", self.id)

    def _forgotten(self) -> int:
        """The exit code of a job that ended so long ago that the controller does not know it any more."""
        try:
            return int((self._folder / f"exit_code.{self.num_restarts}").read_text())
        except (OSError, ValueError):
            pass
        try:
            answer = _slurm("sacct", "-j", self.id, "-X", "-n", "-P", "-o", "State,ExitCode")
        except FileNotFoundError:
            return 1
        state, _, code = answer.stdout.strip().partition("|")
        self.state = state.split(" ")[0] or "UNKNOWN"
        return _exit_code(self.state, code)


def end_abandoned_job(record: Mapping[str, str]) -> None:
    """Ask the job of a launch record to end, without waiting for it: its tasks kill what outlives the grace period.

    Raises:
        FileNotFoundError: there is no Slurm on this machine.
    """
    answer = _slurm("scontrol", "show", "job", "--oneliner", record["id"])
    state = re.search(r"\bJobState=(\S+)", answer.stdout)
    _ask_to_end(record["id"], state[1] if state else "")


def _ask_to_end(job_id: str, state: str) -> None:
    if state in _WAITING:
        _slurm("scancel", job_id)
    elif state not in _ENDED:
        _slurm("scancel", "--signal=TERM", job_id)


def _check_num_processes(settings: SlurmSettings, num_processes: int) -> None:
    num_tasks = settings.nodes * settings.tasks_per_node
    if num_processes % num_tasks:
        raise ConfigError(
            "num_processes",
            f"must be a multiple of {num_tasks}, the tasks (nodes * tasks_per_node) of this launcher",
            found=num_processes,
            fix="Set it in the run configuration, to the number of all GPUs.",
        )


def _gpu_options(settings: SlurmSettings) -> list[str]:
    if settings.gpus_per_node and settings.tasks_per_node > 1:
        # Each task starts to count its devices at 0, so each must see its own only.
        return [f"--gpus-per-task={settings.gpus_per_node // settings.tasks_per_node}"]
    return [f"--gpus-per-node={settings.gpus_per_node}"] if settings.gpus_per_node else []


def _exit_code(state: str, told: str) -> int:
    """The exit code in Slurm's `code:signal`; never 0 for a job that has not completed."""
    code, _, number = told.partition(":")
    if state == "COMPLETED":
        return 0
    if code.isdigit() and int(code):
        return int(code)
    return -int(number) if number.isdigit() and int(number) else 1


def _slurm(*command: str) -> subprocess.CompletedProcess[str]:
    # Inside of a job of its own, Dagster's environment would speak for that one.
    env = {name: value for name, value in os.environ.items() if not re.match(r"SLURM_(?!CONF$)|SBATCH_", name)}
    try:
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", "no answer")
