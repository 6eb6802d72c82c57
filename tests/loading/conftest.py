"""Golden figures and tiny datasets for the tests of the loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tiny_planes import write_instance

Golden = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="session")
def golden(golden_dir: Path) -> Golden:
    """What the published implementation made of the same inputs; augmentations that left the image alone are absent."""
    with np.load(golden_dir / "loading" / "loading.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """`make_dataset(name, count=4)` writes a dataset of portrait and landscape planes with its index."""

    def make(name: str, count: int = 4) -> Path:
        root = tmp_path / name
        instances = [f"scene/{i:03d}" for i in range(count)]
        for i, instance in enumerate(instances):
            write_instance(root / instance, (48, 64) if i % 2 else (64, 48), seed=i)
        (root / ".index.txt").write_text("\n".join(instances) + "\n")
        return root

    return make
