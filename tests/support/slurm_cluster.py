"""A Slurm of this machine: munged, slurmctld and two slurmd, as two nodes, in a folder of their own, as root.

The nodes are called `localhost` and as the machine is, so that their names lead where nodes' names should.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
"""What Debian's packages slurm-wlm and munge install."""

_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
KillWait=30
MinJobAge=300
ReturnToService=2
SchedulerParameters=sched_interval=2,batch_sched_delay=0,bf_interval=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmdParameters=config_overrides
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
NodeName={host} NodeHostname={host} Port={first_port} CPUs=2 RealMemory=1000 State=UNKNOWN
NodeName=localhost NodeHostname={host} Port={second_port} CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def slurm_cluster(folder: Path) -> Iterator[Path]:
    """A running cluster with the partition `gpu`; its slurm.conf, which is also in the environment inside the block."""
    # A socket's name is short: pytest's folders may be too long for it.
    host = socket.gethostname()
    folder.mkdir(mode=0o755, parents=True)
    for name in ("state", f"spool.{host}", "spool.localhost"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    configuration = folder / "slurm.conf"
    ports = _free_ports(3)
    configuration.write_text(
        _CONFIGURATION.format(
            folder=folder,
            host=host,
            controller_port=ports[0],
            first_port=ports[1],
            second_port=ports[2],
        )
    )
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munged += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/seed"]
    outside = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(configuration)
    try:
        with contextlib.ExitStack() as daemons:
            nodes = [["slurmd", "-D", "-N", name] for name in (host, "localhost")]
            for command in (munged, ["slurmctld", "-D"], *nodes):
                daemons.enter_context(_daemon(command, folder))
                if command is munged:
                    _wait((folder / "munge.socket").exists, "munged opened no socket", folder)
            _wait(lambda: _output("sinfo", "-h", "-o", "%T %D") == "idle 2", "the nodes are not idle", folder, 120)
            yield configuration
            _output("scancel", "--partition=gpu")
            _wait(lambda: _output("squeue", "-h") == "", "jobs are left", folder)
    finally:
        if outside is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = outside


@contextlib.contextmanager
def _daemon(command: list[str], folder: Path) -> Iterator[None]:
    log = folder / f"{command[0]}.{command[-1]}.out" if command[0] == "slurmd" else folder / f"{command[0]}.out"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(shutil.which(command[0])), *command[1:]], stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _wait(condition: object, complaint: str, folder: Path, seconds: float = 60) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = {path.name: path.read_text(errors="replace")[-1500:] for path in sorted(folder.glob("*.log"))}
            raise TimeoutError(f"{complaint}; sinfo: {_output('sinfo')}; {logs}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    """Different ports below those that the system hands out, which another test may be given at any moment."""
    ports: list[int] = []
    while len(ports) < count:
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            ports += [port] if port not in ports else []
    return ports
