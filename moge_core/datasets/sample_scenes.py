"""Sample scenes: a dataset in the project's own format that needs no download.

    from moge_core.datasets.sample_scenes import render_sample_scenes
    render_sample_scenes("data/sample", count=256, seed=0)

Rooms and outdoor scenes alternate. Image, depth, normals and intrinsics come from one exact ray cast, so they are true
to each other; each scene is a function of (seed, index) alone.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.import_log import append_import, import_log_path
from moge_core.datasets.layout import (
    DEPTH_NAME,
    IMAGE_NAME,
    META_NAME,
    NORMAL_NAME,
    STATE_DIR,
    Progress,
    check_state,
)
from moge_core.datasets.parallel import num_cores
from moge_core.datasets.scenes.outdoors import draw_outdoor
from moge_core.datasets.scenes.rendering import cast_rays, find_surfaces, rotate, unseen
from moge_core.datasets.scenes.rooms import draw_room
from moge_core.datasets.scenes.shading import paint
from moge_core.datasets.scenes.workers import report, run_workers, take_order
from moge_core.datasets.scenes.world import World
from moge_core.errors import DatasetError, InputError, MoGeError
from moge_core.io import read_meta, write_depth, write_image, write_meta, write_normal

_logger = logging.getLogger(__name__)

# Raised when the same (seed, index) begins to give another scene.
_RECIPE = 2
_MAX_SIDE = 8192
_LEAST_WORK = 16  # scenes that are worth starting a process
_COMPRESSION_LEVEL = 1  # a fifth of the time of level 7 for 4 % more bytes


@dataclass(frozen=True)
class Scene:
    """A rendered scene.

    Attributes:
        kind: "room" or "outdoor".
        image: uint8 (H, W, 3), sRGB.
        depth: float32 (H, W), z in metres; +Inf for sky, NaN where a sensor would not know.
        normal: float32 (H, W, 3), OpenCV camera axes, towards the camera; NaN where depth is not finite.
        intrinsics: float32 (3, 3), normalised.
        metadata: seed, index and pose, as they go into meta.json.
    """

    kind: str
    image: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float32]
    normal: npt.NDArray[np.float32]
    intrinsics: npt.NDArray[np.float32]
    metadata: dict[str, Any]


def render_sample_scenes(
    out_dir: str | Path,
    count: int,
    seed: int,
    *,
    size: tuple[int, int] = (320, 240),
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Render scenes 0 to count - 1 into a dataset; scenes that are there already are kept.

    Instances are `room/000000`, `outdoor/000001`, and so on, each with image.jpg, depth.png, normal.png and meta.json;
    an instance appears complete or not at all. The index is left to `moge index`.

    Args:
        size: (width, height) of landscape images; portrait ones have the sides swapped.
        num_workers: processes that render; by default one a core where there is enough to do. The result is the same.
        progress: called with (done, total) after each scene.

    Returns:
        Paths of the instances relative to `out_dir`, sorted.

    Raises:
        InputError: an argument out of range.
        DatasetError: an instance's folder holds something else, as another seed's scene, or a link leads `.moge` out of
            the dataset.
    """
    if count < 1:
        raise InputError("count", "must be at least 1", found=count)
    if num_workers is not None and num_workers < 1:
        raise InputError("num_workers", "must be at least 1", found=num_workers)
    _check_scene_arguments(seed, 0, size)
    root = Path(out_dir)
    instances = [_path_of(index) for index in range(count)]
    missing = [index for index in range(count) if not _is_there(root / instances[index], seed, index, size)]
    done = count - len(missing)
    if progress is not None and done:
        progress(done, count)
    if not missing:
        return sorted(instances)

    check_state(root.resolve())
    log_path = import_log_path(root)
    state_dir = root / STATE_DIR
    state_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sample-scenes-", dir=state_dir) as staging:
        for _ in _write_all(root, Path(staging), seed, missing, size, num_workers):
            done += 1
            if progress is not None:
                progress(done, count)
    append_import(
        log_path,
        importer="sample-scenes",
        source=f"rendered, seed {seed}",
        options={"recipe": _RECIPE, "seed": seed, "count": count, "size": list(size)},
        instances=count,
        written=len(missing),
    )
    return sorted(instances)


def render_scene(seed: int, index: int, size: tuple[int, int] = (320, 240)) -> Scene:
    """Render one scene.

    Args:
        seed, index: the scene; even indices are rooms, odd ones outdoors.
        size: (width, height) of a landscape image; some scenes are portraits and swap them.

    Raises:
        InputError: an argument out of range.
    """
    _check_scene_arguments(seed, index, size)
    world = draw_world(seed, index)
    width, height = _size_of(world, size)
    camera = world.camera
    rays = cast_rays(camera, width, height)
    surfaces = find_surfaces(world, rays)
    depth = surfaces.depth.copy()
    hidden = unseen(world, rays, surfaces)
    depth[hidden & np.isfinite(depth)] = np.nan
    normal = rotate(camera.rotation().T, surfaces.normal)
    normal[:, ~np.isfinite(depth)] = np.nan
    intrinsics = camera.intrinsics(width, height)
    fov_x, fov_y = (math.degrees(2 * math.atan(0.5 / focal)) for focal in (intrinsics[0, 0], intrinsics[1, 1]))
    metadata = _identity(seed, index, size) | {
        "kind": world.kind,
        "camera": {
            "fov_x_deg": round(fov_x, 3),
            "fov_y_deg": round(fov_y, 3),
            "pitch_deg": round(math.degrees(camera.pitch), 3),
            "roll_deg": round(math.degrees(camera.roll), 3),
            "height_m": round(float(camera.position[2]), 3),
        },
    }
    return Scene(
        kind=world.kind,
        image=paint(world, rays, surfaces),
        depth=depth.reshape(height, width),
        normal=np.ascontiguousarray(normal.T).reshape(height, width, 3),
        intrinsics=intrinsics,
        metadata=metadata,
    )


