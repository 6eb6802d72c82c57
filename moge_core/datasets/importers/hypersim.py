"""Hypersim: photorealistic rooms, rendered. Ray distances in HDF5, and HDR or tone-mapped images.

    report = import_hypersim("hypersim", "data/hypersim")

    source/                                         or one scene folder
    ├── metadata_camera_parameters.csv              optional: the camera of every scene, from contrib/mikeroberts3000
    └── ai_VVV_NNN/images/
        ├── scene_cam_XX_geometry_hdf5/
        │   ├── frame.FFFF.depth_meters.hdf5        metres along the viewing ray, NaN unknown
        │   ├── frame.FFFF.normal_cam.hdf5          optional
        │   └── frame.FFFF.render_entity_id.hdf5    optional: -1 where nothing was hit
        ├── scene_cam_XX_final_preview/
        │   └── frame.FFFF.tonemap.jpg              the image, where there is one
        └── scene_cam_XX_final_hdf5/
            └── frame.FFFF.color.hdf5               else this one, linear, is tone-mapped

Depth is called depth_meters but is the distance to the camera: taken as z, a wall bulges towards the corners.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.arrays import read_hdf5
from moge_core.datasets.importers.calls import repeatable
from moge_core.datasets.importers.frames import normalised_intrinsics
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.records import ImportOptions, ImportSettings, Record, Stored, StoredDepth
from moge_core.datasets.importers.source_files import each_once, walk
from moge_core.datasets.importers.writing import ImportReport, check_folders, run_import
from moge_core.datasets.layout import Finding, Progress
from moge_core.errors import DatasetError, FormatError, InputError

IMPORTER = "hypersim"
CAMERA_TABLE = "metadata_camera_parameters.csv"

# 60 degrees across 1024 pixels, with the optical axis in the middle.
DEFAULT_CAMERA = PixelIntrinsics(
    512 / math.tan(math.radians(30)), 512 / math.tan(math.radians(30)), 511.5, 383.5, (1024, 768)
)

_MAX_TABLE_BYTES = 1 << 26
_KEY = "dataset"
# Half a pixel at the edge of the images: skew below this is as good as none.
_MAX_SKEW = 1e-3


@repeatable(IMPORTER)
def import_hypersim(
    source: str | Path,
    out_dir: str | Path,
    *,
    camera_parameters: str | Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[ImportOptions],
) -> ImportReport:
    """Turn Hypersim scenes into a dataset, or bring one made earlier up to date. See the module for the layout.

    Depth becomes z in metres. Normals are turned from the renderer's axes (x right, y up, z backwards). An image that
    there is only in high dynamic range is brought to 8 bits as the published previews were, see `tone_map`.

    Args:
        source: folder of scenes, or one scene.
        out_dir: the dataset to make or add to.
        camera_parameters: the table of cameras; by default `metadata_camera_parameters.csv` in the source, where it is.
            Scenes that it does not have are read with 60 degrees. Scenes whose lens was tilted are read about the axis
            that is square to their image, see `read_camera_table`; those that are skewed are left out.
        progress: called as `progress(done, total)`.
        options: what every importer takes, see `ImportOptions`.

    Raises:
        DatasetError: no such folder, no depth in it, or no frame that could be imported.
        FormatError: the table of cameras holds none.
        InputError: an option outside its domain.
        MissingDependencyError: h5py is not installed.
    """
    source, out = check_folders(source, out_dir)
    if not source.is_dir():
        raise DatasetError(source, "must be a folder with scenes like ai_001_001", found="a file")
    settings = ImportSettings.of(options, label_type="synthetic")
    table = _camera_table(source, camera_parameters)
    cameras = {} if table is None else read_camera_table(table)
    how = {"camera_parameters": None if table is None else table.name}
    return run_import(IMPORTER, source, out, _records(source, cameras, table), settings, options=how, progress=progress)


def read_hypersim_depth(path: str | Path, intrinsics: PixelIntrinsics | None = None) -> npt.NDArray[np.float32]:
    """Depth z (H, W) in metres from a file of ray distances, `frame.FFFF.depth_meters.hdf5`; NaN unknown.

    Args:
        path: the file.
        intrinsics: the camera; by default 60 degrees with the axis in the middle, as most scenes have it.

    Raises:
        FormatError: no map of numbers, or damaged.
        MissingDependencyError: h5py is not installed.
    """
    from moge_core.datasets.importers.projection import metric_z

    path = Path(path)
    distance = read_hdf5(path, _KEY)
    if distance.ndim != 2 or distance.dtype.kind != "f":
        raise FormatError(path, "must hold distances (H, W)", found=f"{distance.dtype} of shape {distance.shape}")
    normalised, _ = normalised_intrinsics(intrinsics or DEFAULT_CAMERA, distance.shape[1], distance.shape[0])
    return metric_z(distance, StoredDepth(path, kind="ray"), normalised)


def tone_map(color: npt.NDArray[np.floating[Any]], valid: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.uint8]:
    """Linear colours (H, W, 3) as an 8-bit image (H, W, 3), by the rule of the published previews.

    The rule is that of `scene_generate_images_tonemap.py` in apple/ml-hypersim, which has it from the CGIntrinsics
    dataset: one scale for the whole image, so that the 90th percentile of the brightness 0.3 R + 0.59 G + 0.11 B over
    the valid pixels becomes 0.8 after a gamma of 1 / 2.2. An image that is all but black there becomes black.

    Args:
        color: linear radiance.
        valid: (H, W), where something was rendered; by default every pixel with finite colours.
    """
    values = np.asarray(color, np.float32)
    counted = np.isfinite(values).all(axis=2)
    if valid is not None:
        counted &= valid
    scale = 1.0
    if counted.any():
        bright = float(np.percentile(values[counted] @ np.array([0.3, 0.59, 0.11], np.float32), 90))
        scale = 0.8**2.2 / bright if bright >= 1e-4 else 0.0
    # What is no number is as good as black. What is white already needs no more, however bright it is.
    linear = np.minimum(np.maximum(np.where(np.isnan(values), 0, values), 0), 1 / max(scale, 1e-30)) * scale
    image: npt.NDArray[np.uint8] = np.rint(255 * np.minimum(linear, 1) ** (1 / 2.2)).astype(np.uint8)
    return image


@dataclass(frozen=True)
class SceneCamera:
    """The pinhole camera of a scene.

    Attributes:
        intrinsics: in pixels.
        rotation: (3, 3), from the axes of the rendered normals, turned to OpenCV's, to the axes of this pinhole. They
            are the same but for a tilted lens, whose image is a pinhole image about the axis square to the image.
    """

    intrinsics: PixelIntrinsics
    rotation: tuple[tuple[float, ...], ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))

    @property
    def is_tilted(self) -> bool:
        """Whether the image is not square to the optical axis."""
        return not np.allclose(self.rotation, np.eye(3), atol=1e-6)


def read_camera_table(path: str | Path) -> dict[str, SceneCamera | str]:
    """The camera of each scene of `metadata_camera_parameters.csv`, or the reason why it has none.

    `M_cam_from_uv` takes (u, v, 1), both in -1..1, u to the right and v upwards, to a viewing ray with axes x right,
    y up, z backwards. A shifted lens moves the principal point. A tilted lens turns the plane of the image; distances
    along rays do not change with the axes, so the image is read about the axis that is square to it.

    Raises:
        FormatError: no such table.
    """
    path = Path(path)
    if path.stat().st_size > _MAX_TABLE_BYTES:
        raise FormatError(path, f"a table of cameras is smaller than {_MAX_TABLE_BYTES >> 20} MiB")
    cameras: dict[str, SceneCamera | str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            needed = {"scene_name", "settings_output_img_width", "settings_output_img_height"}
            needed |= {f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3)}
            if missing := needed - set(rows.fieldnames or ()):
                found = f"none named {min(missing)}"
                raise FormatError(path, f"must be {CAMERA_TABLE} with its columns", found=found)
            for row in rows:
                cameras[row["scene_name"]] = _camera_of(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(path, "must be a CSV table", found=error) from error
    return cameras


def _camera_of(row: Mapping[str, str]) -> SceneCamera | str:
    try:
        M = np.array([[float(row[f"M_cam_from_uv_{i}{j}"]) for j in range(3)] for i in range(3)])
        width, height = (round(float(row[f"settings_output_img_{name}"])) for name in ("width", "height"))
    except (TypeError, ValueError, OverflowError):
        return "its row in the table of cameras holds no numbers"
    if not np.isfinite(M).all() or min(width, height) < 1 or abs(np.linalg.det(M)) < 1e-9:
        return "its row in the table of cameras describes no camera"
    # From pixels, counted from the corner of the image, to rays in OpenCV's axes.
    rays = np.diag([1, -1, -1]) @ M @ np.array([[2 / width, 0, -1], [0, -2 / height, 1], [0, 0, 1]])
    right, down, corner = rays.T
    x = right / np.linalg.norm(right)
    z = np.cross(right, down) / np.linalg.norm(np.cross(right, down))
    y = np.cross(z, x)
    distance, skew = z @ corner, (x @ down) / (y @ down)
    if not distance > 0 or z[2] <= 0:
        return "its row in the table of cameras describes no camera that looks forwards"
    if abs(skew) > _MAX_SKEW:
        return f"the rows and columns of its image are {np.degrees(np.arctan(skew)):.1f} degrees from being square"
    fx, fy = distance / (x @ right), distance / (y @ down)
    cx, cy = -fx * (x @ corner) / distance, -fy * (y @ corner) / distance
    intrinsics = PixelIntrinsics(float(fx), float(fy), float(cx) - 0.5, float(cy) - 0.5, (width, height))
    return SceneCamera(intrinsics, tuple(tuple(float(number) for number in row) for row in (x, y, z)))


def _camera_table(source: Path, given: str | Path | None) -> Path | None:
    if given is None:
        path = source / CAMERA_TABLE
        return path if path.is_file() else None
    if not Path(given).is_file():
        raise InputError("camera_parameters", f"must be the file {CAMERA_TABLE}", found=f"no file {given}")
    return Path(given).resolve()


def _records(source: Path, cameras: Mapping[str, SceneCamera | str], table: Path | None) -> Iterator[Record | Finding]:
    found = [folder for folder in walk(source) if folder.path.relative_to(source).match("images/scene_*_geometry_hdf5")]
    folders = [folder.path for folder in each_once(found, source)]
    if not any(path for folder in folders for path in folder.glob("frame.*.depth_meters.hdf5")):
        layout = "ai_VVV_NNN/images/scene_cam_XX_geometry_hdf5/frame.FFFF.depth_meters.hdf5"
        raise DatasetError(source, f"must hold Hypersim scenes: {layout}", found=f"{len(folders)} folders of geometry")
    for folder in folders:
        scene = folder.parent.parent
        camera = cameras.get(scene.name, SceneCamera(DEFAULT_CAMERA))
        place = scene.name if scene == source else scene.relative_to(source).as_posix()
        view = folder.name.removeprefix("scene_").removesuffix("_geometry_hdf5")
        images = {name: folder.with_name(f"scene_{view}_final_{name}") for name in ("preview", "hdf5")}
        yield from _lone_images(folder, images, f"{place}/{view}")
        for depth in sorted(folder.glob("frame.*.depth_meters.hdf5")):
            frame = depth.name.removesuffix(".depth_meters.hdf5")
            name = f"{place}/{view}/{frame}"
            image, image_files = _image_of(images, depth, frame)
            if isinstance(camera, str):
                yield Finding(name, "pinhole", "error", camera, "Leave the scene out; instances are pinhole images.")
            elif image is None:
                evidence = f"there is neither {frame}.tonemap.jpg nor {frame}.color.hdf5"
                yield Finding(name, "paired", "error", evidence, "Add the scene's final_preview or final_hdf5 images.")
            else:
                normal = depth.with_name(f"{frame}.normal_cam.hdf5")
                yield Record(
                    name=name,
                    image=image,
                    depth=StoredDepth(depth, partial(read_hdf5, key=_KEY), kind="ray"),
                    camera=camera.intrinsics,
                    normal=_normal_of(normal, camera) if normal.is_file() else None,
                    extra_files=image_files,
                    notes=_notes(camera, table, listed=scene.name in cameras),
                )


def _notes(camera: SceneCamera, table: Path | None, *, listed: bool) -> tuple[str, ...]:
    if not listed:
        where = f"no {CAMERA_TABLE} was found" if table is None else f"{table.name} does not have all scenes"
        text = f"A camera of 60 degrees was taken, because {where}. Many scenes have another; give --camera-parameters."
        return (text,)
    if camera.is_tilted:
        return ("Images of tilted lenses were read about the axis that is square to them; z is along it.",)
    return ()


def _normal_of(path: Path, camera: SceneCamera) -> Stored:
    part = f"turned by {np.round(camera.rotation, 9).tolist()}" if camera.is_tilted else ""
    return Stored(path, partial(_read_normal, rotation=camera.rotation), part)


def _lone_images(folder: Path, images: Mapping[str, Path], place: str) -> Iterator[Finding]:
    for path in sorted([*images["preview"].glob("frame.*.tonemap.jpg"), *images["hdf5"].glob("frame.*.color.hdf5")]):
        frame = path.name.removesuffix(".tonemap.jpg").removesuffix(".color.hdf5")
        depth = folder / f"{frame}.depth_meters.hdf5"
        if not depth.is_file():
            evidence = f"{path.name} has no {depth.name}"
            yield Finding(f"{place}/{frame}", "paired", "warning", evidence, "Add its partner, or ignore it.")


def _image_of(images: Mapping[str, Path], depth: Path, frame: str) -> tuple[Stored | None, tuple[Path, ...]]:
    preview = images["preview"] / f"{frame}.tonemap.jpg"
    if preview.is_file():
        return Stored(preview), ()
    color = images["hdf5"] / f"{frame}.color.hdf5"
    if not color.is_file():
        return None, ()
    entities = depth.with_name(f"{frame}.render_entity_id.hdf5")
    files = (entities,) if entities.is_file() else ()
    return Stored(color, partial(_read_color, entities=entities if files else None), part="tone-mapped"), files


def _read_color(path: Path, entities: Path | None) -> npt.NDArray[np.uint8]:
    color = read_hdf5(path, _KEY)
    if color.ndim != 3 or color.shape[2] != 3 or color.dtype.kind != "f":
        raise FormatError(path, "must hold colours (H, W, 3)", found=f"{color.dtype} of shape {color.shape}")
    valid = None if entities is None else read_hdf5(entities, _KEY) != -1
    if valid is not None and valid.shape != color.shape[:2]:
        raise FormatError(entities, "must have the size of the image", found=f"shape {valid.shape}")
    return tone_map(color, valid)


def _read_normal(path: Path, rotation: npt.ArrayLike) -> npt.NDArray[np.float32]:
    normal = read_hdf5(path, _KEY)
    if normal.ndim != 3 or normal.shape[2] != 3 or normal.dtype.kind != "f":
        raise FormatError(path, "must hold normals (H, W, 3)", found=f"{normal.dtype} of shape {normal.shape}")
    turn = (np.asarray(rotation) @ np.diag([1, -1, -1])).astype(np.float32)
    known = np.isfinite(normal).all(axis=2, keepdims=True) & (normal != 0).any(axis=2, keepdims=True)
    return np.where(known, normal.astype(np.float32) @ turn.T, np.float32(np.nan))
