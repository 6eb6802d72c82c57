"""Importing reconstructions, COLMAP and BlendedMVS: cameras to the half pixel, depth without a unit, damaged models."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from plane_frames import OFFSET, check_camera, check_is_plane, picture, plane_z

from moge_core.cli.importing_scenes import colmap_command
from moge_core.datasets.importers.blendedmvs import import_blendedmvs, read_mvs_camera
from moge_core.datasets.importers.colmap import import_colmap, read_depth_map
from moge_core.datasets.importers.colmap_model import read_cameras, read_images, read_points
from moge_core.errors import DatasetError, FormatError, ImageTooLargeError, InputError, MoGeError
from moge_core.io import read_depth, read_meta, write_image

Array = npt.NDArray[Any]

W, H = 40, 30
CAMERA = (36.0, 35.0, 20.25, 13.5)  # from the centre of the first pixel
# COLMAP counts from the corner.
PARAMS = (36.0, 35.0, 20.75, 14.0)
POSE = (0.5, 0.5, -0.5, 0.5)  # w, x, y, z: an even permutation of axes, up to signs
SHIFT = (0.3, -0.2, 0.7)
MODEL_NUMBERS = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2}


def rotation() -> Array:
    """Of the quaternion POSE, column by column: what it makes of the axes, by the product q v q*."""
    w, *imaginary = POSE
    u = np.array(imaginary)
    return np.stack([v + 2 * w * np.cross(u, v) + 2 * np.cross(u, np.cross(u, v)) for v in np.eye(3)], axis=1)


def write_map(path: Path, values: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"%d&%d&1&" % (values.shape[1], values.shape[0]) + values.astype("<f4").tobytes())


def write_model(folder: Path, images: dict[str, Sequence[tuple[float, float, int]]], **options: Any) -> None:
    """A model of one camera and images with keypoints (x, y, point), and points {id: xyz}."""
    model, params = options.get("model", "PINHOLE"), options.get("params", PARAMS)
    points = options.get("points", {})
    folder.mkdir(parents=True, exist_ok=True)
    if options.get("text"):
        numbers = " ".join(map(str, params))
        (folder / "cameras.txt").write_text(f"# list\n7 {model} {W} {H} {numbers}\n")
        lines = ["# list", "# of images"]
        for number, (name, keypoints) in enumerate(images.items()):
            lines.append(" ".join(map(str, (number, *POSE, *SHIFT, 7, name))))
            lines.append(" ".join(f"{x} {y} {point}" for x, y, point in keypoints))
        (folder / "images.txt").write_text("\n".join(lines) + "\n")
        (folder / "points3D.txt").write_text(
            "# list\n" + "".join(f"{number} {x} {y} {z} 1 2 3 0.5 1 0\n" for number, (x, y, z) in points.items())
        )
        return
    head = struct.pack("<QIiQQ", 1, 7, MODEL_NUMBERS[model], W, H)
    (folder / "cameras.bin").write_bytes(head + struct.pack(f"<{len(params)}d", *params))
    data = struct.pack("<Q", len(images))
    for number, (name, keypoints) in enumerate(images.items()):
        data += (
            struct.pack("<I7dI", number, *POSE, *SHIFT, 7) + name.encode() + b"\0" + struct.pack("<Q", len(keypoints))
        )
        data += b"".join(struct.pack("<ddq", *keypoint) for keypoint in keypoints)
    (folder / "images.bin").write_bytes(data)
    data = struct.pack("<Q", len(points))
    for number, xyz in points.items():
        data += struct.pack("<Q3d3BdQ", number, *xyz, 1, 2, 3, 0.5, 2) + struct.pack("<4I", 0, 0, 1, 0)
    (folder / "points3D.bin").write_bytes(data)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A dense workspace with two images of the plane, one in a folder."""
    source = tmp_path / "dense"
    names = ["a.jpg", "left/b.png"]
    for name in names:
        (source / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(source / "images" / name, picture(W, H))
        write_map(source / "stereo/depth_maps" / f"{name}.geometric.bin", plane_z(W, H, CAMERA))
    write_model(source / "sparse", {name: [(1.0, 2.0, -1), (3.0, 4.0, 5)] for name in names})
    return source


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("place", ["sparse", "sparse/0"])
def test_a_dense_workspace_is_read_exactly_and_has_no_unit(
    workspace: Path, tmp_path: Path, text: bool, place: str
) -> None:
    for path in (workspace / "sparse").iterdir():
        path.unlink()
    images: dict[str, Any] = {"a.jpg": [], "left/b.png": [(1.0, 2.0, -1)]}
    write_model(workspace / place, images, text=text)
    report = import_colmap(workspace, tmp_path / "out")
    assert report.instances == ["a", "left/b"]
    assert report.skipped == []
    for name in report.instances:
        check_is_plane(report.out_dir / name, unit=None)
        check_camera(report.out_dir / name, CAMERA, W, H)
        assert "depth_unit" not in read_meta(report.out_dir / name / "meta.json")
    assert (report.label_type, report.metric) == ("sfm", False)


def test_colmaps_principal_point_counts_from_the_corner(workspace: Path, tmp_path: Path) -> None:
    # A camera whose axis goes through the middle of the image: W / 2 in COLMAP, exactly 0.5 here.
    write_model(workspace / "sparse", {"a.jpg": []}, model="SIMPLE_PINHOLE", params=(36.0, W / 2, H / 2))
    folder = import_colmap(workspace, tmp_path / "out").out_dir / "a"
    expected = np.array([[36 / W, 0, 0.5], [0, 36 / H, 0.5], [0, 0, 1]])
    assert np.array(read_meta(folder / "meta.json")["intrinsics"]) == pytest.approx(expected, abs=1e-7)


def test_depth_maps_are_row_by_row_and_unknown_where_0(workspace: Path, tmp_path: Path) -> None:
    z = plane_z(W, H, CAMERA)
    z[3, 7] = 0
    path = workspace / "stereo/depth_maps/a.jpg.geometric.bin"
    write_map(path, z)
    np.testing.assert_array_equal(read_depth_map(path), z.astype(np.float32))
    depth = check_is_plane(import_colmap(workspace, tmp_path / "out").out_dir / "a", unit=None)
    assert np.argwhere(np.isnan(depth)).tolist() == [[3, 7]]


def test_geometric_maps_go_before_photometric_ones_unless_told(workspace: Path, tmp_path: Path) -> None:
    maps = workspace / "stereo/depth_maps"
    write_map(maps / "a.jpg.photometric.bin", np.full((H, W), 5.0))
    (maps / "left/b.png.geometric.bin").rename(maps / "left/b.png.photometric.bin")
    report = import_colmap(workspace, tmp_path / "out")
    assert [check_is_plane(report.out_dir / name, unit=None).shape for name in report.instances] == [(H, W)] * 2
    only = import_colmap(workspace, tmp_path / "only", depth_type="photometric")
    assert np.allclose(read_depth(only.out_dir / "a/depth.png"), 5, rtol=1e-4)
    geometric = import_colmap(workspace, tmp_path / "geometric", depth_type="geometric")
    assert geometric.instances == ["a"]
    assert "patch_match_stereo" in geometric.skipped[0].fix
    with pytest.raises(InputError, match="depth_type"):
        import_colmap(workspace, tmp_path / "out", depth_type="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [False, True])
def test_without_depth_maps_the_sparse_points_that_an_image_sees_are_its_depth(
    workspace: Path, tmp_path: Path, text: bool
) -> None:
    fx, fy, cx, cy = CAMERA
    z = plane_z(W, H, CAMERA)
    points, keypoints = {}, []
    for number, (row, column) in enumerate([(2, 3), (10, 20), (29, 39), (15, 15)], start=10):
        in_camera = z[row, column] * np.array([(column - cx) / fx, (row - cy) / fy, 1])
        points[number] = tuple(rotation().T @ (in_camera - SHIFT))
        keypoints.append((column + 0.5, row + 0.5, number))
    keypoints = [*keypoints[:3], (1.0, 1.0, -1), (2.0, 2.0, 999)]  # the fourth is not seen; 999 is not there
    for path in (workspace / "sparse").iterdir():
        path.unlink()
    write_model(workspace / "sparse", {"a.jpg": keypoints, "left/b.png": []}, points=points, text=text)
    (workspace / "stereo/depth_maps/a.jpg.geometric.bin").unlink()
    with pytest.raises(DatasetError, match="--sparse-points"):
        (workspace / "stereo/depth_maps/left/b.png.geometric.bin").rename(workspace / "b.bin")
        import_colmap(workspace, tmp_path / "none")
    (workspace / "b.bin").rename(workspace / "stereo/depth_maps/left/b.png.geometric.bin")

    report = import_colmap(workspace, tmp_path / "out", sparse_points=True)
    assert report.instances == ["a", "left/b"]
    assert any("sparse points" in note for note in report.notes)
    depth = read_depth(report.out_dir / "a" / "depth.png")
    assert sorted(map(tuple, np.argwhere(np.isfinite(depth)).tolist())) == [(2, 3), (10, 20), (29, 39)]
    np.testing.assert_allclose(depth[[2, 10, 29], [3, 20, 39]], z[[2, 10, 29], [3, 20, 39]], rtol=1e-4)
    assert np.isfinite(read_depth(report.out_dir / "left/b/depth.png")).all()
    assert "depth_unit" not in read_meta(report.out_dir / "a" / "meta.json")

    moved = {number: tuple(np.array(xyz) + rotation().T @ [0, 0, 1]) for number, xyz in points.items()}
    write_model(tmp_path / "moved", {}, points=moved, text=text)
    name = "points3D.txt" if text else "points3D.bin"
    (workspace / "sparse" / name).write_bytes((tmp_path / "moved" / name).read_bytes())
    assert import_colmap(workspace, tmp_path / "out", sparse_points=True).num_written == 1
    assert np.nanmedian(read_depth(report.out_dir / "a" / "depth.png")) > np.nanmedian(depth) + 0.5


def test_a_sparse_point_among_nearer_ones_stays_because_the_image_saw_it(workspace: Path, tmp_path: Path) -> None:
    fx, fy, cx, cy = CAMERA
    points = {}
    for row, column in np.ndindex(9, 9):
        z = 5.0 if (row, column) == (4, 4) else 1.0
        in_camera = z * np.array([(column + 10 - cx) / fx, (row + 10 - cy) / fy, 1])
        points[9 * row + column] = tuple(rotation().T @ (in_camera - SHIFT))
    keypoints = [(0.0, 0.0, number) for number in points]
    write_model(workspace / "sparse", {"a.jpg": keypoints}, points=points)
    (workspace / "stereo/depth_maps/a.jpg.geometric.bin").unlink()
    depth = read_depth(import_colmap(workspace, tmp_path / "out", sparse_points=True).out_dir / "a" / "depth.png")
    assert np.isfinite(depth).sum() == 81
    assert depth[14, 14] == pytest.approx(5, rel=1e-4)


def test_cameras_that_are_no_opencv_model_are_refused_by_name(workspace: Path, tmp_path: Path) -> None:
    params = (36.0, 36.0, 20.0, 15.0, 0.1)
    write_model(workspace / "sparse", {"a.jpg": []}, model="FOV", params=params, text=True)
    for path in (workspace / "sparse").glob("*.bin"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"FOV.*Undistort the pictures"):
        import_colmap(workspace, tmp_path / "out")


def test_colmap_frames_that_cannot_be_imported_are_named(workspace: Path, tmp_path: Path) -> None:
    names = ["a.jpg", "../x.jpg", "/etc/x.jpg", "gone.jpg", "no_depth.jpg", "cut.jpg"]
    for name in ("no_depth.jpg", "cut.jpg", "unregistered.jpg"):
        write_image(workspace / "images" / name, picture(W, H))
    write_image(workspace / "x.jpg", picture(W, H))
    maps = workspace / "stereo/depth_maps"
    (maps / "cut.jpg.geometric.bin").write_bytes((maps / "a.jpg.geometric.bin").read_bytes()[:-1])
    write_model(workspace / "sparse", dict.fromkeys(names, ()))
    report = import_colmap(workspace, tmp_path / "out")
    assert report.instances == ["a"]
    found = {finding.instance: finding for finding in report.skipped}
    assert set(found) == {
        *("'../x.jpg'", "'/etc/x.jpg'", "gone.jpg", "no_depth.jpg", "cut"),
        *("images/unregistered.jpg", "images/left/b.png"),
    }
    assert "truncated" in found["cut"].evidence
    assert found["images/unregistered.jpg"].severity == "warning"


@pytest.mark.parametrize(
    ("name", "read"), [("cameras", read_cameras), ("images", read_images), ("points3D", read_points)]
)
def test_truncated_models_are_refused_at_every_length(workspace: Path, name: str, read: Callable[[Path], Any]) -> None:
    write_model(workspace / "sparse", {"a.jpg": [(1.0, 2.0, 5)]}, points={5: (1.0, 2.0, 3.0)})
    path = workspace / "sparse" / f"{name}.bin"
    data = path.read_bytes()
    exhaust(read(path))
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(FormatError, match=f"{name}.bin"):
            exhaust(read(path))


def exhaust(values: Any) -> None:
    if hasattr(values, "__next__"):
        list(values)


def test_announced_counts_are_not_believed(tmp_path: Path) -> None:
    huge = struct.pack("<Q", 1 << 62) + bytes(200)
    image = struct.pack("<Q", 1) + struct.pack("<I7dI", 1, 1, 0, 0, 0, 0, 0, 0, 1) + b"a\0" + struct.pack("<Q", 1 << 60)
    files: dict[str, tuple[bytes, Callable[[Path], Any]]] = {
        "cameras.bin": (huge, read_cameras),
        "images.bin": (huge, read_images),
        "points3D.bin": (huge, read_points),
        "other.bin": (image, read_images),
        "name.bin": (struct.pack("<Q", 1) + bytes(64) + b"x" * 8000, read_images),
        "zero.bin": (struct.pack("<Q", 1) + bytes(200), read_images),
        "model.bin": (struct.pack("<QIiQQ", 1, 1, 99, 4, 4) + bytes(200), read_cameras),
    }
    tracemalloc.start()
    try:
        for name, (data, read) in files.items():
            (tmp_path / name).write_bytes(data)
            with pytest.raises(FormatError, match=name):
                exhaust(read(tmp_path / name))
        path = tmp_path / "map.bin"
        path.write_bytes(b"16000&16000&1&" + bytes(8))
        with pytest.raises(FormatError, match="truncated"):
            read_depth_map(path)
        path.write_bytes(b"999999999&999999999&1&" + bytes(8))
        with pytest.raises(ImageTooLargeError):
            read_depth_map(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("data", [b"", b"4&4&", b"4&4&3&" + bytes(192), b"-4&4&1&" + bytes(64), b"x&y&z&", b"0&4&1&"])
def test_other_headers_of_depth_maps_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "map.bin").write_bytes(data)
    with pytest.raises(FormatError, match=r"map\.bin"):
        read_depth_map(tmp_path / "map.bin")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cameras.txt", "1 PINHOLE 4"),
        ("cameras.txt", "x PINHOLE 4 4 1 1 1 1"),
        ("images.txt", "1 1 0 0 0 0 0 0"),
        ("images.txt", "1 0 0 0 0 0 0 0 1 a.jpg"),
        ("images.txt", "1 nan 0 0 0 0 0 0 1 a.jpg"),
        ("points3D.txt", "1 2 3"),
        ("points3D.txt", "-1 2 3 4 0 0 0 0"),
    ],
)
def test_damaged_text_models_are_refused_with_the_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text + "\n")
    read = {"cameras.txt": read_cameras, "images.txt": read_images, "points3D.txt": read_points}[name]
    with pytest.raises(FormatError, match=name):
        exhaust(read(tmp_path / name))


