"""Stored values that mean something else than was said are told, with a remedy that works; good ones are left alone."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from moge_core.cli import cli
from moge_core.datasets import render_sample_scenes
from moge_core.datasets.importers.encodings import looks_like_24_bits
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.projection import metric_z
from moge_core.datasets.importers.records import Record, Stored, StoredDepth
from moge_core.datasets.importers.source_files import read_grey_values
from moge_core.datasets.importers.suspicions import look_at_values, unlikely_depth
from moge_core.datasets.importers.told import Told
from moge_core.geometry.rays import ray_lengths
from moge_core.io import read_depth, read_image, read_meta, write_image

Array = npt.NDArray[Any]
Scenes = list[tuple[str, Array]]

CAMERA = np.array([[0.8, 0, 0.5], [0, 1.07, 0.5], [0, 0, 1]])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Names and exact z (H, W) of rooms and outdoor scenes; NaN unknown, inf sky, also through windows."""
    root = tmp_path_factory.mktemp("scenes")
    render_sample_scenes(root, 12, 31, size=(160, 120))
    return [(path.parent.parent.name, read_depth(path).astype(np.float64)) for path in sorted(root.rglob("depth.png"))]


def told(stored: Array, *, unit: float | None = 1.0, **said: Any) -> Told:
    """What is told of a frame with these stored values."""
    depth = StoredDepth(Path("d"), **said)
    height, width = stored.shape[:2]
    camera = PixelIntrinsics(0.8 * width, 1.07 * height, width / 2 - 0.5, height / 2 - 0.5)
    record = Record("a", Stored(Path("i")), depth, camera, depth_unit=unit)
    found = Told()
    look_at_values(stored, depth, metric_z(stored, depth, CAMERA), record, found)
    return found


def of(found: Told, text: str) -> list[str]:
    return [suspicion for suspicion in found.suspicions if text in suspicion]


def integers(z: Array, scale: float, sky: int = 0) -> Array:
    """16-bit values of depth; what they cannot hold, and unknown, is 0."""
    known = np.isfinite(z) & (z * scale < 65535)
    return np.where(known, np.rint(np.where(known, z, 0) * scale), np.where(np.isinf(z), sky, 0)).astype(np.uint16)


def under_the_sky(scenes: Scenes) -> list[Array]:
    return [z for kind, z in scenes if kind == "outdoor" and np.isinf(z).mean() > 0.03]


def closed(scenes: Scenes) -> list[Array]:
    return [z for _, z in scenes if not np.isinf(z).any() and np.nanmax(z) > 2.2 * np.nanpercentile(z, 40)]


def test_good_values_are_left_alone_at_every_usual_scale(scenes: Scenes) -> None:
    for kind, z in scenes:
        if kind == "room" and np.isinf(z).any():
            continue
        assert not told(z.astype(np.float32)).suspicions
        for scale in (100, 256, 1000, 5000, 6553.5):
            found = told(integers(z, scale), scale=scale)
            assert not {text for text in found.suspicions if not text.startswith("0 fills")}, (kind, scale)


def test_good_values_of_real_sensors_are_left_alone(samples_dir: Path) -> None:
    for frame in json.loads((samples_dir / "MANIFEST.json").read_text()):
        if not frame["depth"].endswith((".png", ".pgm")):
            continue
        values = read_grey_values(samples_dir / frame["depth"])
        invalid = tuple(float(value) for value in frame["invalid"])
        assert not told(values, scale=1 / frame["unit_scale"], invalid=invalid).suspicions, frame["depth"]
        z = np.where(np.isin(values, frame["invalid"]), 0, values * frame["unit_scale"])
        # What the same frame would be as another coding.
        bits = z.astype(np.float16).view(np.uint16)
        assert of(told(bits, scale=1000), "--encoding float16"), frame["depth"]
        if z.max() < 16:
            mm = np.rint(z * 1000).astype(np.uint16)
            assert of(told((mm << 3) | (mm >> 13), scale=1000), "--encoding rotated3"), frame["depth"]


@pytest.mark.parametrize("scale", [1000, 5000])
@pytest.mark.parametrize("sky", [0, 65504, np.inf])
def test_bits_of_float16_are_told_whatever_scale_was_said_and_however_sky_is_stored(
    scenes: Scenes, scale: float, sky: float
) -> None:
    for kind, z in scenes:
        bits = np.where(np.isnan(z), 0, np.where(np.isinf(z), sky, z)).astype(np.float16).view(np.uint16)
        assert of(told(bits, scale=scale), "--encoding float16"), kind


