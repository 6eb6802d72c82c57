"""Stereo pairs: the depth of a disparity is baseline * f / (d + doffs), with the units of each publisher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import driving
import numpy as np
import pytest
from driving import H, K, W
from hypothesis import given, settings
from hypothesis import strategies as st

from moge_core.datasets.importers.stereo import import_stereo
from moge_core.datasets.importers.writing import ImportReport
from moge_core.errors import DatasetError, FormatError, InputError
from moge_core.io import read_depth, read_mask, read_meta

NORMALISED = [[K[0, 0] / W, 0, (K[0, 2] + 0.5) / W], [0, K[1, 1] / H, (K[1, 2] + 0.5) / H], [0, 0, 1]]
F = K[0, 0]


def write_pfm(path: Path, values: driving.Array, *, big_endian: bool = False) -> None:
    """Rows from below upwards, as the format has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = values[::-1].astype(">f4" if big_endian else "<f4").tobytes()
    path.write_bytes(f"Pf\n{values.shape[1]} {values.shape[0]}\n{1.0 if big_endian else -1.0}\n".encode() + data)


def write_calib(path: Path, *, baseline_mm: float, doffs: float) -> None:
    matrix = "; ".join(" ".join(f"{value:g}" for value in row) for row in K)
    lines = [f"cam0=[{matrix}]", f"cam1=[{matrix}]", f"doffs={doffs}", f"baseline={baseline_mm}"]
    path.write_text("\n".join([*lines, f"width={W}", f"height={H}", "ndisp=290", "isint=0", ""]))


def some_depth(seed: int = 0) -> driving.Array:
    return np.random.default_rng(seed).uniform(2, 20, (H, W))


def write_scene(folder: Path, z: driving.Array, *, baseline: float = 0.193, doffs: float = 31.0) -> driving.Array:
    """A Middlebury scene with some unknown disparities; the depth that an import must give."""
    disparity = baseline * F / z - doffs
    disparity[3, :7] = np.inf
    driving.write_photo(folder / "im0.png")
    write_pfm(folder / "disp0.pfm", disparity)
    write_calib(folder / "calib.txt", baseline_mm=1000 * baseline, doffs=doffs)
    return np.where(np.isinf(disparity), np.nan, z)


def check(report: ImportReport, name: str, z: driving.Array, rtol: float = 3e-4) -> None:
    np.testing.assert_allclose(read_depth(report.out_dir / name / "depth.png"), z, rtol=rtol)
    np.testing.assert_allclose(read_meta(report.out_dir / name / "meta.json")["intrinsics"], NORMALISED, rtol=1e-5)


def test_middlebury_scenes_use_the_baseline_in_millimetres_doffs_and_infinity(tmp_path: Path) -> None:
    depths = {name: write_scene(tmp_path / "m" / name, some_depth(i)) for i, name in enumerate(("Chess", "Piano"))}
    report = import_stereo(tmp_path / "m", tmp_path / "out")
    assert report.instances == ["Chess", "Piano"]
    assert (report.skipped, report.notes, report.metric, report.label_type) == ([], [], True, "sfm")
    for name, z in depths.items():
        check(report, name, z)
    assert import_stereo(tmp_path / "m" / "Piano", tmp_path / "alone").instances == ["Piano"]


