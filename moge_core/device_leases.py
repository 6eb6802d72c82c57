"""Which accelerators of this machine are taken, so that what runs side by side gets different ones.

A device is leased as long as

- the process that took it lives and has not given it back: it holds a lock of the kernel on the device's file, and
- any process lives that was started to work with it: each bears the device in its environment, which it inherits
  and hands on, so that no process of a training can be missed and none has to do anything for it.

Nothing needs to be tidied up after a process was killed: the kernel drops its lock, and a process that is gone bears
nothing. Leases are those of one user on one machine, or in one job where a cluster has dealt the devices out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psutil

from moge_core.accelerators import Accelerators, find_accelerators
from moge_core.errors import InputError

FOLDER = "MOGE_LEASES"
"""Environment variable with the folder of the leases, for those who share one: services with a /tmp of their own."""
LEASED = "MOGE_LEASED"
"""Environment variable of every process that works with leased devices: their files, separated by colons."""

_SECONDS_BETWEEN_LOOKS = 1.0
_LONGEST_HOLDER = 500  # bytes that are read of who holds a device


@dataclass(frozen=True)
class Lease:
    """Accelerators that nothing else works on. Empty on a machine without any.

    Attributes:
        names: of each, see `Accelerators.names`.
        indices: of each, as torch counts those that this process sees.
        environment: of processes that are to work on these, and on no others.
    """

    names: tuple[str, ...] = ()
    indices: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def leased_devices(count: int, holder: str, tell: Callable[[str], None]) -> Iterator[Lease]:
    """Hold `count` accelerators of this machine inside the block, after waiting until so many are free.

    Whoever waits is next: what comes later waits behind it, so that a training of many processes is not passed by
    small ones for ever. Processes that outlive the block hold their devices for as long as they live.

    Args:
        count: how many.
        holder: who others read that they wait for.
        tell: hears what is waited for.

    Raises:
        InputError: there are fewer, or the folder of the leases is not this user's.
    """
    machine = find_accelerators()
    if not machine.names:
        yield Lease()
        return
    if count > len(machine.names):
        raise InputError(
            "num_processes",
            "must be at most the number of accelerators that are visible: each process works on one of its own",
            found=f"{count} processes for {_listed(machine.names)}",
            fix="Ask for fewer processes, or show more devices (CUDA_VISIBLE_DEVICES); MOGE_ACCELERATORS= with nothing "
            "behind it leaves them all aside and trains on the CPU.",
        )
    if LEASED in os.environ:  # this process works on leased devices itself, and sees no others
        yield _lease(machine, list(range(count)))
        return
    with contextlib.ExitStack() as held:
        chosen = _wait_for(machine, count, holder, tell, held)
        yield _lease(machine, chosen)


@contextlib.contextmanager
def leased_device(holder: str, tell: Callable[[str], None]) -> Iterator[str | None]:
    """Hold one accelerator for this process inside the block, see `leased_devices`.

    Yields:
        the device as torch calls it, such as `cuda:1`, which is torch's current device meanwhile; None where torch
        sees no GPU.
    """
    with leased_devices(1, holder, tell) as lease:
        if not lease.names:
            yield None
            return
        import torch

        if not torch.cuda.is_available():  # built for the CPU, though there is a GPU
            yield None
            return
        (index,) = lease.indices
        if index > 0 and lease.names[0].startswith("MIG"):  # CUDA shows a process one part of a device at most
            raise InputError(
                "CUDA_VISIBLE_DEVICES",
                "must name devices that one process can see at once",
                found=f"{lease.names[0]} after another part of a device",
                fix="Show one part (MIG) only.",
            )
        with torch.cuda.device(index):
            yield f"cuda:{index}"


def holders(machine: Accelerators) -> dict[str, str]:
    """Who holds the accelerators of `machine` that are leased, by their names."""
    files = {name: _file_of(identity) for name, identity in zip(machine.names, machine.identities, strict=True)}
    borne = _borne()
    return {name: _holder(path) for name, path in files.items() if str(path) in borne or _is_locked(path)}


def leases_folder() -> Path:
    """Where the files of the leases lie. A cluster's jobs number their devices anew, so each has a folder."""
    given, job = os.environ.get(FOLDER), os.environ.get("SLURM_JOB_ID")
    if given:
        return Path(given).absolute()
    # TMPDIR is asked last: it differs between the shells and services of one user, who must all meet.
    parent = "/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()  # noqa: S108  # checked in _make_folder
    return Path(parent) / f"moge-accelerators-{os.getuid()}{f'-{job}' if job else ''}"


