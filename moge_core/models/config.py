"""The `model` section of a training configuration, checked without torch.

`ModelConfigV1` and `ModelConfigV2` carry the published names and defaults of MoGe-1 (arXiv 2410.19115) and MoGe-2
(arXiv 2507.02546). `parse_model_config` turns a plain dictionary into one of them; shapes that cannot fit together are
refused here, before anything is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator

from moge_core.configuration import StrictModel, parse_as
from moge_core.errors import ConfigError, ModelError

PATCH_SIZE = 14
"""Side of one image patch (one token) of every DINOv2 encoder, in pixels."""


@dataclass(frozen=True)
class EncoderShape:
    """Dimensions of one vision transformer; `swiglu` chooses the gated MLP of the giant model."""

    dim: int
    depth: int
    num_heads: int
    swiglu: bool = False


ENCODERS: Mapping[str, EncoderShape] = {
    # Ours, without published weights: small enough to learn something on a CPU in minutes.
    "dinov2_vitt14": EncoderShape(dim=192, depth=6, num_heads=3),
    "dinov2_vits14": EncoderShape(dim=384, depth=12, num_heads=6),
    "dinov2_vitb14": EncoderShape(dim=768, depth=12, num_heads=12),
    "dinov2_vitl14": EncoderShape(dim=1024, depth=24, num_heads=16),
    "dinov2_vitg14": EncoderShape(dim=1536, depth=40, num_heads=24, swiglu=True),
}

EncoderName = Literal["dinov2_vitt14", "dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14", "dinov2_vitg14"]
RemapName = Literal["linear", "sinh", "exp", "sinh_exp"]
NormName = Literal["layer_norm", "group_norm", "instance_norm", "none"]
ResamplerName = Literal[
    "conv_transpose", "bilinear", "nearest", "pixel_shuffle", "pixel_unshuffle", "avg_pool", "max_pool"
]
UPSAMPLERS = frozenset({"conv_transpose", "bilinear", "nearest", "pixel_shuffle"})

# Upper bounds keep a hostile checkpoint's configuration from exhausting memory before its weights are compared.
Channels = Annotated[int, Field(ge=1, le=16384)]
Blocks = Annotated[int, Field(ge=0, le=64)]
LayerIndex = Annotated[int, Field(ge=0)]
TokenRange = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]

NUM_LEVELS_V2 = 5

ValueT = TypeVar("ValueT")


class ModelConfigV1(StrictModel):
    """MoGe-1: one DINOv2 encoder and a convolutional head for points and mask. Defaults are the published ones."""

    encoder: EncoderName = "dinov2_vitb14"
    intermediate_layers: Annotated[int, Field(ge=1)] | Annotated[list[LayerIndex], Field(min_length=1)] = 4
    dim_proj: Channels = 512
    dim_upsample: Annotated[list[Channels], Field(min_length=1, max_length=8)] = Field(
        default_factory=lambda: [256, 128, 128]
    )
    dim_times_res_block_hidden: Annotated[int, Field(ge=1, le=16)] = 1
    num_res_blocks: Blocks = 1
    remap_output: RemapName = "linear"
    res_block_norm: Literal["group_norm", "layer_norm"] = "group_norm"
    num_tokens_range: TokenRange = (1200, 2500)
    last_res_blocks: Blocks = 0
    last_conv_channels: Channels = 32
    last_conv_size: Annotated[int, Field(ge=1, le=15)] = 1
    mask_threshold: Annotated[float, Field(allow_inf_nan=False)] = 0.5

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfigV1:
        layer_indices(self.encoder, self.intermediate_layers)
        _check_token_range(self.num_tokens_range)
        if self.last_conv_size % 2 == 0:
            raise ValueError(f"`last_conv_size` must be odd to keep the size of the map, found {self.last_conv_size}")
        return self


class EncoderConfigV2(StrictModel):
    """The encoder of MoGe-2: features of `intermediate_layers`, each projected to `dim_out`, summed."""

    backbone: EncoderName
    intermediate_layers: Annotated[int, Field(ge=1)] | Annotated[list[LayerIndex], Field(min_length=1)]
    dim_out: Channels

    @model_validator(mode="after")
    def _fits_together(self) -> EncoderConfigV2:
        layer_indices(self.backbone, self.intermediate_layers)
        return self


class ConvStackConfig(StrictModel):
    """A pyramid of residual blocks, coarse to fine: the neck and each dense head of MoGe-2.

    `dim_in` and `dim_out` null mean "as it comes"; a scalar or null stands for all levels.
    """

    dim_in: Channels | list[Channels | None] | None
    dim_out: Channels | list[Channels | None] | None = None
    dim_res_blocks: Annotated[list[Channels], Field(min_length=1, max_length=12)]
    num_res_blocks: Blocks | list[Blocks] = 1
    dim_times_res_block_hidden: Annotated[int, Field(ge=1, le=16)] = 1
    res_block_in_norm: NormName = "layer_norm"
    res_block_hidden_norm: NormName = "group_norm"
    resamplers: ResamplerName | list[ResamplerName]

    @property
    def num_levels(self) -> int:
        """Number of pyramid levels."""
        return len(self.dim_res_blocks)

    @property
    def input_dims(self) -> list[int | None]:
        """`dim_in` of every level."""
        return _per_level(self.dim_in, self.num_levels)

    @property
    def output_dims(self) -> list[int | None]:
        """`dim_out` of every level."""
        return _per_level(self.dim_out, self.num_levels)

    @property
    def block_counts(self) -> list[int]:
        """`num_res_blocks` of every level."""
        return _per_level(self.num_res_blocks, self.num_levels)

    @property
    def resampler_names(self) -> list[ResamplerName]:
        """The resampler after every level but the last."""
        return _per_level(self.resamplers, self.num_levels - 1)

    @property
    def channels_out(self) -> list[int]:
        """Channels that leave every level."""
        return [dim or hidden for dim, hidden in zip(self.output_dims, self.dim_res_blocks, strict=True)]

    @model_validator(mode="after")
    def _one_entry_a_level(self) -> ConvStackConfig:
        levels = self.num_levels
        for key, expected in (
            ("dim_in", levels),
            ("dim_out", levels),
            ("num_res_blocks", levels),
            ("resamplers", levels - 1),
        ):
            value = getattr(self, key)
            if isinstance(value, list) and len(value) != expected:
                raise ValueError(f"`{key}` must have {expected} entries for {levels} levels, found {len(value)}")
        return self


class ScaleHeadConfig(StrictModel):
    """The metric-scale head of MoGe-2: linear layers of these widths on the class token."""

    dims: Annotated[list[Channels], Field(min_length=2, max_length=16)]


class ModelConfigV2(StrictModel):
    """MoGe-2: encoder, neck, and heads for points and optionally mask, normals and metric scale."""

    encoder: EncoderConfigV2
    neck: ConvStackConfig
    points_head: ConvStackConfig
    mask_head: ConvStackConfig | None = None
    normal_head: ConvStackConfig | None = None
    scale_head: ScaleHeadConfig | None = None
    remap_output: RemapName = "linear"
    num_tokens_range: TokenRange = (1200, 3600)

    @property
    def dense_heads(self) -> dict[str, ConvStackConfig]:
        """The heads that this configuration has, by name."""
        heads = {"points_head": self.points_head, "mask_head": self.mask_head, "normal_head": self.normal_head}
        return {name: head for name, head in heads.items() if head is not None}

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfigV2:
        _check_token_range(self.num_tokens_range)
        # View-plane coordinates (2 channels) join the features at level 0 and stand alone above.
        _check_stack("neck", self.neck, [self.encoder.dim_out + 2] + [2] * (NUM_LEVELS_V2 - 1), None)
        for name, head in self.dense_heads.items():
            _check_stack(name, head, self.neck.channels_out, 1 if name == "mask_head" else 3)
        if self.scale_head is not None:
            dims, width = self.scale_head.dims, ENCODERS[self.encoder.backbone].dim
            if dims[0] != width or dims[-1] != 1:
                raise ValueError(f"`scale_head.dims` must lead from {width} (the class token) to 1, found {dims}")
        return self


ModelConfig = ModelConfigV1 | ModelConfigV2

MODEL_CONFIGS: Mapping[str, type[ModelConfigV1] | type[ModelConfigV2]] = {"v1": ModelConfigV1, "v2": ModelConfigV2}


def parse_model_config(version: str, values: Mapping[str, Any], where: object = "model") -> ModelConfig:
    """Validate the `model` section of `version` ("v1" or "v2"); `where` names the source in errors.

    Raises:
        ModelError: there is no such version.
        ConfigError: a key is unknown, missing or out of range, or widths do not fit together.
    """
    if version not in MODEL_CONFIGS:
        raise ModelError("model_version", f"must be one of {', '.join(MODEL_CONFIGS)}", found=repr(version))
    encoder = values.get("encoder")
    if encoder is not None and isinstance(encoder, Mapping) != (version == "v2"):
        raise ConfigError(
            f"{where}: encoder",
            f"must be {'an object' if version == 'v2' else 'a name'} in a {version} model",
            found=repr(encoder),
            fix="Do `model_version` and `model` belong together?",
        )
    return parse_as(MODEL_CONFIGS[version], values, where)


def version_of(model_config: Mapping[str, Any]) -> str:
    """Version that a checkpoint's `model_config` describes: v2's `encoder` is a dictionary, v1's a name."""
    return "v2" if isinstance(model_config.get("encoder"), Mapping) else "v1"


