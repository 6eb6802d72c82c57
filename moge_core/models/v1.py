"""MoGe-1 (arXiv 2410.19115): DINOv2 features, a convolutional head, affine-invariant points and a mask."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moge_core.models.base import IMAGENET_MEAN, IMAGENET_STD, MoGeModel, check_image, check_num_tokens
from moge_core.models.blocks import (
    ResidualBlock,
    conv3x3,
    make_resampler,
    remap_points,
    run_maybe_checkpointed,
    view_plane_map,
)
from moge_core.models.config import PATCH_SIZE, ModelConfigV1, layer_indices
from moge_core.models.dinov2 import DinoVisionTransformer
from moge_core.models.precision import exactly, single_precision
from moge_core.tensors import at_least_single

_RAW_DEPTH_OF_ONE = {"exp": 0.0, "sinh_exp": 0.0, "sinh": math.asinh(1.0), "linear": 1.0}
_RANDOM_SHARE = 0.1


class MoGeModelV1(MoGeModel):
    """The first MoGe model. `forward` returns `points` (B, H, W, 3) and a raw `mask` (B, H, W)."""

    version = "v1"
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: ModelConfigV1) -> None:
        super().__init__(config)
        self.mask_threshold = config.mask_threshold
        self.register_buffer("image_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.layers = layer_indices(config.encoder, config.intermediate_layers)
        self.backbone = DinoVisionTransformer(config.encoder)
        self.head = Head(self.backbone.dim, config)
        self._leave_out_of_ddp("backbone", self.layers)

    @property
    def dinov2(self) -> DinoVisionTransformer:
        """The vision transformer."""
        return self.backbone

    @property
    def head_blocks(self) -> list[nn.Module]:
        """Resamplers and residual blocks of the head, and its output blocks."""
        return [layer for block in self.head.upsample_blocks for layer in block.children()] + list(
            self.head.output_block
        )

    def forward(self, image: Tensor, num_tokens: int) -> dict[str, Tensor]:
        """See `MoGeModel.forward`; the mask is trained towards 0 and 1 but not bounded by them."""
        check_image(image)
        check_num_tokens(num_tokens)
        height, width = image.shape[-2:]
        factor = math.sqrt(num_tokens * PATCH_SIZE**2 / (height * width))
        # A very long image still needs one row of patches.
        size = (max(PATCH_SIZE, int(factor * height)), max(PATCH_SIZE, int(factor * width)))
        return self.predict(image, size, size[1] / size[0])

    def predict(self, image: Tensor, size: tuple[int, int], aspect_ratio: float | Tensor) -> dict[str, Tensor]:
        """`forward` on the image resized to `size` (h, w)."""
        height, width = image.shape[-2:]
        image = F.interpolate(at_least_single(image), size, mode="bicubic", align_corners=False, antialias=True)
        image = (image - self.image_mean) / self.image_std
        whole_patches = (size[0] // PATCH_SIZE * PATCH_SIZE, size[1] // PATCH_SIZE * PATCH_SIZE)
        patched = F.interpolate(image, whole_patches, mode="bilinear", align_corners=False, antialias=True)
        features = [at_least_single(patches) for patches, _ in self.backbone(patched, self.layers)]
        with single_precision(image.device.type):
            points, mask = (
                F.interpolate(raw.float(), (height, width), mode="bilinear", align_corners=False)
                for raw in self.head(features, size, aspect_ratio)
            )
            return {"points": remap_points(points.permute(0, 2, 3, 1), self.remap_output), "mask": mask.squeeze(1)}


class Head(nn.Module):
    """Projects and sums the features, upsamples them, and reads points and mask off the last map."""

    def __init__(self, dim_in: int, config: ModelConfigV1) -> None:
        super().__init__()
        num_features = len(layer_indices(config.encoder, config.intermediate_layers))
        self.projects = nn.ModuleList(nn.Conv2d(dim_in, config.dim_proj, kernel_size=1) for _ in range(num_features))
        dims = [config.dim_proj, *config.dim_upsample]
        self.upsample_blocks = nn.ModuleList(
            nn.Sequential(
                # Two more channels: the view-plane coordinates.
                make_resampler("conv_transpose", dim + 2, dim_next),
                *(_residual_block(dim_next, config) for _ in range(config.num_res_blocks)),
            )
            for dim, dim_next in pairwise(dims)
        )
        self.output_block = nn.ModuleList(_output_block(dims[-1] + 2, dim_out, config) for dim_out in (3, 1))
        _begin_with_a_frontal_plane(self.output_block[0], config.remap_output)

    def forward(self, features: list[Tensor], size: tuple[int, int], aspect_ratio: float | Tensor) -> list[Tensor]:
        """Raw points (B, 3, h, w) and mask (B, 1, h, w) at `size` (h, w), from features (B, C, rows, columns).

        The maps here are large beside the weights, so their activations are always recomputed in the backward pass.
        """
        x: Tensor = torch.stack([project(f) for project, f in zip(self.projects, features, strict=True)]).sum(dim=0)
        for block in self.upsample_blocks:
            x = torch.cat([x, view_plane_map(x, (x.shape[-2], x.shape[-1]), aspect_ratio)], dim=1)
            for layer in block.children():
                x = run_maybe_checkpointed(layer, x, enabled=True)
        x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        x = torch.cat([x, view_plane_map(x, size, aspect_ratio)], dim=1)
        return [run_maybe_checkpointed(exactly(output), x, enabled=True) for output in self.output_block]


def _residual_block(channels: int, config: ModelConfigV1) -> ResidualBlock:
    hidden = channels * config.dim_times_res_block_hidden
    return ResidualBlock(channels, hidden, in_norm="layer_norm", hidden_norm=config.res_block_norm)


def _output_block(dim_in: int, dim_out: int, config: ModelConfigV1) -> nn.Sequential:
    channels, size = config.last_conv_channels, config.last_conv_size
    # Replication of nothing would still copy the map.
    padding_mode: Literal["replicate", "zeros"] = "replicate" if size > 1 else "zeros"
    return nn.Sequential(
        conv3x3(dim_in, channels),
        *(_residual_block(channels, config) for _ in range(config.last_res_blocks)),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, dim_out, kernel_size=size, padding=size // 2, padding_mode=padding_mode),
    )


@torch.no_grad()
def _begin_with_a_frontal_plane(points_block: nn.Module, remap: str) -> None:
    """Make a new model's first prediction the plane z = 1 seen by a camera, plus a little of the random rest. Ours.

    The losses give an instance no gradient while its best scale is negative, and a random map is mirrored as often as
    not: trained from scratch, a model can settle there for good. A plane is never mirrored.
    """
    assert isinstance(points_block, nn.Sequential)
    first, last = points_block[0], points_block[-1]
    assert isinstance(first, nn.Conv2d) and isinstance(last, nn.Conv2d)
    assert first.bias is not None and last.bias is not None
    if first.out_channels < 4:
        return
    centre = last.kernel_size[0] // 2
    last.weight.mul_(_RANDOM_SHARE)
    last.bias.zero_()
    last.bias[2] = _RAW_DEPTH_OF_ONE[remap]
    # The two last inputs are the view-plane coordinates; a ReLU lies between, so each sign takes a channel.
    for axis in (0, 1):
        for channel, sign in ((2 * axis, 1.0), (2 * axis + 1, -1.0)):
            first.weight[channel] = 0
            first.weight[channel, axis - 2, 1, 1] = sign
            first.bias[channel] = 0
            last.weight[:, channel] = 0
            last.weight[axis, channel, centre, centre] = sign
