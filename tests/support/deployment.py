"""The services of `deploy/` on this machine: a PostgreSQL of one's own, and the commands of the systemd units."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
HOST = "127.0.0.1"


def free_port() -> int:
    """A port of the loopback address that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@dataclass
class Postgres:
    """A PostgreSQL with the databases of `deploy/postgres/create-databases.sh`."""

    port: int
    passwords: dict[str, str]

    def query(self, database: str, sql: str, role: str | None = None, **values: str) -> str:
        """The rows that `psql` prints to a role, by default the database's owner; `:'name'` stands for a value.

        Raises:
            PermissionError: the server refuses.
        """
        role = role or database
        argv = ["psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"]
        argv += ["--host", HOST, "--port", str(self.port), "--username", role, "--dbname", database]
        argv += [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
        env = {**os.environ, "PGPASSWORD": self.passwords[role]}
        done = subprocess.run(argv, env=env, input=sql, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise PermissionError(done.stderr)
        return done.stdout.strip()


@contextlib.contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server of its own data directory, gone with it: passwords on the loopback address, trust on its own socket."""
    newest = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    # PostgreSQL refuses to run as root; Debian's package brings a user along.
    identity: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="moge-postgres-"))
    try:
        if identity:
            shutil.chown(folder, "postgres", "postgres")
        argv = [
            newest / "initdb",
            "--pgdata",
            folder / "data",
            "--username",
            "postgres",
            "--encoding",
            "UTF8",
            "--no-sync",
        ]
        argv += ["--no-locale", "--auth-local", "trust", "--auth-host", "scram-sha-256"]
        subprocess.run(argv, check=True, capture_output=True, timeout=120, cwd=folder, **identity)
        port = free_port()
        argv = [newest / "postgres", "-D", folder / "data", "-k", folder, "-p", str(port), "-c", "fsync=off"]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(
                [*argv, "-c", f"listen_addresses={HOST}"], stdout=log, stderr=subprocess.STDOUT, cwd=folder, **identity
            )
        try:
            ready = [newest / "pg_isready", "--host", folder, "--port", str(port), "--username", "postgres"]
            wait_until(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, 60, server)
            passwords = {role: secrets.token_hex(12) for role in ("dagster", "mlflow")}
            env = {f"MOGE_{role.upper()}_DB_PASSWORD": password for role, password in passwords.items()}
            env |= {**os.environ, "PGHOST": str(folder), "PGPORT": str(port)}
            subprocess.run([DEPLOY / "postgres" / "create-databases.sh"], env=env, check=True, timeout=60)
            yield Postgres(port, passwords)
        finally:
            server.send_signal(signal.SIGINT)  # "fast": sessions that are open do not hold it up
            server.wait(60)
    finally:
        shutil.rmtree(folder)


@dataclass
class Deployment:
    """Services started as the systemd units start them, on ports of their own.

    Attributes:
        root: the project's folder.
        env: what the units' environment files say, with this machine's places.
        ports: by service.
    """

    root: Path
    env: dict[str, str]
    ports: dict[str, int]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, service: str) -> None:
        """Run the command of a unit in a session of its own, as tini and systemd do."""
        argv = unit_command(f"moge-{service}.service")
        if service in self.ports:
            argv[argv.index("--port") + 1] = str(self.ports[service])
        log = self.log(service).open("ab")
        with log:
            self.running[service] = subprocess.Popen(
                argv, cwd=self.root, env=self.env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def log(self, service: str) -> Path:
        """What the service printed."""
        return self.root / f"{service}.log"

    def await_service(self, service: str) -> None:
        """Block until the service is of use."""
        if service == "daemon":
            check = [str(Path(sys.executable).parent / "dagster-daemon"), "liveness-check"]
        elif service == "code":
            check = [sys.executable, "-m", "dagster", "api", "grpc-health-check", "--port", str(self.ports["code"])]
        else:
            page = {"webserver": "server_info"}.get(service, "health")
            address = f"http://{HOST}:{self.ports[service]}/{page}"
            wait_until(lambda: fetch(address)[0] == 200, 120, self.running[service], self.log(service))
            return

        def is_well() -> bool:
            return subprocess.run(check, env=self.env, cwd=self.root, capture_output=True, check=False).returncode == 0

        wait_until(is_well, 120, self.running[service], self.log(service), pause=1)

    def stop(self, *services: str, timeout_s: float = 90) -> None:
        """End the services' whole process groups, as `tini -g` does, and wait for their first processes."""
        stopped = [self.running.pop(service) for service in services]
        for process in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in stopped:
            process.wait(timeout_s)

    def graphql(self, query: str, **variables: Any) -> Any:
        """The answer of the user interface to a query."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        url = f"http://{HOST}:{self.ports['webserver']}/graphql"
        status, answer = fetch(url, body, {"Content-Type": "application/json"})
        assert status == 200, answer
        values = json.loads(answer)
        assert "errors" not in values, values["errors"]
        return values["data"]


def unit_command(unit: str) -> list[str]:
    """The command of a systemd unit, with the programs and files of this repository."""
    lines = (DEPLOY / "systemd" / unit).read_text().splitlines()
    (command,) = (line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart="))
    here = command.replace("/opt/moge/.venv/bin", str(Path(sys.executable).parent)).replace(
        "/opt/moge", str(REPOSITORY)
    )
    return shlex.split(here)


def environment_file(name: str) -> dict[str, str]:
    """What an example of an environment file sets."""
    lines = (DEPLOY / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def fetch(url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """Status and content of an answer; 0 where nobody answers."""
    assert url.startswith("http://")
    try:
        request = urllib.request.Request(url, body, dict(headers or {}))  # noqa: S310
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError:
        return 0, b""


def wait_until(
    condition: Any,
    timeout_s: float,
    process: subprocess.Popen[Any] | None = None,
    log: Path | None = None,
    pause: float = 0.2,
) -> None:
    """Block until the condition holds, or fail when the process ends or time is up."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        text = log.read_text(errors="replace")[-4000:] if log is not None else ""
        assert process is None or process.poll() is None, text
        assert time.monotonic() < deadline, text
        time.sleep(pause)
