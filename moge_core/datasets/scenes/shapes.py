"""Solids that a ray meets in closed form: convex polyhedra and balls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moge_core.datasets.scenes.materials import Material

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int16]


def component(direction: FloatArray, vectors: FloatArray) -> FloatArray:
    """(N,) dot products of direction: (3,) with vectors: (3, N).

    Not a matrix product: with three terms that is no faster, but its threads would fight over the cores with ours, and
    its last bits depend on the machine.
    """
    total: FloatArray = direction[0] * vectors[0]
    total += direction[1] * vectors[1]
    total += direction[2] * vectors[2]
    return total


@dataclass(frozen=True)
class Opening:
    """A rectangular hole in a face of a hollow polyhedron, in that face's texture coordinates (metres)."""

    face: int
    u_range: tuple[float, float]
    v_range: tuple[float, float]


@dataclass(frozen=True)
class Polyhedron:
    """A convex polyhedron: the points p with normals @ p <= offsets.

    Args:
        normals: (F, 3) outward unit normals.
        offsets: (F,) metres.
        materials: one per face.
        origin: (3,) zero of the texture coordinates.
        yaw: radians; turns the texture of level faces.
        centre, radius: a sphere around it.
        hollow: seen from the inside, as a room is, and never an obstacle to what is within.
        openings: holes of a hollow one.
    """

    normals: FloatArray
    offsets: FloatArray
    materials: tuple[Material, ...]
    origin: FloatArray
    yaw: float
    centre: FloatArray
    radius: float
    hollow: bool = False
    openings: tuple[Opening, ...] = ()

    def tangents(self) -> tuple[FloatArray, FloatArray]:
        """Directions of the texture axes u and v of each face, (F, 3) each; v points up on upright faces."""
        level = np.abs(self.normals[:, 2:]) > 0.98
        along = np.array([math.cos(self.yaw), math.sin(self.yaw), 0.0], np.float32)
        sideways = np.cross(np.array([0, 0, 1], np.float32), self.normals)
        u = np.where(level, along, sideways)
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        return u.astype(np.float32), np.cross(self.normals, u).astype(np.float32)

    def intersect(self, origins: FloatArray, directions: FloatArray) -> tuple[FloatArray, IntArray]:
        """Where rays first meet the surface.

        Args:
            origins: (3, N) or (3, 1).
            directions: (3, N), of any length.

        Returns:
            (N,) multiples of the directions, +Inf where a ray misses, and the (N,) face that is met.
        """
        enter = np.full(directions.shape[1], -np.inf, np.float32)
        leave = np.full(directions.shape[1], np.inf, np.float32)
        face = np.zeros(directions.shape[1], np.int16)
        with np.errstate(divide="ignore", invalid="ignore"):
            for index, (normal, offset) in enumerate(zip(self.normals, self.offsets, strict=True)):
                slope = component(normal, directions)
                crossing = (offset - component(normal, origins)) / slope
                outwards = slope >= 0
                if self.hollow:
                    nearer = outwards & (crossing < leave)
                    face[nearer] = index
                else:
                    nearer = ~outwards & (crossing > enter)
                    np.copyto(enter, crossing, where=nearer)
                    face[nearer] = index
                np.fmin(leave, crossing, out=leave, where=outwards)
        if not self.hollow:
            met = (enter < leave) & (enter > 0)
            return np.where(met, enter, np.float32(np.inf)), face
        leave[leave <= 0] = np.inf
        for opening in self.openings:
            leave[self._passes(opening, origins, directions, leave, face)] = np.inf
        return leave, face

    def distance(self, points: FloatArray) -> FloatArray:
        """(N,) how far points: (3, N) are beyond the furthest plane: 0 on the surface, below 0 inside."""
        beyond = np.full(points.shape[1], -np.inf, np.float32)
        for normal, offset in zip(self.normals, self.offsets, strict=True):
            np.maximum(beyond, component(normal, points) - offset, out=beyond)
        return beyond

    def _passes(
        self, opening: Opening, origins: FloatArray, directions: FloatArray, t: FloatArray, face: IntArray
    ) -> npt.NDArray[np.bool_]:
        inside: npt.NDArray[np.bool_] = face == opening.face
        for tangents, (low, high) in zip(self.tangents(), (opening.u_range, opening.v_range), strict=True):
            axis = tangents[opening.face]
            with np.errstate(invalid="ignore"):
                at = component(axis, origins - self.origin[:, None]) + component(axis, directions) * t
            inside &= (at > low) & (at < high)
        return inside


@dataclass(frozen=True)
class Ball:
    """A sphere of a radius in metres around centre: (3,)."""

    centre: FloatArray
    radius: float
    material: Material

    def intersect(self, origins: FloatArray, directions: FloatArray) -> tuple[FloatArray, IntArray]:
        """As `Polyhedron.intersect`; there is one face."""
        squared = np.einsum("cn,cn->n", directions, directions)
        to_centre = self.centre[:, None] - origins
        closest = np.einsum("cn,cn->n", np.broadcast_to(to_centre, directions.shape), directions) / squared
        # The distance of the ray from the centre, rather than the textbook discriminant, which cancels far away.
        miss = to_centre - directions * closest
        depth_squared = self.radius**2 - np.einsum("cn,cn->n", miss, miss)
        met = depth_squared > 0
        t = np.full(squared.shape, np.inf, np.float32)
        t[met] = closest[met] - np.sqrt(depth_squared[met] / squared[met])
        t[t <= 0] = np.inf
        return t, np.zeros(t.shape, np.int16)

    def distance(self, points: FloatArray) -> FloatArray:
        """(N,) distance of points: (3, N) from the surface, below 0 inside."""
        beyond: FloatArray = np.linalg.norm(points - self.centre[:, None], axis=0) - np.float32(self.radius)
        return beyond


