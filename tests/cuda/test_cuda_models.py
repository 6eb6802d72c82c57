"""The gates on precision where it is real: autocast, TF32 and compiled blocks of the device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from exact_plane import exact_plane_model
from precision_cases import (
    SIZE,
    assert_close_to_exact,
    mean_angle,
    point_normals,
    smooth_image,
    tilted_plane,
    wide_config,
    wide_model,
)

from moge_core.losses import edge_loss

pytestmark = pytest.mark.cuda
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
VERSIONS = ("v1", "v2")


@pytest.fixture(autouse=True)
def _settings_stay() -> Iterator[None]:
    """TF32 is what torch has by default, before and after each test."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    assert before == (True, "highest")
    yield
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == before


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_an_exact_plane_before_the_last_level_comes_out_as_a_plane(
    version: str, precision: str, device: torch.device
) -> None:
    model = exact_plane_model(version, wide_config(version)).to(device)
    with torch.autocast(device.type, dtype=HALF[precision]):
        points = model(smooth_image().to(device), 36 * 48)["points"]
    truth = tilted_plane(*SIZE)[None].float().to(device)
    assert mean_angle(point_normals(points), point_normals(truth)) < 1
    assert float(edge_loss(points, truth)[0]) * 2 * max(SIZE) < 0.01


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_point_maps_hardly_move_in_16_bits_or_with_tf32(version: str, device: torch.device) -> None:
    model, image = wide_model(version), smooth_image()
    exact = model(image, 1200)  # of the CPU, in float32
    model, image = model.to(device), image.to(device)
    assert_close_to_exact(model(image, 1200), exact)
    for dtype in HALF.values():
        with torch.autocast(device.type, dtype=dtype):
            assert_close_to_exact(model(image, 1200), exact)


@torch.no_grad()
def test_tf32_is_real_here_or_the_gate_on_it_says_nothing(device: torch.device, only_cuda: None) -> None:
    if torch.cuda.get_device_capability(device) < (8, 0):
        pytest.skip("this device has no TF32")
    generator = torch.Generator().manual_seed(0)
    image, weight = torch.randn(4, 64, 64, 64, generator=generator), torch.randn(64, 64, 3, 3, generator=generator)
    exact = F.conv2d(image.double(), weight.double(), padding=1)
    rounded = F.conv2d(image.to(device), weight.to(device), padding=1)
    torch.backends.cudnn.allow_tf32 = False
    try:
        single = F.conv2d(image.to(device), weight.to(device), padding=1)
    finally:
        torch.backends.cudnn.allow_tf32 = True
    of_rounded, of_single = (float((each.cpu() - exact).abs().mean()) for each in (rounded, single))
    assert of_rounded > 10 * of_single


@torch.no_grad()
def test_compiled_blocks_predict_the_same_at_several_sizes(device: torch.device, only_cuda: None) -> None:
    triton = pytest.importorskip("torch.utils._triton")
    if not triton.has_triton():
        pytest.skip("torch compiles for this device with triton, which is not installed")
    model, image = wide_model("v2").to(device), smooth_image().to(device)
    sizes = (600, 1200)
    exact = [model(image, num_tokens) for num_tokens in sizes]
    model.compile_blocks()
    for num_tokens, expected in zip(sizes, exact, strict=True):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            assert_close_to_exact(model(image, num_tokens), expected)