# --- taking devices ---


def _wait_for(
    machine: Accelerators, count: int, holder: str, tell: Callable[[str], None], held: contextlib.ExitStack
) -> list[int]:
    """Indices of `count` devices of the machine, whose locks are in `held` from now on."""
    _make_folder()
    told = ""
    with contextlib.ExitStack() as turn:
        is_my_turn = False
        while True:
            if not is_my_turn and (descriptor := _lock(leases_folder() / "queue")) is not None:
                turn.callback(os.close, descriptor)
                _sign(descriptor, holder)
                is_my_turn = True
            if is_my_turn:
                chosen = _take(machine, count, holder, held)
                if len(chosen) == count:
                    return chosen
            text = _told_of(machine, count, is_my_turn)
            if text != told:
                tell(text)
                told = text
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _take(machine: Accelerators, count: int, holder: str, held: contextlib.ExitStack) -> list[int]:
    """Lock `count` devices that are free, or none; only who has its turn may do so."""
    files = dict(enumerate(map(_file_of, machine.identities)))
    taken = holders(machine)
    seem_free = [index for index, name in enumerate(machine.names) if name not in taken]
    if len(seem_free) < count:
        return []
    locked = {index: lock for index in seem_free if (lock := _lock(files[index])) is not None}
    try:
        # Once more: whoever had a lock may have started processes until the moment in which it was killed.
        borne = _borne()
        chosen = [index for index in locked if str(files[index]) not in borne][:count]
        if len(chosen) < count:
            return []
        for index in chosen:
            _sign(locked[index], holder)
            held.callback(os.close, locked.pop(index))
        return chosen
    finally:
        for lock in locked.values():
            os.close(lock)


def _lock(path: Path) -> int | None:
    """Descriptor of a file that is locked as long as it is open; None if another has locked it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _sign(descriptor: int, holder: str) -> None:
    """Say in a locked file who locked it."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{holder} (process {os.getpid()})".encode(), 0)


def _make_folder() -> None:
    folder = leases_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        fix = f"Name another folder in {FOLDER}."
        raise InputError(folder, "must belong to this user", found="another user's folder", fix=fix)


def _lease(machine: Accelerators, chosen: Sequence[int]) -> Lease:
    names = tuple(machine.names[index] for index in chosen)
    files = os.pathsep.join(str(_file_of(machine.identities[index])) for index in chosen)
    return Lease(names, tuple(chosen), {machine.variable: ",".join(names), LEASED: files})


# --- seeing what is taken ---


def _file_of(identity: str) -> Path:
    return leases_folder() / quote(identity, safe="")


def _borne() -> set[str]:
    """Files of the devices that living processes were started to work with."""
    borne: set[str] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            borne.update(process.environ().get(LEASED, "").split(os.pathsep))
    return borne


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _holder(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST_HOLDER).decode(errors="replace") or "unknown"
    except OSError:
        return "unknown"


def _told_of(machine: Accelerators, count: int, is_my_turn: bool) -> str:
    text = f"Waiting for {count} of {_listed(machine.names)}"
    if not is_my_turn:
        return f"{text}, behind {_holder(leases_folder() / 'queue')}."
    return f"{text}; {'; '.join(f'{name} is held by {who}' for name, who in holders(machine).items())}."


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} GPU{'s' if len(names) > 1 else ''} ({', '.join(names)})"
