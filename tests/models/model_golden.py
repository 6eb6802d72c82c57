"""Weights filled by rule and outputs of the published implementation, shared by the tests of both versions."""

from __future__ import annotations

import gzip
import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moge_core.models import MoGeModel, build_model

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "model"
CASES = {"140x98": 100, "84x150": 256, "112x112": 64}
"""Image size (width x height) and number of tokens."""


@cache
def manifest() -> dict[str, Any]:
    """Configurations, checks and gradients of the reference run."""
    content: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text())
    return content


@cache
def arrays() -> dict[str, Tensor]:
    """Images and outputs."""
    with np.load(FOLDER / "model.npz") as content:
        return {name: torch.from_numpy(content[name]) for name in content.files}


@cache
def published_state_dicts() -> dict[str, Any]:
    """Name -> {"config", "state_dict": {key: shape}} in the published order."""
    content: dict[str, Any] = json.loads(gzip.decompress((FOLDER / "state_dict_keys.json.gz").read_bytes()))
    return content


@cache
def filled_model(version: str) -> MoGeModel:
    """The reference's vits14 model with its weights; tests must leave them as they are."""
    model = build_model(version, **manifest()[f"{version}.config"])
    fill_by_rule(model, manifest()[f"{version}.fill_seed"])
    return model


@torch.no_grad()
def fill_by_rule(model: MoGeModel, seed: int) -> None:
    """The reference's weights: normal deviates seeded by the key's name, scaled by its kind."""
    for key, tensor in sorted(model.state_dict().items()):
        if key.endswith(("image_mean", "image_std")):
            continue
        random = np.random.RandomState((seed + zlib.crc32(key.encode())) % 2**32)
        u = random.standard_normal(tensor.numel())
        if key.endswith("gamma"):
            values = 0.1 * (1 + 0.1 * u)
        elif tensor.dim() == 1 and key.endswith("weight"):
            values = 1 + 0.1 * u
        elif tensor.dim() == 1 or key.endswith(("cls_token", "pos_embed", "mask_token")):
            values = 0.02 * u
        else:
            values = u * np.sqrt(tensor.shape[0] / tensor.numel())
        tensor.copy_(torch.from_numpy(values.astype(np.float32)).view(tensor.shape))


def probe_scalar(outputs: dict[str, Tensor]) -> Tensor:
    """The scalar whose gradient the reference recorded: a mean of each output weighted by a ramp from -1 to 1."""
    return torch.stack(
        [(value * torch.linspace(-1, 1, value.numel()).view(value.shape)).mean() for value in outputs.values()]
    ).sum()
