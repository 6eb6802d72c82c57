"""Metrics of one instance, as the MoGe papers report them (arXiv 2410.19115 section 4, arXiv 2507.02546 section 4).

A kind of prediction is measured after the alignment that it leaves open: a metric one as it is (points after a shift),
a scale-invariant one after the best scale, an affine-invariant one after the best scale and shift. A stronger one is
also measured as every weaker kind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moge_core.alignment import (
    align_affine_lstsq,
    align_depth_affine,
    align_depth_scale,
    align_points_scale,
    align_points_scale_xyz_shift,
    align_points_xyz_shift,
)
from moge_core.errors import InputError
from moge_core.geometry import intrinsics_to_fov, masked_nearest_resize

Values = dict[str, float]

# Alignments see the truth through this many samples.
_SAMPLES = (64, 64)
_MIN_SEGMENT_SAMPLES = 10
_NORMAL_BOUNDS = (11.25, 22.5, 30)

_POINT_KINDS = ("points_metric", "points_scale_invariant", "points_affine_invariant")
_DEPTH_KINDS = ("depth_metric", "depth_scale_invariant", "depth_affine_invariant")
_DISPARITY = "disparity_affine_invariant"
PREDICTIONS = (*_POINT_KINDS, *_DEPTH_KINDS, _DISPARITY, "intrinsics", "normal", "mask")
"""What a prediction may hold."""


@torch.no_grad()
def compute_metrics(pred: Mapping[str, Any], gt: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Metrics of one instance's prediction.

    Args:
        pred: arrays or tensors under any of `points_metric`, `points_scale_invariant`, `points_affine_invariant`
            (H, W, 3), `depth_metric`, `depth_scale_invariant`, `depth_affine_invariant`, `disparity_affine_invariant`
            (H, W), `intrinsics` (3, 3) normalised, `normal` (H, W, 3) of any length, `mask` (H, W) bool.
        gt: `depth_mask` (H, W) bool, the pixels that count, and what the predictions need of `depth` (H, W), `points`
            (H, W, 3), `intrinsics` (3, 3). `is_metric` (default False) admits the metric kinds, `has_sharp_boundary`
            (default False) the boundary metric, `segmentation_mask` (H, W) of ids with `segmentation_labels`
            {name: id} the local points. `normal` (H, W, 3), not finite where unknown, is what a predicted normal map
            is measured against. A predicted mask is measured against `depth_mask`: at every pixel, or with
            `depth_mask_inf` (H, W) bool, infinite depth, only where one of the two says what is there.

    Returns:
        {kind: {measure: value}}: `rel`, the mean relative error, and `delta1`, the share of good pixels, for each kind
        of points, depth and disparity and for `local_points`; `mae` and `deviation` in degrees for `fov_x`;
        `radius1_f1`, `radius2_f1`, `radius3_f1` for `boundary`; `mean` and `median` angle in degrees and the shares
        `within_11.25`, `within_22.5` and `within_30` degrees for `normal`; `iou` for `mask`. A value is NaN where no
        pixel counts.

    Raises:
        InputError: an unknown or empty prediction, missing truth, or shapes that do not fit.
    """
    pred, gt = _as_tensors(pred, gt)
    metrics: dict[str, dict[str, float]] = {}
    if any(kind in pred for kind in (*_DEPTH_KINDS, _DISPARITY)):
        depth_metrics, aligned = _depth_metrics(pred, gt)
        metrics |= depth_metrics
        if gt.get("has_sharp_boundary"):
            metrics["boundary"] = _boundary_metrics(aligned, gt["depth"], gt["depth_mask"])
    if any(kind in pred for kind in _POINT_KINDS):
        metrics |= _point_metrics(pred, gt)
        if "segmentation_mask" in gt:
            metrics |= _local_point_metrics(pred, gt)
    if "intrinsics" in pred:
        predicted, true = (math.degrees(float(intrinsics_to_fov(side["intrinsics"])[0])) for side in (pred, gt))
        metrics["fov_x"] = {"mae": abs(predicted - true), "deviation": predicted - true}
    if "normal" in pred:
        metrics["normal"] = _normal_metrics(pred["normal"], gt["normal"])
    if "mask" in pred:
        metrics["mask"] = {"iou": _mask_iou(pred["mask"], gt["depth_mask"], gt.get("depth_mask_inf"))}
    return metrics