@pytest.mark.parametrize("dtype", ["u4", "i4"])
@pytest.mark.parametrize("scale", [1000, 256])
def test_bits_of_float32_are_told_and_plain_integers_of_32_bits_are_not(
    scenes: Scenes, dtype: str, scale: float
) -> None:
    for z in closed(scenes):
        bits = np.nan_to_num(z).astype(np.float32).view(dtype)
        assert of(told(bits, scale=scale), "--encoding float32 --depth-scale 1")
        for units in (1000, 1e6):
            plain = np.rint(np.nan_to_num(z) * units).astype(dtype)
            assert not of(told(plain, scale=units), "--encoding")


def test_bits_of_float16_that_are_distances_from_the_camera_are_told(scenes: Scenes) -> None:
    found = []
    for _, z in scenes:
        distance = z * ray_lengths(*z.shape, CAMERA) * 3
        bits = np.where(np.isnan(z), 0, np.where(np.isfinite(z), distance, 65504)).astype(np.float16).view(np.uint16)
        found.append(bool(of(told(bits, scale=1000.0), "--encoding float16 --depth-scale 1")))
    assert np.mean(found) >= 0.95


def test_turned_bits_are_told_unless_the_scale_takes_them_for_what_they_are(scenes: Scenes) -> None:
    for kind, z in scenes:
        if np.mean(z[np.isfinite(z)] > 16) > 0.02:
            continue
        mm = integers(z, 1000)
        turned = (mm << 3) | (mm >> 13)
        assert of(told(turned, scale=1000), "--encoding rotated3"), kind
        assert not of(told(turned, scale=8000), "--encoding rotated3")


@pytest.mark.parametrize("far", [10, 100, 1000])
@pytest.mark.parametrize("order", ["rgb24", "bgr24"])
def test_depth_in_24_bits_is_no_picture(scenes: Scenes, far: float, order: str) -> None:
    for _, z in scenes:
        if np.nanmedian(z) > 0.7 * far:
            continue
        number = np.rint(np.clip(np.nan_to_num(z, posinf=far), 0, far) / far * (2**24 - 1)).astype(np.uint32)
        pixels = np.stack([number & 255, (number >> 8) & 255, number >> 16], -1).astype(np.uint8)
        assert looks_like_24_bits(pixels if order == "rgb24" else pixels[..., ::-1]) == order


@pytest.mark.parametrize("order", ["rgb24", "bgr24"])
def test_a_folder_of_depth_in_24_bits_says_its_encoding_and_refuses_the_other(
    scenes: Scenes, tmp_path: Path, order: str
) -> None:
    _, z = scenes[0]
    number = np.rint(np.nan_to_num(z, posinf=1000) / 1000 * (2**24 - 1)).astype(np.uint32)
    pixels = np.stack([number & 255, (number >> 8) & 255, number >> 16], -1).astype(np.uint8)
    for name, picture in (("rgb", np.zeros_like(pixels)), ("depth", pixels[..., :: 1 if order == "rgb24" else -1])):
        (tmp_path / "in" / name).mkdir(parents=True)
        write_image(tmp_path / "in" / name / "1.png", picture)
    command = [
        "import",
        "rgbd-folder",
        str(tmp_path / "in"),
        "-o",
        str(tmp_path / "out"),
        "--intrinsics",
        "128,128,80,60",
    ]
    unsaid = CliRunner().invoke(cli, command)
    assert unsaid.exit_code == 2 and f"--encoding {order}" in unsaid.output
    scaled = [*command, "--depth-scale", "16777.215", "--encoding"]
    other = {"rgb24": "bgr24", "bgr24": "rgb24"}[order]
    refused = CliRunner().invoke(cli, [*scaled, other])
    assert refused.exit_code == 2 and f"--encoding {order}" in refused.output
    run(*scaled, order)
    known = np.isfinite(z)
    np.testing.assert_allclose(read_depth(tmp_path / "out/1/depth.png")[known], z[known], rtol=1e-3)


def test_a_folder_of_depth_in_8_bits_is_taken_where_the_user_says_so(tmp_path: Path) -> None:
    steps = np.linspace(10, 250, 160).astype(np.uint8)[None].repeat(120, 0)
    for name, picture in (("rgb", np.zeros((120, 160, 3), np.uint8)), ("depth", steps)):
        (tmp_path / "in" / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "in" / name / "1.png"), picture)
    command = [
        "import",
        "rgbd-folder",
        str(tmp_path / "in"),
        "-o",
        str(tmp_path / "out"),
        "--intrinsics",
        "128,128,80,60",
    ]
    refused = CliRunner().invoke(cli, [*command, "--depth-scale", "50"])
    assert refused.exit_code == 2 and "--encoding linear" in refused.output
    run(*command, "--depth-scale", "50", "--encoding", "linear")
    np.testing.assert_allclose(read_depth(tmp_path / "out/1/depth.png"), steps / 50, rtol=1e-3)


