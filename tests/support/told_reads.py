"""A training that tells what each of its processes read of a checkpoint.

    python told_reads.py REPORT FLAGS...        # writes REPORT.0.json, REPORT.1.json, ...

The report names the files that were hashed, those that were opened, whether a state's tensors lay in mapped files when
it was read, and which files were still mapped when training began.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from moge_core.training import checkpoints, main
from moge_core.training.trainer import Trainer


def mapped_files() -> list[str]:
    """Checkpoint files that are mapped into this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sorted({line.rsplit("/", 1)[1] for line in lines if "/checkpoint/" in line})


def noting(report: dict[str, Any]) -> mock._patch:  # type: ignore[type-arg]
    """Stands in for what reads files, and notes it."""
    hashed, opened = checkpoints.file_digest, checkpoints.read_tensors

    def digest(path: Path) -> str:
        report["hashed"].append(path.name)
        return hashed(path)

    def read(path: Path) -> Any:
        report["opened"].append(path.name)
        values = opened(path)
        report["mapped_when_read"] = mapped_files()
        return values

    return mock.patch.multiple(checkpoints, file_digest=digest, read_tensors=read)


def told(report_path: str, flags: list[str]) -> int:
    """Train, and write the report."""
    report: dict[str, Any] = {"hashed": [], "opened": []}
    train = Trainer.train

    def begin(trainer: Trainer) -> Any:
        report["mapped_in_training"] = mapped_files()
        return train(trainer)

    with noting(report), mock.patch.object(Trainer, "train", begin):
        report["code"] = main(flags)
    Path(f"{report_path}.{os.environ.get('RANK', '0')}.json").write_text(json.dumps(report))
    return int(report["code"])


if __name__ == "__main__":
    sys.exit(told(sys.argv[1], sys.argv[2:]))