Shape = Polyhedron | Ball


def box(
    base: Sequence[float], size: Sequence[float], materials: Material | Sequence[Material], yaw: float = 0.0
) -> Polyhedron:
    """An upright box.

    Args:
        base: centre of its bottom face.
        size: length along yaw, width across it, height.
        materials: one for all, or (sides, top and bottom), or one for each of +length, -length, +width, -width, top,
            bottom.
    """
    length, width, height = size
    c, s = math.cos(yaw), math.sin(yaw)
    axes = np.array([[c, s, 0], [-c, -s, 0], [-s, c, 0], [s, -c, 0], [0, 0, 1], [0, 0, -1]])
    reach = np.array([length / 2, length / 2, width / 2, width / 2, height, 0.0])
    faces = [materials] * 6 if isinstance(materials, Material) else list(materials)
    if len(faces) == 2:
        faces = [faces[0]] * 4 + [faces[1]] * 2
    radius = 0.5 * math.sqrt(length**2 + width**2 + height**2)
    return _polyhedron(axes, reach, faces, base, yaw, middle=height / 2, radius=radius)


def prism(
    base: Sequence[float],
    radius: float,
    height: float,
    side: Material,
    top: Material,
    *,
    num_sides: int = 12,
    top_radius: float | None = None,
) -> Polyhedron:
    """An upright regular prism (column, trunk, disc), or with `top_radius` a blunt pyramid (fir, lampshade).

    `radius` and `top_radius` are those of the circles inside its bottom and top face.
    """
    shrink = radius - (radius if top_radius is None else top_radius)
    slant = math.hypot(height, shrink)
    turns = np.arange(num_sides) * (2 * math.pi / num_sides)
    rise = np.full(num_sides, shrink / slant)
    sides = np.stack([np.cos(turns) * height / slant, np.sin(turns) * height / slant, rise], axis=1)
    axes = np.concatenate([sides, [[0, 0, 1], [0, 0, -1]]])
    reach = np.concatenate([np.full(num_sides, radius * height / slant), [height, 0.0]])
    corner = max(radius, radius - shrink) / math.cos(math.pi / num_sides)
    faces = [side] * num_sides + [top, side]
    return _polyhedron(axes, reach, faces, base, 0.0, middle=height / 2, radius=math.hypot(corner, height / 2))


def house(
    base: Sequence[float], size: Sequence[float], roof_height: float, wall: Material, roof: Material, yaw: float
) -> Polyhedron:
    """A box with a gable roof whose ridge runs along yaw; `size` is length, width and height of the walls."""
    length, width, height = size
    c, s = math.cos(yaw), math.sin(yaw)
    slant = math.hypot(roof_height, width / 2)
    up, out = width / 2 / slant, roof_height / slant
    axes = np.array(
        [[c, s, 0], [-c, -s, 0], [-s, c, 0], [s, -c, 0], [-s * out, c * out, up], [s * out, -c * out, up], [0, 0, -1]]
    )
    ridge = (height + roof_height) * up
    reach = np.array([length / 2, length / 2, width / 2, width / 2, ridge, ridge, 0.0])
    total = height + roof_height
    radius = 0.5 * math.sqrt(length**2 + width**2 + total**2)
    return _polyhedron(axes, reach, [wall] * 4 + [roof] * 2 + [wall], base, yaw, middle=total / 2, radius=radius)


def room(
    size: Sequence[float], walls: Sequence[Material], floor: Material, ceiling: Material, attic_slope: float = 0.0
) -> Polyhedron:
    """A room over [0, length] x [0, width] x [0, height], seen from the inside.

    Args:
        size: length, width, height.
        walls: materials of the walls at x = length, x = 0, y = width, y = 0.
        attic_slope: radians; above 0 a slanting ceiling begins at 0.4 of the height of the wall at x = length.
    """
    length, width, height = size
    faces = [*walls, ceiling, floor]
    inside = box((length / 2, width / 2, 0.0), size, faces)
    normals, offsets = inside.normals, inside.offsets
    if attic_slope > 0:
        slant = np.array([math.sin(attic_slope), 0.0, math.cos(attic_slope)], np.float32)
        normals = np.concatenate([normals, slant[None]])
        offsets = np.append(offsets, slant @ np.array([length, 0, 0.4 * height], np.float32))
        faces.append(ceiling)
    shell = replace(inside, normals=normals, offsets=offsets.astype(np.float32), materials=tuple(faces), hollow=True)
    return replace(shell, origin=np.zeros(3, np.float32))


def _polyhedron(
    axes: npt.NDArray[np.float64],
    reach: npt.NDArray[np.float64],
    faces: Sequence[Material],
    base: Sequence[float],
    yaw: float,
    *,
    middle: float,
    radius: float,
) -> Polyhedron:
    """Planes `reach` metres from `base` along `axes`, in world coordinates."""
    foot = np.asarray(base, np.float64)
    return Polyhedron(
        normals=axes.astype(np.float32),
        offsets=(reach + axes @ foot).astype(np.float32),
        materials=tuple(faces),
        origin=foot.astype(np.float32),
        yaw=yaw,
        centre=(foot + np.array([0.0, 0.0, middle])).astype(np.float32),
        radius=radius,
    )
