"""COLMAP's sparse model on disk: cameras, images with poses, points. Binary and text.

The files are those of https://colmap.github.io/format.html. Counts are compared with the size of the file before
anything is allocated for them, and what an image sees is left in the file until it is asked for.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.distortion import distortion_of
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.errors import FormatError, MoGeError

# Number and parameters of each camera model, in COLMAP's order.
_MODELS = (
    ("SIMPLE_PINHOLE", 3),
    ("PINHOLE", 4),
    ("SIMPLE_RADIAL", 4),
    ("RADIAL", 5),
    ("OPENCV", 8),
    ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12),
    ("FOV", 5),
    ("SIMPLE_RADIAL_FISHEYE", 4),
    ("RADIAL_FISHEYE", 5),
    ("THIN_PRISM_FISHEYE", 12),
    ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    ("SIMPLE_DIVISION", 4),
    ("DIVISION", 5),
    ("SIMPLE_FISHEYE", 3),
    ("FISHEYE", 4),
    ("EUCM", 6),
    ("EQUIRECTANGULAR", 2),
)
_ONE_FOCAL_LENGTH = frozenset(
    {"SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "SIMPLE_FISHEYE"}
    | {"SIMPLE_DIVISION", "DIVISION"}
)
_MAX_NAME_BYTES = 4096
_MAX_LINE_BYTES = 1 << 28

_Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ModelCamera:
    """A camera as the model has it."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]

    def in_pixels(self, where: object) -> PixelIntrinsics:
        """The camera in pixels, with its distortion.

        COLMAP counts from the corner of the image, where the centre of the first pixel is (0.5, 0.5); here that is
        (0, 0). Its models with radial, tangential and fisheye distortion are OpenCV's, with fewer numbers.

        Raises:
            FormatError: impossible numbers.
        """
        num_focals = 1 if self.model in _ONE_FOCAL_LENGTH else 2
        focals, centre, others = self.params[:num_focals], self.params[num_focals:][:2], self.params[num_focals + 2 :]
        numbers = (focals[0], focals[-1], *centre) if focals else ()
        if len(numbers) != 4 or not all(map(math.isfinite, self.params)) or min(numbers[:2]) <= 0:
            raise FormatError(where, "must have finite intrinsics with positive focal lengths", found=self.params)
        if min(self.width, self.height) < 1:
            raise FormatError(where, "must have a size in pixels", found=f"{self.width}x{self.height}")
        if self.model in {"PINHOLE", "SIMPLE_PINHOLE"}:
            distortion = None
        else:
            distortion, _ = distortion_of([self.model], {}, others, where)
        fx, fy, cx, cy = numbers
        return PixelIntrinsics(fx, fy, cx - 0.5, cy - 0.5, (self.width, self.height), distortion=distortion)


@dataclass(frozen=True)
class ModelImage:
    """A registered image: name relative to the folder of images, pose, and where its points stand in the file."""

    name: str
    camera_id: int
    rotation: _Floats
    translation: _Floats
    points_at: int
    points_bytes: int


@dataclass(frozen=True)
class ModelPoints:
    """The points of a model: ids (N,), rising, and world coordinates (N, 3)."""

    ids: npt.NDArray[np.uint64]
    xyz: _Floats


def model_file(folder: Path, name: str) -> Path | None:
    """`cameras`, `images` or `points3D` of a model; binary where there are both, as COLMAP prefers it."""
    return next((path for suffix in (".bin", ".txt") if (path := folder / f"{name}{suffix}").is_file()), None)


def read_cameras(path: Path) -> dict[int, ModelCamera]:
    """Cameras by id, of `cameras.bin` or `cameras.txt`.

    Raises:
        FormatError: truncated, damaged, or a camera model that is not known.
    """
    return dict(_cameras_text(path) if path.suffix == ".txt" else _cameras_binary(path))


def read_images(path: Path) -> Iterator[ModelImage]:
    """The registered images of `images.bin` or `images.txt`, one after the other.

    Raises:
        FormatError: truncated or damaged.
    """
    return _images_text(path) if path.suffix == ".txt" else _images_binary(path)


