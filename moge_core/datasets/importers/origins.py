"""What an instance was made from, and whether the one that stands there is still that of its files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moge_core.datasets.importers.instance_files import FILE_NAMES, FILE_OF_PART, WRITTEN_KEYS
from moge_core.datasets.importers.records import (
    ImportSettings,
    Record,
    Stored,
    StoredDepth,
    described,
    described_items,
)
from moge_core.datasets.importers.reread import changed_reading
from moge_core.datasets.importers.vocabulary import GivenValues
from moge_core.datasets.layout import META_NAME
from moge_core.errors import InstanceError, MoGeError
from moge_core.io.files import NamedBytes, read_bytes

_VERSION = 3
# An import writes the files of an instance one after the other; who changes meta.json later than this did so by hand.
_LONGEST_WRITING_S = 60.0


@dataclass(frozen=True)
class Standing:
    """An instance that stands where a record's is to be.

    Attributes:
        meta: its meta.json.
        text: as it stands there.
        is_current: whether this very import made it and its files did not change since.
        lacks_pose: whether it was made before poses were read, from a frame whose pose is known.
    """

    meta: Mapping[str, Any]
    text: str
    is_current: bool
    lacks_pose: bool

    def own_keys(self) -> dict[str, Any]:
        """What its user wrote into meta.json besides."""
        kept = {name: value for name, value in self.meta.items() if name not in WRITTEN_KEYS}
        if "pose" in self.meta and "pose" not in self.meta["source"]:
            kept["pose"] = self.meta["pose"]
        return kept

    def is_edited(self, folder: Path) -> bool:
        """Whether meta.json is not as an import wrote it, as far as can be seen."""
        from moge_core.io import write_meta

        as_written = NamedBytes(folder / META_NAME)
        write_meta(as_written, self.meta)
        if as_written.getvalue() != self.text.encode("utf-8", "surrogateescape"):
            return True
        others = [file.stat().st_mtime for name in FILE_OF_PART.values() if (file := folder / name).is_file()]
        return bool(others) and (folder / META_NAME).stat().st_mtime > max(others) + _LONGEST_WRITING_S


class Origins:
    """Origins of the instances of one import.

    Args:
        importer: its name.
        base: the folder that file names are told relative to.
        settings: see `ImportSettings`.
        identity: see `writing.run_import`.
    """

    def __init__(self, importer: str, base: Path, settings: ImportSettings, identity: str | None) -> None:
        self.importer = importer
        self.base = f"{base}/"
        self.settings = settings
        self.identity = identity

    def of(self, record: Record) -> dict[str, str]:
        """What an instance was made from: names for people, and a digest that changes with settings and sizes.

        Nothing in it depends on the machine, so that equal imports give equal datasets. A pose has a digest of its own,
        which instances that were made before poses were read do not have.
        """
        # What the user said of values is in the record already.
        settings = replace(self.settings, name_prefix="", values=GivenValues())
        texts = [
            described(settings),
            described(record.camera),
            repr(record.depth_unit),
            repr(sorted(record.labels.items())),
            *(f"{name} {self._label(part)} {described_items(part)!r}" for name, part in record.parts()),
        ]
        depth = record.depth
        if isinstance(depth, StoredDepth) and record.is_metric != (
            record.depth_unit is not None and not (depth.kind == "disparity" and depth.baseline is None)
        ):
            texts.append("with a unit" if record.is_metric else "without a unit")
        texts += changed_reading(record)
        texts += [f"{self._relative(path)} {path.stat().st_size}" for path in record.files()]
        origin = {
            "importer": self.importer,
            "image": self._label(record.image),
            "depth": self._label(record.depth),
            "digest": _digest(str(_VERSION), *texts),
        }
        if self.identity is not None:
            origin["from"] = self.identity
        if record.unit_is_said:
            origin["unit"] = "said"
        if record.pose is not None:
            origin["pose"] = _digest(repr([float(number) for number in record.pose]))
        return origin

    def standing(self, record: Record, folder: Path, origin: Mapping[str, str]) -> Standing | None:
        """The instance that stands in `folder`; None where there is none.

        Raises:
            InstanceError: another import or none made it; it is not ours to overwrite.
        """
        from moge_core.io import limits, read_meta

        path = folder / META_NAME
        if not path.exists():
            return None
        data = read_bytes(path, limit=limits.MAX_META_BYTES)
        read_meta(NamedBytes(path, data))
        meta: dict[str, Any] = json.loads(data.decode("utf-8-sig"))
        existing = meta.get("source")
        fix = "Import into another folder, or with another --name-prefix."
        if not isinstance(existing, dict) or existing.get("importer") != self.importer:
            found = f"a {META_NAME} that is not from {self.importer}"
            raise InstanceError(folder, "must not hold an instance that was made otherwise", found=found, fix=fix)
        known_again = self.identity is not None and existing.get("from") == self.identity
        if not known_again and any(existing.get(name) != origin[name] for name in ("image", "depth")):
            found = f"one made from {existing.get('image')} and {existing.get('depth')}"
            raise InstanceError(folder, "must not hold the instance of other files", found=found, fix=fix)
        # The change time moves whenever a file is written or replaced, even if its modification time is old.
        changed = max(file.stat().st_ctime_ns for file in record.files())
        complete = all((folder / FILE_OF_PART[part]).is_file() for part, _ in record.parts())
        lacks_pose = "pose" in origin and "pose" not in existing
        wanted = {name: text for name, text in origin.items() if not (lacks_pose and name == "pose")}
        # A unit that values did not show is there since the user says it.
        as_said = not record.unit_is_said or meta.get("depth_unit") == record.depth_unit
        if "unit" not in existing:  # made before that was remembered
            wanted.pop("unit", None)
        is_current = existing == wanted and complete and as_said and changed <= path.stat().st_mtime_ns
        return Standing(meta, data.decode("utf-8-sig"), is_current, lacks_pose and is_current)

    def _label(self, part: Stored) -> str:
        return self._relative(part.path) + (f"#{part.part}" if part.part else "")

    def _relative(self, path: Path) -> str:
        text = str(path)
        if text.startswith(self.base):
            return text[len(self.base) :]
        return Path(os.path.relpath(path, self.base)).as_posix()


def origin_of(folder: Path) -> dict[str, Any]:
    """What the instance in a folder says that it was made from; nothing where there is none, or no import made it."""
    from moge_core.io import read_meta

    try:
        origin = read_meta(folder / META_NAME).get("source")
    except (MoGeError, OSError):
        return {}
    return origin if isinstance(origin, dict) else {}


def check_target(folder: Path, record: Record) -> None:
    """Refuse to write through links, and over what is read.

    Raises:
        InstanceError: naming the link or the file.
    """
    real = os.path.realpath(folder)
    if real != os.path.normpath(folder):
        raise InstanceError(folder, "must lie inside the dataset", found=f"a link to {real}", fix="Remove the link.")
    for name in FILE_NAMES:
        if os.path.islink(f"{real}/{name}"):  # noqa: PTH114 - a Path for each file of a million frames is slow
            raise InstanceError(folder / name, "must be a file of its own", found="a link", fix="Remove the link.")
    for file in record.files():
        if os.path.realpath(file).startswith(f"{real}/"):
            raise InstanceError(
                folder,
                "must not be written into, because the frame is read from there",
                found=str(file),
                fix="Import into another folder, or with another --name-prefix.",
            )


def check_unused(folder: Path) -> None:
    """Refuse a folder with files of an instance but no meta.json, where no import was before that may have left them.

    Raises:
        InstanceError: naming the files.
    """
    there = [name for name in FILE_NAMES if (folder / name).exists()] if folder.is_dir() else []
    if there:
        fix = "Import into another folder, or with another --name-prefix."
        raise InstanceError(folder, "must not hold files that no import made", found=", ".join(there), fix=fix)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()
