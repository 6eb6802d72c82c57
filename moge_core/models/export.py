"""Models as ONNX graphs, for any image size and number of tokens.

A graph has two inputs: `image` (B, 3, H, W), float32 RGB in 0..1, and `grid`, a uint8 array whose shape alone counts:
what `export_grid` tells for an image's size and a number of tokens. Its outputs are those of `forward`. The graph's
metadata hold `version`, `model_config` and `num_tokens_range`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moge_core.errors import InputError, MissingDependencyError, ModelError
from moge_core.io.files import atomic_open
from moge_core.models.base import MoGeModel
from moge_core.models.config import PATCH_SIZE
from moge_core.models.v1 import MoGeModelV1
from moge_core.models.v2 import MoGeModelV2

OPSET = 20
TOLERANCE = 1e-3
"""Relative difference from torch that a checked graph may have."""

_CHECKED = (((56, 84), 24), ((90, 61), 40), ((48, 200), 60))
_LEAST_GRID = 2
_MAX_BYTES = 1.95e9


def export_grid(version: str, height: int, width: int, num_tokens: int) -> tuple[int, int]:
    """Shape of the graph's `grid` for an image: rows and columns of patches (v2), or the resized image's size (v1).

    Graphs take grids of at least two rows and columns of patches.
    """
    if min(height, width, num_tokens) < 1:
        raise InputError("height, width and num_tokens", "must be positive", found=(height, width, num_tokens))
    if version == "v2":
        rows, columns = math.sqrt(num_tokens * height / width), math.sqrt(num_tokens * width / height)
        return max(_LEAST_GRID, round(rows)), max(_LEAST_GRID, round(columns))
    factor = math.sqrt(num_tokens * PATCH_SIZE**2 / (height * width))
    least = _LEAST_GRID * PATCH_SIZE
    return max(least, int(factor * height)), max(least, int(factor * width))


def export_onnx(model: MoGeModel, path: str | Path, *, check: bool = True) -> float | None:
    """Write a model as ONNX, complete or not at all.

    Args:
        model: on the CPU.
        path: the file.
        check: run the graph with onnxruntime on three image sizes and compare it with torch.

    Returns:
        The largest relative difference from torch, None without a check.

    Raises:
        MissingDependencyError: onnx, onnxscript or, to check, onnxruntime is not installed.
        ModelError: the graph differs from torch by more than `TOLERANCE`, or the weights exceed the 2 GB that an ONNX
            file holds; nothing is written.
        InputError: the folder does not exist.
    """
    _require("onnx", "onnxscript", *(["onnxruntime"] if check else []))
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if num_bytes > _MAX_BYTES:
        raise ModelError(path, "can hold at most 2 GB", found=f"{num_bytes / 1e9:.1f} GB of weights")
    graph = _Graph(model.eval())
    dynamic = torch.export.Dim.DYNAMIC
    example = torch.rand(2, 3, 56, 84), torch.zeros(export_grid(model.version, 56, 84, 24), dtype=torch.uint8)
    with torch.no_grad(), _quiet():
        names = list(graph.outputs(*example))
        program = torch.onnx.export(
            graph,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["image", "grid"],
            output_names=names,
            dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic}, {0: dynamic, 1: dynamic}),
            verbose=False,
        )
    assert program is not None
    properties = {"version": model.version, "model_config": json.dumps(model.model_config)}
    program.model.metadata_props.update(properties | {"num_tokens_range": json.dumps(model.num_tokens_range)})
    data = program.model_proto.SerializeToString()
    difference = _largest_difference(graph, data) if check else None
    if difference is not None and not difference <= TOLERANCE:
        raise ModelError(path, f"must agree with torch within {TOLERANCE:g}", found=f"{difference:.2e}")
    with atomic_open(path) as file:
        file.write(data)
    return difference


class _Graph(nn.Module):
    """A model's forward pass on a grid that is given as the shape of an array."""

    def __init__(self, model: MoGeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, grid: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.outputs(image, grid).values())

    def outputs(self, image: Tensor, grid: Tensor) -> dict[str, Tensor]:
        """The outputs by name."""
        rows, columns = grid.shape
        if isinstance(self.model, MoGeModelV1):
            aspect_ratio = torch.scalar_tensor(columns) / torch.scalar_tensor(rows)
            return self.model.predict(image, (rows, columns), aspect_ratio)
        assert isinstance(self.model, MoGeModelV2)
        aspect_ratio = torch.scalar_tensor(image.shape[3]) / torch.scalar_tensor(image.shape[2])
        return self.model.predict(image, rows, columns, aspect_ratio)


@torch.no_grad()
def _largest_difference(graph: _Graph, data: bytes) -> float:
    """Largest difference of any output from `forward`, relative to that output's largest value."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    worst = 0.0
    for (height, width), num_tokens in _CHECKED:
        image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
        grid = np.zeros(export_grid(graph.model.version, height, width, num_tokens), np.uint8)
        found = session.run(None, {"image": image.numpy(), "grid": grid})
        for ours, theirs in zip(graph.model(image, num_tokens).values(), found, strict=True):
            worst = max(worst, float(np.abs(ours.numpy() - theirs).max() / ours.abs().max().clamp(min=1e-12)))
    return worst


def _require(*packages: str) -> None:
    import importlib.util

    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        fix = "pip install 'moge-pipeline[export]'"
        raise MissingDependencyError(", ".join(missing), "must be installed to export ONNX", fix=fix)


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """The exporter warns of packages that it could also translate."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