def read_points(path: Path) -> ModelPoints:
    """The points of `points3D.bin` or `points3D.txt`.

    Raises:
        FormatError: truncated or damaged.
    """
    rows = list(_points_text(path)) if path.suffix == ".txt" else None
    if rows is None:
        ids, xyz = _points_binary(path)
    else:
        ids = np.array([row[0] for row in rows], np.uint64)
        xyz = np.array([row[1] for row in rows], np.float64).reshape(-1, 3)
    order = np.argsort(ids, kind="stable")
    return ModelPoints(ids[order], xyz[order])


def points_in_camera(path: Path, image: ModelImage, points: ModelPoints) -> _Floats:
    """The points (N, 3) that an image sees, in its camera's axes (x right, y down, z forward).

    Args:
        path: `images.bin` or `images.txt`.
        image: of that file.
        points: of the same model.

    Raises:
        FormatError: the file was changed meanwhile, or is damaged.
    """
    with path.open("rb") as file:
        file.seek(image.points_at)
        data = file.read(image.points_bytes)
    if len(data) < image.points_bytes:
        raise FormatError(path, "must not be truncated", found=f"an end within the points of {image.name}")
    if path.suffix == ".txt":
        words = data.split()
        try:
            ids = np.array([word for word in words[2::3] if word != b"-1"], np.uint64)
        except (ValueError, OverflowError) as error:
            raise FormatError(path, "must have points as x, y and id", found=error) from error
    else:
        ids = np.frombuffer(data, np.dtype([("x", "<f8"), ("y", "<f8"), ("id", "<u8")]))["id"]
    # Keypoints without a point have the id -1, which no point has.
    at = np.minimum(np.searchsorted(points.ids, ids), max(len(points.ids) - 1, 0))
    seen = np.unique(at[points.ids[at] == ids]) if len(points.ids) else at[:0].astype(np.int64)
    in_camera: _Floats = points.xyz[seen] @ image.rotation.T + image.translation
    return in_camera


