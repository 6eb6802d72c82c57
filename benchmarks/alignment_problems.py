"""Alignment problems of many kinds, with a known seed: what training meets, and what is made to mislead a search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moge_core.alignment import align_points_scale_xyz_shift, align_points_scale_z_shift

SCENE_KINDS = (
    "clean",
    "noisy",
    "distorted",
    "few outliers",
    "masked",
    "untrained",
    "far away",
    "any unit",
    "untruncated",
)
ADVERSARIAL_KINDS = (
    "unrelated",
    "heavy outliers",
    "heavy outliers, tight",
    "heavy tails",
    "two clusters",
    "mirrored",
    "half mirrored",
    "planar",
    "sparse",
    "ties",
    "unequal weights",
    "nearly all truncated",
    "tight truncation",
    "nearly constant",
    "untruncated outliers",
)
SOLVERS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "z": align_points_scale_z_shift,
    "xyz": align_points_scale_xyz_shift,
}


@dataclass
class Problems:
    """A batch of B problems of N points."""

    source: Tensor  # (B, N, 3)
    target: Tensor  # (B, N, 3)
    weight: Tensor  # (B, N)
    trunc: float | None

    def solve(self, shift: str, method: str) -> Tensor:
        """Objectives (B,) of a solver's solutions, in float64."""
        scale, offset = SOLVERS[shift](self.source, self.target, self.weight, self.trunc, method=method)
        residual = (
            scale.double()[:, None, None] * self.source.double() + offset.double()[:, None] - self.target.double()
        )
        residual = residual.abs() * self.weight.double()[..., None]
        return (residual if self.trunc is None else residual.clamp(max=self.trunc)).sum((1, 2))


def make_problems(kind: str, shift: str, batch: int, side: int, seed: int) -> Problems:
    """Problems of one kind on `side` x `side` points.

    Weights are those of the losses: one over the depth for a z shift, one over the extent for an xyz shift.
    """
    source = _Source(batch, side, seed)
    target, depth = source.surface()
    scale, shift_by = torch.exp(source.normal(1, 1)), source.normal(1, 3)
    if shift == "z":
        shift_by = shift_by * torch.tensor([0.0, 0.0, 1.0])
    pred = (target - shift_by) / scale
    extent = (pred - pred.mean(1, keepdim=True)).norm(dim=-1).mean(1)[:, None, None]
    size = side * side
    noise = torch.exp(-1 - 5 * source.uniform(1, 1)) * extent * source.normal(size, 3)
    trunc: float | None = 1.0
    kept = torch.ones(batch, size)

    if kind == "clean":
        pred = pred + 0.05 * noise
    elif kind in ("noisy", "untruncated"):
        pred = pred + noise
    elif kind == "distorted":
        pred = pred + torch.exp(-1 - 5 * source.uniform(1, 1)) * extent * source.surface()[0]
    elif kind == "few outliers":
        pred = source.with_outliers(pred, 0.1, extent) + 0.1 * noise
    elif kind == "masked":
        pred, kept = pred + 0.3 * noise, (source.uniform(size) < source.uniform(1)).float()
    elif kind == "untrained":
        pred = source.surface()[0]
    elif kind == "far away":
        pred = pred + 300 * source.uniform(1, 1) * extent * torch.tensor([0.0, 0.0, 1.0]) + 0.1 * noise
    elif kind == "any unit":
        pred = (pred + 0.3 * noise) * 10 ** (8 * source.uniform(1, 1) - 4)
        unit = 10 ** (8 * source.uniform(1, 1) - 4)
        target, depth = target * unit, depth * unit[..., 0]
    elif kind == "unrelated":
        pred = source.normal(size, 3)
    elif kind == "heavy outliers":
        pred = source.with_outliers(pred, 0.5 + 0.4 * source.uniform(1, 1), 3 * extent) + 0.1 * noise
    elif kind == "heavy outliers, tight":
        pred, trunc = source.with_outliers(pred, 0.5 + 0.3 * source.uniform(1, 1), 3 * extent) + 0.01 * noise, 0.05
    elif kind == "heavy tails":
        pred = pred + 0.1 * noise / source.normal(size, 3).abs().clamp(min=1e-6)
    elif kind == "two clusters":
        first = torch.arange(size) % side < side * (0.3 + 0.4 * source.uniform(1))
        other = (target - source.normal(1, 3) * extent) / torch.exp(source.normal(1, 1))
        pred = torch.where(first[..., None], pred, other) + 0.05 * noise
    elif kind == "mirrored":
        pred = -pred + noise
    elif kind == "half mirrored":
        pred = torch.where(source.uniform(size, 1) < 0.5, -pred, pred) + 0.1 * noise
    elif kind == "planar":
        target[..., 2] = 2
        pred = (target - shift_by) / scale + 0.1 * noise
    elif kind == "sparse":
        pred, kept = pred + 0.3 * noise, (source.uniform(size) < 0.08).float()
    elif kind == "ties":
        pred, target = (pred / extent * 2).round(), (target * 2).round()
    elif kind == "unequal weights":
        pred, kept = pred + 0.3 * noise, torch.exp(4 * source.normal(size))
    elif kind == "nearly all truncated":
        pred = source.with_outliers(pred, 0.3, extent) + noise
        kept = 30 * torch.exp(3 * source.normal(1)).expand(batch, size)
    elif kind == "tight truncation":
        pred, trunc = pred + 0.3 * noise, 0.05
    elif kind == "nearly constant":
        pred = 1 + 1e-3 * source.normal(size, 3)
    elif kind == "untruncated outliers":
        pred = source.with_outliers(pred, 0.2, 3 * extent) + noise
    else:
        raise ValueError(f"no kind {kind!r}")
    if kind.startswith("untruncated"):
        trunc = None

    reach = (target - target.mean(1, keepdim=True)).norm(dim=-1).amax(1, keepdim=True)
    weight = kept / (depth if shift == "z" else reach + 1e-7)
    return Problems(pred.float(), target.float(), weight.float(), trunc)


class _Source:
    """Random numbers for a batch of problems."""

    def __init__(self, batch: int, side: int, seed: int) -> None:
        self.batch, self.side = batch, side
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(self.batch, *shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape, generator=self.generator)

    def with_outliers(self, points: Tensor, share: Tensor | float, magnitude: Tensor) -> Tensor:
        moved = points + magnitude * self.normal(*points.shape[1:])
        return torch.where(self.uniform(points.shape[1], 1) < share, moved, points)

    def surface(self) -> tuple[Tensor, Tensor]:
        """Points (B, N, 3) of a slanted, wavy surface with a step in half the cases, and their depths (B, N)."""
        v, u = torch.meshgrid(torch.linspace(-0.4, 0.4, self.side), torch.linspace(-0.5, 0.5, self.side), indexing="ij")
        z = 0.8 * self.normal(1, 1) * u + 0.8 * self.normal(1, 1) * v
        for frequency in (3, 8):
            phase = frequency * (u * self.normal(1, 1) + v * self.normal(1, 1)) + 6 * self.uniform(1, 1)
            z = z + 0.2 * self.normal(1, 1) * torch.sin(phase)
        beyond = (u * self.normal(1, 1) + v * self.normal(1, 1) > 0.2 * self.normal(1, 1)) & (self.uniform(1, 1) < 0.5)
        z = torch.where(beyond, z + 2 * self.uniform(1, 1), z)
        z = z - z.amin((1, 2), keepdim=True) + 0.3 + 3 * self.uniform(1, 1)
        return torch.stack([u * z, v * z, z], -1).flatten(1, 2), z.flatten(1)
