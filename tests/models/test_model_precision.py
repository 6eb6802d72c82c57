"""What autocast, TF32 and half-precision weights may touch, and that point maps do not suffer from it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from exact_plane import exact_plane_model
from precision_cases import (
    SIZE,
    TF32OnTheCPU,
    assert_close_to_exact,
    mean_angle,
    point_normals,
    smooth_image,
    tilted_plane,
    wide_model,
)
from test_model_forward import TINY, tiny
from torch import Tensor, nn

from moge_core.losses import edge_loss
from moge_core.models.precision import exact_single_precision
from moge_core.models.v1 import MoGeModelV1

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(autouse=True)
def _settings_stay() -> Iterator[None]:
    """No test of this file may leave the process with other settings."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == before


# --- gate (a): an exact plane that enters before the last level comes out as a plane ---


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("version", ["v1", "v2"])
@torch.no_grad()
def test_an_exact_plane_before_the_last_level_comes_out_as_a_plane(version: str, precision: str) -> None:
    model = exact_plane_model(version, TINY[version])
    with torch.autocast("cpu", dtype=HALF[precision]):
        points = model(torch.rand(1, 3, *SIZE), 36 * 48)["points"]
    truth = tilted_plane(*SIZE)[None].float()
    assert truth[..., 2].max() / truth[..., 2].min() > 3
    assert mean_angle(point_normals(points), point_normals(truth)) < 1
    assert float(edge_loss(points, truth)[0]) * 2 * max(SIZE) < 0.01


# --- gate (b): the same weights, in 16 bits and with TF32, against float32 ---


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1", "v2"])
@torch.no_grad()
def test_point_maps_hardly_move_in_16_bits_or_with_tf32(version: str) -> None:
    model, image = wide_model(version), smooth_image()
    exact = model(image, 1200)
    for dtype in HALF.values():
        with torch.autocast("cpu", dtype=dtype):
            assert_close_to_exact(model(image, 1200), exact)
    with TF32OnTheCPU() as counted:
        assert_close_to_exact(model(image, 1200), exact)
    assert counted.rounded > 0 and counted.exact > 0


# --- what the gates rest on ---


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_nothing_after_the_transformer_is_in_half_precision(version: str, checkpointing: bool) -> None:
    model = tiny(version).train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    transformer = {id(module) for block in model.dinov2.blocks for module in block.modules()}
    seen: dict[str, set[torch.dtype]] = {}
    inside: set[torch.dtype] = set()

    def look(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            tensors = [value for value in (*inputs, output) if isinstance(value, Tensor)]
            (inside if id(module) in transformer else seen.setdefault(name, set())).update(t.dtype for t in tensors)

        return hook

    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(look(name, module))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.rand(2, 3, 42, 56), 12)
    sum(value.square().mean() for value in output.values()).backward()  # with the recomputations
    assert {value.dtype for value in output.values()} == {torch.float32}
    assert torch.bfloat16 in inside
    assert {name: dtypes for name, dtypes in seen.items() if dtypes != {torch.float32}} == {}
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_last_level_never_uses_tf32_nor_when_it_is_recomputed(version: str) -> None:
    model = tiny(version).train()
    model.enable_gradient_checkpointing()
    if isinstance(model, MoGeModelV1):
        last = [module for block in model.head.output_block for module in block.modules()]
    else:
        stacks = [model.get_submodule(name) for name in model.dense_heads]
        last = [
            m for stack in stacks for part in (stack.resamplers[-1], stack.output_blocks[-1]) for m in part.modules()
        ]
        last += list(model.scale_head.modules())
    settings: list[tuple[bool, str]] = []
    layers = [module for module in last if isinstance(module, nn.Conv2d | nn.Linear)]
    for module in layers:
        # Before, since a recomputation stops as soon as it has what it needs.
        module.register_forward_pre_hook(
            lambda *_: settings.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
        )
    torch.set_float32_matmul_precision("high")
    try:
        output = model(torch.rand(1, 3, 42, 56), 12)
        num_first = len(settings)
        sum(value.square().mean() for value in output.values()).backward()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert num_first == len(layers)
    assert len(settings) > num_first  # recomputed
    assert set(settings) == {(False, "highest")}


@pytest.mark.parametrize("allowed", [True, False])
def test_settings_of_the_process_are_its_own_again_whatever_happens(allowed: bool) -> None:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    inner, outer = threading.Event(), threading.Event()

    def other() -> None:
        with exact_single_precision("cpu"):
            inner.set()
            outer.wait(30)

    thread = threading.Thread(target=other)
    try:
        with pytest.raises(ZeroDivisionError), exact_single_precision("cpu"):
            thread.start()
            inner.wait(30)
            raise ZeroDivisionError
        assert not torch.backends.cudnn.allow_tf32  # the other thread still counts on it
    finally:
        outer.set()
        thread.join()
    assert torch.backends.cudnn.allow_tf32 is allowed
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16])
@pytest.mark.parametrize("version", ["v1", "v2"])
@torch.no_grad()
def test_a_model_of_half_precision_keeps_its_decoder_in_float32(version: str, convert: Any) -> None:
    model, image = tiny(version), torch.rand(1, 3, 42, 56)
    exact = model(image, 12)["points"]
    half = convert(model)
    types = {name: value.dtype for name, value in half.state_dict().items()}
    transformer = {
        f"{prefix}.{name}" for prefix in ("backbone", "encoder.backbone") for name in half.dinov2.state_dict()
    }
    assert {types[name] for name in types.keys() & transformer} != {torch.float32}
    assert {types[name] for name in types.keys() - transformer} == {torch.float32}
    torch.testing.assert_close(
        half.infer(image[0], fov_x=60, num_tokens=12)["points"].isnan().any(), torch.tensor(False)
    )
    torch.testing.assert_close(half(image, 12)["points"], exact, rtol=0.05, atol=0.05)
