"""Batches with predictions, as the objective of a training gets them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LABELS = {"v1": ["synthetic", "sfm", "synthetic", "invalid"], "v2": ["A", "B", "A", "C"]}
"""Labels of the published configurations, for a batch of four."""


def batch_of(labels: list[str], device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Model outputs and a batch with the sample scenes' kind of truth: a wall, unknown and infinite parts."""
    generator = torch.Generator().manual_seed(0)
    number, height, width = len(labels), 36, 52
    depth = 2 + torch.rand(number, 1, 1, generator=generator) + 0.3 * torch.rand(1, 1, width, generator=generator)
    depth = depth.expand(number, height, width).clone()
    depth[:, :4], depth[:, 4:7, :9] = torch.inf, torch.nan
    intrinsics = torch.tensor([[0.9, 0, 0.45], [0, 1.2, 0.55], [0, 0, 1]]).expand(number, 3, 3).clone()
    output = {
        "points": torch.randn(number, height, width, 3, generator=generator) + torch.tensor([0.0, 0.0, 4.0]),
        "mask": torch.rand(number, height, width, generator=generator),
        "normal": torch.randn(number, height, width, 3, generator=generator),
        "metric_scale": torch.rand(number, generator=generator) + 0.5,
    }
    batch = {
        "depth": depth,
        "intrinsics": intrinsics,
        "normal": torch.nn.functional.normalize(torch.randn(output["normal"].shape, generator=generator), dim=-1),
        "depth_mask_fin": depth.isfinite(),
        "depth_mask_inf": depth.isinf(),
        "is_metric": torch.ones(number, dtype=torch.bool),
    }
    output = {name: value.to(device).requires_grad_() for name, value in output.items()}
    moved: dict[str, Any] = {name: value.to(device) for name, value in batch.items()}
    return output, moved | {"label_type": labels, "info": [{"sample_number": row} for row in range(number)]}