@pytest.mark.parametrize("second", [None, "1.5 2.5", "1 2 x"])
def test_images_without_their_second_lines_are_refused_with_the_line(tmp_path: Path, second: str | None) -> None:
    first = [" ".join(map(str, (number, *POSE, *SHIFT, 7, f"{number:04d} {number}.jpg"))) for number in range(6)]
    lines = ["# list", *(line for image in first for line in ([image] if second is None else [image, second]))]
    path = tmp_path / "images.txt"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(FormatError, match=r"images\.txt, line 3.*keypoints of 0000 0\.jpg"):
        list(read_images(path))
    path.write_text("\n".join(["# list", first[0], "", first[1], "1 2 3 " * 40, first[2]]))
    assert [image.points_bytes > 9 for image in read_images(path)] == [False, True, False]


def test_a_second_colmap_run_does_only_what_is_new_and_a_changed_model_is_read_anew(
    workspace: Path, tmp_path: Path
) -> None:
    assert import_colmap(workspace, tmp_path / "out").num_written == 2
    assert import_colmap(workspace, tmp_path / "out").num_written == 0
    write_model(workspace / "sparse", {"a.jpg": [], "left/b.png": []}, params=(40.0, 35.0, 20.75, 14.0))
    assert import_colmap(workspace, tmp_path / "out").num_written == 2


