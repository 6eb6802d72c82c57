"""What every test can use."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = REPOSITORY / "tests" / "golden"


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Inputs and outputs of the published implementation."""
    return GOLDEN


@pytest.fixture(scope="session")
def samples_dir() -> Path:
    """Real RGB-D frames from public sources. They stay out of the project because their licences differ."""
    folder = REPOSITORY.parent / "shared" / "samples"
    if not folder.is_dir():
        pytest.skip(f"real RGB-D samples are not at {folder}")
    return folder
