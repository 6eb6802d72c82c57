"""What both versions share: `infer`, from raw predictions to a point map with a camera."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from moge_core.errors import InputError
from moge_core.geometry import depth_map_to_point_map, focal_to_intrinsics, fov_to_focal, recover_focal_shift
from moge_core.models.blocks import ConvStack
from moge_core.models.config import ModelConfig
from moge_core.models.dinov2 import DinoVisionTransformer
from moge_core.models.precision import single_precision

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_RESOLUTION_LEVEL = 9


class MoGeModel(nn.Module, ABC):
    """A monocular geometry model: an image in, a point map, mask and camera out."""

    version: ClassVar[str]
    model_config: dict[str, Any]
    """The keys that this model was configured with: what a checkpoint file holds under this name."""
    mask_threshold: float = 0.5
    """A pixel belongs to the scene where the predicted mask exceeds this."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model_config = config.model_dump(mode="json", exclude_unset=True)
        self.num_tokens_range = config.num_tokens_range
        self.remap_output = config.remap_output

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    @abstractmethod
    def dinov2(self) -> DinoVisionTransformer:
        """The vision transformer, wherever the version keeps it."""

    @property
    def head_blocks(self) -> list[nn.Module]:
        """Modules after the transformer that hold most of the other weights and are each called as a whole."""
        return []

    @abstractmethod
    def forward(self, image: Tensor, num_tokens: int) -> dict[str, Tensor]:
        """Raw predictions in float32, differentiable.

        Args:
            image: (B, 3, H, W), RGB in 0..1, any size.
            num_tokens: about how many patches the encoder sees; sets the resolution of the prediction.

        Returns:
            `points` (B, H, W, 3), affine-invariant; as the version and configuration have them `mask` (B, H, W),
            `normal` (B, H, W, 3) and `metric_scale` (B,).
        """

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: less memory for about a third more time."""
        for module in self.modules():
            if isinstance(module, DinoVisionTransformer | ConvStack):
                module.gradient_checkpointing = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What moves or converts a module: `half()` and `bfloat16()` reach the transformer alone, see `precision`."""
        transformer = {id(value) for value in (*self.dinov2.parameters(), *self.dinov2.buffers())}
        transformer |= {id(value.grad) for value in self.dinov2.parameters()}

        def convert(value: Tensor) -> Tensor:
            converted = fn(value)
            if id(value) in transformer or converted.dtype not in (torch.float16, torch.bfloat16):
                return converted
            return value.to(converted.device)

        super()._apply(convert, recurse)  # type: ignore[no-untyped-call]
        return self

    def compile_blocks(self) -> None:
        """Compile the transformer's blocks, where most of the time goes: once for all of them and any number of tokens.

        What follows sees maps of every size; compiling that for each would take longer than it saves, and torch gives
        up after a few.
        """
        for block in self.dinov2.blocks:
            block.compile(dynamic=True)

    def use_channels_last(self) -> None:
        """Keep weights of convolutions outside the encoder channels last: the same results up to a quarter sooner."""
        for module in self.children():
            if self.dinov2 not in module.modules():
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _leave_out_of_ddp(self, prefix: str, layers: list[int]) -> None:
        # DistributedDataParallel waits for a gradient of every parameter, and these never get one.
        self._ddp_params_and_buffers_to_ignore = [f"{prefix}.{name}" for name in self.dinov2.idle_parameters(layers)]

    def num_tokens_at(self, resolution_level: float) -> int:
        """Number of tokens at a resolution level, 0 (fast) to 9 (detailed), within the model's own range.

        Raises:
            InputError: the level is not within 0 to 9.
        """
        if not 0 <= resolution_level <= MAX_RESOLUTION_LEVEL:
            raise InputError("resolution_level", f"must be 0 to {MAX_RESOLUTION_LEVEL}", found=resolution_level)
        lower, upper = self.num_tokens_range
        return int(lower + resolution_level / MAX_RESOLUTION_LEVEL * (upper - lower))

    @torch.no_grad()
    def infer(
        self,
        image: Tensor,
        fov_x: float | Sequence[float] | np.ndarray[Any, Any] | Tensor | None = None,
        resolution_level: float = 9,
        num_tokens: int | None = None,
        apply_mask: bool = True,
        force_projection: bool = True,
    ) -> dict[str, Tensor]:
        """Predict geometry and camera of one image or a batch.

        The camera's focal length and the shift along z that makes the affine-invariant points a pinhole view are
        recovered from the points (MoGe-1, section 3.1).

        Args:
            image: (3, H, W) or (B, 3, H, W), RGB in 0..1, any size.
            fov_x: horizontal field of view in degrees if known, a number or (B,); recovered otherwise.
            resolution_level: 0 (fast) to 9 (detailed); ignored when `num_tokens` is given.
            num_tokens: number of patches that the encoder sees.
            apply_mask: set masked-out points and depth to +Inf and normals to 0.
            force_projection: recompute points from depth and intrinsics, so that they project exactly to their pixels.

        Returns:
            `points` (B, H, W, 3), `depth` (B, H, W), `mask` (B, H, W) bool, `intrinsics` (B, 3, 3) normalised, and as
            the model has them `normal` (B, H, W, 3) and `metric_scale` (B,): then points and depth are in metres.
            Without the batch dimension for an image without one.

        Raises:
            InputError: an argument is outside its domain.
        """
        unbatched = isinstance(image, Tensor) and image.dim() == 3
        if unbatched:
            image = image[None]
        check_image(image)
        _check_range(image)
        if num_tokens is None:
            num_tokens = self.num_tokens_at(resolution_level)
        focal = None if fov_x is None else self._focal_of(fov_x, image)
        prediction = self(image.to(self.device), num_tokens)  # a call, so that a compiled model is used
        with single_precision(self.device.type):
            result = self._to_geometry(prediction, focal, apply_mask=apply_mask, force_projection=force_projection)
        return {name: value[0] for name, value in result.items()} if unbatched else result

    def _focal_of(self, fov_x: float | Sequence[float] | np.ndarray[Any, Any] | Tensor, image: Tensor) -> Tensor:
        """Focal length relative to half the image diagonal, (B,), for a field of view in degrees."""
        batch, _, height, width = image.shape
        degrees = torch.as_tensor(fov_x, dtype=torch.float32, device=self.device)
        if degrees.dim() > 1 or (degrees.dim() == 1 and len(degrees) not in {1, batch}):
            raise InputError("fov_x", f"must be a number or ({batch},)", found=f"shape {tuple(degrees.shape)}")
        if not bool(((degrees > 0) & (degrees < 180)).all()):
            raise InputError("fov_x", "must lie between 0 and 180 degrees", found=degrees.tolist())
        focal: Tensor = fov_to_focal(torch.deg2rad(degrees), width / height)
        return focal.expand(batch).contiguous()

    def _to_geometry(
        self, prediction: dict[str, Tensor], focal: Tensor | None, *, apply_mask: bool, force_projection: bool
    ) -> dict[str, Tensor]:
        prediction = {name: value.float() for name, value in prediction.items()}
        points = prediction["points"]
        mask = points.isfinite().all(dim=-1)
        if "mask" in prediction:
            mask &= prediction["mask"] > self.mask_threshold
        focal, shift = recover_focal_shift(points, mask, focal=focal)
        intrinsics: Tensor = focal_to_intrinsics(focal, points.shape[2] / points.shape[1])
        depth = points[..., 2] + shift[:, None, None]
        if self.version != "v1":
            mask &= depth > 0
        if force_projection:
            points = depth_map_to_point_map(depth, intrinsics)
        else:
            points = torch.cat([points[..., :2], depth[..., None]], dim=-1)
        result = {"points": points, "depth": depth, "mask": mask, "intrinsics": intrinsics}
        if "metric_scale" in prediction:
            scale = prediction["metric_scale"]
            result |= {
                "metric_scale": scale,
                "points": points * scale[:, None, None, None],
                "depth": depth * scale[:, None, None],
            }
        if "normal" in prediction:
            result["normal"] = prediction["normal"]
        if apply_mask:
            for name, blank in (("points", torch.inf), ("depth", torch.inf), ("normal", 0.0)):
                if name in result:
                    value = result[name]
                    result[name] = value.where(mask if value.dim() == 3 else mask[..., None], blank)
        return result


