"""The `model` section: published configurations are accepted, what cannot be built is refused before building."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from model_golden import manifest, published_state_dicts

from moge_core.errors import ConfigError, ModelError
from moge_core.models import ModelConfigV1, ModelConfigV2, parse_model_config
from moge_core.models.config import ENCODERS, layer_indices


def test_published_configurations_are_accepted() -> None:
    for name, published in published_state_dicts().items():
        config = parse_model_config(name[:2], published["config"])
        assert isinstance(config, ModelConfigV1 if name.startswith("v1") else ModelConfigV2)
        assert config.model_dump(mode="json", exclude_unset=True) == published["config"]


def test_a_v2_model_may_come_without_normals_mask_and_scale() -> None:
    config = {key: value for key, value in v2().items() if key not in {"normal_head", "mask_head", "scale_head"}}
    parsed = parse_model_config("v2", config)
    assert isinstance(parsed, ModelConfigV2)
    assert list(parsed.dense_heads) == ["points_head"]


def v1(**changes: Any) -> dict[str, Any]:
    return {**manifest()["v1.config"], **changes}


def v2(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy({**manifest()["v2.config"], **changes})


def nested(section: str, **changes: Any) -> dict[str, Any]:
    config = v2()
    config[section] |= changes
    return config


@pytest.mark.parametrize(
    ("version", "config", "says"),
    [
        ("v1", v1(dim_upsampel=[1]), "Did you mean `dim_upsample`"),
        ("v1", v1(encoder="dinov2_vith14"), "encoder"),
        ("v1", v1(intermediate_layers=13), "1 to 12"),
        ("v1", v1(intermediate_layers=[3, 12]), "0 to 11"),
        ("v1", v1(intermediate_layers=[5, 2]), "ascending"),
        ("v1", v1(intermediate_layers=[]), "intermediate_layers"),
        ("v1", v1(num_tokens_range=[2500, 1200]), "[lower, upper]"),
        ("v1", v1(num_tokens_range=[0, 10]), "num_tokens_range"),
        ("v1", v1(last_conv_size=2), "odd"),
        ("v1", v1(remap_output="cosh"), "remap_output"),
        ("v1", v1(dim_upsample=[]), "dim_upsample"),
        ("v1", v2(), "must be a name in a v1 model"),
        ("v2", v1(), "must be an object in a v2 model"),
        ("v2", {}, "encoder"),
        ("v2", nested("neck", dim_in=[384, 2, 2, 2, 2]), "must be 386"),
        ("v2", nested("neck", dim_in=None), "must be 386"),
        ("v2", nested("neck", resamplers=["bilinear"] * 3), "must have 4 entries"),
        ("v2", nested("neck", resamplers="avg_pool"), "double the size"),
        ("v2", nested("neck", resamplrs="bilinear"), "Did you mean `resamplers`"),
        ("v2", nested("neck", num_res_blocks=[1, 2]), "must have 5 entries"),
        ("v2", nested("mask_head", dim_out=3), "must end in 1"),
        ("v2", nested("points_head", dim_in=[384, 256, 128, 64, 31]), "dim_in[4]` must be 32"),
        ("v2", nested("scale_head", dims=[100, 1]), "must lead from 384"),
        ("v2", nested("encoder", intermediate_layers=[2, 12]), "0 to 11"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_key(version: str, config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_model_config(version, config, where="train.json: model")
    assert says in str(caught.value)
    assert str(caught.value).startswith("train.json: model")


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(ModelError, match="v1, v2"):
        parse_model_config("v3", v1())


def test_a_number_of_layers_means_the_last_ones() -> None:
    assert layer_indices("dinov2_vitl14", 4) == [20, 21, 22, 23]
    assert layer_indices("dinov2_vitl14", [5, 11, 17, 23]) == [5, 11, 17, 23]


def test_every_encoder_has_heads_of_64_channels() -> None:
    assert {shape.dim / shape.num_heads for shape in ENCODERS.values()} == {64}
