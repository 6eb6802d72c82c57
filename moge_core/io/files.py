"""Bytes from and to a path or a binary file object; a path is never left half-written.

read_bytes("depth.png"), read_bytes(file)
write_bytes("depth.png", data), write_bytes(file, data)
with atomic_open("points.ply") as file:
    file.write(header)
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

from moge_core.errors import FormatError, InputError

PathOrFile: TypeAlias = str | os.PathLike[str] | IO[bytes]
"""Where an artifact is read from or written to: a path, or a file object opened in binary mode."""

_PIECE_BYTES = 1 << 22

_TEMPORARY_NAME = re.compile(r"\.(.+)\.[0-9a-f]{12}\.tmp", re.DOTALL)


class NamedBytes(io.BytesIO):
    """Bytes in memory that errors call by the name of the file that they are of."""

    def __init__(self, name: str | os.PathLike[str], data: bytes = b"") -> None:
        super().__init__(data)
        self.name = os.fspath(name)


def name_of(path_or_file: PathOrFile) -> str:
    """What error messages call the file: its path, or what a file object says its name is."""
    if isinstance(path_or_file, (str, os.PathLike)):
        return os.fspath(path_or_file)
    name = getattr(path_or_file, "name", None)
    return name if isinstance(name, str) else f"<{type(path_or_file).__name__}>"


def read_bytes(path_or_file: PathOrFile, *, limit: int) -> bytes:
    """All bytes of a file, or of what is left in a file object.

    Args:
        path_or_file: a path or a binary file object.
        limit: most bytes to accept.

    Raises:
        FormatError: more bytes than `limit`.
        InputError: neither a path nor a file object opened in binary mode.
        OSError: what the operating system says, for instance FileNotFoundError.
    """
    if isinstance(path_or_file, (str, os.PathLike)):
        with Path(path_or_file).open("rb") as file:
            return _read_all(file, name_of(path_or_file), limit)
    return _read_all(path_or_file, name_of(path_or_file), limit)


def write_bytes(path_or_file: PathOrFile, data: bytes) -> None:
    """Write all of `data`: to a path through `atomic_open`, to a file object at its position.

    Raises:
        InputError: the folder of a path does not exist, or the file object was opened in text mode.
        OSError: what the operating system says, for instance that the disk is full.
    """
    if isinstance(path_or_file, (str, os.PathLike)):
        with atomic_open(path_or_file) as file:
            file.write(data)
        return
    if not hasattr(path_or_file, "write"):
        raise _not_a_file(path_or_file)
    try:
        path_or_file.write(data)
    except TypeError as error:
        raise InputError(name_of(path_or_file), "the file object must be opened in binary mode", found=error) from error


@contextlib.contextmanager
def atomic_open(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` complete, when the `with` block ends without an error, or not at all.

    The bytes go to a hidden file in the same folder, which is synchronised to the disk and then renamed. After an error
    it is removed and an older file under `path` is as it was. A pipe or a device is written directly.

    Raises:
        InputError: the folder does not exist.
    """
    # A link stays a link: the file that it points to is the one replaced.
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise InputError(
            path, "the folder to write into must exist", found=f"no folder {target.parent}", fix="Create it first."
        )
    if target.is_dir():
        raise InputError(path, "must be the path of a file", found="a folder")
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            yield file
        return

    # A name of its own for each writer: two processes may write the same file, and the last one then wins whole.
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def final_name(name: str) -> str | None:
    """What the hidden file `name` would have become, had `atomic_open` ended (its first 40 letters); else None."""
    match = _TEMPORARY_NAME.fullmatch(name)
    return match[1] if match else None


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Have the names in a folder on the disk, not only the contents of its files."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_all(file: Any, name: str, limit: int) -> bytes:
    if not hasattr(file, "read"):
        raise _not_a_file(file)
    pieces: list[bytes] = []
    num_bytes = 0
    # In pieces, because read(limit) may reserve `limit` bytes at once.
    while piece := file.read(_PIECE_BYTES):
        if not isinstance(piece, bytes):
            found = f"{type(piece).__name__} from read()"
            raise InputError(name, "the file object must be opened in binary mode", found=found)
        num_bytes += len(piece)
        if num_bytes > limit:
            raise FormatError(name, f"a file may have at most {limit:,} bytes", found="more")
        pieces.append(piece)
    if not pieces:
        raise FormatError(name, "must not be empty", found="0 bytes")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _not_a_file(found: object) -> InputError:
    return InputError("path_or_file", "must be a path or a binary file object", found=type(found).__name__)


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
