"""Files of intrinsics: JSON, YAML, text, arrays and COLMAP's cameras, with one camera, several, or one a frame.

parse_intrinsics("525,525,319.5,239.5")
parse_intrinsics("camera_info.yaml")
parse_intrinsics("realsense.json:color")            one of several
read_cameras("pose_intrinsic_imu.json").of_frame(PurePosixPath("rgb/frame_000010.jpg"))
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from moge_core.datasets.importers.camera_mappings import Cameras, cameras_of
from moge_core.datasets.importers.pinhole import PixelIntrinsics, checked_intrinsics, intrinsics_from_matrix
from moge_core.errors import FormatError, InputError, MoGeError
from moge_core.io import limits
from moge_core.io.files import read_bytes

__all__ = ["CameraFile", "PixelIntrinsics", "intrinsics_from_matrix", "parse_intrinsics", "read_cameras"]

# YAML is read a hundred times slower than JSON, and holds no more than a rig.
_MAX_YAML_BYTES = 1 << 24
# Text of numbers is a matrix.
_MAX_TEXT_BYTES = 1 << 20
# A file whose names are those of fewer of the images is of something else.
_LEAST_SHARE_OF_FRAMES = 0.5
_MOST_NAMES_TOLD = 8
_COLMAP_NAMES = frozenset({"cameras.txt", "cameras.bin"})


@dataclass(frozen=True)
class CameraFile:
    """The cameras of a file.

    Attributes:
        path: the file; None for numbers that were given themselves.
        cameras: by name.
    """

    path: Path | None
    cameras: Cameras

    def one(self) -> PixelIntrinsics:
        """The only camera of the file, or the one that all of its entries repeat.

        Raises:
            InputError: several cameras.
            MoGeError: why there is none.
        """
        first, *others = self.cameras.values()
        if any(other != first for other in others):
            raise InputError(
                "intrinsics",
                "must name one of the cameras of a file with several",
                found=f"{_listed(self.cameras)} in {self.path}",
                fix=f"Add its name: --intrinsics {_typed(self.path, self.cameras)}",
            )
        if isinstance(first, MoGeError):
            raise first
        return first

    def of_frames(self, images: Sequence[PurePosixPath]) -> dict[PurePosixPath, PixelIntrinsics | MoGeError] | None:
        """The camera of each image that the file names, by the image or by its folder; None where it names none."""
        if len(self.cameras) < 2:
            return None
        by_name: dict[object, PixelIntrinsics | MoGeError] = {}
        for name, camera in self.cameras.items():
            for key in frame_keys(PurePosixPath(name.replace("\\", "/"))):
                if by_name.setdefault(key, camera) != camera:
                    # A name that two cameras have names none of them.
                    rule = "must have one camera for each image"
                    by_name[key] = InputError(self.path, rule, found=f"several for {key}")
        found: dict[PurePosixPath, PixelIntrinsics | MoGeError] = {}
        for image in images:
            key = next((key for key in frame_keys(image) if key in by_name), None)
            if key is not None:
                found[image] = by_name[key]
        enough = max(1, math.ceil(len(images) * _LEAST_SHARE_OF_FRAMES))
        return found if len(found) >= enough else self._of_folders(images)

    def _of_folders(self, images: Sequence[PurePosixPath]) -> dict[PurePosixPath, PixelIntrinsics | MoGeError] | None:
        """The camera of each image of a rig with a folder a camera; None where it is not so for all of them."""
        names = {image: set(self.cameras).intersection(image.parent.parts) for image in images}
        # One folder alone may be called so for what it holds, as color beside depth.
        if any(len(found) != 1 for found in names.values()) or len(set().union(*names.values())) < 2:
            return None
        return {image: self.cameras[found.pop()] for image, found in names.items()}


def parse_intrinsics(
    source: str | Path, *, search_dir: Path | None = None, size: tuple[int, int] | None = None
) -> PixelIntrinsics:
    """One camera, of four numbers or of a file; see `read_cameras`.

    Raises:
        InputError: neither four numbers nor a file, or a file with several cameras of which none is named.
        FormatError: the file holds no camera matrix, or skew.
    """
    return read_cameras(source, search_dir=search_dir, size=size).one()


def read_cameras(
    source: str | Path, *, search_dir: Path | None = None, size: tuple[int, int] | None = None
) -> CameraFile:
    """Read `fx,fy,cx,cy`, or a file that holds cameras, or one camera of it, `FILE:NAME`.

    Files: JSON and YAML (OpenCV's, ROS', Kalibr's, ORB-SLAM's) with focal lengths and principal point by any of their
    usual names, or with a matrix, row by row or column by column, at any depth; nerfstudio's and Instant-NGP's
    transforms.json; a text file with a 3x3, 3x4 or 4x4 matrix or the four numbers (ARKitScenes' .pincam has the size
    before them); NPY and NPZ with a matrix; COLMAP's cameras.txt and cameras.bin, whose images.* beside say which
    image has which camera.

    Args:
        source: four numbers separated by commas or blanks, or a path, with `:NAME` for one of several cameras.
        search_dir: second place to look for a relative path.
        size: (width, height) of the picture that the numbers refer to, where the user says it.

    Raises:
        InputError: neither four numbers nor a file, or no camera of this name.
        FormatError: the file holds no camera.
    """
    numbers = _numbers(str(source))
    if numbers is not None:
        if len(numbers) != 4:
            fix = "Write decimals with a point." if len(numbers) > 4 else None
            raise InputError("intrinsics", "must be the four numbers fx,fy,cx,cy or a file", found=str(source), fix=fix)
        return CameraFile(None, {"": checked_intrinsics(numbers, "intrinsics")})
    path, name = _place(str(source), search_dir)
    cameras = _read(path, size)
    if not cameras:
        raise FormatError(
            path,
            "must hold fx, fy, cx, cy or a camera matrix, by one of their usual names",
            found="none of them",
            fix="Give the four numbers instead: --intrinsics fx,fy,cx,cy.",
        )
    if name is None:
        return CameraFile(path, cameras)
    chosen = [key for key in cameras if name in {key, PurePosixPath(key).name, key.partition("/")[0]}]
    chosen = [name] if name in cameras else chosen
    if len(chosen) != 1:
        fix = f"Give one of them: --intrinsics {_typed(path, cameras)}"
        raise InputError("intrinsics", f"must name a camera of {path}", found=f"{name!r}; {_listed(cameras)}", fix=fix)
    return CameraFile(path, {name: cameras[chosen[0]]})


def _place(source: str, search_dir: Path | None) -> tuple[Path, str | None]:
    """The file, and the name of the camera behind a colon. A whole name that is a file goes first."""
    spoken, _, camera = source.rpartition(":")
    named: list[tuple[str, str | None]] = [(source, None), *([(spoken, camera)] if spoken else [])]
    for text, name in named:
        for place in (Path(text), *([search_dir / text] if search_dir is not None else [])):
            if place.is_file():
                return place, name
    places = [Path(source), *([search_dir / source] if search_dir is not None else [])]
    looked = " and ".join(str(place.absolute()) for place in places)
    raise InputError("intrinsics", "must be the four numbers fx,fy,cx,cy or a file", found=f"no file at {looked}")


def _read(path: Path, size: tuple[int, int] | None) -> Cameras:
    suffix = path.suffix.lower()
    if suffix in {".npy", ".npz"}:
        return cameras_of(_arrays(path), path, size)
    if path.name in _COLMAP_NAMES:
        cameras = _colmap(path)
        if cameras:
            return cameras
    num_bytes = path.stat().st_size
    if suffix in {".yaml", ".yml"}:
        if num_bytes > _MAX_YAML_BYTES:
            raise FormatError(path, f"a YAML file of intrinsics is smaller than {_MAX_YAML_BYTES >> 20} MiB")
        return cameras_of(_yaml(_text(path), path), path, size)
    with path.open("rb") as file:
        head = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith((b"{", b"[")):
        return _json_cameras(path, size)
    if num_bytes > _MAX_TEXT_BYTES:
        raise FormatError(path, f"a text file of intrinsics is smaller than {_MAX_TEXT_BYTES >> 20} MiB")
    if head.startswith(b"<"):
        raise FormatError(
            path, "must be JSON, YAML, text or an array with intrinsics", found="XML", fix="Export it as YAML or JSON."
        )
    return _text_cameras(_text(path), path, size)


def _text(path: Path) -> str:
    try:
        return read_bytes(path, limit=limits.MAX_FILE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(path, "must be a text or JSON file with intrinsics", found=error) from error


def _json_cameras(path: Path, size: tuple[int, int] | None) -> Cameras:
    text = _text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        # Numbers in brackets, as NumPy prints a matrix, are no JSON.
        if _numbers(text) is not None:
            return _text_cameras(text, path, size)
        raise FormatError(path, "must be JSON", found=error) from error
    if isinstance(content, list) and not any(isinstance(item, Mapping) for item in content):
        return {"": intrinsics_from_matrix(content, path)}
    cameras = cameras_of(content, path, size or _size_of_first_frame(content, path))
    if not cameras and isinstance(content, Mapping):
        raise FormatError(
            path,
            "must hold fx, fy, cx, cy or a matrix under one of intrinsic_matrix, camera_matrix, intrinsics, K",
            found="the keys " + ", ".join(sorted(content)[:10]) if content else "no keys",
            fix="Give the four numbers instead: --intrinsics fx,fy,cx,cy.",
        )
    return cameras


def _size_of_first_frame(content: Any, path: Path) -> tuple[int, int] | None:
    """Size of the first image that a transforms.json names, whose field of view is all that it tells of the camera."""
    from moge_core.io import read_image_size

    frames = content.get("frames") if isinstance(content, Mapping) and "camera_angle_x" in content else None
    first = frames[0].get("file_path") if isinstance(frames, list) and frames and isinstance(frames[0], Mapping) else ""
    for suffix in ("", ".png", ".jpg") if isinstance(first, str) and first else ():
        place = path.parent / f"{first}{suffix}"
        if place.is_file():
            return read_image_size(place)
    return None


def _yaml(text: str, path: Path) -> Any:
    """The first document of a YAML file; OpenCV's has a heading and tags of its own."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        """Safe, and takes OpenCV's matrices as the mappings that they are written as."""

    Loader.add_constructor("tag:yaml.org,2002:opencv-matrix", lambda loader, node: loader.construct_mapping(node, True))
    try:
        return next(yaml.load_all(re.sub(r"^%YAML.*$", "", text, count=1, flags=re.MULTILINE), Loader), None)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise FormatError(path, "must be YAML", found=" ".join(str(error).split())[:120]) from error


def _text_cameras(text: str, path: Path, size: tuple[int, int] | None) -> Cameras:
    without_comments = "\n".join(line.partition("#")[0] for line in text.splitlines())
    numbers = _numbers(without_comments)
    if numbers is not None and len(numbers) == 4:
        return {"": checked_intrinsics(numbers, path)}
    if numbers is not None and len(numbers) == 6 and min(numbers[:2]) >= 1 and path.suffix == ".pincam":
        return {"": replace(checked_intrinsics(numbers[2:], path), size=(round(numbers[0]), round(numbers[1])))}
    if numbers is not None and len(numbers) in {9, 12, 16}:
        rows = 3 if len(numbers) < 16 else 4
        return {"": intrinsics_from_matrix(np.array(numbers).reshape(rows, -1)[:3, :3], path)}
    if numbers is None and re.search(r"^\s*\w[\w. ]*[:=]", without_comments, re.MULTILINE):
        # `fx: 525` and `fx = 525`, line by line.
        lines = re.sub(r"^(\s*\w[\w.]*)\s*[:=]\s*", r"\1: ", without_comments, flags=re.MULTILINE)
        cameras = cameras_of(_yaml(lines, path), path, size)
        if cameras:
            return cameras
    found = "other text" if numbers is None else f"{len(numbers)} numbers"
    raise FormatError(path, "must hold a 3x3 or 4x4 camera matrix or fx fy cx cy", found=found)


def _arrays(path: Path) -> Mapping[str, Any]:
    from moge_core.datasets.importers.arrays import npz_shapes, read_npy, read_npz

    if path.suffix.lower() == ".npy":
        return {"K": read_npy(path).tolist()}
    shapes = npz_shapes(path)
    content = {name: read_npz(path, name).tolist() for name, shape in shapes.items() if math.prod(shape) <= 64}
    # One array of any name is the matrix.
    return {"K": next(iter(content.values()))} if len(content) == 1 else content


def _colmap(path: Path) -> Cameras:
    """COLMAP's cameras by the names of their images, or by their numbers where no images are beside."""
    from moge_core.datasets.importers.colmap_model import model_file, read_images
    from moge_core.datasets.importers.colmap_model import read_cameras as read_model

    try:
        by_id = read_model(path)
    except FormatError:
        if path.suffix == ".txt":
            return {}
        raise
    found: dict[int, PixelIntrinsics | MoGeError] = {}
    for number, camera in by_id.items():
        try:
            found[number] = camera.in_pixels(f"{path}: camera {number}")
        except MoGeError as error:
            found[number] = error
    images = model_file(path.parent, "images")
    if len(found) < 2 or images is None:
        return {f"camera{number}": camera for number, camera in found.items()}
    return {image.name: found[image.camera_id] for image in read_images(images) if image.camera_id in found}