def test_pictures_are_no_depth_in_24_bits(samples_dir: Path, tmp_path: Path) -> None:
    render_sample_scenes(tmp_path, 4, 3, size=(160, 120))
    for path in [*tmp_path.rglob("image.jpg"), *samples_dir.rglob("*.jpg")]:
        assert looks_like_24_bits(read_image(path)) is None, path


@pytest.mark.parametrize(
    ("far", "dtype"), [(65535, "u2"), (1e10, "f4"), (1000.0, "f4"), (65504.0, "f2"), (200.0, "f8")]
)
def test_a_constant_that_fills_the_sky_is_offered_as_infinitely_far(scenes: Scenes, far: float, dtype: str) -> None:
    skies = under_the_sky(scenes)
    assert len(skies) >= 4
    for z in skies:
        values = integers(z, 100, 65535) if dtype == "u2" else np.where(np.isinf(z), far, z).astype(dtype)
        scale = 100.0 if dtype == "u2" else 1.0
        marker = "1e+10" if far == 1e10 else f"{far:.0f}"
        assert of(told(values, scale=scale), f"--infinite {marker} (--invalid"), (z.shape, far)
        said = told(values, scale=scale, invalid=(far,))
        assert of(said, f"{marker}, which means unknown as it was said") and of(said, f"--infinite {marker}")
        assert not told(values, scale=scale, infinite=(far,)).suspicions


@pytest.mark.parametrize("kind", ["z", "ray"])
def test_a_constant_that_was_said_to_be_infinitely_far_in_metres_is_not_offered_again(
    scenes: Scenes, kind: str
) -> None:
    for z in under_the_sky(scenes):
        stored = (np.nan_to_num(z, posinf=5000.0) * 100).astype(np.float32)
        assert of(told(stored, scale=100, kind=kind), "--infinite 500000")
        assert not of(told(stored, scale=100, kind=kind, infinite_from=4900.0), "--infinite")


def test_the_greatest_number_of_a_type_may_be_typed_rounded(scenes: Scenes) -> None:
    z = under_the_sky(scenes)[0]
    stored = np.where(np.isinf(z), np.finfo(np.float32).max, np.nan_to_num(z)).astype(np.float32)
    found = metric_z(stored, StoredDepth(Path("d"), infinite=(3.4028235e38,)), CAMERA)
    np.testing.assert_array_equal(np.isinf(found), np.isinf(z))


def test_a_constant_that_fills_regions_of_a_room_is_offered_as_unknown(scenes: Scenes) -> None:
    for z in closed(scenes):
        blobs = cv2.GaussianBlur(np.random.default_rng(1).normal(size=z.shape), (0, 0), 7) > 0.04
        values = np.where(blobs, 65535, integers(z, 1000)).astype(np.uint16)
        assert of(told(values, scale=1000.0), "--invalid 65535 (--infinite")


@pytest.mark.parametrize("rows", [slice(None), slice(-30, None), slice(20, 50)])
def test_a_constant_that_does_not_hang_from_the_top_is_no_sky_however_far_the_scene_goes(rows: slice) -> None:
    road = (1000 / np.linspace(4, 60, 120)[:, None] * np.ones(160) * 100).astype(np.uint16)
    road[rows, :40] = 65535
    assert of(told(road, scale=100.0), "--invalid 65535 (--infinite")
    assert not of(told(road, scale=100.0, invalid=(65535.0,)), "keeps the sky")


