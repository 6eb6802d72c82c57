"""What the tests that need services share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import PROGRAMS, slurm_cluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[Path]:
    """A running Slurm with the partition `gpu`; its slurm.conf."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    assert not missing, f"{', '.join(missing)} must be installed (Debian: slurm-wlm munge)"
    # Sockets have short names only: pytest's folders may be too long.
    folder = Path(tempfile.mkdtemp(prefix="moge-slurm-"))
    try:
        with slurm_cluster(folder / "cluster") as configuration:
            yield configuration
    finally:
        shutil.rmtree(folder, ignore_errors=True)