def test_the_printed_entry_of_a_reconstruction_has_no_depth_unit(workspace: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(colmap_command, [str(workspace), "-o", str(tmp_path / "out"), "--strict"])
    assert result.exit_code == 0, result.output
    entry = json.loads(result.output[result.output.index("{") : result.output.rindex("}") + 1])
    assert entry["label_type"] == "sfm"
    assert "depth_unit" not in entry


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dense").mkdir()
    with pytest.raises(DatasetError, match="sparse"):
        import_colmap(tmp_path / "dense", tmp_path / "out")


@pytest.fixture
def blended(tmp_path: Path) -> Path:
    """A scene with two images of the plane."""
    scene = tmp_path / "source" / "5a3c"
    for folder in ("blended_images", "cams", "rendered_depth_maps"):
        (scene / folder).mkdir(parents=True)
    (scene / "cams" / "pair.txt").write_text("2\n")
    for number in range(2):
        write_image(scene / "blended_images" / f"{number:08d}.jpg", picture(W, H))
        write_image(scene / "blended_images" / f"{number:08d}_masked.jpg", np.zeros((H, W, 3), np.uint8))
        z = plane_z(W, H, CAMERA)
        z[-2:] = 0
        pfm = b"Pf\n%d %d\n-1\n" % (W, H) + z[::-1].astype("<f4").tobytes()
        (scene / "rendered_depth_maps" / f"{number:08d}.pfm").write_bytes(pfm)
        (scene / "cams" / f"{number:08d}_cam.txt").write_text(mvs_camera())
    return scene


def mvs_camera(skew: float = 0.0) -> str:
    fx, fy, cx, cy = CAMERA
    pose = "1 0 0 5\n0 1 0 6\n0 0 1 7\n0.0 0.0 0.0 1.0"
    return (
        f"extrinsic\n{pose} \n\nintrinsic\n{fx} {skew} {cx} \n0.0 {fy} {cy} \n0.0 0.0 1.0 \n\n58.6 1.46 128.0 245.5\n"
    )


def test_blendedmvs_is_read_exactly_and_has_no_unit(blended: Path, tmp_path: Path) -> None:
    report = import_blendedmvs(blended.parent, tmp_path / "out")
    assert report.instances == ["5a3c/00000000", "5a3c/00000001"]
    assert report.skipped == []
    for name in report.instances:
        depth = check_is_plane(report.out_dir / name, unit=None)
        assert np.isnan(depth[-2:]).all()
        assert np.isfinite(depth[:-2]).all()
        check_camera(report.out_dir / name, CAMERA, W, H)
    assert (report.label_type, report.metric) == ("sfm", False)
    assert import_blendedmvs(blended, tmp_path / "one").instances == report.instances
    assert import_blendedmvs(blended.parent, tmp_path / "out").num_written == 0


def test_max_depth_is_in_the_units_of_the_scene(blended: Path, tmp_path: Path) -> None:
    depth = read_depth(
        import_blendedmvs(blended, tmp_path / "out", max_depth=OFFSET).out_dir / "5a3c/00000000/depth.png"
    )
    assert np.nanmax(depth) <= OFFSET
    assert 0 < np.isnan(depth[:-2]).mean() < 1


def test_blendedmvs_frames_that_cannot_be_imported_are_named(blended: Path, tmp_path: Path) -> None:
    for number in range(2, 6):
        for folder, suffix in (("blended_images", ".jpg"), ("rendered_depth_maps", ".pfm"), ("cams", "_cam.txt")):
            data = (blended / folder / f"00000000{suffix}").read_bytes()
            (blended / folder / f"{number:08d}{suffix}").write_bytes(data)
    (blended / "cams" / "00000001_cam.txt").unlink()
    (blended / "cams" / "00000002_cam.txt").write_text("extrinsic")
    (blended / "cams" / "00000003_cam.txt").write_text(mvs_camera(skew=3))
    pfm = blended / "rendered_depth_maps" / "00000004.pfm"
    pfm.write_bytes(pfm.read_bytes()[:-4])
    (blended / "blended_images" / "00000005.jpg").unlink()
    report = import_blendedmvs(blended, tmp_path / "out")
    assert report.instances == ["5a3c/00000000"]
    evidence = {finding.instance[-1]: finding.evidence for finding in report.skipped}
    assert set(evidence) == set("12345")
    assert "00000001_cam.txt" in evidence["1"]
    assert "skew" in evidence["3"]
    assert "truncated" in evidence["4"]
    assert "00000005.jpg" in evidence["5"]


@pytest.mark.parametrize("text", ["", "intrinsic 1 2", "intrinsic a b c d e f g h i", "\xff", "intrinsic" + " nan" * 9])
def test_other_camera_files_are_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "0_cam.txt").write_text(text)
    with pytest.raises(MoGeError, match="0_cam"):
        read_mvs_camera(tmp_path / "0_cam.txt")
