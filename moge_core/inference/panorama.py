"""Panoramas: perspective views all around, predicted one by one and merged into one distance map.

Each view has a scale of its own. Where two views overlap, the median of their log ratio tells how their scales differ;
least squares over all overlaps finds the scales. Merged distances are means of the logarithm, each view weighing most
in its middle.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from moge_core.errors import InputError
from moge_core.geometry import image_uv, intrinsics_from_fov
from moge_core.inference.prediction import Prediction, predict
from moge_core.models import MoGeModel

_VIEW_FOV_DEG = 90.0
_MIN_OVERLAP_PIXELS = 32
_MAX_MERGE_WIDTH = 2048


class View(NamedTuple):
    """One perspective view of a panorama.

    Attributes:
        rotation: (3, 3), directions of the panorama to those of the view's camera (OpenCV axes).
        intrinsics: (3, 3), normalised.
    """

    rotation: npt.NDArray[np.float32]
    intrinsics: npt.NDArray[np.float32]


def predict_panorama(
    model: MoGeModel, image: npt.NDArray[np.uint8], *, fov_x: float | None = None, **how: Any
) -> Prediction:
    """Geometry of an equirectangular panorama.

    Args:
        model: either version.
        image: uint8 (H, W, 3) with W = 2 H: left to right is a full turn, its middle looks along z; top is up.
        fov_x: must be None, a panorama's is known.
        **how: passed on to `predict`.

    Returns:
        Points around the camera's centre (x right, y down, z into the middle of the image) and their distances. Without
        intrinsics and normals. Metric where the model is.

    Raises:
        InputError: the image is not twice as wide as high, or a field of view is given.
    """
    height, width = image.shape[:2]
    if not is_panorama(image):
        raise InputError("image", "must be twice as wide as high to be a panorama", found=f"{width}x{height}")
    if fov_x is not None:
        raise InputError("fov_x", "must not be given for a panorama", found=fov_x)
    directions = panorama_directions(width, height)
    side = max(14, round(width * _VIEW_FOV_DEG / 360))
    merged_width = min(width, _MAX_MERGE_WIDTH)
    merge_directions = panorama_directions(merged_width, merged_width // 2)

    log_distances, weights = [], []
    for view in panorama_views():
        picture = view_of_panorama(image, view, side)
        prediction = predict(model, [picture], fov_x=_VIEW_FOV_DEG, **how)[0]
        distance = np.linalg.norm(prediction.points, axis=-1)
        log_distance, weight = _on_panorama(distance, prediction.mask, view, merge_directions)
        log_distances.append(log_distance)
        weights.append(weight)
        metric = prediction.metric

    merged, mask = _merge(np.stack(log_distances), np.stack(weights))
    distance = np.exp(cv2.resize(merged, (width, height), interpolation=cv2.INTER_LINEAR))
    mask = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)
    distance = np.where(mask, distance, np.inf).astype(np.float32)
    points = np.where(mask[..., None], directions * np.where(mask, distance, 0)[..., None], np.inf)
    return Prediction(image, points.astype(np.float32), distance, mask, None, None, metric)


def is_panorama(image: npt.NDArray[Any]) -> bool:
    """Whether an image (H, W, ...) has the shape of an equirectangular panorama."""
    height, width = image.shape[:2]
    return bool(width == 2 * height)


def panorama_directions(width: int, height: int) -> npt.NDArray[np.float32]:
    """Unit directions (H, W, 3) of an equirectangular image's pixels; its middle is z, right of it x, down y."""
    uv = image_uv(width, height, dtype=np.float32)
    longitude, latitude = (uv[..., 0] - 0.5) * 2 * np.pi, (uv[..., 1] - 0.5) * np.pi
    flat = np.cos(latitude)
    return np.stack([flat * np.sin(longitude), np.sin(latitude), flat * np.cos(longitude)], -1).astype(np.float32)