def draw_world(seed: int, index: int) -> World:
    """The geometry, lights and camera of a scene."""
    rng = np.random.default_rng((seed, index))
    return draw_room(rng) if _kind_of(index) == "room" else draw_outdoor(rng)


def _kind_of(index: int) -> str:
    return "outdoor" if index % 2 else "room"


def _path_of(index: int) -> str:
    return f"{_kind_of(index)}/{index:06d}"


def _size_of(world: World, size: tuple[int, int]) -> tuple[int, int]:
    return (size[1], size[0]) if world.framing.portrait else size


def _identity(seed: int, index: int, size: tuple[int, int]) -> dict[str, Any]:
    return {"generator": "moge sample-scenes", "recipe": _RECIPE, "seed": seed, "index": index, "size": list(size)}


def _check_scene_arguments(seed: int, index: int, size: tuple[int, int]) -> None:
    for name, number in (("seed", seed), ("index", index)):
        if number < 0:
            raise InputError(name, "must not be negative", found=number)
    if len(size) != 2 or not all(1 <= side <= _MAX_SIDE for side in size):
        raise InputError("size", f"must be (width, height), each from 1 to {_MAX_SIDE}", found=size)


def _is_there(instance: Path, seed: int, index: int, size: tuple[int, int]) -> bool:
    """Whether this very scene is in the folder, complete.

    Raises:
        DatasetError: something else is there.
    """
    if not instance.exists():
        return False
    wanted = _identity(seed, index, size)
    try:
        found = read_meta(instance / META_NAME).get("scene")
    except (MoGeError, OSError) as error:
        raise _taken(instance, error) from error
    if not isinstance(found, dict) or any(found.get(key) != value for key, value in wanted.items()):
        raise _taken(instance, f"the scene {found}")
    files = [instance / name for name in (IMAGE_NAME, DEPTH_NAME, NORMAL_NAME)]
    return all(file.is_file() and file.stat().st_size > 0 for file in files)


def _taken(instance: Path, found: object) -> DatasetError:
    return DatasetError(
        instance,
        "must be free or hold the same sample scene",
        found=found,
        fix="Choose another folder, or delete this one.",
    )


def _write_all(
    root: Path, staging: Path, seed: int, indices: list[int], size: tuple[int, int], num_workers: int | None
) -> Iterator[int]:
    """Write scenes, in any order, and yield each one's index."""
    num_workers = min(num_workers or min(num_cores(), len(indices) // _LEAST_WORK), len(indices))
    remaining = set(indices)
    if num_workers > 1:
        orders = [
            {"root": str(root), "staging": str(staging), "seed": seed, "indices": part.tolist(), "size": size}
            for part in np.array_split(indices, num_workers)
        ]
        for index in run_workers(f"{__name__}:serve", orders):
            remaining.discard(index)
            yield index
        if remaining:
            _logger.warning("A worker failed; rendering its %d remaining scenes here.", len(remaining))
    # What a worker has left undone is done here too, so that whatever stopped it becomes the caller's error.
    for index in sorted(remaining):
        _write(root, staging, seed, index, size)
        yield index


def serve() -> None:
    """Main function of a worker process."""
    order = take_order()
    for index in order["indices"]:
        _write(Path(order["root"]), Path(order["staging"]), order["seed"], index, tuple(order["size"]))
        report(index)


def _write(root: Path, staging: Path, seed: int, index: int, size: tuple[int, int]) -> None:
    """Write one instance elsewhere and move it into its place."""
    instance = root / _path_of(index)
    scene = render_scene(seed, index, size)
    unfinished = staging / f"{index:06d}-{os.getpid()}"
    unfinished.mkdir()
    # Through open files, which are not synchronised to the disk one by one: that would take a third of the time, and a
    # scene that a power failure took can be rendered again.
    with (unfinished / IMAGE_NAME).open("wb") as file:
        write_image(file, scene.image, format="jpeg")
    with (unfinished / DEPTH_NAME).open("wb") as file:
        write_depth(file, scene.depth, compression_level=_COMPRESSION_LEVEL)
    with (unfinished / NORMAL_NAME).open("wb") as file:
        write_normal(file, scene.normal, compression_level=_COMPRESSION_LEVEL)
    with (unfinished / META_NAME).open("wb") as file:
        write_meta(file, {"intrinsics": scene.intrinsics, "depth_unit": 1.0, "scene": scene.metadata})
    instance.parent.mkdir(parents=True, exist_ok=True)
    if instance.exists():
        # Ours, with a file missing; a folder cannot be renamed over one that is not empty.
        shutil.rmtree(instance)
    unfinished.rename(instance)
