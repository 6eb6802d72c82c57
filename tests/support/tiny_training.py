"""A dataset of a few sample scenes and models so small that a step takes a fraction of a second: a plugin of pytest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
    "model": {
        "encoder": "dinov2_vitt14",
        "remap_output": "exp",
        "intermediate_layers": 2,
        "dim_proj": 32,
        "dim_upsample": [16, 8],
        "num_tokens_range": [12, 20],
        "last_conv_channels": 8,
    },
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


TINY_V2: dict[str, Any] = {
    "encoder": {"backbone": "dinov2_vitt14", "intermediate_layers": [2, 5], "dim_out": 32},
    "neck": {"dim_in": [34, 2, 2, 2, 2], "dim_res_blocks": [32, 16, 16, 8, 8], "resamplers": "bilinear"},
    "scale_head": {"dims": [192, 16, 1]},
    "remap_output": "exp",
    "num_tokens_range": [12, 20],
}
TINY_V2 |= {
    f"{name}_head": {
        "dim_in": [32, 16, 16, 8, 8],
        "dim_out": [None, None, None, None, channels],
        "dim_res_blocks": [32, 16, 16, 8, 8],
        "resamplers": "bilinear",
    }
    for name, channels in (("points", 3), ("mask", 1), ("normal", 3))
}
"""The `model` section of the other version."""


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a dataset `scenes` of eight small sample scenes, indexed."""
    root = tmp_path_factory.mktemp("data")
    render_sample_scenes(root / "scenes", 8, 7, size=(96, 72))
    index_dataset(root / "scenes")
    return root


@pytest.fixture
def tiny_config(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes the tiny configuration, with overrides laid over it, and points the data root at the scenes."""
    monkeypatch.setenv("MOGE_DATA_ROOT", str(scenes))

    def write(**overrides: Any) -> Path:
        path = tmp_path / "tiny.json"
        path.write_text(json.dumps(deep_merge(TINY, overrides)))
        return path

    return write
