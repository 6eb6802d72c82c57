"""Layouts of rooms: a shell with windows, furniture on its floor and walls, and a camera inside."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moge_core.datasets.scenes.materials import Color, Material
from moge_core.datasets.scenes.shapes import Ball, FloatArray, Opening, Polyhedron, Shape, box, prism, room
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

_WALLS: tuple[Color, ...] = (
    (0.75, 0.72, 0.66),
    (0.55, 0.65, 0.70),
    (0.70, 0.60, 0.45),
    (0.50, 0.60, 0.48),
    (0.72, 0.48, 0.40),
    (0.45, 0.50, 0.62),
)
_WOODS: tuple[Color, ...] = ((0.45, 0.26, 0.12), (0.58, 0.38, 0.20), (0.28, 0.15, 0.08), (0.62, 0.47, 0.30))
_TILES: tuple[Color, ...] = ((0.62, 0.60, 0.56), (0.52, 0.30, 0.22), (0.34, 0.40, 0.44), (0.70, 0.66, 0.55))
_CLOTHS: tuple[Color, ...] = (
    (0.50, 0.12, 0.12),
    (0.12, 0.25, 0.45),
    (0.15, 0.38, 0.28),
    (0.60, 0.42, 0.12),
    (0.40, 0.38, 0.42),
    (0.55, 0.30, 0.42),
)
_WHITE: Color = (0.82, 0.81, 0.78)
_GLASS = Material("plain", ((0.10, 0.14, 0.18), _WHITE, _WHITE), variation=0.0, known=False, emission=0.02)
_FRAME = Material("plain", (_WHITE, _WHITE, _WHITE), variation=0.05)

# Along which axis a wall runs, and the yaw of a thing that stands with its back to it; order of `shapes.room`.
_WALL_YAWS = (math.pi, 0.0, -math.pi / 2, math.pi / 2)
_LOW_WALL = 0  # below the slanting ceiling of an attic

_Circle = tuple[float, float, float]


def draw_room(rng: np.random.Generator) -> World:
    """A furnished room."""
    size = (rng.uniform(3.0, 9.0), rng.uniform(3.0, 9.0), rng.uniform(2.3, 3.6))
    attic = math.radians(rng.uniform(25, 50)) if rng.random() < 0.15 else 0.0
    shell = _draw_shell(rng, size, attic)
    camera = _draw_viewpoint(rng, size, attic)
    forward = camera.rotation()[:, 2]
    shapes: list[Shape] = []
    wall = _wall_ahead(forward, attic)
    sun = _unit(-forward[:2], 0.5)
    has_window = rng.random() < 0.45
    if has_window:
        opening, frames = _draw_window(rng, size, wall)
        shell = replace(shell, openings=(opening,))
        shapes += frames
        sun = _unit(rng.uniform(-0.5, 0.5, 2) - _inward(wall), rng.uniform(0.5, 0.9))
    # Circles on the floor that are not free: x, y, radius.
    taken = [(float(camera.position[0]), float(camera.position[1]), 0.55)]
    bare_walls = [i for i in range(4) if not (has_window and i == wall) and not (attic and i == _LOW_WALL)]
    shapes += _draw_on_walls(rng, size, bare_walls, taken)
    shapes += _draw_furniture(rng, size, camera, taken)
    shapes.append(shell)

    lamp_x, lamp_y = rng.uniform(0.25, 0.75, 2) * [size[0] * (0.5 if attic else 1.0), size[1]]
    lamp = np.array([lamp_x, lamp_y, _headroom(size, attic, lamp_x) - 0.4], np.float32)
    warmth, power = rng.uniform(0.65, 1.0), rng.uniform(0.6, 2.0) * size[2] ** 2 / 6
    flash = rng.uniform(4.0, 8.0)
    lights = [
        Light((power, power * (0.8 + 0.2 * warmth), power * warmth), position=lamp),
        # A light at the camera: what is near is brighter, as in a flash photograph.
        Light((flash, flash, flash), position=camera.position, casts_shadows=False),
    ]
    if has_window:
        lights.append(Light((2.6, 2.4, 2.0), direction=sun))
    bulb = Material("plain", ((0.95, 0.9, 0.6 + 0.35 * warmth),) * 3, variation=0.0, emission=8.0)
    shapes.append(Ball(lamp + np.array([0, 0, 0.2], np.float32), 0.12, bulb))
    # Brighter than the sky of an outdoor scene: the picture is exposed for the room.
    sky = Sky((0.55, 1.0, 1.87), (1.65, 1.8, 1.98), sun, rng.uniform(0.2, 0.7), draw_offset(rng), haze_length=1e6)
    dim = rng.uniform(0.06, 0.16)
    return World("room", shapes, lights, sky, camera, (dim, dim, 0.95 * dim), draw_framing(rng))


def _draw_shell(rng: np.random.Generator, size: tuple[float, float, float], attic: float) -> Polyhedron:
    main = _draw_wall(rng)
    walls = [main if rng.random() < 0.75 else _draw_wall(rng) for _ in range(4)]
    ceiling = Material("plain", (pick(rng, [_WHITE]), _WHITE, _WHITE), 0.8, draw_offset(rng), 0.05)
    if rng.random() < 0.2:
        ceiling = _draw_planks(rng)
    return room(size, walls, _draw_floor(rng), ceiling, attic)


def _draw_wall(rng: np.random.Generator) -> Material:
    color, kind = pick(rng, _WALLS), rng.random()
    offset = draw_offset(rng)
    if kind < 0.5:
        return Material("plain", (color, color, color), 0.7, offset, rng.uniform(0.05, 0.25))
    if kind < 0.68:
        return Material("stripes", (color, shade_of(color, 0.8), color), rng.uniform(0.15, 0.6), offset, 0.08)
    if kind < 0.86:
        brick = pick(rng, ((0.50, 0.22, 0.15), (0.62, 0.52, 0.42), (0.66, 0.64, 0.60)))
        return Material("bricks", (brick, shade_of(_WHITE, 0.65), brick), rng.uniform(0.2, 0.4), offset, 0.25)
    tile = pick(rng, _TILES)
    return Material("tiles", (tile, shade_of(tile, 0.55), tile), rng.uniform(0.15, 0.4), offset, 0.15)


def _draw_floor(rng: np.random.Generator) -> Material:
    kind, offset = rng.random(), draw_offset(rng)
    if kind < 0.3:
        return _draw_planks(rng)
    if kind < 0.55:
        tile = pick(rng, _TILES)
        return Material("tiles", (tile, shade_of(tile, 0.4), tile), rng.uniform(0.3, 0.8), offset, 0.25)
    if kind < 0.8:
        dark, light = pick(rng, _TILES), pick(rng, [_WHITE])
        return Material("checker", (shade_of(dark, 0.6), light, dark), rng.uniform(0.3, 0.7), offset, 0.15)
    cloth = pick(rng, _CLOTHS)
    return Material("ground", (cloth, shade_of(cloth, 0.55), cloth), rng.uniform(0.05, 0.3), offset)


def _draw_planks(rng: np.random.Generator) -> Material:
    wood = pick(rng, _WOODS)
    return Material("planks", (wood, shade_of(wood, 0.35), wood), rng.uniform(0.12, 0.25), draw_offset(rng), 0.45)


def _draw_viewpoint(rng: np.random.Generator, size: tuple[float, float, float], attic: float) -> Camera:
    """A place in the room, and of four directions the one in which there is most to see."""
    reach = np.array([0.5 if attic else 1.0, 1.0]) * size[:2]
    place = rng.uniform(0.4, reach - 0.4)
    yaws = rng.uniform(0, 2 * math.pi, 4)
    ahead = np.stack([np.cos(yaws), np.sin(yaws)], axis=1)
    free = (np.where(ahead > 0, reach - place, place) / np.abs(ahead)).min(axis=1)
    eye = rng.uniform(0.9, min(2.0, _headroom(size, attic, place[0]) - 0.4))
    pitch = math.radians(rng.uniform(-8, 28))
    return draw_camera(rng, [*place, eye], float(yaws[free.argmax()]), pitch, max_roll=math.radians(4))


def _headroom(size: tuple[float, float, float], attic: float, x: float) -> float:
    """Height of the ceiling at x; `shapes.room` says how an attic slants."""
    return min(size[2], 0.4 * size[2] + (size[0] - x) * math.tan(attic)) if attic else size[2]


def _wall_ahead(forward: npt.NDArray[np.float64], attic: float) -> int:
    """The upright wall that the camera looks at most; the low one of an attic is too low for a window."""
    facing = [-1.0 if attic else forward[0], -forward[0], forward[1], -forward[1]]
    return int(np.argmax(facing))


def _inward(wall: int) -> npt.NDArray[np.float64]:
    """(2,) unit vector from a wall into the room."""
    return np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]][wall])


def _at_wall(wall: int, size: tuple[float, float, float], along: float, away: float) -> tuple[float, float]:
    """Floor position `along` metres along a wall and `away` metres from it."""
    if wall < 2:
        return (size[0] - away if wall == 0 else away), along
    return along, (size[1] - away if wall == 2 else away)


def _draw_window(
    rng: np.random.Generator, size: tuple[float, float, float], wall: int
) -> tuple[Opening, list[Polyhedron]]:
    """A hole in a wall with its frame."""
    length = size[1] if wall < 2 else size[0]
    width, height = rng.uniform(0.25, 0.5) * length, rng.uniform(0.9, 1.4)
    middle = rng.uniform(0.35, 0.65) * length
    sill = rng.uniform(0.7, size[2] - height - 0.15)
    # Texture axis u runs along +y, -y, -x, +x on the four walls.
    sign = (1, -1, -1, 1)[wall]
    low, high = sorted((sign * (middle - width / 2), sign * (middle + width / 2)))
    opening = Opening(wall, (low, high), (sill, sill + height))

    def bar(along: float, bottom: float, bar_width: float, bar_height: float) -> Polyhedron:
        x, y = _at_wall(wall, size, along, 0.03)
        return box((x, y, bottom), (0.06, bar_width, bar_height), _FRAME, _WALL_YAWS[wall])

    frames = [bar(middle + side * width / 2, sill - 0.06, 0.07, height + 0.12) for side in (-1, 1)]
    frames += [bar(middle, bottom, width, 0.07) for bottom in (sill - 0.06, sill + height)]
    frames += [bar(middle, sill, 0.05, height), bar(middle, sill + 0.6 * height, width, 0.05)]
    return opening, frames


def _draw_on_walls(
    rng: np.random.Generator, size: tuple[float, float, float], walls: list[int], taken: list[_Circle]
) -> list[Shape]:
    """Pictures, mirrors, doors and wardrobes; a wardrobe goes where the floor is free and is noted in `taken`."""
    shapes: list[Shape] = []
    for wall in walls:
        length = size[1] if wall < 2 else size[0]
        yaw = _WALL_YAWS[wall]
        spots = [0.2, 0.5, 0.8] if length > 5 else [0.27, 0.73]
        for spot in spots:
            along, kind = (spot + rng.uniform(-0.04, 0.04)) * length, rng.random()
            color = pick(rng, _CLOTHS)
            if kind < 0.3:
                frame = Material("planks", (pick(rng, _WOODS), (0.1, 0.06, 0.03), color), 0.1, draw_offset(rng))
                art = Material("ground", (color, pick(rng, _CLOTHS), color), rng.uniform(0.1, 0.4), draw_offset(rng))
                if rng.random() < 0.35:
                    art = _GLASS
                wide, high = rng.uniform(0.4, 1.0), rng.uniform(0.4, 0.8)
                bottom = rng.uniform(1.1, max(1.15, size[2] - high - 0.3))
                at = _at_wall(wall, size, along, 0.02)
                shapes.append(box((*at, bottom), (0.05, wide, high), frame, yaw))
                at = _at_wall(wall, size, along, 0.03)
                shapes.append(box((*at, bottom + 0.06), (0.06, wide - 0.12, high - 0.12), art, yaw))
            elif kind < 0.45:
                wood = _draw_planks(rng)
                deep, wide, high = rng.uniform(0.35, 0.6), rng.uniform(0.7, 1.3), rng.uniform(0.8, size[2] - 0.3)
                at = _at_wall(wall, size, along, deep / 2)
                if _is_free(*at, 0.6 * wide, taken):
                    taken.append((*at, 0.6 * wide))
                    shapes.append(box((*at, 0.0), (deep, wide, high), wood, yaw))
            elif kind < 0.55:
                door = Material("plain", (pick(rng, _WOODS, 0.3), color, color), variation=0.1)
                at = _at_wall(wall, size, along, 0.02)
                shapes.append(box((*at, 0.0), (0.05, 0.9, 2.0), door, yaw))
    return shapes


def _is_free(x: float, y: float, radius: float, taken: list[_Circle]) -> bool:
    return all(math.hypot(x - other_x, y - other_y) > radius + other for other_x, other_y, other in taken)


def _draw_furniture(
    rng: np.random.Generator, size: tuple[float, float, float], camera: Camera, taken: list[_Circle]
) -> list[Shape]:
    """Things on the floor, most of them in view, none in another or in the camera's face."""
    shapes: list[Shape] = []
    nearest = max(1.0, 0.9 / math.tan(camera.fov / 2))  # metres; nothing fills the picture
    for _ in range(int(rng.integers(4, 11))):
        piece = _PIECES[int(rng.integers(len(_PIECES)))]
        reach = _REACH[piece]
        for _ in range(8):
            turn = camera.yaw + rng.uniform(-0.6, 0.6) * camera.fov
            far = rng.uniform(nearest, 6.5)
            x = float(camera.position[0]) + far * math.cos(turn)
            y = float(camera.position[1]) + far * math.sin(turn)
            inside = reach < x < size[0] - reach and reach < y < size[1] - reach
            if inside and _is_free(x, y, reach, taken):
                taken.append((x, y, reach))
                shapes += _build(rng, piece, x, y)
                break
    return shapes