def _depth_metrics(pred: Mapping[str, Any], gt: Mapping[str, Any]) -> tuple[dict[str, Values], Tensor]:
    """Metrics of all depth kinds that the prediction allows, and the least aligned depth map (H, W)."""
    mask, depth = gt["depth_mask"], gt["depth"]
    true = depth[mask]
    metrics, aligned_maps = {}, []

    if "depth_metric" in pred:
        aligned_maps.append(pred["depth_metric"])
        if gt.get("is_metric"):
            metrics["depth_metric"] = _depth_errors(pred["depth_metric"][mask], true)

    source = _strongest(pred, "depth_scale_invariant", "depth_metric")
    if source is not None:
        scale = align_depth_scale(*_samples(source, depth, mask))
        aligned_maps.append(scale * source)
        metrics["depth_scale_invariant"] = _depth_errors(aligned_maps[-1][mask], true)

    source = _strongest(pred, "depth_affine_invariant", "depth_scale_invariant", "depth_metric")
    if source is not None:
        scale, shift = align_depth_affine(*_samples(source, depth, mask))
        aligned_maps.append(scale * source + shift)
        metrics["depth_affine_invariant"] = _depth_errors(aligned_maps[-1][mask], true)

    disparity = pred.get(_DISPARITY)
    if disparity is None:
        source = _strongest(pred, "depth_scale_invariant", "depth_metric")
        disparity = None if source is None else 1 / source
    if disparity is not None:
        scale, shift = align_affine_lstsq(disparity[mask], 1 / true)
        furthest = true.max() if len(true) else true.new_tensor(math.nan)
        aligned = scale * disparity + shift
        metrics[_DISPARITY] = _depth_errors(1 / aligned[mask].maximum(1 / furthest), true)
        aligned_maps.append(1 / aligned.clamp(min=1e-6))
    return metrics, aligned_maps[0]


def _point_metrics(pred: Mapping[str, Any], gt: Mapping[str, Any]) -> dict[str, Values]:
    mask, points = gt["depth_mask"], gt["points"]
    true = points[mask]
    metrics = {}

    if "points_metric" in pred and gt.get("is_metric"):
        source = pred["points_metric"]
        shift = align_points_xyz_shift(*_samples(source, points, mask))
        metrics["points_metric"] = _point_errors(source[mask] + shift, true)

    source = _strongest(pred, "points_scale_invariant", "points_metric")
    if source is not None:
        scale = align_points_scale(*_samples(source, points, mask))
        metrics["points_scale_invariant"] = _point_errors(scale * source[mask], true)

    source = _strongest(pred, "points_affine_invariant", "points_scale_invariant", "points_metric")
    assert source is not None
    scale, shift = align_points_scale_xyz_shift(*_samples(source, points, mask))
    metrics["points_affine_invariant"] = _point_errors(scale * source[mask] + shift, true)
    return metrics


def _local_point_metrics(pred: Mapping[str, Any], gt: Mapping[str, Any]) -> dict[str, Values]:
    """Points within each segment after an alignment of its own, errors relative to the segment's size; the mean."""
    source = _strongest(pred, *_POINT_KINDS)
    assert source is not None
    source_samples, true_samples, segment_samples, sampled = masked_nearest_resize(
        source, gt["points"], gt["segmentation_mask"], mask=gt["depth_mask"], size=_SAMPLES
    )
    rel, delta1 = [], []
    for label in gt["segmentation_labels"].values():
        chosen = sampled & (segment_samples == label)
        if chosen.sum() < _MIN_SEGMENT_SAMPLES:
            continue
        mask = gt["depth_mask"] & (gt["segmentation_mask"] == label)
        true = gt["points"][mask]
        diameter = (true.amax(0) - true.amin(0)).max()
        if diameter == 0:  # a single pixel, sampled several times
            continue
        weight = (1 / diameter).expand(int(chosen.sum()))
        scale, shift = align_points_scale_xyz_shift(source_samples[chosen], true_samples[chosen], weight)
        error = (scale * source[mask] + shift - true).norm(dim=-1) / diameter
        rel.append(error.mean().item())
        delta1.append((error < 0.25).float().mean().item())
    return {"local_points": {"rel": _mean(rel), "delta1": _mean(delta1)}}


def _normal_metrics(pred: Tensor, true: Tensor) -> Values:
    """Angles between normal maps (H, W, 3) where the true one is known; a predicted zero is a right angle off."""
    known = true.isfinite().all(-1)
    pred, true = pred[known].double(), true[known].double()
    sine, cosine = torch.linalg.cross(pred, true).norm(dim=-1), (pred * true).sum(-1)
    angle = torch.rad2deg(torch.atan2(sine, cosine))
    angle = torch.where((pred == 0).all(-1), 90, angle)
    shares = {f"within_{bound:g}": (angle < bound).double().mean().item() for bound in _NORMAL_BOUNDS}
    return {"mean": angle.mean().item(), "median": angle.median().item(), **shares}


def _mask_iou(pred: Tensor, true: Tensor, infinite: Tensor | None) -> float:
    """Intersection over union of masks (H, W); NaN where both are empty."""
    if infinite is not None:
        pred = pred & (true | infinite)
    union = (pred | true).sum()
    return ((pred & true).sum() / union).item()


def _boundary_metrics(pred: Tensor, true: Tensor, mask: Tensor) -> Values:
    return {f"radius{radius}_f1": _boundary_f1(pred, true, mask, radius) for radius in (1, 2, 3)}


