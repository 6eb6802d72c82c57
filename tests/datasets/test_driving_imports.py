"""Drives with LiDAR: sweeps land on the pixels that the published calibrations say, and what is hidden stays out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import driving
import numpy as np
import pytest
from driving import DRIVE, H, K, W

from moge_core.datasets.importers.dgp import import_dgp
from moge_core.datasets.importers.kitti import import_kitti
from moge_core.datasets.importers.nuscenes import import_nuscenes
from moge_core.datasets.importers.projection import project_points
from moge_core.datasets.importers.writing import ImportReport
from moge_core.errors import DatasetError, FormatError, InputError
from moge_core.io import read_depth, read_meta

NORMALISED = [[K[0, 0] / W, 0, (K[0, 2] + 0.5) / W], [0, K[1, 1] / H, (K[1, 2] + 0.5) / H], [0, 0, 1]]


def check_instance(folder: Path, depth: driving.Array) -> None:
    np.testing.assert_allclose(read_depth(folder / "depth.png"), depth, rtol=2e-4)
    meta = read_meta(folder / "meta.json")
    np.testing.assert_allclose(meta["intrinsics"], NORMALISED, rtol=1e-5)
    assert (meta["label_type"], meta["depth_unit"]) == ("lidar", 1.0)


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and ".moge" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def skipped(report: ImportReport) -> dict[str, str]:
    return {finding.instance: finding.evidence for finding in report.skipped}


def test_kitti_object_sweeps_go_through_both_rotations_and_the_cameras_own_place(tmp_path: Path) -> None:
    depths = driving.write_kitti_object(tmp_path / "kitti", ["000000", "000007"])
    report = import_kitti(tmp_path / "kitti", tmp_path / "out")
    assert report.instances == ["training/image_2/000000", "training/image_2/000007"]
    assert (report.skipped, report.notes, report.metric) == ([], [], True)
    for name, depth in depths.items():
        check_instance(tmp_path / "out" / "training" / "image_2" / name, depth)
    inside = import_kitti(tmp_path / "kitti" / "training", tmp_path / "inside")
    assert inside.instances == report.instances


@pytest.mark.parametrize("camera", [2, 3])
def test_kitti_raw_cameras_are_chosen_by_name_and_each_has_its_own_place(tmp_path: Path, camera: int) -> None:
    depths = driving.write_kitti_raw(tmp_path / "raw", camera, ["0000000000", "0000000001"])
    report = import_kitti(tmp_path / "raw", tmp_path / "out", cameras=[f"image_0{camera}"])
    assert report.instances == [f"{DRIVE}/image_0{camera}/{frame}" for frame in depths]
    for frame, depth in depths.items():
        check_instance(tmp_path / "out" / DRIVE / f"image_0{camera}" / frame, depth)
    other = read_depth(
        import_kitti(tmp_path / "raw", tmp_path / "both").out_dir / DRIVE / f"image_0{5 - camera}/0000000000/depth.png"
    )
    assert not np.array_equal(np.isfinite(other), np.isfinite(depths["0000000000"]))


def test_a_source_may_be_a_day_or_a_drive_and_instances_are_named_alike(tmp_path: Path) -> None:
    driving.write_kitti_raw(tmp_path / "raw", 2, ["0000000000"])
    day = tmp_path / "raw" / "2011_09_26"
    names = [
        import_kitti(source, tmp_path / "out" / source.name).instances
        for source in (tmp_path / "raw", day, day / DRIVE)
    ]
    assert names[0] == names[1] == names[2] == [f"{DRIVE}/image_02/0000000000", f"{DRIVE}/image_03/0000000000"]


def write_depth_png(path: Path, depth: driving.Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.nan_to_num(depth * 256).round().astype(np.uint16))


def test_kitti_depth_maps_find_their_images_and_calibration_in_the_raw_recordings(tmp_path: Path) -> None:
    depths = driving.write_kitti_raw(tmp_path / "raw", 2, ["0000000000", "0000000001", "0000000002"])
    truth = tmp_path / "depth" / "train" / DRIVE / "proj_depth" / "groundtruth" / "image_02"
    for frame in ("0000000001", "0000000002"):
        write_depth_png(truth / f"{frame}.png", depths[frame])
    write_depth_png(truth / "0000000009.png", depths["0000000001"])
    report = import_kitti(tmp_path / "depth", tmp_path / "out", images_dir=tmp_path / "raw")
    assert report.instances == [f"{DRIVE}/image_02/0000000001", f"{DRIVE}/image_02/0000000002"]
    assert [finding.rule for finding in report.skipped] == ["paired"]
    found = read_depth(tmp_path / "out" / report.instances[0] / "depth.png")
    np.testing.assert_allclose(found, np.round(depths["0000000001"] * 256) / 256, rtol=2e-4)
    with pytest.raises(DatasetError, match="--images"):
        import_kitti(tmp_path / "depth", tmp_path / "without")


def test_kittis_selection_of_cropped_depth_has_a_camera_of_its_own_for_each_frame(tmp_path: Path) -> None:
    folder = tmp_path / "depth_selection" / "val_selection_cropped"
    _, depth = driving.seen_points(0)
    frame = "{}_{}_0000000005_image_02"
    write_depth_png(folder / "groundtruth_depth" / f"{frame.format(DRIVE, 'groundtruth_depth')}.png", depth)
    driving.write_photo(folder / "image" / f"{frame.format(DRIVE, 'image')}.png")
    driving.write_photo(folder / "image" / f"{frame.format('other', 'image')}.png")
    path = folder / "intrinsics" / f"{frame.format(DRIVE, 'image')}.txt"
    path.parent.mkdir()
    path.write_text(driving.numbers(K))
    report = import_kitti(tmp_path, tmp_path / "out")
    (name,) = report.instances
    assert name == f"depth_selection/val_selection_cropped/{frame.format(DRIVE, 'image')}"
    check_instance(tmp_path / "out" / name, np.round(depth * 256) / 256)
    assert [finding.rule for finding in report.skipped] == ["paired"]


def test_kitti_frames_that_cannot_be_imported_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    names = [f"00000{i}" for i in range(6)]
    driving.write_kitti_object(tmp_path / "kitti", names)
    training = tmp_path / "kitti" / "training"
    (training / "velodyne" / "000000.bin").unlink()
    (training / "image_2" / "000001.png").unlink()
    (training / "calib" / "000002.txt").unlink()
    text = (training / "calib" / "000003.txt").read_text()
    (training / "calib" / "000003.txt").write_text(text.replace("R0_rect:", "R0_rect: 1"))
    (training / "velodyne" / "000004.bin").write_bytes(b"123456")
    report = import_kitti(tmp_path / "kitti", tmp_path / "out")
    assert report.instances == ["training/image_2/000005"]
    found = skipped(report)
    assert len(found) == 5
    assert "no depth has its number" in found["kitti/training/image_2/000000.png"]
    assert "no image has its number" in found["kitti/training/velodyne/000001.bin"]
    assert "no such file" in found["training/image_2/000002"]
    assert "R0_rect" in found["training/image_2/000003"]
    assert "rows of 4" in found["training/image_2/000004"]
    logged = [json.loads(line) for line in report.log_path.read_text().splitlines()][-1]["skipped"]
    assert {entry["file"] for entry in logged} == set(found)


def test_unrectified_drives_and_unknown_layouts_are_refused_with_the_reason(tmp_path: Path) -> None:
    driving.write_kitti_raw(tmp_path / "raw", 2, ["0000000000"])
    day = tmp_path / "raw" / "2011_09_26"
    shutil.copytree(day / DRIVE, day / "2011_09_26_drive_0002_extract")
    report = import_kitti(tmp_path / "raw", tmp_path / "out")
    assert list(skipped(report)) == ["2011_09_26_drive_0002_extract"]
    with pytest.raises(DatasetError, match="none of them"):
        import_kitti(day / DRIVE / "image_02", tmp_path / "other")
    with pytest.raises(InputError, match="cameras"):
        import_kitti(tmp_path / "raw", tmp_path / "out", cameras=["image_00"])
    shutil.rmtree(day / DRIVE / "image_03")
    with pytest.raises(InputError, match="image_03"):
        import_kitti(tmp_path / "raw", tmp_path / "out", cameras=["image_03"])


def test_a_drive_import_that_was_killed_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import moge_core.io as io_module

    driving.write_kitti_object(tmp_path / "kitti", [f"{i:06d}" for i in range(6)])
    whole = import_kitti(tmp_path / "kitti", tmp_path / "whole")
    calls = 0
    write_meta = io_module.write_meta

    class Killed(BaseException):
        pass

    def die_later(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise Killed
        write_meta(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(io_module, "write_meta", die_later)
        with pytest.raises(Killed):
            import_kitti(tmp_path / "kitti", tmp_path / "killed")
    resumed = import_kitti(tmp_path / "kitti", tmp_path / "killed")
    assert resumed.instances == whole.instances
    assert 0 < resumed.num_written < 6
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert import_kitti(tmp_path / "kitti", tmp_path / "killed").num_written == 0


def test_a_changed_calibration_makes_its_frame_anew(tmp_path: Path) -> None:
    driving.write_kitti_object(tmp_path / "kitti", ["000000", "000001"])
    import_kitti(tmp_path / "kitti", tmp_path / "out")
    path = tmp_path / "kitti" / "training" / "calib" / "000001.txt"
    before = files_of(tmp_path / "out")
    changed = path.read_text().replace(driving.numbers(driving.KITTI_RECTIFY), driving.numbers(np.eye(3)))
    path.write_text(changed)
    assert import_kitti(tmp_path / "kitti", tmp_path / "out").num_written == 1
    after = files_of(tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} == {
        f"training/image_2/000001/{name}" for name in ("depth.png", "meta.json")
    }


def test_dgp_points_go_by_the_two_poses_and_not_by_the_mounts(tmp_path: Path) -> None:
    depths = {name: driving.write_dgp_scene(tmp_path / "dgp" / name, seed=i) for i, name in enumerate("ab")}
    report = import_dgp(tmp_path / "dgp", tmp_path / "out")
    assert report.instances == ["a/CAMERA_01/120", "b/CAMERA_01/120"]
    assert report.skipped == []
    for name, depth in depths.items():
        check_instance(tmp_path / "out" / name / "CAMERA_01" / "120", depth)
    alone = import_dgp(tmp_path / "dgp" / "b", tmp_path / "alone")
    assert alone.instances == ["b/CAMERA_01/120"]


def test_dgp_cameras_are_chosen_by_name_and_absent_ones_are_told(tmp_path: Path) -> None:
    cameras = ["CAMERA_01", "CAMERA_05", "CAMERA_06"]
    driving.write_dgp_scene(tmp_path / "dgp", cameras)
    shutil.rmtree(tmp_path / "dgp" / "rgb" / "CAMERA_06")
    report = import_dgp(tmp_path / "dgp", tmp_path / "out")
    assert report.instances == ["dgp/CAMERA_01/120", "dgp/CAMERA_05/120"]
    assert report.notes == ["No image of CAMERA_06 is here; nothing was made of these cameras."]
    assert import_dgp(tmp_path / "dgp", tmp_path / "five", cameras=["CAMERA_05"]).instances == ["dgp/CAMERA_05/120"]
    both = import_dgp(tmp_path / "dgp", tmp_path / "asked", cameras=["CAMERA_05", "CAMERA_06"])
    assert "no such file" in skipped(both)["dgp/CAMERA_06/120"]
    for options, named in (({"cameras": ["CAMERA_99"]}, "CAMERA_01"), ({"lidar": "RADAR"}, "LIDAR")):
        with pytest.raises(InputError, match=named):
            import_dgp(tmp_path / "dgp", tmp_path / "out", **options)  # type: ignore[arg-type]


def edit_json(path: Path, edit: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("file", "edit", "evidence"),
    [
        ("scene_abc.json", lambda scene: scene["data"][0]["datum"]["point_cloud"].pop("pose"), "pose"),
        ("scene_abc.json", lambda scene: scene["samples"][0]["datum_keys"].remove("l"), "no sweep"),
        ("scene_abc.json", lambda scene: scene["data"][1]["datum"]["image"].update(filename="../x.png"), "inside"),
        ("scene_abc.json", lambda scene: scene["samples"][0].update(calibration_key="none"), "no such file"),
        ("scene_abc.json", lambda scene: scene["samples"][0].update(calibration_key=["c"]), "calibration_key"),
        ("calibration/c.json", lambda value: value.update(names=[[1], "CAMERA_01"]), "names must be a list of strings"),
        ("calibration/c.json", lambda value: value["intrinsics"][1].update(k1=-0.2), "distortion in k1"),
        ("calibration/c.json", lambda value: value["intrinsics"][1].update(skew=3.0), "skew"),
        ("calibration/c.json", lambda value: value.update(names=["LIDAR", "other"]), "CAMERA_01"),
    ],
)
def test_a_dgp_frame_that_cannot_be_read_is_named_with_its_reason(
    tmp_path: Path, file: str, edit: Callable[[Any], None], evidence: str
) -> None:
    for name in ("good", "bad"):
        driving.write_dgp_scene(tmp_path / "dgp" / name)
    edit_json(tmp_path / "dgp" / "bad" / file, edit)
    report = import_dgp(tmp_path / "dgp", tmp_path / "out")
    assert report.instances == ["good/CAMERA_01/120"]
    (finding,) = report.skipped
    assert finding.instance.startswith("bad/CAMERA_01/")
    assert evidence in finding.evidence


@pytest.mark.parametrize("text", ["{", "[]", '{"data": 5, "samples": []}', '{"data": [{}], "samples": []}', "null"])
def test_a_dgp_scene_that_is_none_is_named_and_the_others_go_on(tmp_path: Path, text: str) -> None:
    driving.write_dgp_scene(tmp_path / "dgp" / "good")
    (tmp_path / "dgp" / "bad").mkdir()
    (tmp_path / "dgp" / "bad" / "scene_x.json").write_text(text)
    report = import_dgp(tmp_path / "dgp", tmp_path / "out")
    assert report.instances == ["good/CAMERA_01/120"]
    assert [finding.instance for finding in report.skipped] in ([], ["bad"])
    assert bool(report.skipped) == ("samples" not in text or "{}" in text)


@pytest.mark.parametrize(
    ("edit", "evidence"),
    [
        (lambda scene: scene["samples"][0].update(datum_keys=5), "datum_keys"),
        (lambda scene: scene["samples"][0].update(datum_keys=[[1]]), "datum_keys"),
        (lambda scene: scene["samples"][0].update(datum_keys={"l": 1}), "datum_keys"),
        (lambda scene: scene["data"][0].update(key=[1]), "key must be a string"),
        (lambda scene: scene["data"][1]["id"].update(name={"a": 1}), "id.name must be a string"),
    ],
)
def test_keys_of_a_dgp_scene_that_are_no_strings_are_named_and_the_others_go_on(
    tmp_path: Path, edit: Callable[[Any], None], evidence: str
) -> None:
    for name in ("good", "bad"):
        driving.write_dgp_scene(tmp_path / "dgp" / name)
    edit_json(tmp_path / "dgp" / "bad" / "scene_abc.json", edit)
    report = import_dgp(tmp_path / "dgp", tmp_path / "out")
    assert report.instances == ["good/CAMERA_01/120"]
    (finding,) = report.skipped
    assert finding.instance == "bad"
    assert evidence in finding.evidence
    assert "scene_abc.json" in finding.evidence


@pytest.mark.parametrize("value", [["a"], {"a": 1}, 5, None])
@pytest.mark.parametrize(
    ("table", "token"),
    [
        ("calibrated_sensor", "sensor_token"),
        ("sample", "scene_token"),
        ("sample_data", "calibrated_sensor_token"),
        ("sample_data", "sample_token"),
        ("sample_data", "ego_pose_token"),
    ],
)
def test_tokens_of_nuscenes_that_are_no_strings_are_refused_with_the_table(
    tmp_path: Path, table: str, token: str, value: Any
) -> None:
    driving.write_nuscenes(tmp_path / "nuscenes")
    edit_json(tmp_path / "nuscenes/v1.0-mini" / f"{table}.json", lambda rows: rows[0].update({token: value}))
    with pytest.raises(FormatError, match=rf"{table}\.json.*{token}"):
        import_nuscenes(tmp_path / "nuscenes", tmp_path / "out")


def test_nuscenes_points_go_from_the_car_of_one_moment_to_that_of_the_other(tmp_path: Path) -> None:
    depth = driving.write_nuscenes(tmp_path / "nuscenes")
    report = import_nuscenes(tmp_path / "nuscenes", tmp_path / "out")
    assert report.instances == ["scene-0061/CAM_FRONT/s__CAM_FRONT__2"]
    assert report.skipped == []
    check_instance(tmp_path / "out" / report.instances[0], depth)


def test_nuscenes_frames_without_files_poses_or_sweeps_are_named(tmp_path: Path) -> None:
    root = tmp_path / "nuscenes"
    driving.write_nuscenes(root)
    table = root / "v1.0-mini" / "sample_data.json"

    def more_samples(rows: list[dict[str, Any]]) -> None:
        camera, lidar = rows[:2]
        rows += [{**camera, "token": "b1", "sample_token": "b"}]
        rows += [{**camera, "token": "c1", "sample_token": "c", "filename": "gone.jpg"}]
        rows += [{**lidar, "token": "c2", "sample_token": "c"}, {**lidar, "token": "d2", "sample_token": "d"}]
        rows += [{**camera, "token": "e1", "sample_token": "e", "ego_pose_token": "no"}]
        rows += [{**lidar, "token": "e2", "sample_token": "e"}]

    edit_json(table, more_samples)
    edit_json(
        root / "v1.0-mini" / "sample.json", lambda rows: rows.extend({"token": t, "scene_token": "s"} for t in "bcde")
    )
    report = import_nuscenes(root, tmp_path / "out")
    assert len(report.instances) == 1
    evidence = [finding.evidence for finding in report.skipped]
    assert len(evidence) == 4
    for words in ("no sweep", "gone.jpg", "sample d has no image", "ego_pose"):
        assert sum(words in text for text in evidence) == 1, words


def test_nuscenes_tables_are_chosen_and_checked(tmp_path: Path) -> None:
    root = tmp_path / "nuscenes"
    driving.write_nuscenes(root)
    driving.write_nuscenes(root, version="v1.0-trainval")
    with pytest.raises(DatasetError, match=r"v1\.0-mini, v1\.0-trainval"):
        import_nuscenes(root, tmp_path / "out")
    assert len(import_nuscenes(root, tmp_path / "out", version="v1.0-mini").instances) == 1
    with pytest.raises(InputError, match="CAM_FRONT"):
        import_nuscenes(root, tmp_path / "out", version="v1.0-mini", cameras=["CAM_BACK"])
    (root / "v1.0-mini" / "ego_pose.json").write_text('{"token": 1}')
    with pytest.raises(FormatError, match="list of rows"):
        import_nuscenes(root, tmp_path / "out", version="v1.0-mini")


def test_an_import_leaves_out_what_its_lidar_saw_past_a_box(tmp_path: Path) -> None:
    axis, degrees, place = driving.DGP_CAMERA_POSE
    to_camera = np.linalg.inv(driving.rigid(driving.turn(axis, degrees), place))
    sensor = driving.apply(to_camera, np.array(driving.DGP_LIDAR_POSE[2]))
    points, on_box = driving.measure(sensor, [driving.Box(0, 0, 1, 0.6, 5.0)], wall=15.0, spacing_deg=0.8)
    driving.write_dgp_scene(tmp_path / "dgp", points=points)
    report = import_dgp(tmp_path / "dgp", tmp_path / "out")
    depth = read_depth(report.out_dir / report.instances[0] / "depth.png")

    box = points[on_box == 0]
    uv = box[:, :2] / box[:, 2:] * [K[0, 0], K[1, 1]] + [K[0, 2] + 0.5, K[1, 2] + 0.5]
    first, last = np.ceil(uv.min(axis=0)).astype(int), np.floor(uv.max(axis=0)).astype(int)
    inside = depth[first[1] : last[1], first[0] : last[0]]
    assert np.isfinite(inside).sum() > 50
    assert np.nanmax(inside) < 6
    intrinsics = np.array(NORMALISED)
    unfiltered = project_points(points, intrinsics, W, H, drop_hidden=False)[first[1] : last[1], first[0] : last[0]]
    assert (unfiltered > 10).sum() > 10
