"""Reference figures, and each test once with numpy arrays and once with torch tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def golden(golden_dir: Path) -> dict[str, np.ndarray]:
    """Arrays of the published implementation by name."""
    arrays: dict[str, np.ndarray] = {}
    for name in ("geometry.npz", "random_weights.npz"):
        with np.load(golden_dir / "geometry" / name) as stored:
            arrays.update(stored)
    return arrays


@pytest.fixture(scope="session")
def manifest(golden_dir: Path) -> dict[str, dict[str, Any]]:
    """Parameters and scalar results of the published implementation by case."""
    cases: dict[str, dict[str, Any]] = json.loads((golden_dir / "geometry" / "manifest.json").read_text())
    return cases


@pytest.fixture(params=["numpy", "torch"], scope="session")
def kind(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Turns a numpy array into what this run of the test hands to the function."""
    return np.asarray if request.param == "numpy" else (lambda array: torch.from_numpy(np.array(array)))
