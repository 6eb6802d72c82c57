"""Layouts of outdoor scenes: streets, villages, parks and plazas under a sky."""

from __future__ import annotations

import math

import numpy as np

from moge_core.datasets.scenes.materials import Color, Material
from moge_core.datasets.scenes.shapes import Ball, Shape, box, house, prism
from moge_core.datasets.scenes.world import (
    Camera,
    Light,
    Sky,
    World,
    draw_camera,
    draw_framing,
    draw_offset,
    pick,
    shade_of,
)

_GRASS: tuple[Color, ...] = ((0.16, 0.26, 0.07), (0.22, 0.28, 0.09), (0.34, 0.32, 0.14), (0.40, 0.33, 0.20))
_STONE: tuple[Color, ...] = ((0.45, 0.43, 0.40), (0.55, 0.48, 0.40), (0.36, 0.36, 0.38), (0.52, 0.34, 0.26))
_PLASTER: tuple[Color, ...] = (
    (0.75, 0.70, 0.60),
    (0.70, 0.55, 0.38),
    (0.62, 0.62, 0.64),
    (0.60, 0.36, 0.28),
    (0.50, 0.56, 0.60),
)
_ROOFS: tuple[Color, ...] = ((0.42, 0.16, 0.10), (0.25, 0.22, 0.22), (0.32, 0.20, 0.14))
_PAINT: tuple[Color, ...] = ((0.55, 0.10, 0.08), (0.08, 0.20, 0.45), (0.70, 0.50, 0.08), (0.10, 0.35, 0.25))
_LEAVES: tuple[Color, ...] = ((0.10, 0.22, 0.06), (0.18, 0.28, 0.08), (0.08, 0.18, 0.09), (0.38, 0.24, 0.06))
_GLASS_COLOR: Color = (0.10, 0.14, 0.20)
_BARK = Material("ground", ((0.20, 0.13, 0.08), (0.10, 0.07, 0.05), (0, 0, 0)), 0.15)
# Radiance of a middling horizon beside a sun of power 2.2.
_SKIES: tuple[tuple[Color, Color], ...] = (
    ((0.20, 0.40, 0.85), (0.70, 0.80, 0.92)),
    ((0.28, 0.42, 0.72), (0.82, 0.80, 0.76)),
    ((0.50, 0.55, 0.62), (0.74, 0.76, 0.78)),
    ((0.22, 0.30, 0.60), (0.95, 0.72, 0.50)),
)


def draw_outdoor(rng: np.random.Generator) -> World:
    """A street, village, park or plaza."""
    kind = ("street", "village", "park", "plaza")[int(rng.integers(4))]
    extent = rng.uniform(90, 220)
    yaw = rng.uniform(0, 2 * math.pi)
    height = rng.uniform(1.2, 2.2) if rng.random() < 0.6 else rng.uniform(2.2, 9.0)
    pitch = math.radians(rng.uniform(-6, 14) + 1.6 * (height - 1.2))
    camera = draw_camera(rng, [0.0, 0.0, height], yaw, pitch, max_roll=math.radians(3))

    shapes: list[Shape] = [_draw_ground(rng, kind, extent, yaw)]
    if kind == "street":
        shapes += _draw_street(rng, yaw)
    else:
        shapes += _draw_field(rng, kind, camera, extent)
    shapes += _draw_hills(rng, yaw, extent)
    if kind != "street" and rng.random() < 0.3:
        shapes.append(_draw_pond(rng, camera))

    zenith, horizon = _SKIES[int(rng.integers(len(_SKIES)))]
    turn, rise = yaw + rng.uniform(0.4, 2 * math.pi - 0.4), math.radians(rng.uniform(15, 65))
    sun = np.array([math.cos(turn) * math.cos(rise), math.sin(turn) * math.cos(rise), math.sin(rise)], np.float32)
    bright = rng.uniform(1.4, 2.6)
    lights = [Light((bright, bright * 0.93, bright * 0.8), direction=sun)]
    sky = Sky(zenith, horizon, sun, rng.uniform(0.1, 0.8), draw_offset(rng), haze_length=draw_haze_length(rng))
    dim = rng.uniform(0.45, 0.8)
    return World("outdoor", shapes, lights, sky, camera, (0.85 * dim, 0.93 * dim, dim), draw_framing(rng))


def draw_haze_length(rng: np.random.Generator) -> float:
    """Metres, from mist to a slightly hazy day: the paling of what is far is the plainest sign of distance there is."""
    return float(np.exp(rng.uniform(math.log(14), math.log(70))))


