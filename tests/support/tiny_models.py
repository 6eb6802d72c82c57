"""Real models of both versions, so small that a prediction takes milliseconds."""

from __future__ import annotations

from typing import Any

import torch

from moge_core.models import MoGeModel, build_model

_DIMS = [16, 16, 8, 8, 8]


def _stack(dim_in: list[int], dim_out: int | None) -> dict[str, Any]:
    return {
        "dim_in": dim_in,
        "dim_out": [None, None, None, None, dim_out],
        "dim_res_blocks": _DIMS,
        "num_res_blocks": 1,
        "resamplers": "bilinear",
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "v1": {
        "encoder": "dinov2_vitt14",
        "remap_output": "exp",
        "intermediate_layers": 2,
        "dim_proj": 32,
        "dim_upsample": [16, 8],
        "num_tokens_range": [12, 20],
        "last_conv_channels": 8,
    },
    "v2": {
        "encoder": {"backbone": "dinov2_vitt14", "intermediate_layers": [2, 5], "dim_out": 16},
        "neck": _stack([18, 2, 2, 2, 2], None),
        "points_head": _stack(_DIMS, 3),
        "mask_head": _stack(_DIMS, 1),
        "normal_head": _stack(_DIMS, 3),
        "scale_head": {"dims": [192, 8, 1]},
        "remap_output": "exp",
        "num_tokens_range": [12, 20],
    },
}


def tiny_model(version: str, seed: int = 0) -> MoGeModel:
    """A model with random weights."""
    torch.manual_seed(seed)
    return build_model(version, **CONFIGS[version]).eval()
