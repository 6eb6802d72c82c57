"""Point clouds and meshes: what viewers get."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from moge_core.errors import FormatError, InputError
from moge_core.io import read_ply, write_glb, write_ply

RNG = np.random.default_rng(0)
POINTS = RNG.standard_normal((5, 3)).astype(np.float32)
COLORS = RNG.integers(0, 256, (5, 3)).astype(np.uint8)
NORMALS = RNG.standard_normal((5, 3)).astype(np.float32)
FACES = np.array([[0, 1, 2], [2, 3, 4]])


def test_a_point_cloud_has_three_colour_bytes_a_point_and_its_comments(tmp_path: Path) -> None:
    path = tmp_path / "cloud.ply"
    write_ply(path, POINTS, COLORS, comments=["vertices are X, -Y, -Z", "Küche"])
    header, _, body = path.read_bytes().partition(b"end_header\n")
    assert header.decode().splitlines() == [
        "ply",
        "format binary_little_endian 1.0",
        "comment vertices are X, -Y, -Z",
        "comment Küche",
        "element vertex 5",
        *(f"property float {name}" for name in "xyz"),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
    ]
    assert body == b"".join(p.astype("<f4").tobytes() + c.tobytes() for p, c in zip(POINTS, COLORS, strict=True))


def test_a_mesh_is_read_by_others_and_by_us() -> None:
    file = io.BytesIO()
    write_ply(file, POINTS.astype(">f8"), COLORS, NORMALS, FACES, comments=[""])
    ours = read_ply(io.BytesIO(file.getvalue()))
    np.testing.assert_array_equal(ours.points, POINTS)
    np.testing.assert_array_equal(ours.colors, COLORS)
    np.testing.assert_array_equal(ours.normals, NORMALS)
    np.testing.assert_array_equal(ours.faces, FACES)
    assert ours.comments == ("",)
    theirs = trimesh.load(io.BytesIO(file.getvalue()), file_type="ply", process=False)
    np.testing.assert_array_equal(theirs.vertices, POINTS)
    np.testing.assert_array_equal(theirs.faces, FACES)
    np.testing.assert_array_equal(theirs.visual.vertex_colors[:, :3], COLORS)


def test_a_cloud_without_points_is_a_valid_file() -> None:
    file = io.BytesIO()
    write_ply(file, np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), faces=np.empty((0, 3), int))
    cloud = read_ply(io.BytesIO(file.getvalue()))
    assert cloud.points.shape == (0, 3)
    assert cloud.faces is not None
    assert cloud.faces.shape == (0, 3)


def test_a_file_of_another_writer_is_read() -> None:
    file = trimesh.Trimesh(POINTS, FACES, process=False).export(file_type="ply")
    cloud = read_ply(io.BytesIO(file))
    np.testing.assert_array_equal(cloud.points, POINTS)
    np.testing.assert_array_equal(cloud.faces, FACES)
    assert cloud.colors is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"points": np.zeros((5, 4))}, {"points": np.full((5, 3), np.nan)}, {"points": np.full((5, 3), 1e300)},
        {"points": [[0, 0, 0]]},
        {"colors": COLORS[:4]}, {"colors": np.zeros((5, 4), np.uint8)}, {"colors": COLORS / 255},
        {"normals": NORMALS[:4]}, {"faces": np.array([[0, 1, 5]])}, {"faces": np.array([[0, -1, 2]])},
        {"faces": np.zeros((1, 4), int)}, {"comments": ["two\nlines"]}, {"comments": ["end\n"]},
    ],
)  # fmt: skip
def test_what_makes_no_cloud_is_refused(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        write_ply(tmp_path / "cloud.ply", **{"points": POINTS, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_damaged_ply_files_are_refused() -> None:
    file = io.BytesIO()
    write_ply(file, POINTS, COLORS, faces=FACES)
    data = file.getvalue()
    start = data.index(b"end_header\n") + len(b"end_header\n")
    for length in range(len(data)):
        with pytest.raises(FormatError):
            read_ply(io.BytesIO(data[:length]))
    for old, new in (
        (b"binary_little", b"binary_big"),
        (b"vertex 5", b"vertex 999999999"),
        (b"float x", b"float w"),
        (b"uchar red", b"what red"),
    ):
        with pytest.raises(FormatError):
            read_ply(io.BytesIO(data.replace(old, new)))
    with pytest.raises(FormatError, match="triangles"):
        read_ply(io.BytesIO(data[: start + 5 * 15] + b"\4" + data[start + 5 * 15 + 1 :]))


def test_a_textured_mesh_keeps_its_uv_from_the_top(tmp_path: Path) -> None:
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0.5, 0.25]], np.float32)
    texture = RNG.integers(0, 256, (4, 6, 3)).astype(np.uint8)
    write_glb(tmp_path / "scene.glb", POINTS, FACES, uv=uv, texture=texture)
    data = (tmp_path / "scene.glb").read_bytes()
    assert data[:4] == b"glTF"
    (length,) = struct.unpack_from("<I", data, 12)
    document = json.loads(data[20 : 20 + length])
    # glTF, too, counts v from the top of the picture.
    view = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"]]["bufferView"]
    offset = 20 + length + 8 + document["bufferViews"][view].get("byteOffset", 0)
    np.testing.assert_allclose(np.frombuffer(data, "<f4", 10, offset).reshape(5, 2), uv, atol=1e-6)
    mesh = next(iter(trimesh.load(tmp_path / "scene.glb").geometry.values()))
    np.testing.assert_allclose(mesh.vertices, POINTS)
    np.testing.assert_array_equal(np.array(mesh.visual.material.baseColorTexture)[..., :3], texture)


def test_a_coloured_mesh_keeps_its_colours() -> None:
    file = io.BytesIO()
    write_glb(file, POINTS, FACES, colors=COLORS)
    mesh = next(iter(trimesh.load(io.BytesIO(file.getvalue()), file_type="glb").geometry.values()))
    np.testing.assert_array_equal(mesh.visual.vertex_colors[:, :3], COLORS)


@pytest.mark.parametrize(
    "arguments",
    [
        {"faces": np.empty((0, 3), int)}, {"faces": np.array([[0, 1, 9]])}, {"uv": np.zeros((5, 2))},
        {"texture": np.zeros((2, 2, 3), np.uint8)}, {"uv": np.zeros((4, 2)), "texture": np.zeros((2, 2, 3), np.uint8)},
        {"uv": np.zeros((5, 2)), "texture": np.zeros((2, 2, 3))}, {"colors": COLORS[:2]},
    ],
)  # fmt: skip
def test_what_makes_no_mesh_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        write_glb(io.BytesIO(), **{"vertices": POINTS, "faces": FACES, **arguments})