def frame_keys(path: PurePosixPath) -> list[object]:
    """By what an image is known in files of cameras and poses, the surest first: its path, its name, and its number."""
    # Decimals of a time stamp are no suffix.
    stem = path.name if path.suffix.removeprefix(".").isdecimal() else path.stem
    keys: list[object] = [path.as_posix(), (path.parent / stem).as_posix(), path.name, stem]
    return list(dict.fromkeys([*keys, int(stem)] if stem.isdecimal() else keys))


def _typed(path: Path | None, cameras: Cameras) -> str:
    """What to type for the camera that is most probably meant."""
    likely = [name for name in cameras if re.search("col|rgb|left", name, re.IGNORECASE)]
    return shlex.quote(f"{path}:{next(iter([*likely, *cameras]))}")


def _listed(cameras: Cameras) -> str:
    names = [name or "(the first)" for name in cameras]
    more = f" and {len(names) - _MOST_NAMES_TOLD} more" if len(names) > _MOST_NAMES_TOLD else ""
    return f"{len(names)} cameras, {', '.join(names[:_MOST_NAMES_TOLD])}{more}"


def _numbers(text: str) -> list[float] | None:
    parts = [part for part in re.split(r"[\s,;\[\]]+", text.strip()) if part]
    try:
        return [float(part) for part in parts] or None
    except ValueError:
        return None
