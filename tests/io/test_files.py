"""Paths and file objects: whole or not at all."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moge_core.io as mio
from moge_core.errors import FormatError, InputError
from moge_core.io.files import read_bytes

IMAGE = np.zeros((4, 6, 3), np.uint8)
KINDS: dict[str, tuple[Callable[..., Any], Callable[..., None], Any]] = {
    "image.jpg": (mio.read_image, mio.write_image, IMAGE),
    "depth.png": (mio.read_depth, mio.write_depth, np.full((4, 6), 2, np.float32)),
    "normal.png": (mio.read_normal, mio.write_normal, np.broadcast_to(np.float32([0, 0, -1]), (4, 6, 3))),
    "mask.png": (mio.read_mask, mio.write_mask, np.eye(4, 6, dtype=bool)),
    "segmentation.png": (mio.read_segmentation, mio.write_segmentation, np.eye(4, 6, dtype=np.uint8)),
    "meta.json": (mio.read_meta, mio.write_meta, {"intrinsics": np.eye(3, dtype=np.float32)}),
    "points.ply": (mio.read_ply, mio.write_ply, np.zeros((2, 3), np.float32)),
}


@pytest.mark.parametrize("name", KINDS)
def test_paths_and_file_objects_hold_the_same_bytes(tmp_path: Path, name: str) -> None:
    read, write, value = KINDS[name]
    path = tmp_path / name
    write(path, value)
    file = io.BytesIO()
    write(file, value)
    assert path.read_bytes() == file.getvalue()
    write(str(path), value)
    with path.open("wb") as opened:
        write(opened, value)
    assert path.read_bytes() == file.getvalue()
    with path.open("rb") as opened:
        assert repr(read(opened)) == repr(read(str(path))) == repr(read(path))
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    read, write, value = KINDS[name]
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match=name):
        read(path)
    with pytest.raises(InputError, match="folder to write into must exist"):
        write(tmp_path / "absent" / name, value)
    path.touch()
    with pytest.raises(FormatError, match="must not be empty"):
        read(path)
    for no_file in (3, None):
        with pytest.raises(InputError, match="path or a binary file object"):
            read(no_file)
        with pytest.raises(InputError, match="path or a binary file object"):
            write(no_file, value)
    with pytest.raises(InputError, match="binary mode"):
        read(io.StringIO("text"))
    with pytest.raises(InputError, match="binary mode"):
        write(io.StringIO(), value)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in {"meta.json", "points.ply"}])
def test_mirrored_and_cut_out_arrays_are_written_as_they_look(name: str) -> None:
    _, write, value = KINDS[name]
    rng = np.random.default_rng(0)
    looks = np.take(value, rng.permutation(value.shape[1]), axis=1)
    laid_out_otherwise = np.repeat(np.asfortranarray(looks), 2, axis=0)[::-2, ::-1][::-1, ::-1]
    files = []
    for array in (looks, laid_out_otherwise):
        files.append(io.BytesIO())
        write(files[-1], array)
    assert files[0].getvalue() == files[1].getvalue()


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path: Path) -> None:
    path = tmp_path / "points.ply"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        with mio.atomic_open(path) as file:
            file.write(b"new and longer")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new and longer"


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "points.ply"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk"), mio.atomic_open(path) as file:
        file.write(b"half")
        raise OSError("disk full")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_there_under_the_name_before_all_is(tmp_path: Path) -> None:
    path = tmp_path / "points.ply"
    with mio.atomic_open(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        assert all(p.name.startswith(".") for p in tmp_path.iterdir())
    assert path.read_bytes() == b"half"


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "points.ply"
    path.write_bytes(b"old")
    program = (
        "import os, signal, sys; from moge_core.io.files import atomic_open\n"
        "with atomic_open(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode != 0
    assert path.read_bytes() == b"old"


def test_writers_of_one_name_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "points.ply"
    errors: list[BaseException] = []

    def write(byte: bytes) -> None:
        try:
            for _ in range(20):
                with mio.atomic_open(path) as file:
                    for _ in range(50):
                        file.write(byte * 1000)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(byte,)) for byte in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert path.read_bytes() in {byte * 50_000 for byte in (b"a", b"b", b"c")}
    assert list(tmp_path.iterdir()) == [path]


def test_links_names_and_modes_are_as_a_plain_write_has_them(tmp_path: Path) -> None:
    target = tmp_path / ("ü" * 100 + ".ply")
    link = tmp_path / "link.ply"
    link.symlink_to(target)
    with mio.atomic_open(link) as file:
        file.write(b"data")
    assert link.is_symlink()
    assert target.read_bytes() == b"data"
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_device_is_written_and_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    mio.write_mask(pipe, np.ones((2, 2), bool))
    reader.join(10)
    assert received[0].startswith(b"\x89PNG")
    assert pipe.is_fifo()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found a folder"):
        mio.write_mask(tmp_path, np.ones((2, 2), bool))


def test_file_objects_are_read_in_pieces_up_to_the_limit() -> None:
    class Slow(io.RawIOBase):
        left = 100

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            piece = b"x" * min(7, self.left, size)
            self.left -= len(piece)
            return piece

    assert read_bytes(Slow(), limit=100) == b"x" * 100  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="at most 99 bytes"):
        read_bytes(Slow(), limit=99)  # type: ignore[arg-type]


def test_io_is_imported_without_heavy_packages() -> None:
    program = "import moge_core.io, sys; print(*({'torch', 'trimesh', 'scipy', 'matplotlib'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == ""
