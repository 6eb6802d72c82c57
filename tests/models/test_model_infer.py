"""`infer`: from an image to points, depth, mask and camera."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from model_golden import arrays, filled_model
from test_model_forward import tiny
from torch import Tensor

from moge_core.errors import InputError


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_infer_with_a_known_field_of_view_equals_the_published_model(version: str) -> None:
    image = arrays()["image.140x98"][0]
    result = filled_model(version).infer(image, fov_x=60, num_tokens=100)
    depth = arrays()[f"{version}.140x98.t100.infer.fov60.depth"]
    known = depth.isfinite()
    assert torch.equal(result["depth"].isfinite(), known)
    assert torch.equal(result["mask"], known)
    torch.testing.assert_close(result["depth"][known], depth[known], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result["intrinsics"], arrays()[f"{version}.140x98.t100.infer.fov60.intrinsics"])


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_an_image_without_batch_dimension_gives_results_without_one(version: str) -> None:
    model, images = tiny(version), torch.rand(2, 3, 24, 36)
    batched = model.infer(images, fov_x=torch.tensor([50.0, 70.0]), num_tokens=12)
    single = model.infer(images[1], fov_x=70, num_tokens=12)
    assert single.keys() == batched.keys()
    assert single["points"].shape == (24, 36, 3)
    assert single["depth"].shape == (24, 36)
    assert single["mask"].dtype == torch.bool
    assert single["intrinsics"].shape == (3, 3)
    for name, value in single.items():
        torch.testing.assert_close(value, batched[name][1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_points_project_to_their_pixels(version: str) -> None:
    height, width = 24, 36
    result = tiny(version).infer(torch.rand(3, height, width), fov_x=65, num_tokens=12, apply_mask=False)
    projected = result["points"] @ result["intrinsics"].T
    uv = projected[..., :2] / projected[..., 2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    expected = torch.stack([(columns + 0.5) / width, (rows + 0.5) / height], dim=-1)
    torch.testing.assert_close(uv, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(result["points"][..., 2], result["depth"])
    assert 0.5 / result["intrinsics"][0, 0] == pytest.approx(math.tan(math.radians(65 / 2)), rel=1e-5)


def test_without_forced_projection_points_keep_their_predicted_x_and_y() -> None:
    model, image = tiny("v1"), torch.rand(3, 24, 36)
    with torch.no_grad():
        raw = model(image[None], 12)["points"][0]
    result = model.infer(image, fov_x=60, num_tokens=12, apply_mask=False, force_projection=False)
    torch.testing.assert_close(result["points"][..., :2], raw[..., :2])
    shift = result["points"][..., 2] - raw[..., 2]
    torch.testing.assert_close(shift, shift[:1, :1].expand_as(shift), rtol=1e-4, atol=1e-5)


def test_masked_out_pixels_are_infinitely_far_and_without_normal() -> None:
    model, image = filled_model("v2"), arrays()["image.140x98"]
    masked = model.infer(image, fov_x=60, num_tokens=100)
    whole = model.infer(image, fov_x=60, num_tokens=100, apply_mask=False)
    mask = masked["mask"]
    assert torch.equal(mask, whole["mask"])
    assert 0 < mask.float().mean() < 1
    assert (masked["points"][~mask] == torch.inf).all()
    assert (masked["depth"][~mask] == torch.inf).all()
    assert (masked["normal"][~mask] == 0).all()
    for name in ("points", "depth", "normal"):
        assert torch.equal(masked[name][mask], whole[name][mask])
        assert whole[name].isfinite().all()


def test_metric_scale_multiplies_points_and_depth() -> None:
    model, image = tiny("v2"), torch.rand(1, 3, 24, 36)
    result = model.infer(image, fov_x=60, num_tokens=12, apply_mask=False)
    with torch.no_grad():
        model.scale_head[-1].bias += math.log(2)
    doubled = model.infer(image, fov_x=60, num_tokens=12, apply_mask=False)
    torch.testing.assert_close(doubled["metric_scale"], 2 * result["metric_scale"])
    torch.testing.assert_close(doubled["points"], 2 * result["points"])
    torch.testing.assert_close(doubled["depth"], 2 * result["depth"])


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (60, 20), (25, 75)])
def test_infer_works_at_any_size(version: str, size: tuple[int, int]) -> None:
    result = tiny(version).infer(torch.rand(3, *size), fov_x=60, num_tokens=12)
    assert result["points"].shape == (*size, 3)
    assert result["intrinsics"].isfinite().all()


def test_the_camera_is_recovered_when_the_field_of_view_is_unknown() -> None:
    result = filled_model("v1").infer(arrays()["image.140x98"][0], num_tokens=100)
    intrinsics = result["intrinsics"]
    assert intrinsics.isfinite().all()
    assert float(intrinsics[1, 1] / intrinsics[0, 0]) == pytest.approx(140 / 98, rel=1e-5)


def test_an_all_rejected_image_gives_an_empty_mask_and_a_camera() -> None:
    model = tiny("v1")
    model.mask_threshold = 1e9
    result = model.infer(torch.rand(3, 20, 30), num_tokens=6)
    assert not result["mask"].any()
    assert (result["depth"] == torch.inf).all()
    assert result["intrinsics"].isfinite().all()


def test_non_finite_predictions_are_masked_out() -> None:
    model = tiny("v1")
    with torch.no_grad():
        model.head.output_block[0][-1].bias[2] = 1000.0  # exp of it is infinite
    result = model.infer(torch.rand(3, 20, 30), fov_x=60, num_tokens=6)
    assert not result["mask"].any()


def test_what_lies_behind_the_camera_is_masked_out_in_v2(monkeypatch: pytest.MonkeyPatch) -> None:
    def far_back(points: Tensor, mask: Tensor, focal: Tensor) -> tuple[Tensor, Tensor]:
        return focal, torch.full_like(focal, -1000.0)

    monkeypatch.setattr("moge_core.models.base.recover_focal_shift", far_back)
    model = tiny("v2")
    model.mask_threshold = 0.0
    assert not model.infer(torch.rand(3, 20, 30), fov_x=60, num_tokens=6)["mask"].any()


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_channels_last_changes_neither_results_nor_weights(version: str) -> None:
    model = tiny(version).eval()
    image = torch.rand(1, 3, 40, 60)
    with torch.no_grad():
        expected, weights = model(image, 20), {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.use_channels_last()
        torch.testing.assert_close(model(image, 20), expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_resolution_levels_span_the_models_range_of_tokens() -> None:
    model = tiny("v1")
    assert [model.num_tokens_at(level) for level in (0, 4.5, 9)] == [1200, 1850, 2500]
    with pytest.raises(InputError, match="resolution_level"):
        model.num_tokens_at(10)


@pytest.mark.parametrize("fov_x", [0, 180, -60, math.nan, [60, 60, 60], [[60.0]]])
def test_an_impossible_field_of_view_is_refused(fov_x: float | list[float]) -> None:
    with pytest.raises(InputError, match="fov_x"):
        tiny("v1").infer(torch.rand(2, 3, 20, 30), fov_x=fov_x, num_tokens=6)


def test_a_field_of_view_comes_as_number_list_array_or_tensor() -> None:
    model, images = tiny("v1"), torch.rand(2, 3, 20, 30)
    kinds = (60, [60, 60], np.array([60.0, 60.0]), torch.tensor([60.0]), np.float64(60))
    depths = [model.infer(images, fov_x=kind, num_tokens=6, apply_mask=False)["depth"] for kind in kinds]
    assert all(torch.equal(depth, depths[0]) for depth in depths)


@pytest.mark.parametrize("image", [torch.full((3, 8, 8), 255.0), torch.full((3, 8, 8), math.nan), torch.zeros(8, 8)])
def test_an_image_out_of_range_is_refused(image: Tensor) -> None:
    with pytest.raises(InputError, match="image"):
        tiny("v1").infer(image, num_tokens=6)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_blocks_are_compiled_once_for_all_sizes_of_images(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Everything but making machine code, which takes a minute.
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compile_module(self, backend="eager", **how))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    model, plain = tiny(version), tiny(version)
    model.compile_blocks()
    for number, size in enumerate([(42, 56), (56, 42), (70, 98), (31, 44)], start=1):
        image = torch.rand(number, 3, *size)
        result = model.infer(image, fov_x=60, num_tokens=8 + 5 * number)
        expected = plain.infer(image, fov_x=60, num_tokens=8 + 5 * number)
        torch.testing.assert_close(result["depth"], expected["depth"])
    assert counters["stats"]["unique_graphs"] <= 2  # a batch of one image may have its own
    assert not counters["graph_break"]
