"""Cameras in the mappings of JSON and YAML files, by all the names that people give to the same few numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from moge_core.datasets.importers.distortion_mappings import COEFFICIENT_LISTS, distortion_in, says_of_lens
from moge_core.datasets.importers.mapping_values import as_floats, as_number, as_pair, plain_keys, plain_name
from moge_core.datasets.importers.pinhole import PixelIntrinsics, checked_intrinsics, intrinsics_from_matrix
from moge_core.datasets.importers.usual_mistakes import decimal_comma
from moge_core.errors import FormatError, InputError, MoGeError

Cameras: TypeAlias = dict[str, PixelIntrinsics | MoGeError]
"""Cameras by their names, or why there is none; a file's only camera has an empty name where it stands at the top."""

# Names are compared without case and punctuation.
_MATRIX = (
    "intrinsicmatrix",
    "cameramatrix",
    "intrinsics",
    "intrinsic",
    "k",
    "camk",
    "cameraintrinsics",
    "cameraintrinsic",
    "intrinsicsmatrix",
    "kmatrix",
    "cammatrix",
    "mtx",
)
_FOCAL_X = ("fx", "flx", "focalx", "focallengthx", "fu")
_FOCAL_Y = ("fy", "fly", "focaly", "focallengthy", "fv")
_FOCAL = ("f", "fl", "focal", "focallength", "focallengthpx", "focallengthpixels")
_CENTRE_X = ("cx", "ppx", "principalpointx", "centerx", "cu", "u0")
_CENTRE_Y = ("cy", "ppy", "principalpointy", "centery", "cv", "v0")
_CENTRE = ("principalpoint", "center", "opticalcenter", "c", "pp")
_WIDTH = ("width", "w", "imagewidth", "imgwidth", "resolutionwidth", "resx")
_HEIGHT = ("height", "h", "imageheight", "imgheight", "resolutionheight", "resy")
_SIZE = ("resolution", "imagesize", "imgsize", "size", "imageresolution", "renderproductresolution")
_ANGLE_X = ("cameraanglex", "fovx", "hfov", "horizontalfov", "xfov")
_ANGLE_Y = ("cameraangley", "fovy", "vfov", "verticalfov", "yfov")
# Omniverse Replicator's camera_params, in millimetres or other units alike.
_APERTURE = ("camerafocallength", "cameraaperture")
_SENSOR = ("sensorwidth", "sensorsize", "sensorwidthmm", "horizontalaperture", "focallengthmm")
_DEPTH_SCALE = ("scale", "depthscale", "depthmapfactor")
# ORB-SLAM's settings have it beside the camera.
_DEPTH_SCALE_OF_ALL = "depthmapfactor"
_FRAME_NAMES = ("filepath", "filename", "imgname", "imagename", "image", "name", "imagepath", "rgbpath", "colorpath")
# Words that tell the cameras of a file no further apart.
_COMMON_WORDS = frozenset({"camera", "cameras", "intrinsic", "intrinsics", "parameters", "calibration", "params"})
_MATRIX_LENGTHS = (4, 5, 9, 12, 16)
_MOST_LEVELS = 8
# The focal length of a lens in millimetres, taken as pixels, would be of a field of view beyond this.
_WIDEST_FOV = math.radians(150)
_FOV_IN_RADIANS = math.pi


def cameras_of(content: Any, where: object, size: tuple[int, int] | None = None) -> Cameras:
    """Every camera of a file.

    Args:
        content: what JSON or YAML made of it.
        where: what errors name.
        size: (width, height) of the picture, where the user says it.
    """
    cameras: Cameras = {}
    for trail, camera in _found(content, (), {}, where, size):
        short = "/".join(part for part in trail if plain_name(part) not in _COMMON_WORDS)
        cameras["/".join(trail) if short in cameras else short] = camera
    return cameras


