"""Looking at instances: point clouds as PLY, depth as a picture, the camera as numbers.

Point clouds have their vertices at (X, -Y, -Z), so that viewers, whose y axis points up, show them upright.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.layout import (
    DEPTH_NAME,
    IMAGE_NAME,
    INDEX_NAME,
    META_NAME,
    STATE_DIR,
    Progress,
    scan_instances,
)
from moge_core.datasets.parallel import parallel_map
from moge_core.errors import DatasetError, InputError, InstanceError, MissingDependencyError, MoGeError

PLY_NAME = "pointcloud.ply"
DEPTH_PICTURE_NAME = "depth_vis.png"


@dataclass(frozen=True)
class LoadedInstance:
    """One instance in memory.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        depth: float32 (H, W), NaN unknown and +Inf infinitely far; metres when `metric`.
        intrinsics: float32 (3, 3), normalised.
        unit: metres a unit of the stored depth; None where nobody knows.
    """

    folder: Path
    image: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float32]
    intrinsics: npt.NDArray[np.float32]
    unit: float | None

    @property
    def metric(self) -> bool:
        """True when the depth is in metres."""
        return self.unit is not None


@dataclass(frozen=True)
class Inspection:
    """What was seen of one instance.

    Attributes:
        instance: relative to the inspected folder; its name when it was inspected alone.
        ply_path, depth_picture_path: the files that were written.
        num_points: points of the cloud.
        fov_x_deg, fov_y_deg: fields of view that were used.
        problem: why there is no point cloud or no picture; None when all went well.
    """

    instance: str
    ply_path: Path | None = None
    depth_picture_path: Path | None = None
    num_points: int = 0
    fov_x_deg: float | None = None
    fov_y_deg: float | None = None
    problem: str | None = None


def inspect_dataset(
    path: str | Path,
    *,
    output_dir: str | Path | None = None,
    depth_name: str = DEPTH_NAME,
    ply: bool = True,
    depth_picture: bool = True,
    normals: bool = False,
    max_depth: float | None = None,
    show_infinity: bool = False,
    fov_x_deg: float | None = None,
    depth_unit: float | None = None,
    progress: Progress | None = None,
) -> list[Inspection]:
    """Write point clouds and depth pictures of an instance, or of all instances below a folder.

    Args:
        path: an instance, or a folder with instances below it.
        output_dir: where to write; by default into each instance. The tree of `path` is mirrored there, so instances of
            the same name in different folders do not meet.
        depth_name: file name of the depth maps.
        ply, depth_picture: what to write.
        normals: give the points of a cloud their surface normals.
        max_depth: keep the points nearer than this many times the nearest one.
        show_infinity: show what is infinitely far in the depth picture, instead of leaving it black like the unknown.
        fov_x_deg: horizontal field of view in degrees, instead of the intrinsics of meta.json.
        depth_unit: metres a unit of depth, as in a training configuration; by default what meta.json says.
        progress: called as `progress(done, total)`.

    Returns:
        one inspection an instance; an instance that cannot be shown has a `problem`.

    Raises:
        DatasetError: there is no instance.
        InputError: an option outside its domain.
    """
    if max_depth is not None and not max_depth > 1:
        raise InputError("max_depth", "must be above 1: it is a multiple of the nearest depth", found=max_depth)
    if fov_x_deg is not None and not 0 < fov_x_deg < 180:
        raise InputError("fov", "must be between 0 and 180 degrees", found=fov_x_deg)
    if depth_unit is not None and not (depth_unit > 0 and np.isfinite(depth_unit)):
        raise InputError("depth_unit", "must be positive, in metres", found=depth_unit)
    root, instances = find_instances(path)
    output = None if output_dir is None else Path(output_dir)

    def inspect(instance: str) -> Inspection:
        folder = root / instance
        target = folder if output is None else output / instance
        try:
            loaded = load_instance(folder, depth_name, fov_x_deg=fov_x_deg, depth_unit=depth_unit)
            target.mkdir(parents=True, exist_ok=True)
            picture = _write_depth_picture(target, loaded, show_infinity) if depth_picture else None
            cloud_path, num_points, problem = None, 0, None
            if ply:
                num_points = write_point_cloud(target / PLY_NAME, loaded, normals=normals, max_depth=max_depth)
                cloud_path = target / PLY_NAME if num_points else None
                problem = None if num_points else "no pixel has a finite depth, so there is no point cloud"
            fov_x, fov_y = _fov_deg(loaded.intrinsics)
            return Inspection(instance, cloud_path, picture, num_points, fov_x, fov_y, problem)
        except (MoGeError, OSError) as error:
            return Inspection(instance, problem=str(error))

    return list(parallel_map(inspect, instances, progress))


def find_instances(path: str | Path) -> tuple[Path, list[str]]:
    """The folder that instances are named relative to, and the instances at or below `path`.

    For an instance this folder is its dataset, where one can be told by its list or manifest, else the folder above.

    Raises:
        DatasetError: no such folder, or no meta.json in it.
    """
    folder = Path(path).resolve()
    if not folder.is_dir():
        raise DatasetError(path, "must be an instance or a folder with instances", found="no such folder")
    if (folder / META_NAME).is_file():
        datasets = (above for above in folder.parents if (above / INDEX_NAME).exists() or (above / STATE_DIR).is_dir())
        root = next(datasets, folder.parent)
        return root, [folder.relative_to(root).as_posix()]
    instances, _ = scan_instances(folder)
    if not instances:
        raise DatasetError(path, f"must hold instances, folders with a {META_NAME}", found="none")
    return folder, instances


def load_instance(
    folder: Path, depth_name: str = DEPTH_NAME, *, fov_x_deg: float | None = None, depth_unit: float | None = None
) -> LoadedInstance:
    """Read image, depth and camera of one instance.

    Args:
        folder: the instance.
        depth_name: file name of the depth map.
        fov_x_deg: horizontal field of view to use instead of meta.json's intrinsics.
        depth_unit: metres a unit of depth; by default meta.json's `depth_unit`, where it has one.

    Raises:
        InstanceError: a file is missing, or image and depth differ in size.
        FormatError: a file is damaged.
    """
    from moge_core.geometry import intrinsics_from_fov
    from moge_core.io import read_depth, read_image, read_meta

    for name in (IMAGE_NAME, depth_name, META_NAME):
        if not (folder / name).is_file():
            raise InstanceError(folder, f"must hold {name}", found="no such file")
    image, depth, meta = read_image(folder / IMAGE_NAME), read_depth(folder / depth_name), read_meta(folder / META_NAME)
    height, width = depth.shape
    if image.shape[:2] != (height, width):
        found = f"{image.shape[1]}x{image.shape[0]} and {width}x{height}"
        raise InstanceError(folder, "image and depth must have the same size", found=found)
    intrinsics = meta["intrinsics"]
    if fov_x_deg is not None:
        intrinsics = intrinsics_from_fov(fov_x=np.radians(fov_x_deg), aspect_ratio=width / height)
    unit = depth_unit if depth_unit is not None else _unit_of(meta)
    if unit is not None:
        depth = depth * np.float32(unit)
    return LoadedInstance(folder, image, depth, np.asarray(intrinsics, np.float32), unit)


def write_point_cloud(
    path: Path, loaded: LoadedInstance, *, normals: bool = False, max_depth: float | None = None
) -> int:
    """Write the pixels of finite depth as a binary PLY with 3 colour bytes a point.

    Args:
        path: the file.
        loaded: the instance.
        normals: write surface normals; points without one (at edges of the known) are left out.
        max_depth: keep what is nearer than this many times the nearest.

    Returns:
        number of points; with none, no file is written and an older one is removed.
    """
    from moge_core.geometry import depth_map_to_normal_map, depth_map_to_point_map
    from moge_core.visualization import write_viewer_ply

    mask = np.isfinite(loaded.depth)
    if max_depth is not None and mask.any():
        mask &= loaded.depth < max_depth * loaded.depth[mask].min()
    normal_map = None
    if normals:
        normal_map, has_normal = depth_map_to_normal_map(loaded.depth, loaded.intrinsics, mask)
        mask &= has_normal
    if not mask.any():
        path.unlink(missing_ok=True)
        return 0
    points = depth_map_to_point_map(loaded.depth, loaded.intrinsics)[mask]
    normal_rows = None if normal_map is None else normal_map[mask]
    write_viewer_ply(path, points, loaded.image[mask], normal_rows, metric=loaded.metric)
    return int(mask.sum())


def require_display() -> None:
    """Refuse early where no window can be opened.

    Raises:
        MissingDependencyError: there is no display.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise MissingDependencyError(
            "--show",
            "needs a display",
            found="neither DISPLAY nor WAYLAND_DISPLAY set",
            fix=f"Use --ply, copy {PLY_NAME} to a machine with a screen and open it there, for example with MeshLab.",
        )


