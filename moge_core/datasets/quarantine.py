"""Instances put aside: `.moge/quarantine.json` keeps them out of the list without deleting anything.

quarantine(root, ["desk/0001"], reason="blurred")
release(root, ["desk/0001"])
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from moge_core.datasets.layout import STATE_DIR, check_entry, resolve_dataset
from moge_core.datasets.manifest import locked
from moge_core.errors import DatasetError, InputError
from moge_core.io.files import write_bytes

QUARANTINE_NAME = "quarantine.json"


def read_quarantine(root: Path) -> dict[str, str]:
    """Why each instance is in quarantine, by instance; empty where none is.

    Raises:
        DatasetError: the file is damaged.
    """
    path = root / STATE_DIR / QUARANTINE_NAME
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DatasetError(path, "must be a readable JSON file", found=error, fix="Mend or delete it.") from error
    if not isinstance(held, dict) or not all(isinstance(reason, str) for reason in held.values()):
        raise DatasetError(path, "must be a JSON object of instances and reasons", fix="Mend or delete it.")
    return held


def quarantine_instances(dataset_dir: str | Path, reasons: Mapping[str, str]) -> int:
    """Put instances aside; `moge index` then leaves them out of the list it writes.

    Args:
        dataset_dir: the dataset.
        reasons: why, by instance.

    Returns:
        how many were not in quarantine before.

    Raises:
        DatasetError: no such dataset, or an instance that is not in it.
    """
    root = resolve_dataset(dataset_dir)
    for instance in reasons:
        check_entry(instance, where=instance)
        if not (root / instance).is_dir():
            raise DatasetError(instance, "must be an instance of the dataset", found=f"no folder {root / instance}")
    with locked(root):
        held = read_quarantine(root)
        num_new = len(reasons.keys() - held.keys())
        _write(root, held | dict(reasons))
    return num_new


def release_instances(dataset_dir: str | Path, instances: Iterable[str]) -> int:
    """Take instances out of quarantine, and return how many.

    Raises:
        DatasetError: no such dataset.
        InputError: an instance that is not in quarantine.
    """
    root = resolve_dataset(dataset_dir)
    with locked(root):
        held = read_quarantine(root)
        wanted = list(instances)
        for instance in wanted:
            if instance not in held:
                listed = ", ".join(sorted(held)[:5]) or "none"
                raise InputError(instance, "must be in quarantine", found=f"in quarantine: {listed}")
        _write(root, {instance: reason for instance, reason in held.items() if instance not in wanted})
    return len(set(wanted))


def _write(root: Path, held: Mapping[str, str]) -> None:
    write_bytes(root / STATE_DIR / QUARANTINE_NAME, (json.dumps(dict(sorted(held.items())), indent=2) + "\n").encode())
