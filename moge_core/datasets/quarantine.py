"""Instances put aside: `.moge/quarantine.json` keeps them out of the list without deleting anything.

quarantine(root, ["desk/0001"], reason="blurred")
release(root, ["desk/0001"])
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from moge_core.datasets.layout import (
    META_NAME,
    QUARANTINE_NAME,
    STATE_DIR,
    plain_entry,
    read_state,
    resolve_dataset,
    scan_instances,
    stays_inside,
)
from moge_core.datasets.manifest import locked
from moge_core.errors import DatasetError, InputError
from moge_core.io.files import write_bytes

# Hundreds of thousands of instances with their reasons; more is no quarantine.
_MAX_BYTES = 64 << 20


def read_quarantine(root: Path) -> dict[str, str]:
    """Why each instance is in quarantine, by instance; empty where none is.

    Raises:
        DatasetError: the file is damaged.
    """
    path = root / STATE_DIR / QUARANTINE_NAME
    try:
        held = json.loads(read_state(path, _MAX_BYTES).decode("utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise DatasetError(path, "must be a readable JSON file", found=error, fix="Mend or delete it.") from error
    if not isinstance(held, dict) or not all(isinstance(reason, str) for reason in held.values()):
        raise DatasetError(path, "must be a JSON object of instances and reasons", fix="Mend or delete it.")
    # People edit the file: `a/` there is the instance `a`.
    return {"/".join(part for part in name.split("/") if part not in {"", "."}): why for name, why in held.items()}


def quarantine_instances(dataset_dir: str | Path, reasons: Mapping[str, str]) -> int:
    """Put instances aside; `moge index` then leaves them out of the list it writes.

    Args:
        dataset_dir: the dataset.
        reasons: why, by instance. A folder that is no instance itself stands for all instances below it.

    Returns:
        how many were not in quarantine before.

    Raises:
        DatasetError: no such dataset, or a name that is neither an instance in it nor a folder of some.
    """
    root = resolve_dataset(dataset_dir)
    wanted: dict[str, str] = {}
    for name, reason in reasons.items():
        plain = plain_entry(name, where=name)
        members = _instances_at(root, plain)
        # An instance's own reason says more than that of the folder.
        wanted = dict.fromkeys(members, reason) | wanted if members != [plain] else wanted | {plain: reason}
    with locked(root):
        held = read_quarantine(root)
        num_new = len(wanted.keys() - held.keys())
        _write(root, held | wanted)
    return num_new


def release_instances(dataset_dir: str | Path, instances: Iterable[str]) -> int:
    """Take instances, or all instances below folders, out of quarantine, and return how many.

    Raises:
        DatasetError: no such dataset, or a name that leads out of it.
        InputError: a name of which nothing is in quarantine.
    """
    root = resolve_dataset(dataset_dir)
    with locked(root):
        held = read_quarantine(root)
        released: set[str] = set()
        for name in instances:
            plain = plain_entry(name, where=name)
            found = {plain} & held.keys() or {instance for instance in held if instance.startswith(f"{plain}/")}
            if not found:
                listed = ", ".join(sorted(held)[:5]) or "none"
                raise InputError(name, "must be in quarantine", found=f"in quarantine: {listed}")
            released |= found
        _write(root, {instance: reason for instance, reason in held.items() if instance not in released})
    return len(released)


def _instances_at(root: Path, name: str) -> list[str]:
    """The instance of this plain name, or those below the folder of this name."""
    folder = root / name
    if not folder.is_dir():
        raise DatasetError(name, "must be an instance of the dataset", found=f"no folder {folder}")
    if not stays_inside(root, name, {}):
        found = f"a link that leads out of it, to {folder.resolve()}"
        raise DatasetError(name, "must be an instance of the dataset", found=found)
    if os.path.lexists(folder / META_NAME):
        return [name]
    below, _ = scan_instances(folder)
    if not below:
        raise DatasetError(
            name,
            "must be an instance of the dataset, or a folder of instances",
            found=f"no {META_NAME} in it or below it",
            fix="What has none is in no list that `moge index` makes, so there is nothing to put aside.",
        )
    return [f"{name}/{instance}" for instance in below]


def _write(root: Path, held: Mapping[str, str]) -> None:
    write_bytes(root / STATE_DIR / QUARANTINE_NAME, (json.dumps(dict(sorted(held.items())), indent=2) + "\n").encode())
