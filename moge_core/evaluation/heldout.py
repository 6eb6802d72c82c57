"""Scores of a point-map model on a held-out dataset, and what a model that ignores the image would reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from moge_core.datasets import read_index
from moge_core.datasets.inspection import load_instance
from moge_core.datasets.layout import DEPTH_NAME
from moge_core.errors import DatasetError
from moge_core.evaluation.metrics import compute_metrics
from moge_core.geometry import depth_map_to_point_map
from moge_core.models import MoGeModel

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]

_MEAN_SIZE = (96, 96)
_REFINEMENTS = 5


def score_model(
    model: MoGeModel,
    dataset_dir: str | Path,
    *,
    index_name: str = ".index.txt",
    num_tokens: int | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Mean affine-invariant point scores of a model over a dataset (MoGe-1, section 4).

    Args:
        model: predicts from the image alone.
        dataset_dir: a dataset with an index.
        index_name: the list of instances to score.
        num_tokens: resolution of the prediction; None is the model's finest.
        progress: called with (done, total).

    Returns:
        `rel` and `delta1` of `points_affine_invariant`, means over the instances.
    """

    root = Path(dataset_dir)
    return _means(score_instances(model, root, read_index(root, index_name), num_tokens=num_tokens, progress=progress))


def score_instances(
    model: MoGeModel,
    dataset_dir: str | Path,
    instances: Sequence[str],
    *,
    depth_name: str = DEPTH_NAME,
    num_tokens: int | None = None,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """`rel` and `delta1` of `points_affine_invariant` for each instance; arguments as of `score_model`."""

    def predict(image: Array) -> Array:
        tensor = torch.from_numpy(image).to(model.device).permute(2, 0, 1).float() / 255
        prediction = model.infer(tensor, num_tokens=num_tokens, apply_mask=False, force_projection=False)
        points: Array = prediction["points"].float().cpu().numpy()
        return points

    return list(_scores(predict, Path(dataset_dir), instances, depth_name, progress))


def score_constant(
    train_dir: str | Path,
    dataset_dir: str | Path,
    *,
    index_name: str = ".index.txt",
    progress: Progress | None = None,
) -> dict[str, float]:
    """Scores of the best constant point map: the better of two means of the training maps, for every image the same.

    One is the plain mean in the units of the dataset; in the other each map is first brought to the scale and shift of
    the mean, so that large scenes do not drown small ones. Both are resized to each image.

    Returns:
        As `score_model`.
    """
    maps = np.stack([_resized(points, _MEAN_SIZE) for _, points, _ in _instances(Path(train_dir), index_name)])
    candidates = [_mean(maps), _aligned_mean(maps)]
    scores = [
        _mean_scores(
            lambda image, constant=constant: _resized(constant, (image.shape[1], image.shape[0])),  # type: ignore[misc]
            Path(dataset_dir),
            index_name,
            progress,
        )
        for constant in candidates
    ]
    return min(scores, key=lambda score: score["rel"])


def _mean_scores(
    predict: Callable[[Array], Array], dataset_dir: Path, index_name: str, progress: Progress | None
) -> dict[str, float]:
    return _means(list(_scores(predict, dataset_dir, read_index(dataset_dir, index_name), DEPTH_NAME, progress)))


def _means(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.nanmean([score[name] for score in scores])) for name in scores[0]}


def _scores(
    predict: Callable[[Array], Array],
    dataset_dir: Path,
    names: Sequence[str],
    depth_name: str,
    progress: Progress | None,
) -> Iterator[dict[str, float]]:
    for done, (image, points, intrinsics) in enumerate(_maps_of(dataset_dir, names, depth_name), start=1):
        truth = {
            "points": points,
            "depth": points[..., 2],
            "depth_mask": np.isfinite(points).all(axis=-1),
            "intrinsics": intrinsics,
            "is_metric": False,
            "has_sharp_boundary": False,
        }
        metrics = compute_metrics({"points_affine_invariant": predict(image)}, truth)
        yield dict(metrics["points_affine_invariant"])
        if progress:
            progress(done, len(names))


def _instances(dataset_dir: Path, index_name: str) -> Iterator[tuple[Array, Array, Array]]:
    """All of an index, in its order."""
    return _maps_of(dataset_dir, read_index(dataset_dir, index_name), DEPTH_NAME)


def _maps_of(dataset_dir: Path, names: Sequence[str], depth_name: str) -> Iterator[tuple[Array, Array, Array]]:
    """Image (H, W, 3), point map (H, W, 3), not finite where unknown, and intrinsics of each instance."""
    if not names:
        raise DatasetError(dataset_dir, "must list at least one instance", found="none")
    for name in names:
        loaded = load_instance(dataset_dir / name, depth_name)
        yield loaded.image, depth_map_to_point_map(loaded.depth, loaded.intrinsics), loaded.intrinsics


def _resized(points: Array, size: tuple[int, int]) -> Array:
    """Nearest resize to (width, height): unknown points stay unknown instead of bleeding."""
    resized: Array = cv2.resize(points, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return resized


def _mean(maps: Array) -> Array:
    """Mean of point maps (N, h, w, 3) over the maps in which a point is known; never known: at the median distance."""
    known = np.isfinite(maps).all(axis=-1, keepdims=True)
    count = known.sum(axis=0)
    mean = np.where(known, maps, 0).sum(axis=0, dtype=np.float64) / np.maximum(count, 1)
    filler = np.median(mean[count[..., 0] > 0], axis=0)
    filled: Array = np.where(count > 0, mean, filler).astype(np.float32)
    return filled


def _aligned_mean(maps: Array) -> Array:
    """Mean after bringing each map to the scale and z shift that fit the mean of before, by weighted least squares."""
    depth = maps[..., 2].reshape(len(maps), -1)
    scale = 1 / np.nanmedian(np.where(np.isfinite(depth), depth, np.nan), axis=1)
    mean = _mean(maps * scale[:, None, None, None])
    for _ in range(_REFINEMENTS):
        aligned = np.stack([_fit(points, mean) for points in maps])
        mean = _mean(aligned)
        mean /= np.median(mean[..., 2])
    return mean


def _fit(points: Array, target: Array) -> Array:
    known = np.isfinite(points).all(axis=-1)
    p, q = points[known].astype(np.float64), target[known].astype(np.float64)
    weight = 1 / np.maximum(p[:, 2:], 1e-6)
    centre_p, centre_q = (p * weight).sum(0) / weight.sum(), (q * weight).sum(0) / weight.sum()
    variance = (weight * (p - centre_p) ** 2).sum()
    scale = (weight * (p - centre_p) * (q - centre_q)).sum() / max(variance, 1e-12)
    fitted: Array = ((points - centre_p) * scale + centre_q).astype(np.float32)
    return fitted