def _draw_ground(rng: np.random.Generator, kind: str, extent: float, yaw: float) -> Shape:
    grass, stone, offset = pick(rng, _GRASS), pick(rng, _STONE), draw_offset(rng)
    if kind == "street":
        # The road's texture runs along v, so its u axis is turned across the view.
        ground = Material("road", (grass, (0.10, 0.10, 0.11), (0.75, 0.74, 0.70)), rng.uniform(2.6, 4.0), (0.0, 0.0))
        side = rng.uniform(-1.5, 1.5)
        turned = yaw - math.pi / 2 + rng.uniform(-0.12, 0.12)
        base = (side * math.cos(turned), side * math.sin(turned), -1.0)
        return box(base, (2 * extent, 2 * extent, 1.0), ground, turned)
    if kind == "plaza" or (kind == "village" and rng.random() < 0.4):
        pattern = ("tiles", "checker", "bricks")[int(rng.integers(3))]
        colors = (stone, shade_of(stone, 0.55), stone)
        ground = Material(pattern, colors, rng.uniform(0.5, 2.5), offset, 0.25)
    else:
        ground = Material("ground", (grass, shade_of(grass, 0.45), grass), rng.uniform(0.5, 1.5), offset)
    return box((0.0, 0.0, -1.0), (2 * extent, 2 * extent, 1.0), ground, yaw + rng.uniform(-0.8, 0.8))


def _draw_street(rng: np.random.Generator, yaw: float) -> list[Shape]:
    """Houses in a row on both sides, trees and parked boxes on the pavements."""
    shapes: list[Shape] = []
    ahead, right = np.array([math.cos(yaw), math.sin(yaw)]), np.array([math.sin(yaw), -math.cos(yaw)])
    for side in (-1, 1):
        near = rng.uniform(5.5, 9.0)
        at = rng.uniform(-4, 6)
        while at < 80:
            length = rng.uniform(7, 16)
            if rng.random() < 0.85:
                depth = rng.uniform(6, 10)
                x, y = ahead * (at + length / 2) + right * side * (near + depth / 2)
                shapes.append(_draw_building(rng, float(x), float(y), (length, depth), yaw))
            at += length + rng.choice([0.0, rng.uniform(1, 5)])
        for _ in range(int(rng.integers(1, 5))):
            x, y = ahead * rng.uniform(5, 45) + right * side * (near - rng.uniform(0.8, 1.6))
            if rng.random() < 0.6:
                shapes += _draw_tree(rng, float(x), float(y), slim=True)
            else:
                paint = Material("plain", (pick(rng, _PAINT),) * 3, 0.4, draw_offset(rng), 0.15)
                size = (*rng.uniform(0.5, 1.2, 2), rng.uniform(0.5, 1.4))
                shapes.append(box((float(x), float(y), 0.0), size, paint, yaw))
    return shapes


def _draw_building(rng: np.random.Generator, x: float, y: float, ground: tuple[float, float], yaw: float) -> Shape:
    wall_color, kind = pick(rng, _PLASTER), rng.random()
    roof = pick(rng, _ROOFS)
    roof_material = Material("bricks", (roof, shade_of(roof, 0.5), roof), 0.6, draw_offset(rng), 0.2)
    if kind < 0.6:
        storey, count = rng.uniform(2.6, 3.4), int(rng.integers(2, 6))
        colors = (wall_color, shade_of(wall_color, 1.2), _GLASS_COLOR)
        facade = Material("facade", colors, storey, (float(rng.uniform(0, 1)), 0.0), 0.15)
        if kind < 0.35:
            return box((x, y, 0.0), (*ground, storey * count), [facade, roof_material], yaw)
        return house((x, y, 0.0), (*ground, storey * min(count, 3)), rng.uniform(2, 4), facade, roof_material, yaw)
    colors = (wall_color, shade_of(wall_color, 0.6), wall_color)
    wall = Material("bricks", colors, rng.uniform(0.4, 0.9), draw_offset(rng))
    return house((x, y, 0.0), (*ground, rng.uniform(2.5, 6)), rng.uniform(1.5, 4), wall, roof_material, yaw)


def _draw_tree(rng: np.random.Generator, x: float, y: float, *, slim: bool = False) -> list[Shape]:
    leaf = pick(rng, _LEAVES, 0.25)
    leaves = Material("ground", (leaf, shade_of(leaf, 0.4), leaf), rng.uniform(0.25, 0.6), draw_offset(rng))
    size = rng.uniform(0.7, 1.2) * (0.6 if slim else 1.0)
    trunk_height = rng.uniform(1.2, 2.4) * size
    trunk = prism((x, y, -0.1), 0.14 * size, trunk_height + 0.6, _BARK, _BARK, num_sides=8)
    if rng.random() < 0.4:
        fir: list[Shape] = [trunk]
        for level in range(3):
            base = (x, y, trunk_height + 1.3 * size * level)
            radius = (1.7 - 0.45 * level) * size
            fir.append(prism(base, radius, 2.0 * size, leaves, leaves, num_sides=9, top_radius=0.1 * radius))
        return fir
    crown: list[Shape] = [trunk]
    for _ in range(int(rng.integers(2, 4))):
        radius = rng.uniform(0.9, 1.5) * size
        shift = rng.uniform(-0.6, 0.6, 3) * size
        centre = np.array([x, y, trunk_height + 1.2 * size]) + shift
        crown.append(Ball(centre.astype(np.float32), radius, leaves))
    return crown


