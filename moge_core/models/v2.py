"""MoGe-2 (arXiv 2507.02546): points, mask, normals and metric scale from a neck of five levels."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moge_core.models.base import IMAGENET_MEAN, IMAGENET_STD, MoGeModel, check_image, check_num_tokens
from moge_core.models.blocks import ConvStack, remap_points, view_plane_map
from moge_core.models.config import (
    NUM_LEVELS_V2,
    PATCH_SIZE,
    EncoderConfigV2,
    ModelConfigV2,
    ScaleHeadConfig,
    layer_indices,
)
from moge_core.models.dinov2 import DinoVisionTransformer
from moge_core.models.precision import exactly, single_precision
from moge_core.tensors import at_least_single


class MoGeModelV2(MoGeModel):
    """The second MoGe model. `forward` returns `points` and, as configured, `mask`, `normal` and `metric_scale`."""

    version = "v2"

    def __init__(self, config: ModelConfigV2) -> None:
        super().__init__(config)
        self.encoder = Encoder(config.encoder)
        self.neck = ConvStack(config.neck)
        self.dense_heads = list(config.dense_heads)
        for name, head in config.dense_heads.items():
            self.add_module(name, ConvStack(head))
        self.scale_head = None if config.scale_head is None else make_scale_head(config.scale_head)
        self._leave_out_of_ddp("encoder.backbone", self.encoder.layers)

    @property
    def dinov2(self) -> DinoVisionTransformer:
        """The vision transformer."""
        return self.encoder.backbone

    @property
    def head_blocks(self) -> list[nn.Module]:
        """Neck and heads."""
        heads = [self.get_submodule(name) for name in self.dense_heads]
        return [self.neck, *heads, *([self.scale_head] if self.scale_head is not None else [])]

    def forward(self, image: Tensor, num_tokens: int) -> dict[str, Tensor]:
        """See `MoGeModel.forward`; the mask is a probability, normals have unit length."""
        check_image(image)
        check_num_tokens(num_tokens)
        height, width = image.shape[-2:]
        aspect_ratio = width / height
        # A very long image still needs one row of patches.
        rows = max(1, round(math.sqrt(num_tokens / aspect_ratio)))
        columns = max(1, round(math.sqrt(num_tokens * aspect_ratio)))
        return self.predict(image, rows, columns, aspect_ratio)

    def predict(self, image: Tensor, rows: int, columns: int, aspect_ratio: float | Tensor) -> dict[str, Tensor]:
        """`forward` at a given number of rows and columns of patches."""
        height, width = image.shape[-2:]
        features, class_token = self.encoder(image, rows, columns)
        with single_precision(image.device.type):
            return self._decode(features, class_token, (height, width), aspect_ratio)

    def _decode(
        self, features: Tensor, class_token: Tensor, size: tuple[int, int], aspect_ratio: float | Tensor
    ) -> dict[str, Tensor]:
        rows, columns = features.shape[-2:]
        levels = [
            view_plane_map(features, (rows * 2**level, columns * 2**level), aspect_ratio)
            for level in range(NUM_LEVELS_V2)
        ]
        levels[0] = torch.cat([features, levels[0]], dim=1)
        pyramid = self.neck(levels)
        output: dict[str, Tensor] = {}
        for name in self.dense_heads:
            raw = self.get_submodule(name)(pyramid)[-1].float()
            raw = F.interpolate(raw, size, mode="bilinear", align_corners=False)
            output[name.removesuffix("_head")] = _finish(name, raw.permute(0, 2, 3, 1), self.remap_output)
        if self.scale_head is not None:
            output["metric_scale"] = exactly(self.scale_head)(class_token).squeeze(1).float().exp()
        return output


class Encoder(nn.Module):
    """DINOv2 with its features projected and summed, on an image resized to whole patches."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: EncoderConfigV2) -> None:
        super().__init__()
        self.register_buffer("image_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.layers = layer_indices(config.backbone, config.intermediate_layers)
        self.backbone = DinoVisionTransformer(config.backbone)
        self.output_projections = nn.ModuleList(
            nn.Conv2d(self.backbone.dim, config.dim_out, kernel_size=1) for _ in self.layers
        )

    def forward(self, image: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> features (B, C, rows, columns) and the last layer's class token (B, D)."""
        size = (rows * PATCH_SIZE, columns * PATCH_SIZE)
        image = F.interpolate(at_least_single(image), size, mode="bilinear", align_corners=False, antialias=True)
        outputs = self.backbone((image - self.image_mean) / self.image_std, self.layers)
        with single_precision(image.device.type):
            projected = [
                project(at_least_single(patches))
                for project, (patches, _) in zip(self.output_projections, outputs, strict=True)
            ]
            return torch.stack(projected).sum(dim=0), at_least_single(outputs[-1][1])


def make_scale_head(config: ScaleHeadConfig) -> nn.Sequential:
    """Linear layers with ReLU between; the exponential of the output is the metric scale."""
    layers: list[nn.Module] = []
    for dim_in, dim_out in pairwise(config.dims):
        layers += [nn.Linear(dim_in, dim_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def _finish(head: str, raw: Tensor, remap: str) -> Tensor:
    """From a head's raw output (B, H, W, C) to what it stands for."""
    if head == "points_head":
        return remap_points(raw, remap)
    if head == "normal_head":
        return F.normalize(raw, dim=-1)
    return raw.squeeze(-1).sigmoid()
