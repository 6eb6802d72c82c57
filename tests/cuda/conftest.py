"""What tests of a real device share. `pytest tests/cuda --device cpu` tries them out where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings here are of drivers, libraries and kinds of devices; they are shown, and fail nothing."""
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device under test."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def only_cuda(device: torch.device) -> None:
    """For what says nothing on a CPU."""
    if device.type != "cuda":
        pytest.skip("says nothing on a CPU")


@pytest.fixture(autouse=True)
def _fresh_accelerate(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """accelerate keeps device and precision for the whole process; each test has trainings of its own."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", str(device.type == "cpu").lower())
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
