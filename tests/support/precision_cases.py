"""Models with the decoder widths of the published configurations, and how far predictions are apart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moge_core.configuration import load_json
from moge_core.geometry import normalized_view_plane_uv
from moge_core.models import MoGeModel, build_model

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "train"
SIZE = (480, 640)
TILT = (0.15, 0.75, 0.65)
"""Normal of the plane of `tilted_plane`, not yet of unit length."""


def wide_config(version: str) -> dict[str, Any]:
    """The `model` section of a published configuration, with the smallest encoder."""
    config = load_json(CONFIGS / f"{version}.json")["model"]
    if version == "v1":
        return {**config, "encoder": "dinov2_vitt14"}
    encoder = {**config["encoder"], "backbone": "dinov2_vitt14", "intermediate_layers": [2, 3, 4, 5]}
    return {**config, "encoder": encoder, "scale_head": {"dims": [192, 1024, 1024, 1]}}


def wide_model(version: str, seed: int = 0) -> MoGeModel:
    """A new model as a training with `--init random` begins with."""
    torch.manual_seed(seed)
    model = build_model(version, **wide_config(version))
    model.dinov2.begin_from_scratch()
    return model.eval()


def smooth_image(seed: int = 0) -> Tensor:
    """(1, 3, 480, 640) of random colours that run into each other."""
    colors = torch.rand(1, 3, 15, 20, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(colors, SIZE, mode="bicubic", align_corners=False).clamp(0, 1)


def point_normals(points: Tensor) -> Tensor:
    """Unit normals (B, H - 1, W - 1, 3) of point maps (B, H, W, 3); 0 where two sides are parallel."""
    right, down = (points[:, :, 1:] - points[:, :, :-1])[:, :-1], (points[:, 1:] - points[:, :-1])[:, :, :-1]
    return F.normalize(torch.linalg.cross(right, down), dim=-1)


def mean_angle(ours: Tensor, theirs: Tensor) -> float:
    """Mean angle in degrees between unit vectors; a vector of zeros is 90 degrees from any."""
    # atan2, because acos knows no small angles in float32.
    sine, cosine = torch.linalg.cross(ours, theirs).norm(dim=-1), (ours * theirs).sum(-1)
    none = (ours.norm(dim=-1) == 0) | (theirs.norm(dim=-1) == 0)
    return float(torch.rad2deg(torch.atan2(sine, cosine).masked_fill(none, math.pi / 2)).mean())


def mean_relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Mean distance of points, relative to how far away they are."""
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=1e-6)).mean())


def assert_close_to_exact(output: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """The bounds within which a prediction in 16 bits or with TF32 stays: float32, and hardly moved."""
    ours, theirs = ({name: value.cpu() for name, value in each.items()} for each in (output, exact))
    assert {value.dtype for value in ours.values()} == {torch.float32}
    assert mean_angle(point_normals(ours["points"]), point_normals(theirs["points"])) < 0.5
    assert mean_relative_error(ours["points"], theirs["points"]) < 1e-3
    if "normal" in theirs:
        assert mean_angle(ours["normal"], theirs["normal"]) < 0.5
    if "metric_scale" in theirs:
        torch.testing.assert_close(ours["metric_scale"], theirs["metric_scale"], rtol=5e-3, atol=0)


def tilted_plane(height: int, width: int, aspect_ratio: float = SIZE[1] / SIZE[0]) -> Tensor:
    """Points (H, W, 3) of a plane whose depths span a factor of more than 3, median depth 1."""
    uv = normalized_view_plane_uv(width, height, aspect_ratio, dtype=torch.float64, device=torch.device("cpu"))
    rays = torch.cat([uv / 1.2, torch.ones(height, width, 1, dtype=torch.float64)], -1)
    normal = F.normalize(torch.tensor(TILT, dtype=torch.float64), dim=0)
    points = rays * (1.5 / (rays @ normal).clamp(min=0.15))[..., None]
    return points / points[..., 2].median()


def raw_of(points: Tensor) -> Tensor:
    """What a head with the remap `exp` has to put out for points (H, W, 3): (3, H, W)."""
    return torch.cat([points[..., :2] / points[..., 2:], points[..., 2:].log()], -1).permute(2, 0, 1).float()


class TF32OnTheCPU(TorchDispatchMode):
    """Rounds inputs and weights of float32 convolutions to the 10 bits of TF32 wherever the process allows that."""

    def __init__(self) -> None:
        super().__init__()
        self.rounded = self.exact = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket is torch.ops.aten.convolution and args[0].dtype == torch.float32:
            if torch.backends.cudnn.allow_tf32:
                self.rounded += 1
                args = (_ten_bits(args[0]), _ten_bits(args[1]), *args[2:])
            else:
                self.exact += 1
        return function(*args, **(kwargs or {}))


def _ten_bits(values: Tensor) -> Tensor:
    """float32 numbers rounded to 10 bits of mantissa, halves to even."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)
