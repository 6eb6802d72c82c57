"""Whether a matrix of intrinsics is a normalised camera, and that of this image."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from moge_core.datasets.validation.settings import ValidationSettings

Matrix = npt.NDArray[np.float64]


def camera_problem(K: Matrix) -> tuple[str, str] | tuple[str, str, str] | None:
    """Rule, evidence and, where the catalogue's does not fit, fix where a matrix (3, 3) is no normalised camera."""
    text = _told(K)
    # Exactly, as all geometry demands it: what is almost a camera fails there.
    if (K[2] != (0, 0, 1)).any():
        evidence = f"the last row is {K[2].tolist()}, not [0, 0, 1]"
        is_transposed = np.allclose(K[:, 2], (0, 0, 1), atol=1e-6)
        return "intrinsics-row-major", evidence, "Transpose it." if is_transposed else "Write [0, 0, 1] there."
    if K[1, 0] != 0:
        return "intrinsics-row-major", f"K[1][0] is {K[1, 0]:g}, not 0", "Write 0 there."
    if max(abs(K[0, 2]), abs(K[1, 2])) > 2 and max(abs(K[0, 0]), abs(K[1, 1])) > 2:
        return "intrinsics-normalised", f"{text}: these are pixels"
    if K[0, 0] <= 0 or K[1, 1] <= 0:
        return "focal-positive", f"{text}: a focal length is not positive"
    if not (0 < K[0, 2] < 1 and 0 < K[1, 2] < 1):
        return "principal-point-inside", f"{text}: the principal point is outside the image"
    fov = min(2 * math.degrees(math.atan(0.5 / f)) for f in (K[0, 0], K[1, 1]))
    if fov < 0.5:
        fix = "Divide focal lengths by the image size."
        return "intrinsics-normalised", f"{text}: a field of view of {fov:.2g} degrees", fix
    return None


def judge_camera(K: Matrix, fov: tuple[float, float], settings: ValidationSettings) -> Iterator[tuple[str, str]]:
    """(rule, evidence) for what is unlikely about a camera.

    Args:
        K: (3, 3), normalised, without a `camera_problem`.
        fov: horizontal and vertical, in degrees.
        settings: thresholds.
    """
    if not (settings.min_fov_deg <= min(fov) and max(fov) <= settings.max_fov_deg):
        yield "fov-plausible", f"{_told(K)}: a field of view of {fov[0]:.4g} x {fov[1]:.4g} degrees"
    off_x, off_y = K[0, 2] - 0.5, K[1, 2] - 0.5
    if min(abs(off_x), abs(off_y)) > settings.scaled_centre and abs(off_x - off_y) < 0.2 * abs(off_x + off_y):
        ratio = K[0, 2] + K[1, 2]
        yield (
            "intrinsics-of-this-size",
            f"{_told(K)}: the principal point is {ratio:.2g} times the centre in both directions, as of an image"
            f" {ratio:.2g} times this size",
        )


def judge_pixels(K: Matrix, width: int, height: int, settings: ValidationSettings) -> Iterator[tuple[str, str]]:
    """(rule, evidence) where an image of this size would have pixels that are not square."""
    aspect = (K[0, 0] * width) / (K[1, 1] * height)
    # Sides are whole pixels: a tiny image cannot have the shape of its camera exactly.
    allowed = settings.max_pixel_aspect * (1 + 1 / min(width, height))
    if not 1 / allowed <= aspect <= allowed:
        yield "pixels-square", f"{_told(K)} at {width}x{height}: pixels {1 / aspect:.2f} times as wide as high"


def _told(K: Matrix) -> str:
    return f"fx = {K[0, 0]:g}, fy = {K[1, 1]:g}, cx = {K[0, 2]:g}, cy = {K[1, 2]:g}"