def test_sky_is_looked_for_at_the_top_of_the_picture_as_it_becomes(tmp_path: Path) -> None:
    road = (1000 / np.linspace(4, 60, 120)[:, None] * np.ones(160) * 100).astype(np.uint16)
    road[:50] = 65535
    for part in ("rgb", "depth"):
        (tmp_path / "source" / part).mkdir(parents=True)
    write_image(tmp_path / "source/rgb/0001.png", np.zeros((120, 160, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "source/depth/0001.png"), road[::-1])
    said = ["--intrinsics", "128,128,79.5,59.5", "--depth-scale", "100", "--flip-y"]
    output = run("import", "rgbd-folder", tmp_path / "source", "-o", tmp_path / "out", *said)
    assert "--infinite 65535 (--invalid" in output


def test_sky_that_was_stored_as_0_is_told(scenes: Scenes) -> None:
    for z in under_the_sky(scenes):
        assert of(told(np.where(np.isinf(z), 0, z).astype(np.float32)), "--infinite 0 keeps the sky")
        assert of(told(np.where(np.isinf(z), 0, 1 / z).astype(np.float32), kind="inverse"), "--infinite 0 keeps")


def cut_off(z: Array) -> Array:
    return np.where(z > np.nanpercentile(z, 80), np.inf, z)


def striped(z: Array) -> Array:
    z = z.copy()
    z[:, : z.shape[1] // 20] = np.inf
    return z


def scattered(z: Array) -> Array:
    return np.where(np.random.default_rng(0).uniform(size=z.shape) < 0.1, np.inf, z)


def at_the_bottom(z: Array) -> Array:
    z = z.copy()
    z[-20:, : z.shape[1] // 3] = np.inf
    return z


@pytest.mark.parametrize("spoil", [cut_off, striped, scattered, at_the_bottom])
def test_infinity_that_is_no_sky_is_told_with_the_remedy_and_its_share(
    scenes: Scenes, spoil: Callable[[Array], Array]
) -> None:
    rooms = [z for z in closed(scenes) if np.nanmax(z) < 15]
    assert rooms
    for z in rooms:
        found = told(spoil(z).astype(np.float32))
        assert of(found, "--invalid inf") and found.shares["infinite"] > 0
        stored = np.nan_to_num(spoil(z), posinf=0) * 1000
        marked = np.where(np.isinf(spoil(z)), 65535, stored).astype(np.uint16)
        assert of(told(marked, scale=1000.0, infinite=(65535.0,)), "--invalid 65535")


def test_sky_and_the_background_of_a_single_thing_are_no_fault(scenes: Scenes) -> None:
    for z in under_the_sky(scenes):
        found = told(z.astype(np.float32))
        assert not found.suspicions and found.shares["infinite"] == pytest.approx(np.isinf(z).mean(), abs=0.02)
    y, x = np.mgrid[-1:1:120j, -1:1:160j]
    thing = np.where(x**2 + y**2 < 0.2, 2 + x + 0.3 * y, np.inf)
    assert not told(thing.astype(np.float32)).suspicions


def test_depth_that_was_divided_by_its_greatest_value_gets_no_unit_and_a_table_top_that_ends_at_a_metre_keeps_it() -> (
    None
):
    z = np.linspace(1, 4, 120 * 160).reshape(120, 160)
    inverse = (1 / z / (1 / z).max()).astype(np.float32)
    assert told(inverse).is_relative and of(told(inverse), "--kind inverse")
    top = (np.rint(np.linspace(400, 1000, 120 * 160)) / 1000).reshape(120, 160).astype(np.float32)
    assert not told(top).is_relative and not told(top).suspicions


def test_negative_values_are_counted_and_depth_behind_the_camera_is_named() -> None:
    z = np.linspace(1, 4, 120 * 160).reshape(120, 160).astype(np.float32)
    few = z.copy()
    few[:12], few[12:18] = -1, -np.inf
    assert told(few).shares["negative"] == pytest.approx(0.15, abs=0.01)
    assert not told(few).suspicions and "negative" not in told(np.where(np.isinf(few), -1, few), invalid=(-1.0,)).shares
    assert of(told(-z), "negate them")
    assert len(told(np.where(z > 3, np.float32(-1), -z)).suspicions) == 1, "no constant of it is offered besides"


@pytest.mark.parametrize(("most", "dtype"), [(1.0, "f4"), (1.0, "f8"), (255.0, "f4"), (65535.0, "u2")])
@pytest.mark.parametrize("kind", ["z", "inverse"])
def test_depth_that_was_stretched_picture_by_picture_gets_no_unit(
    scenes: Scenes, most: float, dtype: str, kind: str
) -> None:
    for _, z in scenes:
        if not np.isfinite(z).all():
            continue
        meant = z if kind == "z" else 1 / z
        values = (meant - meant.min()) / (meant.max() - meant.min()) * most
        values = (np.rint(values) if dtype == "u2" else values).astype(dtype)
        found = told(values)
        assert found.is_relative and of(found, "--depth-unit metres")
        # What a user says counts, and is told to be impossible.
        said = told(values, scale=10.0)
        assert not said.is_relative and of(said, "--depth-unit none")
        assert not told(values, unit=None).suspicions


def test_a_wrong_scale_is_told_with_the_right_one() -> None:
    for units, median in ((1000.0, 2.3), (5000.0, 1.7), (256.0, 12.0), (100.0, 20.0)):
        text = unlikely_depth(median * units * units, 1 / units)
        assert text is not None and f"Import again with --depth-scale {units:g} ({median:.3g} m)" in text
    text = unlikely_depth(2300.0, 1.0)
    assert text is not None and "Likely would be --depth-scale 1000 (2.3 m)" in text
    text = unlikely_depth(0.0023, 1000.0)
    assert text is not None and "--depth-scale 1 (2.3 m)" in text
    assert unlikely_depth(2.3, 1000.0) is unlikely_depth(None, 1000.0) is None
    # A disparity has no scale of its own that would tell.
    assert "--baseline too, which is in metres" in str(unlikely_depth(3600.0, None))
    assert "check --depth-scale" in str(unlikely_depth(1e9, None))


def run(*words: object) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def remedy_of(output: str, pattern: str) -> list[str]:
    match = re.search(pattern, output.replace("\n", " "))
    assert match is not None, output
    return shlex.split(match[1])


def test_remedies_that_are_printed_can_be_typed_and_give_the_depth(scenes: Scenes, tmp_path: Path) -> None:
    z = next(z for z in under_the_sky(scenes) if np.nanmax(np.where(np.isinf(z), 0, z)) < 655)
    room = next(z for z in closed(scenes) if np.nanmax(z) < 15)
    cut = cut_off(room)
    mm = integers(room, 1000)
    cases: dict[str, tuple[Array, str, str, Array]] = {
        "sky.png": (integers(z, 100, 65535), "--depth-scale 100", r"again with (--infinite \d+) ", z),
        "far.npy": (np.where(np.isinf(z), 1e10, z).astype("f4"), "", r"again with (--infinite \S+) ", z),
        "half.png": (
            np.where(np.isinf(z), 65504, z).astype("f2").view("u2"),
            "--depth-scale 1000",
            r"again with (--encoding float16 --depth-scale 1) ",
            np.where(np.isinf(z), 65504, z),
        ),
        "turned.png": (
            (mm << 3) | (mm >> 13),
            "--depth-scale 1000",
            r"again with (--encoding \S+ --depth-scale 1000)",
            room,
        ),
        "range.npy": (cut.astype("f4"), "", r"again with (--invalid inf)", np.where(np.isinf(cut), np.nan, cut)),
        "scale.png": (mm, "--depth-scale 0.001", r"again with (--depth-scale \S+) \(", room),
    }
    for name, (values, said, pattern, truth) in cases.items():
        folder = tmp_path / name
        for part in ("rgb", "depth"):
            (folder / part).mkdir(parents=True)
        write_image(folder / "rgb/0001.png", np.zeros((*values.shape, 3), np.uint8))
        path = folder / "depth" / f"0001{Path(name).suffix}"
        np.save(path, values) if path.suffix == ".npy" else cv2.imwrite(str(path), values)
        camera = f"128,128,{values.shape[1] / 2 - 0.5},{values.shape[0] / 2 - 0.5}"
        command = ["import", "rgbd-folder", folder, "-o", tmp_path / "out" / name, "--intrinsics", camera]
        output = run(*command, *said.split())
        again = remedy_of(output, pattern)
        command[4] = tmp_path / "again" / name
        kept = [] if "--depth-scale" in again else said.split()
        run(*command, *kept, *again)
        depth = read_depth(next((tmp_path / "again" / name).rglob("depth.png")))
        np.testing.assert_array_equal(np.isinf(depth), np.isinf(truth), err_msg=name)
        known = np.isfinite(truth) & np.isfinite(depth)
        assert known.mean() > 0.9 * np.isfinite(truth).mean(), name
        np.testing.assert_allclose(np.log(depth[known]), np.log(truth[known]), atol=0.02, err_msg=name)


def test_relative_depth_has_no_unit_in_meta_also_when_an_import_runs_again(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    relative = np.linspace(0, 1, 12 * 16).reshape(12, 16).astype(np.float32)
    np.save(tmp_path / "source/d.npy", relative)
    write_image(tmp_path / "source/i.png", np.zeros((12, 16, 3), np.uint8))
    row = {"name": "a", "image": "i.png", "depth": "d.npy", "fx": 20, "fy": 20, "cx": 7.5, "cy": 5.5}
    (tmp_path / "source/t.jsonl").write_text(json.dumps(row))
    for written in (1, 0):
        output = run("import", "table", tmp_path / "source/t.jsonl", "-o", tmp_path / "out")
        assert f"{written} instances written" in output and '"depth_unit"' not in output
        assert "depth_unit" not in read_meta(tmp_path / "out/a/meta.json")
    output = run("import", "table", tmp_path / "source/t.jsonl", "-o", tmp_path / "out", "--depth-unit", "metres")
    assert '"depth_unit": 1.0' in output and read_meta(tmp_path / "out/a/meta.json")["depth_unit"] == 1.0
