"""A world to look at: shapes, lights, sky and the camera in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moge_core.datasets.scenes.materials import Color
from moge_core.datasets.scenes.shapes import FloatArray, Shape


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Args:
        position: (3,) world, metres.
        yaw, pitch, roll: radians; yaw from east towards north, pitch downwards, roll clockwise as the viewer tilts.
        fov: radians, across the longer side of the image.
        principal_point: in image widths and heights; (0.5, 0.5) is the centre.
    """

    position: FloatArray
    yaw: float
    pitch: float
    roll: float
    fov: float
    principal_point: tuple[float, float]

    def rotation(self) -> npt.NDArray[np.float64]:
        """(3, 3) from camera axes (x right, y down, z forward) to world axes."""
        cos_pitch = math.cos(self.pitch)
        forward = np.array([cos_pitch * math.cos(self.yaw), cos_pitch * math.sin(self.yaw), -math.sin(self.pitch)])
        right = np.array([math.sin(self.yaw), -math.cos(self.yaw), 0.0])
        down = np.cross(forward, right)
        c, s = math.cos(self.roll), math.sin(self.roll)
        return np.stack([c * right + s * down, c * down - s * right, forward], axis=1)

    def intrinsics(self, width: int, height: int) -> FloatArray:
        """Normalised (3, 3) for square pixels."""
        focal_px = 0.5 * max(width, height) / math.tan(self.fov / 2)
        cx, cy = self.principal_point
        return np.array([[focal_px / width, 0, cx], [0, focal_px / height, cy], [0, 0, 1]], np.float32)


@dataclass(frozen=True)
class Light:
    """A lamp at `position`, or with `direction` (a unit vector towards it) a sun; `power` is linear RGB."""

    power: Color
    position: FloatArray | None = None
    direction: FloatArray | None = None
    casts_shadows: bool = True


@dataclass(frozen=True)
class Sky:
    """Colours of the sky, and the haze that takes `haze_length` metres to hide 63 % of what is behind it."""

    zenith: Color
    horizon: Color
    sun_direction: FloatArray
    cloudiness: float
    cloud_offset: tuple[float, float]
    haze_length: float


@dataclass(frozen=True)
class Framing:
    """What is drawn alike for every kind of scene.

    Args:
        portrait: the image is held upright.
        dropout: share of the picture in which the depth sensor fails, in blobs.
        dropout_offset: which blobs.
        exposure: brightness of the picture; 1 is middling.
    """

    portrait: bool
    dropout: float
    dropout_offset: tuple[float, float]
    exposure: float


@dataclass(frozen=True)
class World:
    """Everything that an image needs.

    Args:
        kind: "room" or "outdoor".
        shapes: hollow ones are rooms around the camera.
        sky: what is seen where nothing else is.
        ambient: linear RGB of the light from everywhere.
    """

    kind: str
    shapes: Sequence[Shape]
    lights: Sequence[Light]
    sky: Sky
    camera: Camera
    ambient: Color
    framing: Framing


def draw_camera(
    rng: np.random.Generator, position: Sequence[float], yaw: float, pitch: float, *, max_roll: float
) -> Camera:
    """A camera there with a drawn field of view (40 to 100 degrees), roll and, one time in five, off-centre point."""
    fov = math.radians(rng.uniform(40, 100))
    shift = rng.uniform(-0.12, 0.12, 2) if rng.random() < 0.2 else np.zeros(2)
    return Camera(
        position=np.array(position, np.float32),
        yaw=yaw,
        pitch=pitch,
        roll=rng.uniform(-max_roll, max_roll),
        fov=fov,
        principal_point=(0.5 + float(shift[0]), 0.5 + float(shift[1])),
    )


def draw_framing(rng: np.random.Generator) -> Framing:
    """Three images in ten are upright; in two of ten the depth sensor fails in places."""
    return Framing(
        portrait=bool(rng.random() < 0.3),
        dropout=rng.uniform(0.01, 0.06) if rng.random() < 0.2 else 0.0,
        dropout_offset=(rng.uniform(0, 60), rng.uniform(0, 60)),
        exposure=rng.uniform(0.8, 1.2),
    )


def pick(rng: np.random.Generator, colors: Sequence[Color], spread: float = 0.12) -> Color:
    """One of the colours, a little lighter or darker and a little off in hue."""
    base = np.array(colors[int(rng.integers(len(colors)))])
    varied = np.clip(base * (1 + rng.uniform(-spread, spread)) * (1 + rng.uniform(-0.05, 0.05, 3)), 0.01, 0.95)
    return (float(varied[0]), float(varied[1]), float(varied[2]))


def shade_of(color: Color, factor: float) -> Color:
    """The colour, darker or lighter."""
    return (color[0] * factor, color[1] * factor, color[2] * factor)


def draw_offset(rng: np.random.Generator) -> tuple[float, float]:
    """Where a texture begins."""
    return (rng.uniform(0, 40), rng.uniform(0, 40))
