"""The picture of a world: textures, light, shadows, sky, haze, and the camera's response."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from moge_core.datasets.scenes.materials import fractal_noise
from moge_core.datasets.scenes.rendering import MAX_FACES, Rays, Surfaces, material_of, visible_window
from moge_core.datasets.scenes.shapes import Ball, FloatArray, Polyhedron, Shape, component
from moge_core.datasets.scenes.world import Light, Sky, World

_BLOCKER_MIN_RADIUS = 0.04  # metres; smaller things neither shade nor darken their surroundings
_SURFACE_GAP = 2e-3  # metres per metre of depth between a surface and the start of its shadow rays


def paint(world: World, rays: Rays, surfaces: Surfaces) -> npt.NDArray[np.uint8]:
    """The picture, uint8 (H, W, 3)."""
    empty = np.flatnonzero(surfaces.shape < 0)
    depth = surfaces.depth.copy()
    depth[empty] = 0
    color = _lit_color(world, rays, surfaces, depth)
    if world.kind == "outdoor":
        clear: FloatArray = np.exp(depth * rays.length * np.float32(-1 / world.sky.haze_length))
        haze = np.array(world.sky.horizon, np.float32)[:, None]
        color = haze + (color - haze) * clear
    color[:, empty] = _sky_color(world.sky, rays.world[:, empty], rays.length[empty])
    picture = _smooth_outlines(color, surfaces, rays)
    return _develop(picture, world.framing.exposure).reshape(rays.height, rays.width, 3)


def _lit_color(world: World, rays: Rays, surfaces: Surfaces, depth: FloatArray) -> FloatArray:
    """Linear RGB (3, N) of the surfaces; what it is where there is none does not matter."""
    points, normals = surfaces.points, surfaces.normal
    albedo, emission = _albedo(world, rays, surfaces, depth)
    blockers = {index: shape for index, shape in enumerate(world.shapes) if _is_obstacle(shape)}
    open_air = _open_air(world, rays, surfaces, blockers)
    up = normals[2] if world.kind == "outdoor" else -0.4 * normals[2]
    light: FloatArray = np.array(world.ambient, np.float32)[:, None] * (0.75 + np.float32(0.25) * up) * open_air
    starts = (points + normals * (_SURFACE_GAP * np.maximum(depth, 1))).astype(np.float32, copy=False)
    for lamp in world.lights:
        light += _direct_light(world, lamp, starts, normals, blockers) * (np.float32(0.4) + np.float32(0.6) * open_air)
    light += emission
    light *= albedo
    return light


def _albedo(world: World, rays: Rays, surfaces: Surfaces, depth: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Albedo (3, N) and emission (N,)."""
    albedo, emission = np.zeros_like(surfaces.points), np.zeros_like(surfaces.depth)
    pixel_angle = np.float32(1 / (world.camera.intrinsics(rays.width, rays.height)[0, 0] * rays.width))
    facing = np.abs(np.einsum("cn,cn->n", surfaces.normal, rays.world)) / rays.length
    footprint = pixel_angle * depth / np.maximum(facing, np.float32(0.08))
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
        material = material_of(shape, face)
        albedo[:, pixels] = material.albedo(u, v, footprint[pixels])
        emission[pixels] = material.emission
    return np.clip(albedo, 0, 1, out=albedo), emission


def _open_air(world: World, rays: Rays, surfaces: Surfaces, blockers: dict[int, Shape]) -> FloatArray:
    """(N,) share of the ambient light that near things and the corners of a room leave."""
    share = np.ones(surfaces.depth.shape, np.float32)
    for shape in world.shapes:
        if isinstance(shape, Polyhedron) and shape.hollow:
            for normal, offset in zip(shape.normals, shape.offsets, strict=True):
                gap = offset - component(normal, surfaces.points)
                share *= 1 - np.float32(0.35) * np.exp(np.float32(-5.0) * np.maximum(gap, 0)) * (gap > 1e-3)
    image = (rays.height, rays.width)
    for index, shape in blockers.items():
        reach = np.float32(0.3 * min(shape.radius, 1.2))
        rows, columns = visible_window(shape, world.camera, rays, margin=float(4 * reach))
        region = share.reshape(image)[rows, columns]
        points = surfaces.points.reshape(3, *image)[:, rows, columns].reshape(3, region.size)
        others = surfaces.shape.reshape(image)[rows, columns].ravel() != index
        squared = _squared_distance(shape.centre, points, np.einsum("cn,cn->n", points, points))
        near = np.flatnonzero(others & (squared < (shape.radius + 4 * reach) ** 2))
        if near.size:
            distance = np.maximum(shape.distance(points[:, near]), 0)
            factor = np.ones(others.shape, np.float32)
            factor[near] -= np.float32(0.55) * np.exp(distance / -reach)
            region *= factor.reshape(region.shape)
    return share


def _squared_distance(centre: FloatArray, points: FloatArray, squared_points: FloatArray) -> FloatArray:
    """(M,) from a centre, given the squared lengths of points: (3, M)."""
    squared = component(centre * np.float32(-2), points)
    squared += squared_points
    squared += component(centre, centre)
    return squared


