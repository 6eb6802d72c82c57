"""The networks compute what the published ones compute, at any size, precision and memory setting."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_golden import CASES, arrays, filled_model, manifest, probe_scalar, published_state_dicts
from torch import Tensor, nn

from moge_core.configuration import load_json
from moge_core.errors import InputError, ModelError
from moge_core.models import MoGeModel, build_model
from moge_core.models.blocks import ConvStack, make_resampler, remap_points
from moge_core.models.config import ConvStackConfig, ResamplerName

TINY_V1 = {
    "encoder": "dinov2_vitt14",
    "intermediate_layers": 2,
    "dim_proj": 48,
    "dim_upsample": [32, 16],
    "last_conv_channels": 16,
    "remap_output": "exp",
}


def _stack(dims: list[int], dim_in: list[int], dim_out: int | None) -> dict[str, object]:
    return {
        "dim_in": dim_in,
        "dim_out": [None, None, None, None, dim_out],
        "dim_res_blocks": dims,
        "num_res_blocks": [0, 1, 1, 0, 1],
        "res_block_in_norm": "none",
        "res_block_hidden_norm": "none",
        "resamplers": ["conv_transpose", "nearest", "pixel_shuffle", "bilinear"],
    }


DIMS = [32, 32, 16, 16, 8]
TINY_V2 = {
    "encoder": {"backbone": "dinov2_vitt14", "intermediate_layers": [2, 5], "dim_out": 32},
    "neck": _stack(DIMS, [34, 2, 2, 2, 2], None),
    "points_head": _stack(DIMS, DIMS, 3),
    "mask_head": _stack(DIMS, DIMS, 1),
    "normal_head": _stack(DIMS, DIMS, 3),
    "scale_head": {"dims": [192, 16, 1]},
    "remap_output": "exp",
}
TINY = {"v1": TINY_V1, "v2": TINY_V2}


def tiny(version: str) -> MoGeModel:
    torch.manual_seed(0)
    return build_model(version, **TINY[version])


def relative_error(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("case", CASES)
def test_forward_equals_the_published_model(version: str, case: str) -> None:
    model, num_tokens = filled_model(version), CASES[case]
    with torch.no_grad():
        outputs = model(arrays()[f"image.{case}"], num_tokens)
    prefix = f"{version}.{case}.t{num_tokens}.forward."
    reference = {name.removeprefix(prefix): value for name, value in arrays().items() if name.startswith(prefix)}
    assert outputs.keys() == reference.keys()
    for name, value in outputs.items():
        assert value.shape == reference[name].shape
        assert relative_error(value, reference[name]) < 1e-4, name


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_weights_filled_by_rule_are_those_of_the_reference(version: str) -> None:
    state = filled_model(version).state_dict()
    for key, (total, absolute_or_total) in manifest()[f"{version}.weight_check"].items():
        assert float(state[key].double().sum()) == pytest.approx(total, rel=1e-5, abs=1e-5)
        assert float(state[key].double().abs().sum()) == pytest.approx(absolute_or_total, rel=1e-5)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_gradients_equal_the_published_models(version: str) -> None:
    expected = manifest()[f"{version}.140x98.t100"]
    model = filled_model(version)
    try:
        scalar = probe_scalar(model(arrays()["image.140x98"], 100))
        scalar.backward()
        assert scalar.detach().item() == pytest.approx(expected["grad_scalar"], rel=1e-4)
        parameters = dict(model.named_parameters())
        for name, norm in expected["grad_norms"].items():
            gradient = parameters[name].grad
            assert gradient is not None
            # In float64 these gradients lie up to 2e-4 from the recorded float32 ones, and nearer to ours.
            assert float(gradient.norm()) == pytest.approx(norm, rel=5e-4), name
        without = [name for name, parameter in parameters.items() if parameter.grad is None]
        assert without == expected["params_without_grad"]
    finally:
        model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", published_state_dicts())
def test_state_dict_has_the_published_keys_and_shapes_in_order(name: str) -> None:
    published = published_state_dicts()[name]
    with torch.device("meta"):
        model = build_model(name[:2], **published["config"])
    ours = [(key, list(tensor.shape)) for key, tensor in model.state_dict().items()]
    assert ours == list(published["state_dict"].items())


@pytest.mark.parametrize(("version", "millions"), [("v1", 314), ("v2", 331)])
def test_models_of_the_published_configurations_have_the_published_size(version: str, millions: int) -> None:
    config = load_json(Path(__file__).resolve().parents[2] / "configs" / "train" / f"{version}.json")["model"]
    with torch.device("meta"):
        model = build_model(version, **config)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions


def test_the_giant_encoder_has_the_published_size() -> None:
    with torch.device("meta"):
        backbone = build_model("v1", encoder="dinov2_vitg14").dinov2
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 1_136_480_768
    mlp = {key: tuple(value.shape) for key, value in backbone.blocks[0].mlp.state_dict().items()}
    assert mlp["w12.weight"] == (8192, 1536)
    assert mlp["w3.weight"] == (1536, 4096)


def test_swiglu_gates_with_the_first_half() -> None:
    from moge_core.models.dinov2 import SwiGLU

    torch.manual_seed(0)
    mlp, x = SwiGLU(24), torch.randn(2, 5, 24)
    first, second = mlp.w12(x).split(mlp.w3.in_features, dim=-1)
    expected = mlp.w3(first * torch.sigmoid(first) * second)
    torch.testing.assert_close(mlp(x), expected)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("size", [(61, 40), (40, 61), (20, 60), (1, 1), (1, 50), (50, 1), (3, 400), (14, 14)])
def test_any_image_size_gives_a_prediction_of_that_size(version: str, size: tuple[int, int]) -> None:
    model = tiny(version)
    with torch.no_grad():
        outputs = model(torch.rand(2, 3, *size), 30)
    assert outputs["points"].shape == (2, *size, 3)
    assert outputs["mask"].shape == (2, *size)
    assert all(value.isfinite().all() for value in outputs.values())


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_an_image_longer_than_its_tokens_still_gives_a_prediction(version: str) -> None:
    with torch.no_grad():
        points = tiny(version)(torch.rand(1, 3, 2, 600), 4)["points"]
    assert points.shape == (1, 2, 600, 3)
    assert points.isfinite().all()


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_gradient_checkpointing_gives_equal_gradients(version: str) -> None:
    model, image = tiny(version), torch.rand(1, 3, 42, 56)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        probe_scalar(model(image, 12)).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.enable_gradient_checkpointing()
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_gradient_checkpointing_runs_backbone_blocks_again_in_the_backward_pass(version: str) -> None:
    model = tiny(version)
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    model.dinov2.blocks[3].register_forward_pre_hook(count)
    probe_scalar(model(torch.rand(1, 3, 28, 28), 4)).backward()
    assert runs == 1
    model.enable_gradient_checkpointing()
    probe_scalar(model(torch.rand(1, 3, 28, 28), 4)).backward()
    assert runs == 3


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_outputs_are_float32_under_autocast_and_close(version: str) -> None:
    model, image = tiny(version), torch.rand(1, 3, 42, 56)
    with torch.no_grad():
        reference = model(image, 12)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(image, 12)
    for name, value in outputs.items():
        assert value.dtype == torch.float32
        assert float((value - reference[name]).abs().max()) < 0.1, name


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_batch_equals_its_images_one_by_one(version: str) -> None:
    model, images = tiny(version), torch.rand(3, 3, 30, 45)
    with torch.no_grad():
        together = model(images, 12)
        for index, image in enumerate(images):
            for name, value in model(image[None], 12).items():
                torch.testing.assert_close(value[0], together[name][index], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (torch.zeros(3, 8, 8), "(B, 3, H, W)"),
        (torch.zeros(1, 8, 8, 3), "(B, 3, H, W)"),
        (torch.zeros(1, 3, 0, 8), "at least one pixel"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "/ 255"),
    ],
)
def test_what_is_no_image_is_refused(image: Tensor, says: str) -> None:
    with pytest.raises(InputError, match=r"image.*") as caught:
        tiny("v1")(image, 4)
    assert says in str(caught.value)


@pytest.mark.parametrize("num_tokens", [0, -3, 2.5, True])
def test_a_number_of_tokens_must_be_a_positive_integer(num_tokens: object) -> None:
    with pytest.raises(InputError, match="num_tokens"):
        tiny("v2")(torch.rand(1, 3, 8, 8), num_tokens)


@pytest.mark.parametrize("remap", ["linear", "sinh", "exp", "sinh_exp"])
def test_remapped_points_follow_their_formula(remap: str) -> None:
    x, y, z = raw = torch.tensor([0.5, -1.5, 0.7])
    expected = {
        "linear": raw,
        "sinh": raw.sinh(),
        "exp": torch.stack([x * z.exp(), y * z.exp(), z.exp()]),
        "sinh_exp": torch.stack([x.sinh(), y.sinh(), z.exp()]),
    }[remap]
    torch.testing.assert_close(remap_points(raw, remap), expected)


@pytest.mark.parametrize("kind", ["conv_transpose", "bilinear", "nearest", "pixel_shuffle"])
def test_upsamplers_double_the_size_and_start_without_a_checkerboard(kind: ResamplerName) -> None:
    torch.manual_seed(0)
    layer = make_resampler(kind, 6, 5)
    constant = torch.randn(1, 6, 1, 1).expand(1, 6, 4, 7)
    out = layer(constant)
    assert out.shape == (1, 5, 8, 14)
    torch.testing.assert_close(out, out[:, :, :1, :1].expand_as(out))


@pytest.mark.parametrize("kind", ["pixel_unshuffle", "avg_pool", "max_pool"])
def test_downsamplers_halve_the_size(kind: ResamplerName) -> None:
    assert make_resampler(kind, 6, 5)(torch.randn(1, 6, 4, 8)).shape == (1, 5, 2, 4)


@pytest.mark.parametrize("norm", ["layer_norm", "group_norm", "instance_norm", "none"])
def test_a_conv_stack_leaves_its_input_as_it_was(norm: str) -> None:
    config = ConvStackConfig.model_validate(
        {
            "dim_in": None,
            "dim_res_blocks": [64, 8],
            "res_block_in_norm": norm,
            "res_block_hidden_norm": norm,
            "resamplers": "nearest",
        }
    )
    features = [torch.randn(1, 64, 3, 4), torch.randn(1, 8, 6, 8)]
    before = [feature.clone() for feature in features]
    outputs = ConvStack(config)(features)
    assert [tuple(out.shape) for out in outputs] == [(1, 64, 3, 4), (1, 8, 6, 8)]
    assert all(torch.equal(a, b) for a, b in zip(features, before, strict=True))


def test_channels_that_do_not_divide_into_groups_are_a_model_error() -> None:
    with pytest.raises(ModelError, match="group_norm"):
        build_model("v1", **{**TINY_V1, "dim_upsample": [97]})


def test_a_v1_model_takes_blocks_of_any_size_before_its_output() -> None:
    model = build_model("v1", **{**TINY_V1, "last_res_blocks": 1, "last_conv_size": 3, "res_block_norm": "layer_norm"})
    with torch.no_grad():
        assert model(torch.rand(1, 3, 20, 30), 6)["points"].shape == (1, 20, 30, 3)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_distributed_training_does_not_wait_for_parameters_without_gradients(version: str, tmp_path: Path) -> None:
    from torch import distributed

    if not distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    layers = {"intermediate_layers": [1, 3]}
    config = {**TINY_V1, **layers} if version == "v1" else {**TINY_V2, "encoder": {**TINY_V2["encoder"], **layers}}
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(build_model(version, **config))
        for _ in range(2):  # what is missing after the first backward pass is only told at the second forward pass
            probe_scalar(parallel(torch.rand(1, 3, 28, 28), 4)).backward()
    finally:
        distributed.destroy_process_group()


def test_model_configurations_are_read_without_torch() -> None:
    code = (
        "import sys; from moge_core.models import ModelConfigV1, parse_model_config; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
