"""What every test can use."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = REPOSITORY / "tests" / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Tests that need services run only when they are asked for."""
    parser.addoption(
        "--services", action="store_true", help="run the tests that need services, see `make test-services`"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, by name, what needs services that `make test-services` installs."""
    if config.getoption("--services"):
        return
    skip = pytest.mark.skip(reason="needs services; `make test-services` installs them and runs this")
    for item in items:
        if item.get_closest_marker("services"):
            item.add_marker(skip)


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
