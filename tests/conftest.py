"""What every test can use."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = REPOSITORY / "tests" / "golden"

pytest_plugins = ["tiny_training"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Tests that need services run only when they are asked for, those of a device where it is there."""
    parser.addoption(
        "--services", action="store_true", help="run the tests that need services, see `make test-services`"
    )
    parser.addoption(
        "--device",
        default="cuda",
        help="what tests/cuda runs on; `cpu` tries out the tests themselves, as far as a CPU can (default: cuda)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, by name, what needs services that `make test-services` installs, or a device that is not there."""
    if not config.getoption("--services"):
        _skip(items, "services", "needs services; `make test-services` installs them and runs this")
    if config.getoption("--device").startswith("cuda") and not _has_cuda(items):
        _skip(items, "cuda", "needs a CUDA device; `make gpu` runs this on a machine that has one")


def _skip(items: list[pytest.Item], mark: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(mark):
            item.add_marker(pytest.mark.skip(reason=reason))


def _has_cuda(items: list[pytest.Item]) -> bool:
    """Whether torch can use a CUDA device; it is asked, and imported, only where a test needs one."""
    if not any(item.get_closest_marker("cuda") for item in items):
        return False
    import torch

    return torch.cuda.is_available()


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