@given(baseline=st.floats(0.05, 0.6), doffs=st.floats(-5, 200), seed=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_any_baseline_and_doffs_give_back_the_depth(
    tmp_path_factory: pytest.TempPathFactory, baseline: float, doffs: float, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("stereo")
    z = write_scene(folder / "scene", some_depth(seed), baseline=baseline, doffs=doffs)
    check(import_stereo(folder / "scene", folder / "out"), "scene", z, rtol=1e-3)


def test_a_baseline_or_doffs_that_is_given_goes_before_the_calibration(tmp_path: Path) -> None:
    z = some_depth()
    known = write_scene(tmp_path / "scene", z, baseline=0.2, doffs=0.0)
    report = import_stereo(tmp_path / "scene", tmp_path / "out", baseline=0.4)
    check(report, "scene", 2 * known)
    shifted = import_stereo(tmp_path / "scene", tmp_path / "out", doffs=2.0)
    check(shifted, "scene", 0.2 * F / (0.2 * F / known + 2))
    write_calib(tmp_path / "scene" / "calib.txt", baseline_mm=0.2, doffs=0)
    assert any("below 1 mm" in note for note in import_stereo(tmp_path / "scene", tmp_path / "out").notes)


def test_doffs_of_a_calibration_for_another_size_are_made_those_of_the_map(tmp_path: Path) -> None:
    z = some_depth()
    known = write_scene(tmp_path / "scene", z, baseline=0.2, doffs=4.0)
    calib = tmp_path / "scene" / "calib.txt"
    # A pixel-space cx counts from the centre of the first pixel.
    larger = np.array([[2 * F, 0, 2 * K[0, 2] + 0.5], [0, 2 * K[1, 1], 2 * K[1, 2] + 0.5], [0, 0, 1]])
    matrix = "; ".join(" ".join(f"{value:g}" for value in row) for row in larger)
    lines = [f"cam0=[{matrix}]", "doffs=8.0", "baseline=200", f"width={2 * W}", f"height={2 * H}"]
    calib.write_text("\n".join(lines))
    check(import_stereo(tmp_path / "scene", tmp_path / "out"), "scene", known)
    # What is given is in pixels of the map.
    check(import_stereo(tmp_path / "scene", tmp_path / "out", doffs=4.0), "scene", known)


def test_eth3d_masks_keep_what_one_camera_alone_sees_and_drop_what_nobody_measured(tmp_path: Path) -> None:
    folder = tmp_path / "delivery_area_1l"
    z = some_depth()
    driving.write_photo(folder / "im0.png")
    write_pfm(folder / "disp0GT.pfm", 0.06 * F / z, big_endian=True)
    write_calib(folder / "calib.txt", baseline_mm=60, doffs=0)
    mask = np.random.default_rng(0).choice([0, 128, 255], (H, W)).astype(np.uint8)
    cv2.imwrite(str(folder / "mask0nocc.png"), mask)
    report = import_stereo(tmp_path, tmp_path / "out")
    check(report, "delivery_area_1l", np.where(mask > 0, z, np.nan))
    np.testing.assert_array_equal(read_mask(report.out_dir / "delivery_area_1l" / "mask.png"), mask > 0)


def write_kitti(root: Path, year: int, names: list[str]) -> dict[str, driving.Array]:
    """KITTI's training folder of a year; the depth maps."""
    training = root / "training"
    images, disparities = {2015: ("image_2", "disp_occ_0"), 2012: ("colored_0", "disp_occ")}[year]
    depths = {}
    for i, name in enumerate(names):
        z = some_depth(i)
        z[0] = np.nan
        depths[name] = z
        for moment in (10, 11):
            driving.write_photo(training / images / f"{name}_{moment}.png")
        path = training / disparities / f"{name}_10.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), np.nan_to_num(0.53 * F / z * 256).round().astype(np.uint16))
        calibration = training / {2015: "calib_cam_to_cam", 2012: "calib"}[year] / f"{name}.txt"
        calibration.parent.mkdir(exist_ok=True)
        left, right = (np.hstack([K, [[F * place], [0.2], [0.003]]]) for place in (0.06, 0.06 - 0.53))
        form = {2015: "P_rect_0{}", 2012: "P{}"}[year]
        lines = ["calib_time: 09-Jan-2012", f"{form.format(0)}: {driving.numbers(np.hstack([9 * K, np.ones((3, 1))]))}"]
        lines += [f"{form.format(2)}: {driving.numbers(left)}", f"{form.format(3)}: {driving.numbers(right)}"]
        calibration.write_text("\n".join(lines))
    return depths


@pytest.mark.parametrize(("year", "images"), [(2015, "image_2"), (2012, "colored_0")])
def test_kitti_disparities_use_256_units_a_pixel_and_the_baseline_of_the_coloured_cameras(
    tmp_path: Path, year: int, images: str
) -> None:
    depths = write_kitti(tmp_path / "kitti", year, ["000000", "000001"])
    report = import_stereo(tmp_path / "kitti", tmp_path / "out")
    assert report.instances == [f"training/{images}/{name}_10" for name in depths]
    assert report.skipped == []
    for name, z in depths.items():
        # A step of 1/256 pixel at the farthest disparity.
        check(report, f"training/{images}/{name}_10", z, rtol=20 / (0.53 * F) / 256)


def test_kitti_calibrations_may_lie_elsewhere_and_missing_ones_are_named(tmp_path: Path) -> None:
    write_kitti(tmp_path / "kitti", 2015, ["000000", "000001"])
    training = tmp_path / "kitti" / "training"
    (training / "calib_cam_to_cam").rename(tmp_path / "calib")
    (tmp_path / "calib" / "000001.txt").unlink()
    with pytest.raises(DatasetError, match="calib_cam_to_cam"):
        import_stereo(tmp_path / "kitti", tmp_path / "out")
    report = import_stereo(tmp_path / "kitti", tmp_path / "out", calib_dir=tmp_path / "calib")
    assert report.instances == ["training/image_2/000000_10"]
    assert [finding.instance for finding in report.skipped] == ["training/image_2/000001_10"]


def test_any_left_pictures_and_disparities_are_read_as_the_options_say(tmp_path: Path) -> None:
    source = tmp_path / "source"
    z = some_depth()
    disparity = 0.25 * F / z - 1.5
    stored = 8 * disparity
    stored[5, :4] = 999, np.inf, np.nan, 0
    for name in ("a", "b"):
        driving.write_photo(source / f"{name}_left.png")
        driving.write_photo(source / f"{name}_right.png")
        np.savez(source / f"{name}_disp.npz", stored.astype(np.float32))
    driving.write_photo(source / "c_left.png")
    options: dict[str, Any] = {"left": "*_left.png", "disparity": "*_disp.npz", "doffs": 1.5, "disparity_scale": 8}
    options |= {"intrinsics": f"{F},{K[1, 1]},{K[0, 2]},{K[1, 2]}", "invalid": [999]}
    report = import_stereo(source, tmp_path / "out", baseline=0.25, **options)
    z[5, :4] = np.nan
    assert report.instances == ["a", "b"]
    assert [finding.instance for finding in report.skipped] == ["c_left.png"]
    check(report, "a", z)

    without_unit = import_stereo(source, tmp_path / "units", **options)
    assert without_unit.metric is False
    assert any("no unit" in note for note in without_unit.notes)
    check(without_unit, "a", z / 0.25)


def test_scenes_that_cannot_be_imported_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    for name in ("good", "no_truth", "no_calib", "bad_calib", "cut"):
        write_scene(tmp_path / "m" / name, some_depth())
    (tmp_path / "m" / "no_truth" / "disp0.pfm").unlink()
    (tmp_path / "m" / "no_calib" / "calib.txt").unlink()
    (tmp_path / "m" / "bad_calib" / "calib.txt").write_text("cam0=[1 0 0]\nbaseline=100\n")
    data = (tmp_path / "m" / "cut" / "disp0.pfm").read_bytes()
    (tmp_path / "m" / "cut" / "disp0.pfm").write_bytes(data[:-10])
    report = import_stereo(tmp_path / "m", tmp_path / "out")
    assert report.instances == ["good"]
    assert {finding.instance for finding in report.skipped} == {"no_truth", "no_calib", "bad_calib", "cut"}
    assert all(finding.severity == "error" for finding in report.skipped)


def test_what_is_no_stereo_data_or_lacks_an_option_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="--left"):
        import_stereo(tmp_path / "empty", tmp_path / "out")
    driving.write_photo(tmp_path / "plain" / "a_left.png")
    np.save(tmp_path / "plain" / "a_disp.npy", some_depth())
    for options, named in (
        ({"left": "*_left.png"}, "disparity"),
        ({"disparity": "*.npy"}, "left"),
        ({"left": "*_left.png", "disparity": "*.npy"}, "intrinsics"),
        ({"layout": "other"}, "layout"),
        ({"baseline": -1.0}, "baseline"),
    ):
        with pytest.raises(InputError, match=named):
            import_stereo(tmp_path / "plain", tmp_path / "out", **options)  # type: ignore[arg-type]
    (tmp_path / "plain" / "K.txt").write_text("no camera")
    with pytest.raises(FormatError, match=r"K\.txt"):
        import_stereo(tmp_path / "plain", tmp_path / "out", left="*_left.png", disparity="*.npy", intrinsics="K.txt")