def check_image(image: Tensor) -> None:
    """Refuse what is no batch of RGB images.

    Raises:
        InputError: not a floating-point tensor (B, 3, H, W) with at least one pixel.
    """
    if not isinstance(image, Tensor) or not image.is_floating_point():
        found = f"{image.dtype}" if isinstance(image, Tensor) else type(image).__name__
        fix = "Turn an 8-bit image into `torch.from_numpy(image).permute(2, 0, 1) / 255`."
        raise InputError("image", "must be a floating-point tensor in 0..1", found=found, fix=fix)
    if image.dim() != 4 or image.shape[1] != 3:
        fix = "Colour channels come before height and width."
        raise InputError("image", "must be (B, 3, H, W)", found=f"shape {tuple(image.shape)}", fix=fix)
    if image.numel() == 0:
        raise InputError("image", "must hold at least one pixel", found=f"shape {tuple(image.shape)}")


def check_num_tokens(num_tokens: int) -> None:
    """Refuse what is no number of tokens.

    Raises:
        InputError: below 1, or not an integer.
    """
    if isinstance(num_tokens, bool) or not isinstance(num_tokens, int | np.integer) or num_tokens < 1:
        raise InputError("num_tokens", "must be a positive integer", found=repr(num_tokens))


def _check_range(image: Tensor) -> None:
    # Resampling may overshoot 0..1 a little; 0..255 or an already normalised image lies far outside.
    low, high = torch.stack(image.aminmax()).tolist()
    if not (low > -0.5 and high < 1.5):
        raise InputError("image", "must be RGB in 0..1", found=f"values from {low:g} to {high:g}")
