"""What runs side by side on one machine works on different devices."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from moge_core import device_leases, doctor
from moge_core.accelerators import find_accelerators
from moge_core.device_leases import holders, leased_device, leased_devices
from moge_core.errors import InputError


@pytest.fixture(autouse=True)
def three_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with three devices, and leases of its own."""
    monkeypatch.setenv("MOGE_ACCELERATORS", "0,1,2")
    monkeypatch.setenv("MOGE_LEASES", str(tmp_path / "leases"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device_leases, "_SECONDS_BETWEEN_LOOKS", 0.02)


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def held() -> dict[str, str]:
    """Who holds what, with the processes left out."""
    return {name: who.partition(" (process")[0] for name, who in holders(find_accelerators()).items()}


class Waiting(threading.Thread):
    """Takes devices in a thread, and holds them until it is told to let go."""

    def __init__(self, count: int, holder: str) -> None:
        super().__init__(daemon=True)
        self.count, self.holder = count, holder
        self.told: list[str] = []
        self.names: tuple[str, ...] = ()
        self.enough = threading.Event()

    def run(self) -> None:
        with leased_devices(self.count, self.holder, self.told.append) as lease:
            self.names = lease.names
            self.enough.wait()
        self.names = ()


@pytest.fixture
def waiting() -> Iterator[Callable[[int, str], Waiting]]:
    """Starts threads that take devices."""
    started: list[Waiting] = []

    def start(count: int, holder: str) -> Waiting:
        started.append(Waiting(count, holder))
        started[-1].start()
        return started[-1]

    yield start
    for thread in started:
        thread.enough.set()
        thread.join(30)


def test_each_gets_devices_of_its_own_and_gives_them_back() -> None:
    with leased_devices(1, "a", print) as one, leased_devices(2, "b", print) as two:
        assert (one.names, two.names, two.indices) == (("0",), ("1", "2"), (1, 2))
        assert one.environment["CUDA_VISIBLE_DEVICES"] == "0"
        assert two.environment["CUDA_VISIBLE_DEVICES"] == "1,2"
        assert held() == {"0": "a", "1": "b", "2": "b"}
    assert held() == {}


def test_the_devices_that_a_process_sees_have_their_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with leased_devices(1, "all", print) as first:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
        assert first.names == ("0",)
        with leased_devices(1, "gaps", print) as second:
            assert (second.names, second.indices) == (("2",), (0,))


def test_who_waits_hears_whom_for_and_is_not_passed_by_who_comes_later(
    waiting: Callable[[int, str], Waiting],
) -> None:
    first = waiting(2, "train_a")
    wait_for(lambda: first.names)
    large = waiting(3, "train_b")
    wait_for(lambda: large.told)
    assert large.told[0].startswith("Waiting for 3 of 3 GPUs (0, 1, 2); 0 is held by train_a (process ")
    small = waiting(1, "evaluation_a")
    wait_for(lambda: small.told)
    assert "behind train_b" in small.told[0]
    assert held() == {"0": "train_a", "1": "train_a"}, "device 2 is kept for who came first"
    first.enough.set()
    wait_for(lambda: large.names)
    assert (large.names, small.names) == (("0", "1", "2"), ())
    large.enough.set()
    wait_for(lambda: small.names)
    assert len(small.names) == 1, "any of the three: they are given back one after the other"


def test_more_than_there_are_is_refused_at_once() -> None:
    with (
        pytest.raises(InputError, match=r"4 processes for 3 GPUs \(0, 1, 2\)"),
        leased_devices(4, "a", print),
    ):
        pass


def test_a_wait_that_is_broken_off_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with leased_devices(3, "a", print):
        monkeypatch.setattr(device_leases.time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt), leased_devices(1, "b", print):
            pass
        monkeypatch.undo()
    assert not device_leases._is_locked(device_leases.leases_folder() / "queue")


def test_a_machine_without_devices_knows_nothing_of_leases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOGE_ACCELERATORS", "")
    with leased_devices(8, "a", print) as lease, leased_device("b", print) as device:
        assert (lease.names, lease.environment, device) == ((), {}, None)
    assert not (tmp_path / "leases").exists()
    assert not [check for check in doctor.check_machine() if check.name == "GPU leases"]


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leases").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: (tmp_path / "leases").stat().st_uid + 1)
    with pytest.raises(InputError, match="MOGE_LEASES"), leased_devices(1, "a", print):
        pass


# --- processes ---

HOLD = """
import subprocess, sys
from moge_core.device_leases import leased_devices
with leased_devices(1, "train_a", print) as lease:
    child = subprocess.Popen(["sleep", "1000"], env=dict(lease.environment), start_new_session=True)
    print(*lease.names, child.pid, flush=True)
    child.wait()
"""


def test_what_was_killed_holds_its_device_until_the_last_of_its_processes_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        name, child = holder.stdout.readline().split()
        holder.kill()
    try:
        assert name == "0" and held() == {"0": "train_a"}
        with leased_devices(2, "train_b", print) as lease:
            assert lease.names == ("1", "2")
    finally:
        os.kill(int(child), 9)
    wait_for(lambda: held() == {})
    with leased_devices(3, "train_c", print) as lease:
        assert lease.names == ("0", "1", "2")


# --- what works in this process ---


def test_one_device_is_current_while_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    current = []

    @contextlib.contextmanager
    def device(index: int) -> Iterator[None]:
        current.append(index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", device)
    with leased_device("a", print) as first, leased_device("b", print) as second:
        assert (first, second, current) == ("cuda:0", "cuda:1", [0, 1])
    assert current == []


def test_a_torch_for_the_cpu_works_on_the_cpu_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with leased_device("a", print) as device:
        assert device is None


def test_a_completion_holds_a_device_unless_it_is_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Model:
        def to(self, device: torch.device) -> Model:
            seen.append((str(device), held()))
            raise InputError("model", "ends here")

    monkeypatch.setattr("moge_core.models.load_model", lambda name: Model())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    from moge_core.cli import cli

    for extra in ([], ["--device", "cpu"]):
        CliRunner().invoke(cli, ["complete", "data/x", "--model", "m", *extra])
    assert seen == [("cpu", {"0": "moge complete data/x"}), ("cpu", {})]
    assert held() == {}


def test_the_doctor_tells_who_holds_what_and_that_torch_cannot_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with leased_devices(1, "train_a", print):
        checks = {check.name: check for check in doctor.check_machine()}
    assert checks["GPU leases"].detail.startswith(f"0: train_a (process {os.getpid()}); 1: free; 2: free")
    assert "0, 1, 2 (CUDA) cannot be used: this torch is built for" in checks["GPU"].detail
    assert not checks["GPU"].ok and not checks["GPU"].needed
