"""COLMAP: photographs with depth from their own reconstruction.

    report = import_colmap("dense", "data/garden")
    report = import_colmap("sparse_only", "data/garden", sparse_points=True)

    source/                                        a dense workspace, as `colmap image_undistorter` makes it, or a
    │                                              folder with such a workspace in dense/, dense/0/, dense/1/, ...
    ├── images/NAME                                undistorted; NAME may have folders
    ├── sparse/{cameras,images,points3D}.{bin,txt} or sparse/0/, sparse/1/, ...
    └── stereo/depth_maps/NAME.geometric.bin       z, 0 unknown; else NAME.photometric.bin

A depth map is the text `width&height&channels&` and then float32, row by row. A reconstruction from photographs has no
scale: the entry for a training configuration has no `depth_unit`. COLMAP's principal point counts from the corner of
the image and is moved by half a pixel.

COLMAP makes depth maps of undistorted pictures only. Where the model beside them has cameras with distortion, the
pictures are undistorted as COLMAP does it, see `colmap_undistortion`; with sparse points alone, as other pictures are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Literal, TypeAlias, Unpack

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.calls import repeatable
from moge_core.datasets.importers.colmap_model import (
    ModelCamera,
    ModelImage,
    ModelPoints,
    model_file,
    points_in_camera,
    read_cameras,
    read_images,
    read_points,
)
from moge_core.datasets.importers.colmap_undistortion import undistorted_frame
from moge_core.datasets.importers.records import (
    ImportOptions,
    ImportSettings,
    Record,
    Stored,
    StoredDepth,
    StoredPoints,
    finding_of,
)
from moge_core.datasets.importers.undistortion import check_obeyed
from moge_core.datasets.importers.writing import ImportReport, check_folders, run_import
from moge_core.datasets.layout import Finding, Progress
from moge_core.errors import DatasetError, FormatError, InputError, MoGeError
from moge_core.io import limits

IMPORTER = "colmap"
DepthType: TypeAlias = Literal["auto", "geometric", "photometric"]

_HEADER = re.compile(rb"(\d{1,9})&(\d{1,9})&(\d{1,9})&")


@repeatable(IMPORTER)
def import_colmap(
    source: str | Path,
    out_dir: str | Path,
    *,
    depth_type: DepthType = "auto",
    sparse_points: bool = False,
    progress: Progress | None = None,
    **options: Unpack[ImportOptions],
) -> ImportReport:
    """Turn a COLMAP workspace into a dataset, or bring one made earlier up to date. See the module for the layout.

    Args:
        source: the workspace.
        out_dir: the dataset to make or add to.
        depth_type: the maps that agree with those of other images (`geometric`), those before that was checked
            (`photometric`), or geometric where there are such (`auto`).
        sparse_points: give images without a depth map the points of the sparse model that they see.
        name_prefix, label_type, resolution: see `ImportSettings`.
        max_depth: depth beyond this, in the units of the reconstruction, becomes unknown.
        progress: called as `progress(done, total)`.

    Raises:
        DatasetError: no such folder, no model in it, or no image that could be imported.
        FormatError: a damaged model.
        InputError: an option outside its domain.
    """
    source, out = check_folders(source, out_dir)
    if depth_type not in {"auto", "geometric", "photometric"}:
        raise InputError("depth_type", "must be auto, geometric or photometric", found=repr(depth_type))
    settings = ImportSettings.of(options)
    how = {"depth_type": depth_type, "sparse_points": sparse_points}
    kinds = ("geometric", "photometric") if depth_type == "auto" else (depth_type,)
    workspaces = [source] if sparse_points else _workspaces(source)
    notes = []
    if workspaces != [source]:
        names = ", ".join(path.relative_to(source).as_posix() for path in workspaces)
        notes = [f"The depth maps and their undistorted pictures are in {names}; nothing else was read."]
    reading = _Reading(kinds, sparse_points, settings)
    records = (record for workspace in workspaces for record in _records(workspace, out, reading))
    return run_import(IMPORTER, source, out, records, settings, options=how, notes=notes, progress=progress)


def read_depth_map(path: str | Path) -> npt.NDArray[np.float32]:
    """Depth (H, W) of a COLMAP depth map; 0 unknown.

    Raises:
        FormatError: no such file, several channels, or truncated.
        ImageTooLargeError: more pixels than `limits.MAX_IMAGE_PIXELS`.
    """
    path = Path(path)
    with path.open("rb") as file:
        (width, height), start = _depth_header(file, path)
        expected, there = 4 * width * height, path.stat().st_size - start
        if there < expected:
            raise FormatError(path, "must not be truncated", found=f"{there:,} bytes for {width}x{height} pixels")
        file.seek(start)
        return np.frombuffer(file.read(expected), "<f4").reshape(height, width).astype(np.float32)


def _depth_header(file: IO[bytes], path: Path) -> tuple[tuple[int, int], int]:
    """(width, height) of a depth map, and where its values begin."""
    match = _HEADER.match(file.read(64))
    if match is None or int(match[3]) != 1:
        found = "another header" if match is None else f"{int(match[3])} channels"
        raise FormatError(path, "must begin with width&height&1&", found=found)
    width, height = int(match[1]), int(match[2])
    limits.check_pixel_count(str(path), width, height)
    return (width, height), match.end()


@dataclass(frozen=True)
class _Reading:
    """How every workspace is read."""

    kinds: tuple[str, ...]
    sparse_points: bool
    settings: ImportSettings


def _workspaces(source: Path) -> list[Path]:
    """The source, or the workspaces in it that have the depth maps, as COLMAP's automatic reconstruction puts them."""
    if (source / "stereo" / "depth_maps").is_dir():
        return [source]
    numbered = sorted(
        (path for path in (source / "dense").glob("*") if path.name.isdecimal()), key=lambda path: int(path.name)
    )
    inner = [path for path in (source / "dense", *numbered) if (path / "stereo" / "depth_maps").is_dir()]
    return inner or [source]


