"""Frames of one sample scene from several places, with their poses in meta.json: what a moving camera records."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from moge_core.datasets.sample_scenes import draw_world
from moge_core.datasets.scenes.rendering import cast_rays, find_surfaces, unseen
from moge_core.datasets.scenes.shading import paint
from moge_core.io import read_depth, read_meta, write_depth, write_image, write_meta


def write_walk(folder: Path, seed: int, index: int, *, frames: int = 6, size: tuple[int, int] = (160, 120)) -> None:
    """Render `frames` instances of scene (seed, index), the camera going a few decimetres and turning a little.

    The whole way is about half of the depth of what is near, as of a hand-held camera within a second or two.
    """
    world = draw_world(seed, index)
    camera = world.camera
    width, height = size
    rng = np.random.default_rng((seed, index, 1))
    depth = find_surfaces(world, cast_rays(camera, width, height)).depth
    near = float(np.quantile(depth[np.isfinite(depth)], 0.25))
    side, ahead = rng.choice([-1, 1]) * rng.uniform(0.4, 1), rng.uniform(-0.4, 0.4)
    way = camera.rotation() @ np.array([side, rng.uniform(-0.3, 0.3), ahead])
    way *= 0.5 * near / np.linalg.norm(way)
    turn, nod = rng.choice([-1, 1]) * rng.uniform(0.1, 0.35), rng.uniform(-0.1, 0.1)
    for number in range(frames):
        share = number / (frames - 1)
        placed = dataclasses.replace(
            camera,
            position=(camera.position + share * way).astype(np.float32),
            yaw=camera.yaw + share * turn,
            pitch=camera.pitch + share * nod,
        )
        seen = dataclasses.replace(world, camera=placed)
        rays = cast_rays(placed, width, height)
        surfaces = find_surfaces(seen, rays)
        z = surfaces.depth.copy()
        z[unseen(seen, rays, surfaces) & np.isfinite(z)] = np.nan
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = placed.rotation(), placed.position
        instance = folder / f"{number:06d}"
        instance.mkdir(parents=True)
        write_image(instance / "image.jpg", paint(seen, rays, surfaces))
        write_depth(instance / "depth.png", z.reshape(height, width))
        meta = {"intrinsics": placed.intrinsics(width, height), "depth_unit": 1.0, "pose": pose.tolist()}
        write_meta(instance / "meta.json", meta)


def change_walk(folder: Path, *, scale: float = 1.0, focal: float = 1.0) -> None:
    """Multiply depth and focal lengths of every frame."""
    for instance in sorted(path.parent for path in folder.rglob("meta.json")):
        if scale != 1:
            write_depth(instance / "depth.png", read_depth(instance / "depth.png") * np.float32(scale))
        meta = read_meta(instance / "meta.json")
        meta["intrinsics"] = meta["intrinsics"] * np.array([[focal, 1, 1], [1, focal, 1], [1, 1, 1]])
        write_meta(instance / "meta.json", meta)
