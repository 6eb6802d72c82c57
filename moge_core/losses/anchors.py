"""Where the local loss places its patches: random pixels, drawn so that every piece of surface is equally likely."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moge_core.errors import InputError
from moge_core.tensors import is_finite, zero_unless_

_NUM_TESTS = 64
_NUM_CLASSES = 4
# What a weight of 1 is in integers. Float32 numbers of 1/64 and more become integers without a remainder, and their sum
# over any image stays below 2^53, so that float64 multiplies it without one.
_WEIGHT_UNIT = 2**30


def draw_anchors(
    gt_points: Tensor,
    radius_3d: Tensor,
    radius_2d: int,
    num_patches: int,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> Tensor:
    """Anchor pixels of each instance, drawn with replacement among the pixels with finite truth.

    Args:
        gt_points: (B, H, W, 3), NaN or infinite where unknown.
        radius_3d: (B, H, W) reach of a patch around each pixel, in the unit of the points.
        radius_2d: half the side of a patch's square in pixels.
        num_patches: anchors per instance.
        generator: one that serves all instances in turn, one per instance, or None for torch's own. An instance's
            anchors depend on its own content and its generator's state only, and on one device they are the same
            however often they are drawn. On another one they are nearly always: distances may be rounded otherwise
            there, and a test pixel at the very edge of a patch fall in or out. A generator of an accelerator makes the
            host wait for its numbers; one of the host does not.

    Returns:
        (B, num_patches, 2) int64 rows and columns; pixel (0, 0), which is then unknown, where an instance has no truth.
    """
    batch_size, _, width = radius_3d.shape
    if generator is None or isinstance(generator, torch.Generator):
        generators: Sequence[torch.Generator | None] = [generator] * batch_size
    elif len(generator) != batch_size:
        raise InputError("generator", f"must be one, or one for each of {batch_size} instances", found=len(generator))
    else:
        generators = generator
    anchors = []
    with torch.no_grad():
        for points, radius, source in zip(gt_points, radius_3d, generators, strict=True):
            weights = anchor_weights(points, radius, radius_2d, source)
            pixels = _draw(weights.flatten(), num_patches, source)
            anchors.append(torch.stack([pixels // width, pixels % width], dim=-1))
    return torch.stack(anchors) if anchors else torch.zeros(0, num_patches, 2, dtype=torch.long)


def anchor_weights(points: Tensor, radius_3d: Tensor, radius_2d: int, generator: torch.Generator | None) -> Tensor:
    """Sampling weights (H, W): 1 / max(1, n), where n of 64 random test pixels in a pixel's square are its patch's.

    Pixels on distant or slanted surface have few neighbours in reach and weigh more. Rows take turns in four classes,
    and the pixels of a class share their 64 offsets: each pixel's expectation is the same as with offsets of its own,
    at a small part of the cost. With one class alone the weights of a draw would rise and fall together.

    Args:
        points: (H, W, 3), NaN or infinite where unknown, which weighs 0.
        radius_3d: (H, W).
    """
    planes = points.permute(2, 0, 1).contiguous()
    reach = radius_3d.square()
    size = (_NUM_CLASSES, _NUM_TESTS, 2)
    offsets = torch.randint(-radius_2d, radius_2d + 1, size, generator=generator, device=_device(generator))
    hits = torch.zeros_like(radius_3d)
    for first_row, class_offsets in enumerate(offsets.tolist()):
        for down, right in class_offsets:
            _count_hits(hits, planes, reach, first_row, down, right)
    return zero_unless_(1 / hits.clamp(min=1), is_finite(points))


def _count_hits(hits: Tensor, planes: Tensor, reach: Tensor, first_row: int, down: int, right: int) -> None:
    """Add 1 to the hits (H, W) of every `_NUM_CLASSES`-th row's pixels whose test pixel is within their reach."""
    height, width = hits.shape
    # The first of the class's rows whose test pixels lie inside the image.
    top = first_row + max(0, math.ceil((-down - first_row) / _NUM_CLASSES)) * _NUM_CLASSES
    bottom, left, stop = height - max(0, down), max(0, -right), width - max(0, right)
    if top >= bottom or left >= stop:
        return
    here = (slice(top, bottom, _NUM_CLASSES), slice(left, stop))
    there = (slice(top + down, bottom + down, _NUM_CLASSES), slice(left + right, stop + right))
    difference = planes[:, *there] - planes[:, *here]
    left_over = reach[here]
    for axis in difference:
        left_over = torch.addcmul(left_over, axis, axis, value=-1)
    hits[here] += left_over.ge_(0)  # 0 wherever NaN or infinity is involved


def _draw(weights: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Indices (count,) with replacement and probability proportional to the weights (N,), by inverting their sum.

    The sum is one of integers, which does not depend on the order in which a device adds up.
    """
    cumulative = (weights * _WEIGHT_UNIT).long().cumsum(0)
    total = cumulative[-1:]
    uniform = torch.rand(count, generator=generator, device=_device(generator), dtype=torch.float64)
    place = (uniform.to(weights.device, non_blocking=True) * total).long()
    # Without any weight, or rounded up to the very end, it is the last index of positive weight.
    return torch.minimum(torch.searchsorted(cumulative, place, right=True), torch.searchsorted(cumulative, total))


def _device(generator: torch.Generator | None) -> torch.device:
    """Random numbers are drawn on the host, which has to know the offsets, unless a generator belongs elsewhere."""
    return torch.device("cpu") if generator is None else generator.device
