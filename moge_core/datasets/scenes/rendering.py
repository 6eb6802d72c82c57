"""Ray casting: exact depth and normals of a world, and a picture of it.

Rays have z = 1 in the camera, so that the multiple of a ray at which it meets a surface is the depth itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from moge_core.datasets.scenes.materials import Material, fractal_noise, noise
from moge_core.datasets.scenes.shapes import Ball, FloatArray, Polyhedron, Shape, component
from moge_core.datasets.scenes.world import Camera, Light, Sky, World

_BLOCKER_MIN_RADIUS = 0.04  # metres; smaller things neither shade nor darken their surroundings
_MAX_FACES = 64  # of one shape
_SURFACE_GAP = 2e-3  # metres per metre of depth between a surface and the start of its shadow rays


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
    to_camera = world.camera.rotation().T
    image = (rays.height, rays.width)
    for index, shape in enumerate(world.shapes):
        rows, columns = _window(shape, world.camera, to_camera, rays)
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


def paint(world: World, rays: Rays, surfaces: Surfaces) -> npt.NDArray[np.uint8]:
    """The picture, uint8 (H, W, 3)."""
    met = np.flatnonzero(surfaces.shape >= 0)
    sky = _sky_color(world.sky, rays.world, rays.length)
    if met.size:
        lit = _lit_color(world, rays, surfaces, met)
        if world.kind == "outdoor":
            distance = surfaces.depth[met] * rays.length[met]
            clear = np.exp(distance * np.float32(-1 / world.sky.haze_length))
            haze = np.array(world.sky.horizon, np.float32)[:, None]
            lit = haze + (lit - haze) * clear
        sky[:, met] = lit
    picture = _smooth_outlines(sky, surfaces, rays)
    return _develop(picture, world.framing.exposure).reshape(rays.height, rays.width, 3)


def unseen(world: World, rays: Rays, surfaces: Surfaces) -> npt.NDArray[np.bool_]:
    """(N,) pixels whose depth a sensor would not know: glass, water, and blobs where it fails."""
    hidden = np.zeros(surfaces.depth.shape, np.bool_)
    for (index, face), pixels in surfaces.groups.items():
        if not _material(world.shapes[index], face).known:
            hidden[pixels] = True
    if world.framing.dropout > 0:
        u, v = world.framing.dropout_offset
        blobs = noise(rays.camera[0] * 4 + np.float32(u), rays.camera[1] * 4 + np.float32(v))
        hidden |= blobs > np.quantile(blobs, 1 - world.framing.dropout)
    return hidden


def _window(shape: Shape, camera: Camera, to_camera: npt.NDArray[np.float64], rays: Rays) -> tuple[slice, slice]:
    """Rows and columns that a shape can be seen in, from the tangents of the sphere around it."""
    everything = slice(0, rays.height), slice(0, rays.width)
    if isinstance(shape, Polyhedron) and shape.hollow:
        return everything
    x, y, z = to_camera @ (shape.centre.astype(np.float64) - camera.position)
    radius = shape.radius * 1.001
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
    key = shape_index.astype(np.int32) * _MAX_FACES + face_index
    order = np.argsort(key, kind="stable")
    values, starts = np.unique(key[order], return_index=True)
    parts = np.split(order, starts[1:])
    return {divmod(int(value), _MAX_FACES): part for value, part in zip(values, parts, strict=True) if value >= 0}


def _material(shape: Shape, face: int) -> Material:
    return shape.materials[face] if isinstance(shape, Polyhedron) else shape.material


def _lit_color(world: World, rays: Rays, surfaces: Surfaces, met: npt.NDArray[np.intp]) -> FloatArray:
    """Linear RGB (3, M) of the surfaces at the pixels `met`."""
    points, normals, depth = surfaces.points[:, met], surfaces.normal[:, met], surfaces.depth[met]
    albedo, emission = _albedo(world, rays, surfaces)
    open_air, blockers = _open_air(world, points, surfaces.shape[met])
    up = normals[2] if world.kind == "outdoor" else -0.4 * normals[2]
    light = np.array(world.ambient, np.float32)[:, None] * (0.75 + np.float32(0.25) * up) * open_air
    starts = (points + normals * (_SURFACE_GAP * np.maximum(depth, 1))).astype(np.float32, copy=False)
    for lamp in world.lights:
        light += _direct_light(world, lamp, starts, normals, blockers) * (np.float32(0.4) + np.float32(0.6) * open_air)
    lit: FloatArray = albedo[:, met] * (light + emission[met])
    return lit


def _albedo(world: World, rays: Rays, surfaces: Surfaces) -> tuple[FloatArray, FloatArray]:
    """Albedo (3, N) and emission (N,)."""
    albedo, emission = np.zeros_like(surfaces.points), np.zeros_like(surfaces.depth)
    pixel_angle = np.float32(1 / (world.camera.intrinsics(rays.width, rays.height)[0, 0] * rays.width))
    facing = np.abs(np.einsum("cn,cn->n", surfaces.normal, rays.world)) / rays.length
    footprint = pixel_angle * surfaces.depth / np.maximum(facing, np.float32(0.08))
    tangents = {i: s.tangents() for i, s in enumerate(world.shapes) if isinstance(s, Polyhedron)}
    for (index, face), pixels in surfaces.groups.items():
        shape = world.shapes[index]
        if isinstance(shape, Polyhedron):
            from_origin = surfaces.points[:, pixels] - shape.origin[:, None]
            u, v = (component(axes[face], from_origin) for axes in tangents[index])
        else:
            x, y, z = surfaces.normal[:, pixels]
            u = np.arctan2(y, x) * np.float32(shape.radius)
            v = np.arcsin(np.clip(z, -1, 1)) * np.float32(shape.radius)
        material = _material(shape, face)
        albedo[:, pixels] = material.albedo(u, v, footprint[pixels])
        emission[pixels] = material.emission
    return np.clip(albedo, 0, 1, out=albedo), emission


def _open_air(
    world: World, points: FloatArray, own_shape: npt.NDArray[np.int16]
) -> tuple[FloatArray, dict[int, Shape]]:
    """(M,) share of the ambient light that near things and corners leave, and the shapes that can cast shadows."""
    share = np.ones(points.shape[1], np.float32)
    blockers: dict[int, Shape] = {}
    squared_points = np.einsum("cn,cn->n", points, points)
    for index, shape in enumerate(world.shapes):
        if isinstance(shape, Polyhedron) and shape.hollow:
            for normal, offset in zip(shape.normals, shape.offsets, strict=True):
                gap = offset - component(normal, points)
                share *= 1 - np.float32(0.35) * np.exp(np.float32(-5.0) * np.maximum(gap, 0)) * (gap > 1e-3)
            continue
        if shape.radius < _BLOCKER_MIN_RADIUS or _material(shape, 0).emission or _is_ground(shape):
            continue
        blockers[index] = shape
        reach = np.float32(0.3 * min(shape.radius, 1.2))
        squared = _squared_distance(shape.centre, points, squared_points)
        near = np.flatnonzero((squared < (shape.radius + 4 * reach) ** 2) & (own_shape != index))
        if near.size:
            distance = np.maximum(shape.distance(points[:, near]), 0)
            share[near] *= 1 - np.float32(0.55) * np.exp(distance / -reach)
    return share, blockers


def _squared_distance(centre: FloatArray, points: FloatArray, squared_points: FloatArray) -> FloatArray:
    """(M,) from a centre, given the squared lengths of points: (3, M)."""
    squared = component(centre * np.float32(-2), points)
    squared += squared_points
    squared += component(centre, centre)
    return squared


def _is_ground(shape: Shape) -> bool:
    """True of what lies below everything else and so shades nothing."""
    return isinstance(shape, Polyhedron) and bool(shape.offsets[shape.normals[:, 2] > 0.99].max(initial=-1.0) < 0.02)


def _direct_light(
    world: World, light: Light, points: FloatArray, normals: FloatArray, blockers: dict[int, Shape]
) -> FloatArray:
    """Linear RGB (3, M) that arrives from one light."""
    power = np.array(light.power, np.float32)[:, None]
    if light.position is not None:
        towards = light.position[:, None] - points
        squared = np.einsum("cn,cn->n", towards, towards)
        reach = np.sqrt(squared)
        towards /= reach
        strength = 1 / (1 + squared)
    else:
        assert light.direction is not None
        towards = np.ascontiguousarray(np.broadcast_to(light.direction[:, None], points.shape))
        reach = np.full(points.shape[1], np.inf, np.float32)
        strength = np.ones(points.shape[1], np.float32)
    strength *= np.clip(np.einsum("cn,cn->n", normals, towards), 0, None)
    if light.casts_shadows:
        strength *= _visibility(world, points, towards, reach, strength > 0, blockers)
    arriving: FloatArray = power * strength
    return arriving


def _visibility(
    world: World,
    points: FloatArray,
    towards: FloatArray,
    reach: FloatArray,
    wanted: npt.NDArray[np.bool_],
    blockers: dict[int, Shape],
) -> FloatArray:
    """(M,) 1 where nothing stands between the points and the light `reach` metres along `towards`, else 0."""
    visible = wanted.copy()
    along_point = np.einsum("cn,cn->n", points, towards)
    squared_points = np.einsum("cn,cn->n", points, points)
    for shape in blockers.values():
        along = component(shape.centre, towards) - along_point
        squared = _squared_distance(shape.centre, points, squared_points)
        near_ray = squared - along * along < np.float32(1.02 * shape.radius**2)
        pixels = np.flatnonzero(visible & near_ray & (along > -shape.radius) & (along - shape.radius < reach))
        if pixels.size:
            t, _ = shape.intersect(points[:, pixels], towards[:, pixels])
            visible[pixels[t < reach[pixels]]] = False
    for shape in world.shapes:
        if isinstance(shape, Polyhedron) and shape.hollow and shape.openings and np.isinf(reach).any():
            pixels = np.flatnonzero(visible)
            t, _ = shape.intersect(points[:, pixels], towards[:, pixels])
            visible[pixels[np.isfinite(t)]] = False
    return visible.astype(np.float32)


def _sky_color(sky: Sky, directions: FloatArray, length: FloatArray) -> FloatArray:
    """Linear RGB (3, N) of the sky along directions: (3, N) of that length."""
    x, y, z = directions / length
    height = np.clip(z, 0, 1)
    horizon, zenith = (np.array(color, np.float32)[:, None] for color in (sky.horizon, sky.zenith))
    color: FloatArray = horizon + (zenith - horizon) * (1 - (1 - height) ** 4)
    if sky.cloudiness > 0:
        spread = np.float32(1.6) / (height + np.float32(0.12))
        u, v = x * spread + np.float32(sky.cloud_offset[0]), y * spread + np.float32(sky.cloud_offset[1])
        clouds = np.clip((fractal_noise(u, v, np.zeros_like(u), 4) + np.float32(sky.cloudiness - 0.5)) * 3, 0, 1)
        white = np.float32(0.95) * np.clip(horizon.max() * np.float32(1.15), 0, 1)
        color += (white - color) * clouds * np.clip(height * 6, 0, 1) * np.float32(0.85)
    towards_sun = np.clip(component(sky.sun_direction, directions) / length, 0, 1)
    glow = np.float32(0.25) * towards_sun**16 + np.where(towards_sun > 0.9992, np.float32(6), np.float32(0))
    color += np.array([[1.0], [0.85], [0.6]], np.float32) * glow
    return color


def _smooth_outlines(color: FloatArray, surfaces: Surfaces, rays: Rays) -> FloatArray:
    """Blend each pixel at the outline of a shape with its neighbours; (3, N) in and (H, W, 3) out."""
    picture = np.ascontiguousarray(color.T).reshape(rays.height, rays.width, 3)
    np.minimum(picture, 4, out=picture)
    key = (surfaces.shape.astype(np.int32) * _MAX_FACES + surfaces.face).reshape(rays.height, rays.width)
    outline = np.zeros(key.shape, np.bool_)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = key[one] != key[other]
        outline[one] |= differs
        outline[other] |= differs
    blurred = cv2.GaussianBlur(picture, (3, 3), 0)
    picture[outline] = blurred[outline]
    return picture


def _develop(picture: FloatArray, exposure: float) -> npt.NDArray[np.uint8]:
    """Linear light (H, W, 3) to bytes: exposure by the picture's own brightness, filmic contrast, gamma 2.2."""
    luminance = component(np.array([0.25, 0.6, 0.15], np.float32), np.moveaxis(picture, 2, 0))
    middle = math.exp(float(np.mean(np.log(luminance + 0.02))))
    scaled = picture * np.float32(exposure * 0.28 / middle)
    levels = np.linspace(0, 4, 2048)
    toned = levels * (2.51 * levels + 0.03) / (levels * (2.43 * levels + 0.59) + 0.14)
    curve = (255 * toned.clip(0, 1) ** (1 / 2.2) + 0.5).astype(np.uint8)
    image: npt.NDArray[np.uint8] = curve[np.minimum(scaled * np.float32(2047 / 4), 2047).astype(np.int16)]
    return image
