"""Convolutional pieces that both MoGe versions are made of.

Parameter names (`layers.2.weight`, `resamplers.0.0.weight`, ...) are those of the published checkpoints.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moge_core.errors import ModelError
from moge_core.geometry import normalized_view_plane_uv
from moge_core.models.config import ConvStackConfig, NormName, ResamplerName
from moge_core.models.precision import exact_single_precision, exactly

# Levels of a pyramid, from the finest, whose convolutions never use TF32. With its 10 bits everywhere, point normals of
# MoGe-2 move by 10 degrees; with the finest level exact by 1.3, with two 0.3, with three 0.09.
_EXACT_LEVELS = 3


def run_maybe_checkpointed(module: Callable[[Tensor], Tensor], x: Tensor, *, enabled: bool) -> Tensor:
    """`module(x)`; if `enabled` and gradients are recorded, activations are recomputed in the backward pass.

    Nothing in these models draws random numbers in the forward pass, so their state need not be kept.
    """
    out: Tensor
    if enabled and torch.is_grad_enabled():
        out = checkpoint(module, x, use_reentrant=False, preserve_rng_state=False)
    else:
        out = module(x)
    return out


def view_plane_map(like: Tensor, size: tuple[int, int], aspect_ratio: float | Tensor) -> Tensor:
    """View-plane coordinates (B, 2, h, w) of a map of `size` (h, w), with the batch, dtype and device of `like`.

    An aspect ratio that is a tensor belongs to a graph that is exported for any size, and so do the coordinates then.
    """
    height, width = size
    if isinstance(aspect_ratio, Tensor):
        half_height = torch.rsqrt(1 + aspect_ratio.square())
        u, v = ((torch.arange(side) + 0.5) * 2 / side - 1 for side in (width, height))
        u, v = (
            (u * (half_height * aspect_ratio)).expand(height, width),
            (v * half_height)[:, None].expand(height, width),
        )
        return torch.stack([u, v]).to(like).expand(len(like), -1, -1, -1)
    uv: Tensor = normalized_view_plane_uv(width, height, aspect_ratio, dtype=torch.float32, device=like.device)
    return uv.permute(2, 0, 1).to(like.dtype).expand(len(like), -1, -1, -1)


def remap_points(points: Tensor, remap: str) -> Tensor:
    """Raw head output (..., 3) to points (..., 3).

    `exp`: z = exp(z'), xy = xy' z (MoGe-1, supplement); `sinh` of all; `sinh_exp`: sinh of xy, exp of z; `linear`.
    """
    if remap == "linear":
        return points
    if remap == "sinh":
        return points.sinh()
    xy, z = points[..., :2], points[..., 2:].exp()
    return torch.cat([xy * z if remap == "exp" else xy.sinh(), z], dim=-1)


def conv3x3(dim_in: int, dim_out: int) -> nn.Conv2d:
    """A 3x3 convolution that continues the border pixels instead of seeing zeros."""
    return nn.Conv2d(dim_in, dim_out, kernel_size=3, padding=1, padding_mode="replicate")


def norm_layer(kind: NormName, channels: int) -> nn.Module:
    """A normalisation by its configuration name: `layer_norm`, `group_norm`, `instance_norm` or `none`.

    Raises:
        ModelError: the channels do not divide into groups of about 32.
    """
    if kind == "none":
        return nn.Identity()
    if kind == "instance_norm":
        return nn.InstanceNorm2d(channels)
    groups = max(1, channels // 32) if kind == "group_norm" else 1
    if channels % groups:
        raise ModelError(
            "group_norm", f"needs channels that divide into {groups} equal groups", found=f"{channels} channels"
        )
    return nn.GroupNorm(groups, channels)


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), channels unchanged."""

    def __init__(self, channels: int, hidden: int, *, in_norm: NormName, hidden_norm: NormName) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            norm_layer(in_norm, channels),
            # Without a norm this would overwrite the block's own input, which the sum still needs.
            nn.ReLU(inplace=in_norm != "none"),
            conv3x3(channels, hidden),
            norm_layer(hidden_norm, hidden),
            nn.ReLU(inplace=True),
            conv3x3(hidden, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        out: Tensor = x + self.layers(x)
        return out


def make_resampler(kind: ResamplerName, dim_in: int, dim_out: int) -> nn.Sequential:
    """A layer that doubles or halves the size of a map, by its configuration name.

    Upsamplers that learn their interpolation start with equal weights for the four new pixels, so that no
    checkerboard is there at the start.
    """
    layers: tuple[nn.Module, ...]
    if kind == "conv_transpose":
        transposed = nn.ConvTranspose2d(dim_in, dim_out, kernel_size=2, stride=2)
        with torch.no_grad():
            transposed.weight.copy_(transposed.weight[:, :, :1, :1].clone())
        layers = transposed, conv3x3(dim_out, dim_out)
    elif kind == "bilinear":
        layers = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), conv3x3(dim_in, dim_out)
    elif kind == "nearest":
        layers = nn.Upsample(scale_factor=2, mode="nearest"), conv3x3(dim_in, dim_out)
    elif kind == "pixel_shuffle":
        expand = conv3x3(dim_in, 4 * dim_out)
        with torch.no_grad():
            for parameter in expand.parameters():
                parameter.copy_(parameter[::4].repeat_interleave(4, dim=0))
        layers = expand, nn.PixelShuffle(2), conv3x3(dim_out, dim_out)
    elif kind == "pixel_unshuffle":
        layers = nn.PixelUnshuffle(2), conv3x3(4 * dim_in, dim_out)
    elif kind == "avg_pool":
        layers = conv3x3(dim_in, dim_out), nn.AvgPool2d(kernel_size=2, stride=2)
    elif kind == "max_pool":
        layers = conv3x3(dim_in, dim_out), nn.MaxPool2d(kernel_size=2, stride=2)
    else:
        raise ModelError("resamplers", "must name a known resampler", found=repr(kind))
    return nn.Sequential(*layers)


class ConvStack(nn.Module):
    """A pyramid of residual blocks: MoGe-2's neck and dense heads.

    Level i: x = input_block(f_i), added to what comes up from level i - 1; residual blocks; out_i = output_block(x);
    then a resampler leads to the next level.
    """

    def __init__(self, config: ConvStackConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        dims = config.dim_res_blocks
        self.input_blocks = nn.ModuleList(
            nn.Identity() if dim_in is None else nn.Conv2d(dim_in, dim, kernel_size=1)
            for dim_in, dim in zip(config.input_dims, dims, strict=True)
        )
        self.resamplers = nn.ModuleList(
            make_resampler(kind, dim, next_dim)
            for kind, dim, next_dim in zip(config.resampler_names, dims[:-1], dims[1:], strict=True)
        )
        self.res_blocks = nn.ModuleList(
            nn.Sequential(
                *(
                    ResidualBlock(
                        dim,
                        dim * config.dim_times_res_block_hidden,
                        in_norm=config.res_block_in_norm,
                        hidden_norm=config.res_block_hidden_norm,
                    )
                    for _ in range(count)
                )
            )
            for dim, count in zip(dims, config.block_counts, strict=True)
        )
        self.output_blocks = nn.ModuleList(
            nn.Identity() if dim_out is None else nn.Conv2d(dim, dim_out, kernel_size=1)
            for dim_out, dim in zip(config.output_dims, dims, strict=True)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """One map (B, C_i, h_i, w_i) per level in, one out; each level has the size that the resampler below gives."""
        outputs = []
        x: Tensor | None = None
        first_exact = max(0, len(features) - _EXACT_LEVELS)
        with contextlib.ExitStack() as finest:
            for level, feature in enumerate(features):
                if level == first_exact:
                    # Once for all that follows: what is entered again within, by recomputations too, costs less.
                    finest.enter_context(exact_single_precision(feature.device.type))
                entering = self.input_blocks[level](feature)
                x = entering if x is None else x + entering
                for block in self.res_blocks[level].children():
                    x = self._run(block, x, exact=level >= first_exact)
                outputs.append(self.output_blocks[level](x))
                if level < len(self.resamplers):
                    x = self._run(self.resamplers[level], x, exact=level + 1 >= first_exact)
        return outputs

    def _run(self, module: nn.Module, x: Tensor, *, exact: bool) -> Tensor:
        """A large module, whose activations are recomputed where that is asked for."""
        work = exactly(module) if exact else module
        return run_maybe_checkpointed(work, x, enabled=self.gradient_checkpointing)
