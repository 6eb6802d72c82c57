"""A dataset of a few sample scenes and models so small that a step takes a fraction of a second: a plugin of pytest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import CONFIGS

from moge_core.configuration import deep_merge
from moge_core.datasets import index_dataset, render_sample_scenes

TINY: dict[str, Any] = {
    "data": {
        "image_sizes": [[56, 42], [42, 56]],
        "fov_range_absolute": [30, 120],
        "fov_range_relative": [0.7, 1.0],
        "datasets": [{"name": "scenes", "path": "scenes", "label_type": "synthetic", "depth_unit": 1.0}],
    },
    "model_version": "v1",
    "model": CONFIGS["v1"],
    "optimizer": {
        "type": "AdamW",
        "params": [
            {"params": {"include": ["*"], "exclude": ["*backbone.*"]}, "lr": 1e-3},
            {"params": {"include": ["*backbone.*"]}, "lr": 1e-4},
        ],
    },
    "lr_scheduler": {"type": "LambdaLR", "params": {"lr_lambda": ["1.0", "min(1.0, epoch / 4)"]}},
    "loss": {
        "synthetic": {
            "global": {"function": "affine_invariant_global_loss", "params": {"align_resolution": 8}},
            "patch_4": {
                "function": "affine_invariant_local_loss",
                "params": {"level": 4, "align_resolution": 4, "num_patches": 4},
            },
            "mask": {"function": "mask_l2_loss"},
        }
    },
    "run": {"batch_size_forward": 2, "init": "random", "log_every": 1, "save_every": 3, "num_iterations": 6},
}


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a dataset `scenes` of eight small sample scenes, indexed."""
    root = tmp_path_factory.mktemp("data")
    render_sample_scenes(root / "scenes", 8, 7, size=(96, 72))
    index_dataset(root / "scenes")
    return root


@pytest.fixture(scope="session")
def many_scenes(scenes: Path) -> dict[str, Any]:
    """A `data` section with a dataset `many` beside `scenes`: enough to choose by one part and be scored on another."""
    render_sample_scenes(scenes / "many", 40, 8, size=(96, 72))
    index_dataset(scenes / "many")
    return {"datasets": [{"name": "many", "path": "many", "label_type": "synthetic", "depth_unit": 1.0}]}


@pytest.fixture
def tiny_config(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes the tiny configuration, with overrides laid over it, and points the data root at the scenes."""
    monkeypatch.setenv("MOGE_DATA_ROOT", str(scenes))

    def write(**overrides: Any) -> Path:
        path = tmp_path / "tiny.json"
        path.write_text(json.dumps(deep_merge(TINY, overrides)))
        return path

    return write