def panorama_views() -> list[View]:
    """Twelve views of 90 degrees towards the corners of an icosahedron: every direction lies well inside some view."""
    golden = (1 + 5**0.5) / 2
    corners = [(0, s, t * golden) for s in (-1, 1) for t in (-1, 1)]
    axes = np.array([np.roll(corner, turn) for corner in corners for turn in range(3)], dtype=np.float64)
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    intrinsics = np.asarray(intrinsics_from_fov(fov_x=np.deg2rad(_VIEW_FOV_DEG), fov_y=np.deg2rad(_VIEW_FOV_DEG)))
    views = []
    for axis in axes:
        right = np.cross([0.0, 1.0, 0.0], axis)
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(axis, right), axis])
        views.append(View(rotation.astype(np.float32), intrinsics.astype(np.float32)))
    return views


def view_of_panorama(image: npt.NDArray[Any], view: View, side: int) -> npt.NDArray[Any]:
    """What a view sees of an equirectangular image (H, W, ...): (side, side, ...)."""
    height, width = image.shape[:2]
    uv = image_uv(side, side, dtype=np.float32)
    rays = np.concatenate([uv, np.ones_like(uv[..., :1])], -1) @ np.linalg.inv(view.intrinsics).T @ view.rotation
    longitude = np.arctan2(rays[..., 0], rays[..., 2])
    latitude = np.arctan2(rays[..., 1], np.hypot(rays[..., 0], rays[..., 2]))
    column = ((longitude / (2 * np.pi) + 0.5) * width - 0.5).astype(np.float32)
    row = ((latitude / np.pi + 0.5) * height - 0.5).astype(np.float32)
    # One more column on either side: the image's ends meet.
    wrapped = np.concatenate([image[:, -1:], image, image[:, :1]], axis=1)
    # A view takes fewer pixels than the panorama has there, but not so few that averaging would show.
    seen: npt.NDArray[Any] = cv2.remap(
        wrapped, column + 1, row, interpolation=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return seen


def _on_panorama(
    distance: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], view: View, directions: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """A view's log distances (h, w) at the panorama's directions, and their weights, 0 where the view sees nothing."""
    side = len(distance)
    rays = directions @ view.rotation.T
    ahead = rays[..., 2] > 1e-6
    projected = rays / np.where(ahead, rays[..., 2], 1)[..., None] @ view.intrinsics.T
    u, v = projected[..., 0], projected[..., 1]
    inside = ahead & (u > 0) & (u < 1) & (v > 0) & (v < 1)
    column, row = (np.clip((c * side).astype(np.int32), 0, side - 1) for c in (u, v))
    known = inside & mask[row, column] & np.isfinite(distance[row, column]) & (distance[row, column] > 0)
    # 1 in the middle of the view, falling to 0 at its border.
    weight = np.where(known, 16 * u * (1 - u) * v * (1 - v), 0)
    log_distance = np.log(np.where(known, distance[row, column], 1))
    return log_distance.astype(np.float32), weight.astype(np.float32)


def _merge(
    log_distances: npt.NDArray[np.float32], weights: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """One log distance map (h, w) from views (V, h, w), after finding each view's scale; and where it is known."""
    number = len(weights)
    equations, values = [np.ones(number)], [0.0]  # the mean of all scales is free: it stays
    for first, second in itertools.combinations(range(number), 2):
        overlap = (weights[first] > 0) & (weights[second] > 0)
        if np.count_nonzero(overlap) < _MIN_OVERLAP_PIXELS:
            continue
        share = np.sqrt(np.count_nonzero(overlap) / overlap.size)
        row = np.zeros(number)
        row[[first, second]] = share, -share
        equations.append(row)
        values.append(-share * float(np.median((log_distances[first] - log_distances[second])[overlap])))
    offsets = np.linalg.lstsq(np.stack(equations), np.array(values), rcond=None)[0].astype(np.float32)
    total = weights.sum(0)
    merged = ((log_distances + offsets[:, None, None]) * weights).sum(0) / np.where(total > 0, total, 1)
    return merged.astype(np.float32), total > 0