# Radius kept free around a piece, in metres.
_REACH = {
    "crates": 0.5,
    "table": 0.85,
    "ball": 0.4,
    "column": 0.35,
    "sofa": 0.95,
    "pedestal": 0.35,
    "stool": 0.3,
    "rug": 0.9,
}
_PIECES = tuple(_REACH)


def _build(rng: np.random.Generator, piece: str, x: float, y: float) -> list[Shape]:
    """One piece of furniture around (x, y)."""
    yaw = rng.uniform(0, 2 * math.pi)
    wood, color = _draw_planks(rng), pick(rng, _CLOTHS)
    cloth = Material("ground", (color, shade_of(color, 0.7), color), 0.08, draw_offset(rng))
    if piece == "crates":
        edge = rng.uniform(0.3, 0.65)
        crates: list[Shape] = [box((x, y, 0.0), (edge, edge, edge), wood, yaw)]
        if rng.random() < 0.6:
            crates.append(box((x, y, edge), (0.7 * edge, 0.7 * edge, 0.6 * edge), _draw_planks(rng), yaw + 0.5))
        return crates
    if piece == "table":
        length, width, height = rng.uniform(0.8, 1.4), rng.uniform(0.6, 0.9), rng.uniform(0.45, 0.8)
        table: list[Shape] = [box((x, y, height - 0.05), (length, width, 0.05), wood, yaw)]
        c, s = math.cos(yaw), math.sin(yaw)
        for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            p, q = a * (length / 2 - 0.05), b * (width / 2 - 0.05)
            table.append(box((x + c * p - s * q, y + s * p + c * q, 0.0), (0.06, 0.06, height - 0.05), wood, yaw))
        radius = rng.uniform(0.07, 0.16)
        table.append(Ball(np.array([x, y, height + radius], np.float32), radius, _draw_glaze(rng, radius)))
        return table
    if piece == "sofa":
        c, s = math.cos(yaw), math.sin(yaw)
        back = (x - 0.33 * c, y - 0.33 * s, 0.0)
        sofa: list[Shape] = [box((x, y, 0.0), (0.8, 1.5, 0.42), cloth, yaw), box(back, (0.2, 1.5, 0.85), cloth, yaw)]
        for side in (-1, 1):
            arm = (x - side * 0.72 * s, y + side * 0.72 * c, 0.0)
            sofa.append(box(arm, (0.82, 0.16, 0.6), cloth, yaw))
        return sofa
    if piece == "ball":
        radius = rng.uniform(0.15, 0.38)
        return [Ball(np.array([x, y, radius], np.float32), radius, _draw_glaze(rng, radius))]
    if piece == "column":
        plaster = Material("plain", (pick(rng, _WALLS),) * 3, 0.3, draw_offset(rng), 0.3)
        radius, height = rng.uniform(0.12, 0.3), rng.uniform(1.0, 3.5)
        return [prism((x, y, 0.0), radius, height, plaster, plaster, num_sides=14)]
    if piece == "pedestal":
        stone = Material("plain", (pick(rng, [_WHITE]),) * 3, 0.15, draw_offset(rng), 0.3)
        height, radius = rng.uniform(0.5, 1.1), rng.uniform(0.14, 0.28)
        bust = Ball(np.array([x, y, height + radius], np.float32), radius, _draw_glaze(rng, radius))
        return [box((x, y, 0.0), (0.36, 0.36, height), stone, yaw), bust]
    if piece == "stool":
        seat = rng.uniform(0.4, 0.75)
        leg = prism((x, y, 0.0), 0.12, seat - 0.06, wood, wood, num_sides=8, top_radius=0.05)
        return [leg, prism((x, y, seat - 0.06), 0.22, 0.06, cloth, cloth)]
    rug = Material("checker", (color, pick(rng, _CLOTHS), color), rng.uniform(0.1, 0.3), draw_offset(rng))
    return [box((x, y, 0.0), (rng.uniform(1.2, 1.7), rng.uniform(0.8, 1.2), 0.015), rug, yaw)]


def _draw_glaze(rng: np.random.Generator, radius: float) -> Material:
    pattern = ("plain", "checker", "stripes", "ground")[int(rng.integers(4))]
    colors = (pick(rng, _CLOTHS), pick(rng, [_WHITE]), _WHITE)
    return Material(pattern, colors, radius * rng.uniform(0.4, 0.9), draw_offset(rng), 0.15)


def _unit(level: npt.NDArray[np.float64], rise: float) -> FloatArray:
    """The direction that goes `level: (2,)` sideways and `rise` up."""
    vector = np.array([*level, rise], np.float32)
    return vector / np.linalg.norm(vector)