def _found(
    value: Any, trail: tuple[str, ...], context: Mapping[str, Any], where: object, size: tuple[int, int] | None
) -> Iterator[tuple[tuple[str, ...], PixelIntrinsics | MoGeError]]:
    """Cameras at this place and below, with what stands above them as their context."""
    if len(trail) > _MOST_LEVELS:
        return
    if isinstance(value, list):
        for name, item in _named_items(value):
            yield from _found(item, (*trail, name), context, where, size)
        return
    if not isinstance(value, Mapping):
        return
    node = _grouped({str(key): inner for key, inner in value.items()})
    plain = {plain_name(key): inner for key, inner in node.items()}
    frames = plain.get("frames")
    if isinstance(frames, list) and any(_is_camera(plain_keys(frame)) for frame in frames):
        for name, frame in _named_items(frames):
            yield (name,), _camera_or_error({**plain, **plain_keys(frame)}, context, f"{where}: {name}", size)
        return
    if _is_camera(plain):
        yield trail, _camera_or_error(plain, context, f"{where}: {'/'.join(trail)}" if trail else where, size)
        return
    inherited = {**context, **{key: inner for key, inner in plain.items() if _goes_down(key, inner)}}
    for key, inner in node.items():
        if isinstance(inner, Mapping | list):
            yield from _found(inner, (*trail, key), inherited, where, size)


