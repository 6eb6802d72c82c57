"""Sample scenes with known truth."""

from __future__ import annotations

from pathlib import Path

import pytest

from moge_core.datasets import index_dataset, read_index, render_sample_scenes
from moge_core.datasets.inspection import LoadedInstance, load_instance


@pytest.fixture(scope="session")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of eight indexed sample scenes. Tests that write into it work on a copy."""
    folder = tmp_path_factory.mktemp("data") / "heldout"
    render_sample_scenes(folder, 8, 23, size=(160, 120))
    index_dataset(folder)
    return folder


@pytest.fixture(scope="session")
def loaded_scenes(heldout: Path) -> list[LoadedInstance]:
    return [load_instance(heldout / name) for name in read_index(heldout)]