def _is_obstacle(shape: Shape) -> bool:
    """False of rooms, lamps, tiny things, and what lies flat below everything else."""
    if shape.radius < _BLOCKER_MIN_RADIUS or material_of(shape, 0).emission:
        return False
    if isinstance(shape, Ball):
        return True
    tops = shape.offsets[shape.normals[:, 2] > 0.99]
    is_flat = tops.size > 0 and bool(tops.max() < 0.02)
    return not shape.hollow and not is_flat


def _direct_light(
    world: World, light: Light, points: FloatArray, normals: FloatArray, blockers: dict[int, Shape]
) -> FloatArray:
    """Linear RGB (3, M) that arrives from one light."""
    if light.position is not None:
        towards = light.position[:, None] - points
        squared = np.einsum("cn,cn->n", towards, towards)
        reach = np.maximum(np.sqrt(squared), np.float32(1e-6))
        towards /= reach
        strength = np.einsum("cn,cn->n", normals, towards) / (1 + squared)
    else:
        assert light.direction is not None
        towards, reach = light.direction[:, None], np.full(1, np.inf, np.float32)
        strength = component(light.direction, normals)
    np.maximum(strength, 0, out=strength)
    if light.casts_shadows:
        facing = np.flatnonzero(strength)
        if towards.shape[1] > 1:
            towards, reach = towards[:, facing], reach[facing]
        strength[facing] *= _visibility(world, points[:, facing], towards, reach, blockers)
    arriving: FloatArray = np.array(light.power, np.float32)[:, None] * strength
    return arriving


def _visibility(
    world: World, points: FloatArray, towards: FloatArray, reach: FloatArray, blockers: dict[int, Shape]
) -> npt.NDArray[np.bool_]:
    """(M,) whether nothing stands between points: (3, M) and a light.

    Args:
        towards: (3, M), or (3, 1) for a sun; unit vectors.
        reach: (M,) or (1,), metres to the light.
    """
    num_points = points.shape[1]
    visible = np.ones(num_points, np.bool_)
    along_point = np.einsum("cn,cn->n", points, np.broadcast_to(towards, points.shape))
    squared_points = np.einsum("cn,cn->n", points, points)

    def meets(shape: Shape, pixels: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        t, _ = shape.intersect(points[:, pixels], np.broadcast_to(towards, points.shape)[:, pixels])
        met: npt.NDArray[np.bool_] = t < np.broadcast_to(reach, num_points)[pixels]
        return met

    for shape in blockers.values():
        along = component(shape.centre, towards) - along_point
        squared = _squared_distance(shape.centre, points, squared_points)
        near_ray = squared - along * along < np.float32(1.02 * shape.radius**2)
        pixels = np.flatnonzero(visible & near_ray & (along > -shape.radius) & (along - shape.radius < reach))
        if pixels.size:
            visible[pixels[meets(shape, pixels)]] = False
    for shape in world.shapes:
        # The walls of a room stand between its inside and the sun, but for the windows.
        if isinstance(shape, Polyhedron) and shape.openings and towards.shape[1] == 1:
            pixels = np.flatnonzero(visible)
            visible[pixels[meets(shape, pixels)]] = False
    return visible


def _sky_color(sky: Sky, directions: FloatArray, length: FloatArray) -> FloatArray:
    """Linear RGB (3, N) of the sky along directions: (3, N) of that length."""
    x, y, z = directions / length
    height = np.clip(z, 0, 1)
    horizon, zenith = (np.array(color, np.float32)[:, None] for color in (sky.horizon, sky.zenith))
    color: FloatArray = horizon + (zenith - horizon) * (1 - np.square(np.square(1 - height)))
    if sky.cloudiness > 0:
        spread = np.float32(1.6) / (height + np.float32(0.12))
        u, v = x * spread + np.float32(sky.cloud_offset[0]), y * spread + np.float32(sky.cloud_offset[1])
        clouds = np.clip((fractal_noise(u, v, np.zeros_like(u), 4) + np.float32(sky.cloudiness - 0.5)) * 3, 0, 1)
        white = np.float32(0.95) * np.clip(horizon.max() * np.float32(1.15), 0, 1)
        color += (white - color) * clouds * np.clip(height * 6, 0, 1) * np.float32(0.85)
    towards_sun = np.clip(component(sky.sun_direction, directions) / length, 0, 1)
    glow = np.float32(0.25) * np.square(np.square(np.square(np.square(towards_sun)))) + np.where(
        towards_sun > 0.9992, np.float32(6), np.float32(0)
    )
    color += np.array([[1.0], [0.85], [0.6]], np.float32) * glow
    return color


def _smooth_outlines(color: FloatArray, surfaces: Surfaces, rays: Rays) -> FloatArray:
    """Blend each pixel at the outline of a shape with its neighbours; (3, N) in and (H, W, 3) out."""
    picture = np.ascontiguousarray(color.T).reshape(rays.height, rays.width, 3)
    np.minimum(picture, 4, out=picture)
    key = (surfaces.shape.astype(np.int32) * MAX_FACES + surfaces.face).reshape(rays.height, rays.width)
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
