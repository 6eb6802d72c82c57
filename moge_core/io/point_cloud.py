"""Point clouds and triangle meshes: binary PLY for every viewer, and GLB for one file with a texture.

write_ply("scene.ply", points, colors=image[mask], comments=["vertices are X, -Y, -Z"])
cloud = read_ply("scene.ply")
write_glb("scene.glb", vertices, faces, uv=uv, texture=image)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.errors import FormatError, InputError, MissingDependencyError
from moge_core.io import limits
from moge_core.io.files import PathOrFile, name_of, read_bytes, write_bytes

_PLY_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "<i2"),
    **dict.fromkeys(("ushort", "uint16"), "<u2"),
    **dict.fromkeys(("int", "int32"), "<i4"),
    **dict.fromkeys(("uint", "uint32"), "<u4"),
    **dict.fromkeys(("float", "float32"), "<f4"),
    **dict.fromkeys(("double", "float64"), "<f8"),
}
_MAX_HEADER_BYTES = 1 << 16
_POSITION, _NORMAL, _COLOR = ("x", "y", "z"), ("nx", "ny", "nz"), ("red", "green", "blue")


@dataclass(frozen=True)
class PointCloud:
    """What a PLY file holds."""

    points: npt.NDArray[np.float32]
    """(N, 3)"""
    colors: npt.NDArray[np.uint8] | None = None
    """(N, 3)"""
    normals: npt.NDArray[np.float32] | None = None
    """(N, 3)"""
    faces: npt.NDArray[np.int32] | None = None
    """(F, 3)"""
    comments: tuple[str, ...] = ()


def write_ply(
    path_or_file: PathOrFile,
    points: npt.NDArray[Any],
    colors: npt.NDArray[Any] | None = None,
    normals: npt.NDArray[Any] | None = None,
    faces: npt.NDArray[Any] | None = None,
    comments: Iterable[str] = (),
) -> None:
    """Write a point cloud, or a mesh with `faces`, as binary little-endian PLY.

    The coordinates are written as they are; viewers expect y up and z towards the viewer, so the caller turns OpenCV's
    axes (X, -Y, -Z) and says so in a comment.

    Args:
        path_or_file: path or binary file object.
        points: (N, 3), finite; N may be 0.
        colors: (N, 3), uint8, written as 3 bytes a point.
        normals: (N, 3), finite.
        faces: (F, 3), integer indices of points.
        comments: lines for the header.

    Raises:
        InputError: shapes that disagree, non-finite coordinates, indices without a point, or a missing folder.
    """
    points = _check_vertices("points", points)
    columns: list[tuple[tuple[str, str, str], str, npt.NDArray[Any]]] = [(_POSITION, "float", points)]
    if normals is not None:
        columns.append((_NORMAL, "float", _check_vertices("normals", normals, len(points))))
    if colors is not None:
        columns.append((_COLOR, "uchar", _check_colors(colors, len(points))))
    vertices = np.empty(len(points), [(name, _PLY_TYPES[kind]) for names, kind, _ in columns for name in names])
    for names, _, values in columns:
        for i, name in enumerate(names):
            vertices[name] = values[:, i]

    header = ["ply", "format binary_little_endian 1.0", *(f"comment {_one_line(comment)}" for comment in comments)]
    header.append(f"element vertex {len(points)}")
    header += [f"property {kind} {name}" for names, kind, _ in columns for name in names]
    body = vertices.tobytes()
    if faces is not None:
        faces = _check_faces(faces, len(points))
        triangles = np.empty(len(faces), [("count", "u1"), ("indices", "<i4", (3,))])
        triangles["count"], triangles["indices"] = 3, faces
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        body += triangles.tobytes()
    write_bytes(path_or_file, ("\n".join([*header, "end_header"]) + "\n").encode() + body)


def read_ply(path_or_file: PathOrFile) -> PointCloud:
    """Read a point cloud or triangle mesh from binary little-endian PLY.

    Args:
        path_or_file: path or binary file object.

    Raises:
        FormatError: another encoding, vertices without x y z, faces other than triangles, or a truncated file.
        FileNotFoundError: there is no such file.
    """
    name = name_of(path_or_file)
    data = read_bytes(path_or_file, limit=limits.MAX_FILE_BYTES)
    header_end = data.find(b"end_header\n", 0, _MAX_HEADER_BYTES)
    lines = data[: max(header_end, 0)].decode("utf-8", "replace").splitlines()
    if lines[:2] != ["ply", "format binary_little_endian 1.0"]:
        raise FormatError(name, "must be a binary little-endian PLY file", found=lines[:2] or data[:8])
    comments: list[str] = []
    elements: list[tuple[str, int, list[tuple[Any, ...]]]] = []
    for line in lines[2:]:
        match line.split(maxsplit=1 if line.startswith("comment") else -1):
            case ["comment", *comment]:
                comments += comment or [""]
            case ["obj_info", *_]:
                pass
            case ["element", element, count] if count.isdecimal() and len(count) < 12:
                elements.append((element, int(count), []))
            case ["property", kind, key] if elements and kind in _PLY_TYPES:
                elements[-1][2].append((key, _PLY_TYPES[kind]))
            case ["property", "list", count_kind, kind, key] if elements and {count_kind, kind} <= set(_PLY_TYPES):
                elements[-1][2].extend([(f"{key}_count", _PLY_TYPES[count_kind]), (key, _PLY_TYPES[kind], (3,))])
            case _:
                raise FormatError(name, "must have a PLY header of elements and properties", found=repr(line[:80]))

    tables: dict[str, npt.NDArray[Any]] = {}
    position = header_end + len(b"end_header\n")
    for element, num_rows, properties in elements:
        try:
            row = np.dtype(properties)
            tables[element] = np.frombuffer(data, row, num_rows, position)
        except ValueError as error:
            raise FormatError(name, f"must hold the {num_rows:,} rows of element {element}", found=error) from error
        position += num_rows * row.itemsize
    return _to_cloud(tables, tuple(comments), name)


def write_glb(
    path_or_file: PathOrFile,
    vertices: npt.NDArray[Any],
    faces: npt.NDArray[Any],
    uv: npt.NDArray[Any] | None = None,
    texture: npt.NDArray[Any] | None = None,
    colors: npt.NDArray[Any] | None = None,
) -> None:
    """Write a triangle mesh as binary glTF, textured or with a colour a vertex.

    Args:
        path_or_file: path or binary file object.
        vertices: (N, 3), finite, y up and z towards the viewer.
        faces: (F, 3), integer indices of vertices, F >= 1.
        uv: (N, 2) place in the texture, as in the project's uv maps: (0, 0) is its top left corner, v grows downwards.
        texture: RGB (H, W, 3), uint8; needs `uv`.
        colors: (N, 3), uint8; instead of a texture.

    Raises:
        InputError: shapes that disagree, non-finite coordinates, a texture without uv, or a missing folder.
        MissingDependencyError: trimesh is not installed.
    """
    vertices = _check_vertices("vertices", vertices)
    faces = _check_faces(faces, len(vertices))
    if len(faces) == 0:
        raise InputError(
            "faces", "a mesh must have at least one face", found=faces.shape, fix="Write a point cloud as PLY."
        )
    if (uv is None) != (texture is None) or (texture is not None and colors is not None):
        raise InputError("uv, texture, colors", "must be uv with texture, or colors, or nothing")
    try:
        import trimesh
    except ImportError as error:
        fix = "pip install trimesh"
        raise MissingDependencyError("trimesh", "must be installed to write GLB", found=error, fix=fix) from error

    visual = None
    if texture is not None:
        visual = _texture_visuals(_check_array("uv", uv, (len(vertices), 2), "fiu"), _check_texture(texture))
    vertex_colors = None if colors is None else _check_colors(colors, len(vertices))
    mesh = trimesh.Trimesh(vertices, faces, visual=visual, vertex_colors=vertex_colors, process=False)
    data = mesh.export(file_type="glb")
    if not isinstance(data, bytes):
        raise TypeError(f"trimesh exported GLB as {type(data).__name__}")
    write_bytes(path_or_file, data)


def _texture_visuals(uv: npt.NDArray[Any], texture: npt.NDArray[np.uint8]) -> Any:
    from PIL import Image
    from trimesh.visual import material
    from trimesh.visual import texture as textures

    # Without gloss, so that a photograph is shown about as it is.
    make_material: Any = material.PBRMaterial
    paper = make_material(baseColorTexture=Image.fromarray(texture), metallicFactor=0.0, roughnessFactor=1.0)
    # trimesh counts v from the bottom.
    upward = np.stack([uv[:, 0], 1 - uv[:, 1]], axis=-1)
    make_visuals: Any = textures.TextureVisuals
    return make_visuals(uv=upward, material=paper)


def _to_cloud(tables: dict[str, npt.NDArray[Any]], comments: tuple[str, ...], name: str) -> PointCloud:
    vertices = tables.get("vertex")
    if vertices is None or not set(_POSITION) <= set(vertices.dtype.names or ()):
        raise FormatError(
            name, "must have vertices with x, y and z", found=f"the elements {', '.join(tables) or '(none)'}"
        )

    faces = None
    if "face" in tables:
        table = tables["face"]
        key = next((key for key in ("vertex_indices", "vertex_index") if key in (table.dtype.names or ())), None)
        if key is None or (table[f"{key}_count"] != 3).any():
            raise FormatError(name, "faces must be triangles, lists of three vertex indices")
        faces = table[key].astype(np.int32)
    keys = set(vertices.dtype.names or ())
    return PointCloud(
        points=_columns(vertices, _POSITION).astype(np.float32),
        colors=_columns(vertices, _COLOR).astype(np.uint8) if set(_COLOR) <= keys else None,
        normals=_columns(vertices, _NORMAL).astype(np.float32) if set(_NORMAL) <= keys else None,
        faces=faces,
        comments=comments,
    )


def _columns(table: npt.NDArray[Any], keys: tuple[str, ...]) -> npt.NDArray[Any]:
    return np.stack([table[key] for key in keys], axis=-1)


def _check_array(name: str, array: object, shape: tuple[int | None, ...], kinds: str) -> npt.NDArray[Any]:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds:
        raise InputError(name, "must be a numeric array", found=getattr(array, "dtype", type(array).__name__))
    wanted = tuple(size if n is None else n for n, size in zip(shape, array.shape, strict=False))
    if array.shape != wanted or array.ndim != len(shape):
        readable = ", ".join("N" if n is None else str(n) for n in shape)
        raise InputError(name, f"must be of shape ({readable})", found=array.shape)
    return array


def _check_vertices(name: str, array: object, count: int | None = None) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        vertices = _check_array(name, array, (count, 3), "fiu").astype(np.float32)
    num_bad = int(np.count_nonzero(~np.isfinite(vertices).all(axis=-1)))
    if num_bad:
        raise InputError(
            name, "must be finite", found=f"{num_bad:,} of {len(vertices):,} not", fix="Leave unknown points out."
        )
    return vertices


def _check_colors(colors: object, count: int) -> npt.NDArray[np.uint8]:
    array = _check_array("colors", colors, (count, 3), "fiu")
    if array.dtype != np.uint8:
        fix = "Colours 0..1 become uint8 by (colors * 255).round().astype(np.uint8)."
        raise InputError("colors", "must be uint8", found=array.dtype, fix=fix)
    return array


def _check_texture(texture: object) -> npt.NDArray[np.uint8]:
    array = _check_array("texture", texture, (None, None, 3), "fiu")
    if array.dtype != np.uint8 or array.size == 0:
        raise InputError("texture", "must be uint8 and not empty", found=f"{array.dtype} {array.shape}")
    return array


def _check_faces(faces: object, num_vertices: int) -> npt.NDArray[Any]:
    array = _check_array("faces", faces, (None, 3), "iu")
    if array.size and (array.min() < 0 or array.max() >= num_vertices):
        found = f"{array.min()} to {array.max()}"
        raise InputError("faces", f"must be indices of the {num_vertices:,} points", found=found)
    return array


def _one_line(comment: str) -> str:
    if not isinstance(comment, str) or len(comment.splitlines()) > 1 or comment != comment.rstrip("\r\n"):
        raise InputError("comments", "must be single lines of text", found=repr(comment))
    return comment