def _named_items(items: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Mappings of a list, by the name of the frame that each tells, or by their number."""
    for index, item in enumerate(items):
        if isinstance(item, Mapping):
            plain = plain_keys(item)
            names = [plain[key] for key in _FRAME_NAMES if isinstance(plain.get(key), str)]
            yield (names[0] if names else f"[{index}]"), item


def _grouped(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """`Camera.fx` as `fx` of `Camera`, and `K1` and `D1` as `K` and `D` of `1`."""
    result: dict[str, Any] = {}
    for key, value in node.items():
        numbered = re.fullmatch(r"([A-Za-z_]{1,20}?)_?([12])", key)
        if "." in key and not isinstance(value, Mapping):
            group, own = key.split(".", 1)
        elif numbered and _is_matrix_or_list(value) and plain_name(numbered[1]) in {*_MATRIX, *COEFFICIENT_LISTS, "m"}:
            group, own = numbered[2], "K" if plain_name(numbered[1]) == "m" else numbered[1]
        else:
            result[key] = value
            continue
        inner = result.setdefault(group, {})
        if isinstance(inner, dict):
            inner[own] = value
    return result


def _is_matrix_or_list(value: Any) -> bool:
    numbers = as_floats(value)
    return numbers is not None and len(numbers) >= 4


def _goes_down(key: str, value: Any) -> bool:
    """Whether what stands here is said of the cameras below: their distortion, model and size."""
    if isinstance(value, int | float | str) and key in {*_WIDTH, *_HEIGHT, _DEPTH_SCALE_OF_ALL}:
        return True
    return (says_of_lens(key, value) and key not in _MATRIX) or (key in _SIZE and as_pair(value) is not None)


def _is_camera(node: Mapping[str, Any]) -> bool:
    """Whether the numbers of a camera stand here, by any of their names."""
    if any(key in node for key in (*_FOCAL_X, *_ANGLE_X, *_ANGLE_Y)) or as_number(node.get("fov")) is not None:
        return True
    if all(key in node for key in _APERTURE):
        return True
    has_centre = any(key in node for key in (*_CENTRE_X, *_CENTRE, *_WIDTH, *_SIZE))
    if has_centre and any(as_floats(node.get(key)) for key in _FOCAL):
        return True
    return any(len(as_floats(node.get(key)) or ()) in _MATRIX_LENGTHS for key in _MATRIX)


def _camera_or_error(
    node: Mapping[str, Any], context: Mapping[str, Any], where: object, size: tuple[int, int] | None
) -> PixelIntrinsics | MoGeError:
    try:
        return _camera(node, context, where, size)
    except MoGeError as error:
        return error


def _camera(
    node: Mapping[str, Any], context: Mapping[str, Any], where: object, said_size: tuple[int, int] | None
) -> PixelIntrinsics:
    """The camera of a mapping with plain keys.

    Raises:
        FormatError: distortion that cannot be read, a matrix that is none, skew, a number with a decimal comma.
        InputError: focal lengths that are no pixels, or a field of view without a size.
    """
    for key in (*_FOCAL_X, *_FOCAL_Y, *_CENTRE_X, *_CENTRE_Y):
        if (fix := decimal_comma(node.get(key))) is not None:
            raise FormatError(f"{where}: {key}", "must be a number", found=repr(node[key]), fix=fix)
    size = _size(node) or _size(context)
    camera = _pinhole(node, where, said_size or size)
    distortion, notes = distortion_in({**context, **node}, where)
    scales = [as_number(node[key]) for key in _DEPTH_SCALE if key in node]
    scale = scales[0] if scales else as_number(context.get(_DEPTH_SCALE_OF_ALL))
    notes = (*camera.notes, *notes)
    return replace(camera, size=camera.size or size, depth_scale=scale, distortion=distortion, notes=notes)


def _pinhole(node: Mapping[str, Any], where: object, size: tuple[int, int] | None) -> PixelIntrinsics:
    if as_number(node.get("skew")):
        raise FormatError(where, "must have no skew; instances are pinhole cameras", found=f"skew {node['skew']}")
    if all(key in node for key in _APERTURE):
        return _of_aperture(node, where, size)
    fx, fy = _first(node, _FOCAL_X), _first(node, _FOCAL_Y)
    centre = _centre(node)
    if fx is None:
        for key in _MATRIX:
            numbers = as_floats(node.get(key))
            if numbers is None or len(numbers) not in _MATRIX_LENGTHS:
                continue
            if len(numbers) == 4:
                return checked_intrinsics(numbers, where)
            if len(numbers) == 5:
                # Kalibr's omnidirectional camera: the mirror's xi goes before the four numbers.
                raise FormatError(where, "must be a pinhole camera", found="five numbers, as omnidirectional ones have")
            matrix = np.array(numbers[:9] if len(numbers) == 9 else numbers).reshape(-1, 3 if len(numbers) == 9 else 4)
            return intrinsics_from_matrix(matrix if len(numbers) == 16 else matrix[:3, :3], f"{where}: {key}")
        both = next((numbers for key in _FOCAL if (numbers := as_floats(node.get(key)))), None)
        if both is not None:
            fx, fy = both[0], both[-1]
            _check_unit(node, fx, centre, size, where)
    if fx is None:
        return _of_angles(node, centre, where, size)
    fy = fx if fy is None else fy
    notes: tuple[str, ...] = ()
    if centre is None and size is not None:
        centre = (size[0] / 2 - 0.5, size[1] / 2 - 0.5)
        notes = ("The file names no principal point; the centre of the image was taken.",)
    elif centre is None:
        raise FormatError(where, "must hold the principal point, cx and cy", found="only focal lengths")
    elif "flx" in node:
        centre, notes = _from_corner(centre)
    return replace(checked_intrinsics([fx, fy, *centre], where), notes=notes)


def _centre(node: Mapping[str, Any]) -> tuple[float, float] | None:
    cx, cy = _first(node, _CENTRE_X), _first(node, _CENTRE_Y)
    if cx is not None and cy is not None:
        return cx, cy
    return next((pair for key in _CENTRE if (pair := as_pair(node.get(key))) is not None), None)


def _from_corner(centre: tuple[float, float]) -> tuple[tuple[float, float], tuple[str, ...]]:
    # As nerfstudio and Instant-NGP do, whose rays go through pixels at x + 0.5.
    note = "cx and cy of transforms.json count from the corner of the image and were moved by half a pixel."
    return (centre[0] - 0.5, centre[1] - 0.5), (note,)


def _of_aperture(node: Mapping[str, Any], where: object, size: tuple[int, int] | None) -> PixelIntrinsics:
    """A camera of Omniverse, whose pixels are square whatever the vertical aperture is."""
    focal, aperture = as_number(node["camerafocallength"]), as_pair(node["cameraaperture"])
    if not focal or aperture is None or not aperture[0] or size is None:
        found = f"{node['camerafocallength']}, {node['cameraaperture']} and the size {size}"
        raise FormatError(where, "must hold cameraFocalLength, cameraAperture and renderProductResolution", found=found)
    if any(as_floats(node.get("cameraapertureoffset")) or ()):
        fix = "Give --intrinsics fx,fy,cx,cy."
        raise InputError(where, "must have no aperture offset", found=node["cameraapertureoffset"], fix=fix)
    pixels = size[0] * focal / aperture[0]
    return checked_intrinsics([pixels, pixels, size[0] / 2 - 0.5, size[1] / 2 - 0.5], where)


def _of_angles(
    node: Mapping[str, Any], centre: tuple[float, float] | None, where: object, size: tuple[int, int] | None
) -> PixelIntrinsics:
    """A camera of which only the field of view is told."""
    angle_x, angle_y = _first(node, _ANGLE_X), _first(node, _ANGLE_Y)
    either = as_number(node.get("fov"))
    if size is None:
        fix = "Say the size of the images with --intrinsics-size WxH, or add width and height to the file."
        raise InputError(where, "a field of view needs a size", found="only angles", fix=fix)
    if angle_x is None and angle_y is None:
        if either is None or size[0] != size[1]:
            fix = "Name it fov_x or fov_y in the file, or give --intrinsics fx,fy,cx,cy."
            raise InputError(where, "must say which field of view it is", found=f"fov {node.get('fov')}", fix=fix)
        angle_x = either
    fx = None if angle_x is None else _focal_of(angle_x, size[0], where)
    fy = None if angle_y is None else _focal_of(angle_y, size[1], where)
    x, y = fx or fy, fy or fx
    assert x is not None and y is not None
    notes: tuple[str, ...] = (f"Focal lengths were computed from the field of view, for {size[0]}x{size[1]}.",)
    if centre is None:
        centre = (size[0] / 2 - 0.5, size[1] / 2 - 0.5)
    elif "cameraanglex" in node:
        centre, more = _from_corner(centre)
        notes += more
    return replace(checked_intrinsics([x, y, *centre], where), size=size, notes=notes)


def _focal_of(angle: float, side: int, where: object) -> float:
    """Focal length in pixels of a field of view, in radians up to pi and else in degrees."""
    radians = angle if angle <= _FOV_IN_RADIANS else math.radians(angle)
    if not 0 < radians < math.pi:
        raise InputError(where, "must be a field of view below 180 degrees", found=f"{angle:g}")
    return side / (2 * math.tan(radians / 2))


def _check_unit(
    node: Mapping[str, Any],
    focal: float,
    centre: tuple[float, float] | None,
    size: tuple[int, int] | None,
    where: object,
) -> None:
    """A focal length without an axis is as often one in millimetres.

    Raises:
        InputError: it is no number of pixels.
    """
    width = size[0] if size else 2 * centre[0] if centre else None
    is_too_short = width is not None and focal > 0 and 2 * math.atan(width / (2 * focal)) > _WIDEST_FOV
    if is_too_short or any(key in node for key in _SENSOR):
        fix = "Give pixels: fx = width * focal length / sensor width, as --intrinsics fx,fy,cx,cy."
        raise InputError(where, "must be a focal length in pixels", found=f"{focal:g}, maybe millimetres", fix=fix)


def _first(node: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    """The number of the first of these names that is there; NaN where it is none."""
    for key in keys:
        if key in node:
            number = as_number(node[key])
            return math.nan if number is None else number
    return None


def _size(node: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = (next((node[key] for key in keys if key in node), None) for keys in (_WIDTH, _HEIGHT))
    pairs = [(width, height), *(as_pair(node.get(key)) or _mapped_size(node.get(key)) for key in _SIZE)]
    for pair in pairs:
        numbers = [as_number(side) for side in pair or ()]
        if len(numbers) == 2 and all(side is not None and side >= 1 and side == int(side) for side in numbers):
            return int(numbers[0] or 0), int(numbers[1] or 0)
    return None


def _mapped_size(value: Any) -> tuple[Any, Any] | None:
    plain = plain_keys(value)
    return (plain["width"], plain["height"]) if {"width", "height"} <= plain.keys() else None
