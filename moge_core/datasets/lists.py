"""`.moge/lists.json`: which lists this package wrote, for which depth maps, and how the split was made.

A list is known as ours by the digest of its bytes. One with any other digest is the user's own and is never replaced
unasked. The file is small and apart from the manifest, which may be deleted without a list changing hands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from moge_core.configuration import StrictModel
from moge_core.datasets.layout import MAX_LIST_BYTES, STATE_DIR, read_list_lines, read_state
from moge_core.datasets.manifest import header_lists
from moge_core.errors import DatasetError
from moge_core.io.files import atomic_open, write_bytes

LISTS_NAME = "lists.json"
_MAX_BYTES = 64 << 20


FOLDER_RULE: Literal[1] = 1
SCENE_RULE: Literal[2] = 2
"""How instances are held out. 1: of `moge index --val-fraction` by the folder above an instance, of `--eval_fraction`
each for itself; what was made by it keeps it. 2: by scenes, of one video by a block with gaps."""


class Split(StrictModel):
    """How `.train.txt` and `.val.txt` were made."""

    val_fraction: float
    """The share that was asked for."""
    rule: Literal[1, 2] = FOLDER_RULE
    """By which rule; files of before it was written are of the first."""
    held_out: dict[str, bool] = Field(default_factory=dict)
    """Scenes that are held out, or are not, against their hash: without them one of the lists would have been empty."""


class _Content(StrictModel):
    version: Literal[1] = 1
    lists: dict[str, dict[str, str | None]] = Field(default_factory=dict)
    """By the list's name: digests that are ours (two while a list is being replaced), with the depth maps it is for."""
    split: Split | None = None


class WrittenLists:
    """What `.moge/lists.json` holds. Changes are made and saved under the dataset's lock.

    Attributes:
        split: how the splits were made; None when they were not.
    """

    def __init__(self, root: Path, content: _Content | None = None) -> None:
        self._root = root
        self._known = {} if content is None else {name: dict(digests) for name, digests in content.lists.items()}
        self.split = None if content is None else content.split
        self._saved = None if content is None else self._text()

    @classmethod
    def load(cls, root: Path) -> WrittenLists:
        """What is known of a dataset's lists; from the manifest where a former version kept it there.

        Raises:
            DatasetError: the file is damaged or of a newer version.
        """
        path = root / STATE_DIR / LISTS_NAME
        try:
            return cls(root, _Content.model_validate_json(read_state(path, _MAX_BYTES)))
        except FileNotFoundError:
            lists = cls(root)
            lists._known = {name: dict.fromkeys(digests) for name, digests in header_lists(root).items()}
            return lists
        except ValidationError as error:
            raise DatasetError(
                path,
                "must say which lists this package wrote",
                found=error.errors()[0]["msg"],
                fix="Delete it, then run `moge index --rebuild`.",
            ) from error

    def save(self) -> None:
        """Write the file in one step, where it does not hold this already.

        Raises:
            DatasetError: `.moge/` cannot be written.
        """
        text = self._text()
        if text == self._saved or (self._saved is None and not self._known and self.split is None):
            return
        path = self._root / STATE_DIR / LISTS_NAME
        try:
            path.parent.mkdir(exist_ok=True)
            write_bytes(path, text.encode())
        except OSError as error:
            raise DatasetError(path, "must be writable", found=error) from error
        self._saved = text

    def is_ours(self, path: Path) -> bool:
        """True for a list on disk that this package wrote; False for the user's own, and where there is none."""
        known = self._known.get(self._name(path), {})
        return bool(known) and path.exists() and _digest_of(path) in known

    def depth_of(self, path: Path) -> str | None:
        """File name of the depth maps that a list of ours was made for; None where nobody knows."""
        known = self._known.get(self._name(path), {})
        return known.get(_digest_of(path)) if known and path.exists() else None

    def lines_of(self, path: Path) -> list[str] | None:
        """Instances of a list that is ours, else None."""
        return read_list_lines(path) if self.is_ours(path) else None

    def disown(self, path: Path) -> None:
        """Remember that a list is the user's own, whatever it will say."""
        self._known.pop(self._name(path), None)

    def write(
        self,
        path: Path,
        instances: Sequence[str],
        *,
        depth_name: str | None = None,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        """Write a list, where it changed.

        Args:
            path: the list.
            instances: what it names.
            depth_name: file name of the depth maps that it is for.
            before: called when the list is about to change.
        """
        data = "".join(f"{instance}\n" for instance in instances).encode()
        digest = hashlib.sha256(data).hexdigest()
        name = self._name(path)
        if not path.exists() or read_state(path, MAX_LIST_BYTES) != data:
            # The new list is known before it stands there, and the old one until it is gone: whenever this is
            # interrupted, the list on disk is still known as ours.
            self._known[name] = {**self._known.get(name, {}), digest: depth_name}
            self.save()
            before()
            with atomic_open(path) as file:
                file.write(data)
        self._known[name] = {digest: depth_name}
        self.save()

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _text(self) -> str:
        known = {name: dict(sorted(digests.items())) for name, digests in sorted(self._known.items())}
        return _Content(lists=known, split=self.split).model_dump_json(indent=2) + "\n"


def back_up(path: Path) -> Path:
    """Keep a list of the user's own under a free name, and return that."""
    backup = path.with_name(f"{path.name}.bak")
    number = 0
    # A link that leads nowhere takes a name too.
    while backup.exists() or backup.is_symlink():
        number += 1
        backup = path.with_name(f"{path.name}.bak.{number}")
    # A copy, not a move: at no instant is the dataset without a list.
    with atomic_open(backup) as file:
        file.write(read_state(path, MAX_LIST_BYTES))
    return backup


def _digest_of(path: Path) -> str:
    return hashlib.sha256(read_state(path, MAX_LIST_BYTES)).hexdigest()
