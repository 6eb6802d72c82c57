"""Scores of a point-map model on a held-out dataset, and what a model that ignores the image would reach."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch

from moge_core.datasets import read_index
from moge_core.datasets.inspection import LoadedInstance, load_instance
from moge_core.datasets.layout import DEPTH_NAME, IMAGE_NAME, Progress
from moge_core.errors import DatasetError, MoGeError
from moge_core.evaluation.metrics import compute_metrics
from moge_core.geometry import depth_map_to_point_map
from moge_core.io import read_image_size
from moge_core.models import MoGeModel
from moge_core.models.base import MAX_RESOLUTION_LEVEL
from moge_core.models.precision import Precision, network_precision

Array = npt.NDArray[Any]

SCORES = ("rel", "delta1")
"""What is told of an instance: relative error and share of good points, of affine-invariant points."""

_MEAN_SIZE = (96, 96)
_REFINEMENTS = 5
# What is predicted where a forward is due and there is nothing to score: of the least cost.
_NOTHING = np.zeros((14, 14, 3), np.uint8)


class HeldOutInstance(NamedTuple):
    """One instance to score: its folder, and the name of its depth map."""

    folder: Path
    depth_name: str = DEPTH_NAME


def score_model(
    model: MoGeModel,
    dataset_dir: str | Path,
    *,
    index_name: str = ".index.txt",
    num_tokens: int | None = None,
    batch_size: int = 1,
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> dict[str, float]:
    """Mean affine-invariant point scores of a model over a dataset (MoGe-1, section 4).

    Args:
        model: predicts from the image alone.
        dataset_dir: a dataset with an index.
        index_name: the list of instances to score.
        num_tokens: resolution of the prediction; None is the model's finest.
        batch_size: images of one size that are predicted at once; it changes no score.
        precision: of the network's encoder.
        progress: called with (done, total).

    Returns:
        `rel` and `delta1` of `points_affine_invariant`, means over the instances.

    Raises:
        MoGeError: an instance cannot be read, or there is none.
    """
    instances = [HeldOutInstance(Path(dataset_dir) / name) for name in _listed(Path(dataset_dir), index_name)]
    how: dict[str, Any] = {"num_tokens": num_tokens, "batch_size": batch_size, "precision": precision}
    return mean_scores(score_instances(model, instances, progress=progress, **how))


def score_instances(
    model: MoGeModel,
    instances: Sequence[HeldOutInstance],
    *,
    num_tokens: int | None = None,
    batch_size: int = 1,
    precision: Precision = "fp32",
    device: torch.device | None = None,
    on_failure: Callable[[int, Exception], None] | None = None,
    agree_on_forwards: Callable[[int], int] | None = None,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """`rel` and `delta1` of `points_affine_invariant` for each instance, NaN where no pixel counts.

    Args:
        model, num_tokens, batch_size, precision: as of `score_model`.
        instances: what to score.
        device: where the model computes; None is where its weights are, which those that FSDP offloads are not.
        on_failure: called with the position of an instance that cannot be scored, and why; its scores are NaN. None
            raises the error.
        agree_on_forwards: called once with the number of forwards that these instances take; returns how many to make.
            For a model that is spread over processes, which all have to call it equally often.
        progress: called with (done, total).
    """
    fail = on_failure or _raise
    tokens = num_tokens or model.num_tokens_at(MAX_RESOLUTION_LEVEL)
    scores = [dict.fromkeys(SCORES, math.nan) for _ in instances]
    batches = _batches(instances, batch_size)
    if agree_on_forwards is not None:
        batches += [[]] * (agree_on_forwards(len(batches)) - len(batches))
    done = 0
    for batch in batches:
        loaded = dict(_load(batch, instances, fail))
        # What fails to load must not change how often the model is called.
        images, at = ([each.image for each in loaded.values()], tokens) if loaded else ([_NOTHING], 1)
        predicted = _predict(model, images, at, precision, device or model.device)
        for (position, each), points in zip(loaded.items(), predicted, strict=False):
            try:
                scores[position] = _score(points, each)
            except MoGeError as error:
                fail(position, error)
        done += len(batch)
        if progress and batch:
            progress(done, len(instances))
    return scores


def mean_scores(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of `score_instances` over the instances where a score is known; NaN where it is nowhere."""
    known = {name: [score[name] for score in scores if not math.isnan(score[name])] for name in SCORES}
    return {name: float(np.mean(values)) if values else math.nan for name, values in known.items()}


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
    train, held_out = Path(train_dir), Path(dataset_dir)
    seen = [load_instance(train / name) for name in _listed(train, index_name)]
    maps = np.stack([_resized(_points(each), _MEAN_SIZE) for each in seen])
    names = _listed(held_out, index_name)
    candidates = [_mean(maps), _aligned_mean(maps)]
    scores: list[list[dict[str, float]]] = [[] for _ in candidates]
    for done, name in enumerate(names, start=1):
        loaded = load_instance(held_out / name)
        size = loaded.image.shape[1], loaded.image.shape[0]
        for found, constant in zip(scores, candidates, strict=True):
            found.append(_score(_resized(constant, size), loaded))
        if progress:
            progress(done, len(names))
    return min((mean_scores(found) for found in scores), key=lambda score: score["rel"])


def _listed(dataset_dir: Path, index_name: str) -> list[str]:
    names = read_index(dataset_dir, index_name)
    if not names:
        raise DatasetError(dataset_dir, "must list at least one instance", found="none")
    return names


def _raise(_position: int, error: Exception) -> None:
    raise error


def _batches(instances: Sequence[HeldOutInstance], batch_size: int) -> list[list[int]]:
    """Positions of instances whose images have one size, by their headers."""
    same: defaultdict[object, list[int]] = defaultdict(list)
    for position, instance in enumerate(instances):
        try:
            same[read_image_size(instance.folder / IMAGE_NAME)].append(position)
        except (MoGeError, OSError):  # loading it tells why
            same[instance].append(position)
    return [group[first : first + batch_size] for group in same.values() for first in range(0, len(group), batch_size)]


def _load(
    batch: Sequence[int], instances: Sequence[HeldOutInstance], fail: Callable[[int, Exception], None]
) -> Iterator[tuple[int, LoadedInstance]]:
    for position in batch:
        try:
            yield position, load_instance(*instances[position])
        except (MoGeError, OSError) as error:
            fail(position, error)


@torch.no_grad()
def _predict(
    model: MoGeModel, images: Sequence[Array], num_tokens: int, precision: Precision, device: torch.device
) -> Array:
    """Affine-invariant points (B, H, W, 3) of images (H, W, 3) of one size.

    As the network gives them, without the shift that makes them a pinhole view: no score depends on it, and a great one
    would cost digits.
    """
    batch = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float() / 255
    with network_precision(device.type, precision):
        points: Array = model(batch, num_tokens)["points"].float().cpu().numpy()
    return points


def _score(predicted: Array, instance: LoadedInstance) -> dict[str, float]:
    points = _points(instance)
    truth = {
        "points": points,
        "depth": points[..., 2],
        "depth_mask": np.isfinite(points).all(axis=-1),
        "intrinsics": instance.intrinsics,
        "is_metric": False,
        "has_sharp_boundary": False,
    }
    metrics = compute_metrics({"points_affine_invariant": predicted}, truth)["points_affine_invariant"]
    return {name: metrics[name] for name in SCORES}


def _points(instance: LoadedInstance) -> Array:
    """Point map (H, W, 3), not finite where unknown."""
    points: Array = depth_map_to_point_map(instance.depth, instance.intrinsics)
    return points


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