def layer_indices(encoder: str, intermediate_layers: int | list[int]) -> list[int]:
    """0-based encoder blocks whose outputs are used; a number means that many last blocks.

    Raises:
        ValueError: the encoder has no such blocks, or they are not in ascending order.
    """
    depth = ENCODERS[encoder].depth
    if isinstance(intermediate_layers, int):
        if not 1 <= intermediate_layers <= depth:
            raise ValueError(f"`intermediate_layers` must be 1 to {depth} for {encoder}, found {intermediate_layers}")
        return list(range(depth - intermediate_layers, depth))
    if sorted(set(intermediate_layers)) != intermediate_layers or intermediate_layers[-1] >= depth:
        raise ValueError(
            f"`intermediate_layers` must be ascending block numbers from 0 to {depth - 1} for {encoder}, "
            f"found {intermediate_layers}"
        )
    return intermediate_layers


def _per_level(value: ValueT | list[ValueT], count: int) -> list[ValueT]:
    return value if isinstance(value, list) else [value] * count


def _check_token_range(span: tuple[int, int]) -> None:
    if span[0] > span[1]:
        raise ValueError(f"`num_tokens_range` must be [lower, upper], found {list(span)}")


def _check_stack(name: str, stack: ConvStackConfig, incoming: list[int], last_out: int | None) -> None:
    if stack.num_levels != NUM_LEVELS_V2:
        raise ValueError(f"`{name}.dim_res_blocks` must have {NUM_LEVELS_V2} levels, found {stack.num_levels}")
    for level, (dim, hidden, given) in enumerate(zip(stack.input_dims, stack.dim_res_blocks, incoming, strict=True)):
        if (hidden if dim is None else dim) != given:
            key = f"dim_res_blocks[{level}] (dim_in is null)" if dim is None else f"dim_in[{level}]"
            raise ValueError(f"`{name}.{key}` must be {given}, what comes in, found {hidden if dim is None else dim}")
    shrinking = sorted(set(stack.resampler_names) - UPSAMPLERS)
    if shrinking:
        raise ValueError(f"`{name}.resamplers` must double the size at each level, found {', '.join(shrinking)}")
    if last_out is not None and stack.channels_out[-1] != last_out:
        raise ValueError(f"`{name}.dim_out` must end in {last_out} channels, found {stack.channels_out[-1]}")