def _boundary_f1(pred: Tensor, true: Tensor, mask: Tensor, radius: int) -> float:
    """F1 of depth jumps between pixels and their neighbours in the radius, a weighted mean over ten thresholds."""
    height, width = true.shape
    if height <= 2 * radius or width <= 2 * radius:
        return math.nan
    thresholds = torch.linspace(0.05, 0.25, 10, dtype=torch.float64)
    counts = torch.zeros(3, len(thresholds), dtype=torch.float64)  # jumps in both, in the prediction, in the truth
    centre = (slice(radius, height - radius), slice(radius, width - radius))
    for di in range(-radius, radius + 1):
        for dj in range(-radius, radius + 1):
            if not 0 < di * di + dj * dj <= radius * radius:
                continue
            neighbour = (slice(radius + di, height - radius + di), slice(radius + dj, width - radius + dj))
            both = mask[centre] & mask[neighbour]
            pred_ratio, true_ratio = (depth[neighbour][both] / depth[centre][both] for depth in (pred, true))
            for column, threshold in enumerate(thresholds.tolist()):
                pred_jump, true_jump = pred_ratio > 1 + threshold, true_ratio > 1 + threshold
                jumps = torch.stack([(pred_jump & true_jump).sum(), pred_jump.sum(), true_jump.sum()])
                counts[:, column] += jumps.cpu()
    common, predicted, wanted = counts
    f1 = 2 * common / (predicted + wanted).clamp(min=1)
    return float((f1 * thresholds).sum() / thresholds.sum())


def _samples(source: Tensor, true: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Source and truth at the samples and their weights, one over the true distance, as the solvers take them."""
    source, true, sampled = masked_nearest_resize(source, true, mask=mask, size=_SAMPLES)
    source, true = source[sampled], true[sampled]
    distance = true if true.dim() == 1 else true.norm(dim=-1)
    return source, true, 1 / distance


def _depth_errors(pred: Tensor, true: Tensor) -> Values:
    """Of depths (N,). A depth that is not positive is never a good one."""
    ratio = torch.maximum(true / pred, pred / true)
    good = (ratio < 1.25) & (pred > 0)
    return {"rel": ((pred - true).abs() / (true + 1e-6)).mean().item(), "delta1": good.to(true.dtype).mean().item()}


def _point_errors(pred: Tensor, true: Tensor) -> Values:
    """Of points (N, 3)."""
    error, distance = (pred - true).norm(dim=-1), true.norm(dim=-1)
    good = error < 0.25 * torch.minimum(pred.norm(dim=-1), distance)
    return {"rel": (error / (distance + 1e-6)).mean().item(), "delta1": good.to(true.dtype).mean().item()}


def _strongest(pred: Mapping[str, Any], *kinds: str) -> Tensor | None:
    """The first of these predictions that there is."""
    return next((pred[kind] for kind in kinds if kind in pred), None)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _as_tensors(pred: Mapping[str, Any], gt: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays as tensors on one device, in at least single precision, after a check that all is there and fits."""
    unknown = sorted(set(pred) - set(PREDICTIONS))
    if unknown or not pred:
        raise InputError("pred", f"must hold any of {', '.join(PREDICTIONS)}", found=", ".join(unknown) or "nothing")
    needed = {"depth_mask"}
    needed |= {"points"} if any(kind in pred for kind in _POINT_KINDS) else set()
    needed |= {"depth"} if any(kind in pred for kind in (*_DEPTH_KINDS, _DISPARITY)) else set()
    needed |= {"intrinsics", "normal"} & set(pred)
    needed |= {"segmentation_labels"} if "segmentation_mask" in gt else set()
    if missing := sorted(name for name in needed if gt.get(name) is None):
        raise InputError("gt", f"must hold {', '.join(missing)} for these predictions", found=", ".join(sorted(gt)))

    pred = {name: _tensor(f"pred.{name}", value) for name, value in pred.items()}
    device = next(iter(pred.values())).device
    arrays = ("depth", "points", "depth_mask", "depth_mask_inf", "intrinsics", "segmentation_mask", "normal")
    gt = {
        name: _tensor(f"gt.{name}", value).to(device) if name in arrays else value
        for name, value in gt.items()
        if value is not None
    }
    masks = {
        "gt.depth_mask": gt["depth_mask"],
        "pred.mask": pred.get("mask"),
        "gt.depth_mask_inf": gt.get("depth_mask_inf"),
    }
    for name, mask in masks.items():
        if mask is not None and (mask.dtype != torch.bool or mask.dim() != 2):
            raise InputError(name, "must be (H, W) bool", found=f"{mask.dtype} {tuple(mask.shape)}")
    size = tuple(gt["depth_mask"].shape)
    for where, side in (("pred", pred), ("gt", gt)):
        for name in set(side) & {*PREDICTIONS, *arrays}:
            expected = (3, 3) if name == "intrinsics" else (*size, 3) if name.startswith(("points", "normal")) else size
            if tuple(side[name].shape) != expected:
                raise InputError(f"{where}.{name}", f"must be {expected}", found=tuple(side[name].shape))
    return pred, gt


def _tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, (np.ndarray, Tensor)):
        raise InputError(name, "must be a numpy array or a torch tensor", found=type(value).__name__)
    tensor = torch.as_tensor(value)
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
