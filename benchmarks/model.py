"""What the networks cost: `python -m benchmarks.model [--device cuda] [--encoders s,b,l] [--versions v1,v2]`.

Half an hour on two cores. Forward and forward with backward of both versions at 1800 tokens, and the encoder against
torch's own `nn.TransformerEncoder` blocks of equal shape, measured in the same run. Memory is the peak above what was
held before.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.losses import extra_memory, finish
from benchmarks.units import median_seconds
from moge_core.configuration import load_json
from moge_core.models import MoGeModel, build_model
from moge_core.models.config import ENCODERS, PATCH_SIZE
from moge_core.models.dinov2 import DinoVisionTransformer

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "train"
NUM_TOKENS, ROWS, COLUMNS = 1800, 36, 50
"""A photo of 3:2 at 1800 tokens."""


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--encoders", default="s,b,l")
    parser.add_argument("--versions", default="v1,v2")
    parser.add_argument("--precision", choices=["fp32", "fp16", "bf16"], default="fp32")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    dtype = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[arguments.precision]
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"torch {torch.__version__}, {name}, {arguments.precision}, {NUM_TOKENS} tokens, one image of 720x480\n")
    encoders = [f"dinov2_vit{letter}14" for letter in arguments.encoders.split(",")]

    print("| encoder alone | forward, ms | torch's blocks, ms | ratio |\n|---|---|---|---|")
    for encoder in encoders:
        ours, theirs = (partial(_run, work, device, dtype) for work in _encoders(encoder, device))
        seconds, reference = median_seconds(ours, 3), median_seconds(theirs, 3)
        print(f"| {encoder} | {seconds * 1e3:.0f} | {reference * 1e3:.0f} | {seconds / reference:.2f} |", flush=True)

    print("\n| model | forward, ms | forward + backward, ms | memory | with checkpointing, ms | memory | share |")
    print("|---|---|---|---|---|---|---|")
    for version in arguments.versions.split(","):
        for encoder in encoders:
            model = _model(version, encoder).to(device)
            image = torch.rand(1, 3, 480, 720, device=device)
            with torch.no_grad():
                forward = median_seconds(partial(_run, partial(model, image, NUM_TOKENS), device, dtype), 3)
            step = partial(_run, partial(_step, model, image), device, dtype)
            plain_memory, plain = _memory_and_time(step, device)
            model.enable_gradient_checkpointing()
            memory, seconds = _memory_and_time(step, device)
            print(
                f"| {version} {encoder} | {forward * 1e3:.0f} | {plain * 1e3:.0f} | {plain_memory:.0f} MB "
                f"| {seconds * 1e3:.0f} | {memory:.0f} MB | {memory / plain_memory:.2f} |",
                flush=True,
            )


def _memory_and_time(step: Callable[[], object], device: torch.device) -> tuple[float, float]:
    step()  # gradients are there and lazily made tables are made
    memory = extra_memory(step, device)
    return memory, median_seconds(step, 1)


def _encoders(name: str, device: torch.device) -> tuple[Callable[[], object], Callable[[], object]]:
    """Our encoder, and torch's blocks of the same shape on as many tokens, without gradients."""
    shape = ENCODERS[name]
    ours = DinoVisionTransformer(name).to(device).eval()
    layer = nn.TransformerEncoderLayer(
        shape.dim, shape.num_heads, 4 * shape.dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    theirs = nn.TransformerEncoder(layer, shape.depth, enable_nested_tensor=False).to(device).eval()
    image = torch.rand(1, 3, ROWS * PATCH_SIZE, COLUMNS * PATCH_SIZE, device=device)
    tokens = torch.rand(1, 1 + ROWS * COLUMNS, shape.dim, device=device)
    last = [shape.depth - 1]

    @torch.no_grad()
    def run_ours() -> Any:
        return ours(image, last)

    @torch.no_grad()
    def run_theirs() -> Tensor:
        result: Tensor = theirs(tokens)
        return result

    return run_ours, run_theirs


def _model(version: str, encoder: str) -> MoGeModel:
    config = load_json(CONFIGS / f"{version}.json")["model"]
    text = json.dumps(config).replace("dinov2_vitl14", encoder)
    config = json.loads(text)
    depth, dim = ENCODERS[encoder].depth, ENCODERS[encoder].dim
    if version == "v2":
        layers = config["encoder"]["intermediate_layers"]
        if isinstance(layers, list):
            config["encoder"]["intermediate_layers"] = [(layer + 1) * depth // 24 - 1 for layer in layers]
        if config.get("scale_head"):
            config["scale_head"]["dims"][0] = dim
    return build_model(version, **config)


def _step(model: MoGeModel, image: Tensor) -> None:
    output = model(image, NUM_TOKENS)
    torch.stack([value.float().mean() for value in output.values()]).sum().backward()


def _run(work: Callable[[], object], device: torch.device, dtype: torch.dtype | None) -> None:
    with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        finish(work, device)


if __name__ == "__main__":
    main()
