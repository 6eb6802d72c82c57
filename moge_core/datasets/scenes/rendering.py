"""Ray casting: exact depth and normals of a world.

Rays have z = 1 in the camera, so that the multiple of a ray at which it meets a surface is the depth itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moge_core.datasets.scenes.materials import Material, noise
from moge_core.datasets.scenes.shapes import Ball, FloatArray, Polyhedron, Shape, component
from moge_core.datasets.scenes.world import Camera, World

MAX_FACES = 64  # of one shape


@dataclass(frozen=True)
class Rays:
    """One ray a pixel in raster order.

    Args:
        camera: (3, N) camera axes, z = 1.
        world: (3, N) world axes, of the same length.
        length: (N,) metres of ray to a metre of depth.
    """

    camera: FloatArray
    world: FloatArray
    length: FloatArray
    width: int
    height: int


@dataclass(frozen=True)
class Surfaces:
    """What the rays meet.

    Args:
        depth: (N,) z in metres, +Inf for nothing.
        normal: (3, N) world axes, against the ray; 0 where nothing is met.
        points: (3, N) world; the camera's position where nothing is met.
        shape: (N,) index of the shape, -1 for nothing.
        face: (N,) face of that shape.
        groups: pixels of each (shape, face) that is seen.
    """

    depth: FloatArray
    normal: FloatArray
    points: FloatArray
    shape: npt.NDArray[np.int16]
    face: npt.NDArray[np.int16]
    groups: dict[tuple[int, int], npt.NDArray[np.intp]]


def cast_rays(camera: Camera, width: int, height: int) -> Rays:
    """The rays through the pixel centres."""
    K = camera.intrinsics(width, height).astype(np.float64)
    x = ((np.arange(width) + 0.5) / width - K[0, 2]) / K[0, 0]
    y = ((np.arange(height) + 0.5) / height - K[1, 2]) / K[1, 1]
    grid = np.stack([*np.meshgrid(x, y), np.ones((height, width))]).reshape(3, -1)
    world = rotate(camera.rotation(), grid).astype(np.float32)
    rays = grid.astype(np.float32)
    return Rays(rays, world, np.sqrt(np.einsum("cn,cn->n", rays, rays)), width, height)


def rotate(rotation: npt.NDArray[np.float64], vectors: FloatArray) -> FloatArray:
    """rotation: (3, 3) applied to vectors: (3, N)."""
    return np.stack([component(row, vectors) for row in rotation.astype(vectors.dtype)])


def find_surfaces(world: World, rays: Rays) -> Surfaces:
    """Nearest intersection of every ray."""
    num_rays = rays.world.shape[1]
    origin = world.camera.position[:, None]
    depth = np.full(num_rays, np.inf, np.float32)
    shape_index = np.full(num_rays, -1, np.int16)
    face_index = np.zeros(num_rays, np.int16)
    image = (rays.height, rays.width)
    for index, shape in enumerate(world.shapes):
        rows, columns = visible_window(shape, world.camera, rays)
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        directions = rays.world.reshape(3, *image)[:, rows, columns].reshape(3, -1)
        t, face = shape.intersect(origin, directions)
        size = (rows.stop - rows.start, columns.stop - columns.start)
        t, face = t.reshape(size), face.reshape(size)
        nearer = t < depth.reshape(image)[rows, columns]
        np.copyto(depth.reshape(image)[rows, columns], t, where=nearer)
        np.copyto(face_index.reshape(image)[rows, columns], face, where=nearer)
        shape_index.reshape(image)[rows, columns][nearer] = index
    points = origin + rays.world * np.where(np.isfinite(depth), depth, np.float32(0))
    normals = _normals(world, points, shape_index, face_index)
    return Surfaces(depth, normals, points, shape_index, face_index, _groups(shape_index, face_index))


def visible_window(shape: Shape, camera: Camera, rays: Rays, margin: float = 0.0) -> tuple[slice, slice]:
    """Rows and columns in which a shape and what is within `margin` metres of it can be seen.

    They come from the tangents of the sphere around it.
    """
    everything = slice(0, rays.height), slice(0, rays.width)
    if isinstance(shape, Polyhedron) and shape.hollow:
        return everything
    x, y, z = camera.rotation().T @ (shape.centre.astype(np.float64) - camera.position)
    radius = shape.radius * 1.001 + margin
    if z + radius <= 0:
        return slice(0, 0), slice(0, 0)
    if z <= radius * 1.01:
        return everything
    K = camera.intrinsics(rays.width, rays.height)
    bounds = []
    for across, focal, middle, count in ((y, K[1, 1], K[1, 2], rays.height), (x, K[0, 0], K[0, 2], rays.width)):
        turn, spread = math.atan2(across, z), math.asin(radius / math.hypot(across, z))
        low, high = (math.tan(max(-1.57, min(1.57, turn + sign * spread))) * focal + middle for sign in (-1, 1))
        start, stop = (min(max(float(at) * count, 0.0), float(count)) for at in (low, high))
        bounds.append(slice(math.floor(start), math.ceil(stop)))
    return bounds[0], bounds[1]


def unseen(world: World, rays: Rays, surfaces: Surfaces) -> npt.NDArray[np.bool_]:
    """(N,) pixels whose depth a sensor would not know: glass, water, and blobs where it fails."""
    hidden = np.zeros(surfaces.depth.shape, np.bool_)
    for (index, face), pixels in surfaces.groups.items():
        if not material_of(world.shapes[index], face).known:
            hidden[pixels] = True
    if world.framing.dropout > 0:
        u, v = world.framing.dropout_offset
        blobs = noise(rays.camera[0] * 4 + np.float32(u), rays.camera[1] * 4 + np.float32(v))
        hidden |= blobs > np.quantile(blobs, 1 - world.framing.dropout)
    return hidden


def _normals(
    world: World, points: FloatArray, shape_index: npt.NDArray[np.int16], face_index: npt.NDArray[np.int16]
) -> FloatArray:
    """(3, N) world normals against the rays."""
    normals = np.zeros_like(points)
    table, starts = [np.zeros((1, 3), np.float32)], []
    for shape in world.shapes:
        starts.append(sum(len(part) for part in table))
        flat = shape.normals * (-1 if shape.hollow else 1) if isinstance(shape, Polyhedron) else np.zeros((1, 3))
        table.append(flat.astype(np.float32))
    entry = np.array([*starts, 0])[shape_index] + face_index
    normals = np.ascontiguousarray(np.concatenate(table).T)[:, entry]
    for index, shape in enumerate(world.shapes):
        if isinstance(shape, Ball):
            pixels = np.flatnonzero(shape_index == index)
            from_centre = points[:, pixels] - shape.centre[:, None]
            normals[:, pixels] = from_centre / np.float32(shape.radius)
    return normals


def _groups(
    shape_index: npt.NDArray[np.int16], face_index: npt.NDArray[np.int16]
) -> dict[tuple[int, int], npt.NDArray[np.intp]]:
    """Pixels of each (shape, face) that is seen."""
    key = shape_index.astype(np.int32) * MAX_FACES + face_index
    order = np.argsort(key, kind="stable")
    values, starts = np.unique(key[order], return_index=True)
    parts = np.split(order, starts[1:])
    return {divmod(int(value), MAX_FACES): part for value, part in zip(values, parts, strict=True) if value >= 0}


def material_of(shape: Shape, face: int) -> Material:
    """What covers a face."""
    return shape.materials[face] if isinstance(shape, Polyhedron) else shape.material
