"""Small datasets to break."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tiny_instances import write_tiny_instance

WriteInstance = Callable[..., Path]


@pytest.fixture
def write_instance(tmp_path: Path) -> WriteInstance:
    """Writes an instance of 16x12 pixels below `tmp_path / "data"`; returns its folder."""
    return partial(write_tiny_instance, tmp_path / "data")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder that `write_instance` writes below."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder
