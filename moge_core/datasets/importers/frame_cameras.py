"""Cameras of the frames of a folder that do not share one: a file a frame, a file a folder, or a file that names them.

**/*.json            a file a frame, paired like images and depth
**/intrinsics.txt    a file for all images of its folder and of those below, unless one of them has a file of its own
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from moge_core.datasets.importers.intrinsics import CameraFile, parse_intrinsics, read_cameras
from moge_core.datasets.importers.pairing import pair_by_frame
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.errors import DatasetError, InputError, MoGeError

FrameCameras: TypeAlias = dict[PurePosixPath, tuple[PixelIntrinsics | MoGeError | OSError, Path]]
"""The camera of each image, or why its file holds none; and the file."""

_WILDCARDS = frozenset("*?[")


def is_pattern(text: str) -> bool:
    """Whether intrinsics are a pattern of files."""
    return "*" in text or "?" in text


def cameras_like(
    pattern: str,
    source: Path,
    images: Sequence[PurePosixPath],
    *,
    size: tuple[int, int] | None,
    image_pattern: str | None,
    max_time_difference: float,
) -> tuple[FrameCameras, list[str]]:
    """Cameras of the files of a pattern, and notes.

    Args:
        pattern: relative to the source. Where its last part is a plain name, a file is for the images of its folder.
        source: the folder.
        images: relative to it.
        size: (width, height) that all refer to, where the user says so.
        image_pattern: by which the images were chosen; None where they were found.
        max_time_difference: seconds by which the stamps of an image and its file may differ.

    Raises:
        InputError: a pattern that leaves the folder, no files, or files that pair with no image.
    """
    if PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
        fix = "Name the files of one camera each with * in a path below the folder, for example cameras/*.json."
        raise InputError("intrinsics", "must be a pattern relative to the source folder", found=pattern, fix=fix)
    files = [PurePosixPath(path.relative_to(source).as_posix()) for path in sorted(source.glob(pattern))]
    files = [path for path in files if not path.name.startswith(".")]
    if not files:
        fix = "Give --intrinsics fx,fy,cx,cy if these files are not there."
        raise InputError("intrinsics", "must name files of intrinsics", found=f"none like {pattern}", fix=fix)
    if not _WILDCARDS & set(PurePosixPath(pattern).name):
        return _cameras_of_folders(source, images, files, size), []
    try:
        pairing = pair_by_frame(
            images,
            files,
            patterns=None if image_pattern is None else (image_pattern, pattern),
            max_time_difference=max_time_difference,
            options=("--image", "--intrinsics"),
        )
    except DatasetError as error:
        rule = f"files like {pattern} must have the frame tokens of the images, each once"
        raise InputError("intrinsics", rule, found=error.found, fix=error.fix) from error
    cameras: FrameCameras = {}
    for pair in pairing.pairs:
        path = source / pair.depth
        try:
            cameras[pair.image] = (upright(parse_intrinsics(path, size=size), size), path)
        except (MoGeError, OSError) as error:
            cameras[pair.image] = (error, path)
    return cameras, [f"Intrinsics: {note}" for note in pairing.notes]


def cameras_by_name(images: Sequence[PurePosixPath], file: CameraFile, size: tuple[int, int] | None) -> FrameCameras:
    """The camera of each image that a file of several names; one for all where all of its cameras are the same.

    Raises:
        InputError: several cameras that are not named after images.
    """
    found = file.of_frames(images) or dict.fromkeys(images, file.one())
    assert file.path is not None
    return {
        image: (camera if isinstance(camera, MoGeError) else upright(camera, size), file.path)
        for image, camera in found.items()
    }


def upright(camera: PixelIntrinsics, size: tuple[int, int] | None) -> PixelIntrinsics:
    """A camera as frames are read with it: y down, and of the size that the user said."""
    # The scale that a file names was compared; it is no part of how the frames are read.
    return replace(camera, fy=abs(camera.fy), size=size or camera.size, depth_scale=None)


def _cameras_of_folders(
    source: Path, images: Sequence[PurePosixPath], files: Sequence[PurePosixPath], size: tuple[int, int] | None
) -> FrameCameras:
    """Of each image the camera of the nearest file in a folder above it."""
    by_folder = {path.parent: path for path in files}
    images_of: dict[PurePosixPath, list[PurePosixPath]] = defaultdict(list)
    for image in images:
        file = next((by_folder[folder] for folder in image.parents if folder in by_folder), None)
        if file is not None:
            images_of[file].append(image)
    cameras: FrameCameras = {}
    for file, members in images_of.items():
        path = source / file
        try:
            cameras |= cameras_by_name(members, read_cameras(path, size=size), size)
        except (MoGeError, OSError) as error:
            cameras |= dict.fromkeys(members, (error, path))
    return cameras