def _records(source: Path, out: Path, reading: _Reading) -> Iterator[Record | Finding]:
    named: set[str] = set()
    for model in _models(source):
        cameras_path, images_path = model_file(model, "cameras"), model_file(model, "images")
        if cameras_path is None or images_path is None:
            raise DatasetError(model, "must hold cameras and images, .bin or .txt", found="only one of them")
        points_path = model_file(model, "points3D")
        cameras = read_cameras(cameras_path)
        points = read_points(points_path) if reading.sparse_points and points_path is not None else None
        for image in read_images(images_path):
            named.add(image.name)
            problem = _problem(source, image, cameras)
            depth = None if problem else _depth_of(source, images_path, image, reading.kinds, points)
            if problem is not None:
                yield problem
            elif depth is None:
                kind = " or ".join(f"{image.name}.{kind}.bin" for kind in reading.kinds)
                fix = "Run `colmap patch_match_stereo`, or take the sparse points with --sparse-points."
                yield Finding(image.name, "paired", "error", f"there is no stereo/depth_maps/{kind}", fix)
            else:
                name = PurePosixPath(image.name).with_suffix("").as_posix()
                camera = cameras[image.camera_id].in_pixels(cameras_path)
                picture = Stored(source / "images" / image.name)
                files: tuple[Path, ...] = ()
                notes: tuple[str, ...] = ()
                try:
                    check_obeyed(camera.distortion, f"camera {image.camera_id}", reading.settings)
                    if isinstance(depth, StoredPoints):
                        notes = ("Images without a depth map have the sparse points that they see.",)
                        files = (points_path,) if points_path else ()
                    elif camera.distortion is not None and reading.settings.distortion == "undistort":
                        with depth.path.open("rb") as file:
                            depth_size, _ = _depth_header(file, depth.path)
                        picture, camera, note = undistorted_frame(picture.path, camera, depth_size)
                        files, notes = (cameras_path,), (note,)
                except (MoGeError, OSError) as error:
                    yield finding_of(name, error)
                    continue
                yield Record(
                    name,
                    picture,
                    depth,
                    camera,
                    depth_unit=None,
                    # COLMAP passes EXIF orientations by, and copies them to the undistorted pictures.
                    orientation="stored",
                    extra_files=files,
                    notes=notes,
                )
    yield from _unregistered(source / "images", named, out)


def _models(source: Path) -> list[Path]:
    sparse = source / "sparse"
    if model_file(sparse, "images") is not None:
        return [sparse]
    models = sorted((path for path in sparse.glob("*") if path.name.isdecimal()), key=lambda path: int(path.name))
    models = [path for path in models if model_file(path, "images") is not None]
    if not models:
        found = "no images.bin or images.txt"
        raise DatasetError(source, "must hold a COLMAP model in sparse/ or sparse/0/", found=found)
    return models


def _problem(source: Path, image: ModelImage, cameras: dict[int, ModelCamera]) -> Finding | None:
    path = PurePosixPath(image.name)
    if "\\" in image.name:
        fix = "Export the model on the machine that the images are on, or replace them by / in images.txt."
        return Finding(repr(image.name), "listable-path", "error", "its folders are separated by backslashes", fix)
    if path.is_absolute() or ".." in path.parts or not path.name:
        return Finding(repr(image.name), "listable-path", "error", "its name leaves the images", "Rename the image.")
    if not (source / "images" / path).is_file():
        return Finding(image.name, "paired", "error", f"there is no images/{image.name}", "Add it, or ignore it.")
    camera = cameras.get(image.camera_id)
    if camera is None:
        return Finding(
            image.name, "pinhole", "error", f"camera {image.camera_id} is not in the model", "Export it anew."
        )
    try:
        camera.in_pixels(f"camera {image.camera_id}")
    except FormatError as error:
        fix = error.fix or "Export the model anew."
        return Finding(image.name, "pinhole", "error", f"{error.where}: {error.rule}; found {error.found}", fix)
    return None


def _depth_of(
    source: Path, images_path: Path, image: ModelImage, kinds: tuple[str, ...], points: ModelPoints | None
) -> StoredDepth | StoredPoints | None:
    for kind in kinds:
        path = source / "stereo" / "depth_maps" / f"{image.name}.{kind}.bin"
        if path.is_file():
            return StoredDepth(path, read_depth_map)
    if points is None:
        return None
    read = partial(points_in_camera, image=image, points=points)
    # Every one of them was seen by this image, so none is hidden from it.
    return StoredPoints(images_path, read, part=image.name, drop_hidden=False)


def _unregistered(folder: Path, named: set[str], out: Path) -> Iterator[Finding]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in named and not path.is_relative_to(out):
            evidence = "the reconstruction has no camera for it"
            yield Finding(f"images/{name}", "paired", "warning", evidence, "Register it, or ignore it.")