def _draw_field(rng: np.random.Generator, kind: str, camera: Camera, extent: float) -> list[Shape]:
    """Things scattered ahead of the camera, small ones near and buildings further off, none in another."""
    shapes: list[Shape] = []
    taken: list[tuple[float, float, float]] = [(0.0, 0.0, 1.2)]
    houses = {"village": 7, "plaza": 4, "park": 1}[kind]
    wanted = ["building"] * int(rng.integers(houses // 2, houses + 1))
    wanted += ["tree"] * int(rng.integers(1, {"village": 5, "plaza": 3, "park": 10}[kind]))
    things = ["crate", "column", "ball"] if kind == "plaza" else ["rock", "crate", "rock", "ball"]
    wanted += [things[int(rng.integers(len(things)))] for _ in range(int(rng.integers(2, 8)))]
    for thing in wanted:
        nearest, furthest, reach = _PLACES[thing]
        for _ in range(6):
            turn = camera.yaw + rng.uniform(-0.6, 0.6) * camera.fov
            far = nearest * (min(furthest, 0.8 * extent) / nearest) ** rng.random()
            x, y = far * math.cos(turn), far * math.sin(turn)
            if all(math.hypot(x - a, y - b) > reach + r for a, b, r in taken):
                taken.append((x, y, reach))
                shapes += _build(rng, thing, x, y)
                break
    return shapes


# Nearest and furthest distance from the camera and the radius kept free, in metres.
_PLACES = {
    "building": (14.0, 90.0, 8.0),
    "tree": (5.0, 60.0, 2.0),
    "crate": (2.5, 18.0, 1.2),
    "column": (3.0, 25.0, 0.6),
    "ball": (2.5, 14.0, 0.8),
    "rock": (2.5, 25.0, 1.0),
}


def _build(rng: np.random.Generator, thing: str, x: float, y: float) -> list[Shape]:
    yaw = rng.uniform(0, 2 * math.pi)
    color = pick(rng, _PAINT)
    if thing == "building":
        return [_draw_building(rng, x, y, (rng.uniform(6, 12), rng.uniform(5, 9)), yaw)]
    if thing == "tree":
        return _draw_tree(rng, x, y)
    if thing == "crate":
        paint = Material("planks", (color, shade_of(color, 0.5), color), 0.25, draw_offset(rng), 0.3)
        return [box((x, y, 0.0), (*rng.uniform(0.5, 1.5, 2), rng.uniform(0.4, 1.4)), paint, yaw)]
    if thing == "column":
        stone = pick(rng, _STONE)
        marble = Material("plain", (shade_of(stone, 1.3), stone, stone), 0.3, draw_offset(rng), 0.5)
        radius, height = rng.uniform(0.2, 0.4), rng.uniform(1.5, 5)
        foot = box((x, y, 0.0), (3 * radius, 3 * radius, 0.25), marble, yaw)
        return [foot, prism((x, y, 0.25), radius, height, marble, marble, num_sides=16, top_radius=0.85 * radius)]
    radius = rng.uniform(0.25, 0.8)
    if thing == "ball":
        paint = Material("stripes", (color, (0.8, 0.8, 0.78), color), radius * 0.8, draw_offset(rng), 0.1)
        return [Ball(np.array([x, y, radius], np.float32), radius, paint)]
    stone = pick(rng, _STONE)
    rough = Material("ground", (stone, shade_of(stone, 0.5), stone), 0.3, draw_offset(rng))
    return [Ball(np.array([x, y, rng.uniform(-0.3, 0.4) * radius], np.float32), radius, rough)]


def _draw_hills(rng: np.random.Generator, yaw: float, extent: float) -> list[Shape]:
    """Caps of large spheres behind the scene."""
    hills: list[Shape] = []
    for _ in range(int(rng.integers(0, 4))):
        color = pick(rng, _GRASS)
        material = Material("ground", (color, shade_of(color, 0.5), color), rng.uniform(3, 9), draw_offset(rng))
        turn, far = yaw + rng.uniform(-0.8, 0.8), rng.uniform(0.6, 0.95) * extent
        radius = rng.uniform(0.4, 0.9) * far
        top = rng.uniform(6, 25)
        # Where the cap's rim would come closer than 40 m, it is pushed back.
        rim = math.sqrt(max(radius**2 - (radius - top) ** 2, 0))
        far = max(far, rim + 45)
        centre = np.array([far * math.cos(turn), far * math.sin(turn), top - radius], np.float32)
        hills.append(Ball(centre, radius, material))
    return hills


def _draw_pond(rng: np.random.Generator, camera: Camera) -> Shape:
    """A sheet of water, whose depth no sensor sees."""
    water = Material("plain", ((0.12, 0.20, 0.26),) * 3, 1.5, draw_offset(rng), 0.5, known=False)
    turn, far, radius = camera.yaw + rng.uniform(-0.4, 0.4), rng.uniform(7, 20), rng.uniform(1.5, 5.0)
    far = max(far, radius + 2)
    centre = (far * math.cos(turn), far * math.sin(turn), -0.05)
    return prism(centre, radius, 0.06, water, water, num_sides=18)