class _Cursor:
    """Numbers out of a file, checked against its end."""

    def __init__(self, data: Any, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def take(self, layout: str) -> tuple[Any, ...]:
        size = struct.calcsize(layout)
        self.skip(size)
        return struct.unpack_from(layout, self.data, self.at - size)

    def skip(self, num_bytes: int) -> None:
        if num_bytes > len(self.data) - self.at:
            raise FormatError(self.path, "must not be truncated", found=f"an end after {len(self.data):,} bytes")
        self.at += num_bytes

    def count(self, least_bytes: int) -> int:
        """A number of entries, of which each takes at least so many bytes."""
        (number,) = self.take("<Q")
        if number * least_bytes > len(self.data) - self.at:
            found = f"{number:,} entries announced in {len(self.data):,} bytes"
            raise FormatError(self.path, "must not be truncated", found=found)
        return int(number)

    def name(self) -> str:
        end = self.data.find(b"\0", self.at, self.at + _MAX_NAME_BYTES)
        if end < 0:
            raise FormatError(self.path, "must have names that end", found=f"none from byte {self.at:,} on")
        name: bytes = self.data[self.at : end]
        self.at = end + 1
        return name.decode("utf-8", "surrogateescape")


@contextmanager
def _cursor(path: Path) -> Iterator[_Cursor]:
    # Mapped, because files of images are as large as all keypoints together.
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise FormatError(path, "must not be empty", found="0 bytes")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield _Cursor(data, path)


def _cameras_binary(path: Path) -> Iterator[tuple[int, ModelCamera]]:
    with _cursor(path) as cursor:
        for _ in range(cursor.count(24)):
            camera_id, model_id, width, height = cursor.take("<IiQQ")
            if not 0 <= model_id < len(_MODELS):
                raise FormatError(path, "must have camera models that are known", found=f"model number {model_id}")
            model, num_params = _MODELS[model_id]
            yield camera_id, ModelCamera(model, width, height, cursor.take(f"<{num_params}d"))


def _cameras_text(path: Path) -> Iterator[tuple[int, ModelCamera]]:
    for line in _lines(path):
        words = line.text.split()
        if not words:
            continue
        try:
            camera_id, width, height = int(words[0]), int(words[2]), int(words[3])
            yield camera_id, ModelCamera(words[1], width, height, tuple(float(word) for word in words[4:]))
        except (ValueError, IndexError) as error:
            raise _bad_line(path, line, "CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS") from error


def _images_binary(path: Path) -> Iterator[ModelImage]:
    with _cursor(path) as cursor:
        for _ in range(cursor.count(73)):
            _, *pose, camera_id = cursor.take("<I7dI")
            name = cursor.name()
            size = 24 * cursor.count(24)
            start = cursor.at
            cursor.skip(size)
            yield ModelImage(name, camera_id, *_pose(pose, path, name), start, size)


def _images_text(path: Path) -> Iterator[ModelImage]:
    lines = _lines(path)
    for line in lines:
        if not line.text.strip():
            continue
        words = line.text.rstrip("\r\n").split(maxsplit=9)
        try:
            _, *pose, camera_id = int(words[0]), *map(float, words[1:8]), int(words[8])
            name = words[9]
        except (ValueError, IndexError) as error:
            raise _bad_line(path, line, "IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME") from error
        # The second line of an image is empty where it has no keypoints, and may be missing at the end.
        points = next(lines, _Line(0, 0, 0, ""))
        if not _are_keypoints(points.text):
            raise FormatError(
                f"{path}, line {points.number}",
                f"must hold the keypoints of {name}, X, Y, POINT3D_ID each; every image has two lines",
                found=repr(points.text.rstrip()[:80]),
                fix="Write an empty second line for images without keypoints, or export the model anew.",
            )
        yield ModelImage(name, camera_id, *_pose(pose, path, name), points.start, points.size)


def _are_keypoints(text: str) -> bool:
    """Whether a line holds triples of numbers; of a long one, its first five are looked at."""
    words = text.split(maxsplit=15)[:15]
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return False
    return len(numbers) % 3 == 0


def _points_binary(path: Path) -> tuple[npt.NDArray[np.uint64], _Floats]:
    with _cursor(path) as cursor:
        count = cursor.count(51)
        ids, xyz = np.empty(count, np.uint64), np.empty((count, 3))
        for i in range(count):
            ids[i], *xyz[i] = cursor.take("<Q3d")
            cursor.skip(11)  # colour and error
            cursor.skip(8 * cursor.count(8))
    return ids, xyz


def _points_text(path: Path) -> Iterator[tuple[int, list[float]]]:
    for line in _lines(path):
        words = line.text.split(maxsplit=4)
        if not words:
            continue
        try:
            point_id, position = int(words[0]), [float(word) for word in words[1:4]]
        except ValueError as error:
            raise _bad_line(path, line, "POINT3D_ID, X, Y, Z, ...") from error
        if len(position) != 3 or not 0 <= point_id < 1 << 63:
            raise _bad_line(path, line, "POINT3D_ID, X, Y, Z, ...")
        yield point_id, position


class _Line(NamedTuple):
    """A line by its number from 1 on, its first byte, its bytes and its text."""

    number: int
    start: int
    size: int
    text: str


def _lines(path: Path) -> Iterator[_Line]:
    """Every line that is no comment."""
    with path.open("rb") as file:
        start = number = 0
        while data := file.readline(_MAX_LINE_BYTES):
            if len(data) == _MAX_LINE_BYTES:
                raise FormatError(path, f"a line must have fewer than {_MAX_LINE_BYTES:,} bytes", found="more")
            number += 1
            if not data.startswith(b"#"):
                yield _Line(number, start, len(data), data.decode("utf-8", "surrogateescape"))
            start += len(data)


def _pose(numbers: list[float], path: Path, name: str) -> tuple[_Floats, _Floats]:
    quaternion, translation = np.array(numbers[:4]), np.array(numbers[4:])
    length = np.linalg.norm(quaternion)
    if not (np.isfinite(numbers).all() and length > 0):
        raise FormatError(path, "must have poses of finite numbers", found=f"{numbers} for {name}")
    w, x, y, z = quaternion / length
    rotation = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rotation), translation


def _bad_line(path: Path, line: _Line, wanted: str) -> MoGeError:
    where = f"{path}, line {line.number}"
    return FormatError(where, f"must have lines of {wanted}", found=repr(line.text.rstrip()[:80]))