def show_point_cloud(path: Path) -> None:
    """Open a window with a point cloud and wait until it is closed.

    Raises:
        MissingDependencyError: there is no display, or no viewer library.
    """
    require_display()
    import trimesh

    try:
        viewer: Any = trimesh.load(path)
        viewer.show()
    except ImportError as error:
        raise MissingDependencyError(
            "--show", "needs a viewer for trimesh", found=error, fix="Install it with `pip install 'pyglet<2'`."
        ) from error


def _write_depth_picture(target: Path, loaded: LoadedInstance, show_infinity: bool) -> Path:
    from moge_core.io import write_image
    from moge_core.visualization.colors import INF_COLOR, UNKNOWN_COLOR, colorize_depth

    path = target / DEPTH_PICTURE_NAME
    write_image(path, colorize_depth(loaded.depth, inf_color=INF_COLOR if show_infinity else UNKNOWN_COLOR))
    return path


def _unit_of(meta: dict[str, Any]) -> float | None:
    unit = meta.get("depth_unit")
    if isinstance(unit, int | float) and not isinstance(unit, bool) and unit > 0:
        return float(unit)
    return None


def _fov_deg(intrinsics: npt.NDArray[np.float32]) -> tuple[float, float]:
    from moge_core.geometry import intrinsics_to_fov

    fov_x, fov_y = intrinsics_to_fov(intrinsics)
    return float(np.degrees(fov_x)), float(np.degrees(fov_y))
