"""Sources whose folders are links: nothing is passed by, nothing is taken twice, and loops end."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from plane_frames import picture, plane_z

from moge_core.datasets.importers.array_files import import_arrays
from moge_core.datasets.importers.blendedmvs import import_blendedmvs
from moge_core.datasets.importers.hypersim import import_hypersim
from moge_core.datasets.importers.rgbd_folder import import_rgbd_folder
from moge_core.datasets.importers.source_files import each_once, walk
from moge_core.datasets.importers.tartanair import import_tartanair
from moge_core.datasets.importers.writing import ImportReport
from moge_core.io import write_image

W, H = 40, 30
CAMERA = (36.0, 35.0, 20.25, 13.5)


def write_hypersim(scene: Path) -> None:
    h5py = pytest.importorskip("h5py")
    for folder in ("scene_cam_00_geometry_hdf5", "scene_cam_00_final_preview"):
        (scene / "images" / folder).mkdir(parents=True)
    write_image(scene / "images/scene_cam_00_final_preview/frame.0000.tonemap.jpg", picture(64, 48))
    with h5py.File(scene / "images/scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5", "w") as file:
        file["dataset"] = np.full((48, 64), 2, np.float32)


def write_tartanair(scene: Path) -> None:
    for folder in ("image_left", "depth_left"):
        (scene / folder).mkdir(parents=True)
    write_image(scene / "image_left/000000_left.png", picture(64, 48))
    np.save(scene / "depth_left/000000_left_depth.npy", np.full((48, 64), 2, np.float32))


def write_blendedmvs(scene: Path) -> None:
    for folder in ("blended_images", "cams", "rendered_depth_maps"):
        (scene / folder).mkdir(parents=True)
    write_image(scene / "blended_images/00000000.jpg", picture(W, H))
    (scene / "cams/00000000_cam.txt").write_text("intrinsic\n36 0 20.25\n0 35 13.5\n0 0 1\n")
    depth = np.full((H, W), 2, "<f4")
    (scene / "rendered_depth_maps/00000000.pfm").write_bytes(f"Pf\n{W} {H}\n-1\n".encode() + depth.tobytes())


def write_arrays(scene: Path) -> None:
    scene.mkdir(parents=True)
    K = np.array([[36.0, 0, 20.25], [0, 35.0, 13.5], [0, 0, 1]])
    np.savez(scene / "frames.npz", image=picture(W, H), depth=plane_z(W, H, CAMERA), K=K)


LAYOUTS: dict[str, tuple[Callable[[Path], None], Callable[..., ImportReport], str]] = {
    "hypersim": (write_hypersim, import_hypersim, "cam_00/frame.0000"),
    "tartanair": (write_tartanair, import_tartanair, "left/000000"),
    "blendedmvs": (write_blendedmvs, import_blendedmvs, "00000000"),
    "arrays": (write_arrays, import_arrays, "frames"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_linked_scene_is_imported_once_beside_the_others(tmp_path: Path, layout: str) -> None:
    write, run, frame = LAYOUTS[layout]
    source = tmp_path / "source"
    write(source / "a_001")
    write(tmp_path / "elsewhere" / "b_001")
    (source / "a_002").symlink_to(tmp_path / "elsewhere" / "b_001")
    (source / "latest").symlink_to("a_001")
    (source / "a_001" / "above").symlink_to(source)
    (tmp_path / "elsewhere" / "b_001" / "back").symlink_to(tmp_path)
    write(source / ".hidden" / "scene")
    report = run(source, tmp_path / "out")
    assert report.instances == [f"a_001/{frame}", f"a_002/{frame}"]
    assert report.skipped == []
    assert run(source, tmp_path / "out").num_written == 0


def test_linked_pictures_and_depth_maps_are_found_and_paired(tmp_path: Path) -> None:
    import cv2

    stored, source = tmp_path / "stored", tmp_path / "source"
    for name in ("a", "b"):
        for folder in ("colour", "measured"):
            (stored / folder).mkdir(parents=True, exist_ok=True)
        write_image(stored / "colour" / f"{name}.jpg", picture(W, H))
        cv2.imwrite(str(stored / "measured" / f"{name}.png"), np.full((H, W), 2000, np.uint16))
    source.mkdir()
    (source / "rgb").symlink_to(stored / "colour")
    (source / "depth").symlink_to(stored / "measured")
    (source / "depth_again").symlink_to(stored / "measured")
    report = import_rgbd_folder(source, tmp_path / "out", intrinsics="36,35,20.25,13.5", depth_scale=1000)
    assert len(report.instances) == 2
    assert report.skipped == []


def test_walking_has_one_order_and_an_end_whatever_the_links(tmp_path: Path) -> None:
    rooms = [tmp_path / "source" / f"room{i:02d}" for i in range(30)]
    for room, following in pairwise(rooms):
        (room / "inside").mkdir(parents=True)
        (room / "file").touch()
        for door in ("left", "right"):
            (room / door).symlink_to(following)
    rooms[-1].mkdir()
    (rooms[-1] / "start").symlink_to(rooms[0])
    source = tmp_path / "source"
    folders = list(walk(source))
    assert folders == list(walk(source))
    assert len(folders) < 3000
    once = each_once(folders, source)
    assert [folder.path for folder in once] == sorted([source, *rooms, *(room / "inside" for room in rooms[:-1])])


def test_what_is_excluded_closed_or_hidden_is_not_entered(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("out/inside", "a.zarr/depth", ".git/objects", "b"):
        (source / name).mkdir(parents=True)
    (source / "b" / "file").touch()
    (source / "b" / ".hidden").touch()
    (source / "to_out").symlink_to(source / "out")
    folders = list(walk(source, exclude=source / "out", closed=".zarr"))
    assert {folder.path.relative_to(source).as_posix(): folder.files for folder in folders} == {
        ".": (),
        "a.zarr": (),
        "b": ("file",),
    }
