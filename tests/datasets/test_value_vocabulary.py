"""Whatever way depth is stored in, saying so by the vocabulary gives back the depth that it was made from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import cv2
import h5py
import numpy as np
import numpy.typing as npt
import OpenEXR
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moge_core.cli.importing import import_group
from moge_core.datasets.importers import writing
from moge_core.datasets.importers.frames import read_frame
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.projection import metric_z
from moge_core.datasets.importers.records import ImportSettings, Record, Stored, StoredDepth, StoredPoints
from moge_core.datasets.importers.rgbd_folder import import_rgbd_folder
from moge_core.datasets.importers.suspicions import look_at_values
from moge_core.datasets.importers.table import OPTIONAL, import_table
from moge_core.datasets.importers.told import Told
from moge_core.datasets.importers.vocabulary import ENCODINGS, WORDS, GivenValues
from moge_core.errors import DatasetError, InputError
from moge_core.io import read_depth, read_meta, write_depth, write_image

Array = npt.NDArray[Any]

W, H = 14, 10
FX, FY, CX, CY = 18.0, 19.0, 6.0, 5.0
CAMERA = {"fx": FX, "fy": FY, "cx": CX, "cy": CY}
DOCS = Path(__file__).parents[2] / "docs"


def rays() -> Array:
    """Length (H, W) of the viewing rays at z = 1."""
    u, v = np.meshgrid((np.arange(W) - CX) / FX, (np.arange(H) - CY) / FY)
    return np.asarray(np.sqrt(1 + u**2 + v**2))


def some_z(seed: int, least: float = 0.7, most: float = 9.0) -> Array:
    return np.random.default_rng(seed).uniform(least, most, (H, W))


Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Import one frame by a table whose row says `row`; returns (depth, meta, report)."""

    def run(row: Mapping[str, Any], **options: Any) -> Any:
        write_image(tmp_path / "i.png", np.zeros((H, W, 3), np.uint8))
        (tmp_path / "t.jsonl").write_text(json.dumps({"name": "a", "image": "i.png", **CAMERA, **row}))
        report = import_table(tmp_path / "t.jsonl", tmp_path / "out", **options)
        return read_depth(tmp_path / "out/a/depth.png"), read_meta(tmp_path / "out/a/meta.json"), report

    return run


def save(path: Path, values: Array) -> None:
    """Values in a file of the suffix's kind."""
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, depth=values, confidence=np.ones_like(values))
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["frames/depth"] = values
            file["frames/mask"] = np.ones_like(values)
    elif path.suffix == ".exr":
        header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
        OpenEXR.File(header, {"A": np.ones_like(values), "layer.Depth.Z": np.ascontiguousarray(values)}).write(
            str(path)
        )
    elif path.suffix == ".pfm":
        head = f"Pf # by hand\n {values.shape[1]}\t{values.shape[0]} # sizes\n-1.0\n"
        path.write_bytes(head.encode() + values[::-1].astype("<f4").tobytes())
    else:
        pixels = values[..., ::-1] if values.ndim == 3 and values.shape[2] == 3 else values
        pixels = values[..., [2, 1, 0, 3]] if values.ndim == 3 and values.shape[2] == 4 else pixels
        assert cv2.imwrite(str(path), pixels)


def channels_of(integers: Array, order: str) -> Array:
    """(H, W, 3) RGB of integers of 24 bits."""
    parts = [integers & 255, (integers >> 8) & 255, integers >> 16]
    return np.stack(parts if order == "rgb24" else parts[::-1], -1).astype(np.uint8)


def encode(value: Array, encoding: str, dtype: str) -> Array:
    """Pixels that hold the numbers `value` (H, W)."""
    if encoding == "float16":
        return value.astype(np.float16).view(np.uint16)
    if encoding in {"float32", "float32-bgra"}:
        pixels = np.ascontiguousarray(value.astype("<f4")).view(np.uint8).reshape(H, W, 4)
        return pixels if encoding == "float32" else pixels[..., [2, 1, 0, 3]]
    if encoding in {"rgb24", "bgr24"}:
        return channels_of(np.rint(value).astype(np.uint32), encoding)
    if encoding == "rotated3":
        integers = np.rint(value).astype(np.uint16)
        return (integers << 3) | (integers >> 13)
    return np.rint(value).astype(dtype) if np.dtype(dtype).kind in "iu" else value.astype(dtype)


# How many stored units a metre fill what an encoding holds, and which suffixes can hold its pixels.
FORMS = {
    "linear": (("u2", 5000.0, (".png", ".tif", ".npy", ".npz", ".h5")), ("f4", 3.0, (".exr", ".pfm", ".tif", ".npz"))),
    "float16": (("u2", 1.0, (".png", ".npy", ".tif")),),
    "float32": (("u1", 0.5, (".png", ".npy")),),
    "float32-bgra": (("u1", 2.0, (".png", ".npy")),),
    "rgb24": (("u1", 16777.215, (".png", ".tif", ".npy")),),
    "bgr24": (("u1", 100000.0, (".png", ".tif", ".npz")),),
    "rotated3": (("u2", 5000.0, (".png", ".npy")),),
}


@given(data=st.data(), seed=st.integers(0, 999), kind=st.sampled_from(["z", "ray", "disparity", "inverse"]))
@settings(max_examples=60, deadline=None)
def test_what_was_stored_by_any_encoding_kind_offset_and_file_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, seed: int, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("values")
    encoding = data.draw(st.sampled_from(sorted(FORMS)))
    dtype, scale, suffixes = data.draw(st.sampled_from(FORMS[encoding]))
    suffix = data.draw(st.sampled_from(suffixes))
    offset = data.draw(st.sampled_from({"float16": [0.0], "linear": [0.0, 99.0]}.get(encoding, [0.0, 40.0])))
    z = some_z(seed)
    baseline = 0.31
    meant = {"z": z, "ray": z * rays(), "disparity": baseline * FX / z, "inverse": 1 / z}[kind]
    save(folder / f"d{suffix}", encode(meant * scale + offset, encoding, dtype))
    said = {"kind": kind, "scale": scale, "encoding": encoding, "offset": offset}
    said |= {"baseline": baseline} if kind == "disparity" else {}
    values = GivenValues.of({word: value for word, value in said.items() if value not in (0.0, "linear")})
    write_image(folder / "i.png", np.zeros((H, W, 3), np.uint8))
    depth = StoredDepth(folder / f"d{suffix}")
    record = Record("a", Stored(folder / "i.png"), depth, PixelIntrinsics(FX, FY, CX, CY))
    frame = read_frame(values.applied_to(record), ImportSettings())
    tolerance = 2e-3 if encoding == "float16" else 1e-3
    np.testing.assert_allclose(frame.depth, z, rtol=tolerance)


@pytest.mark.parametrize(("encoding", "bits"), [("float16", "u2"), ("float32", "u4")])
def test_bits_are_read_whatever_the_order_of_their_bytes_in_the_file(tmp_path: Path, encoding: str, bits: str) -> None:
    z = some_z(1).astype(encoding)
    write_image(tmp_path / "i.png", np.zeros((H, W, 3), np.uint8))
    for order in "<>":
        with h5py.File(tmp_path / "d.h5", "w") as file:
            file["depth"] = z.view(bits).astype(f"{order}{bits}")
        depth = StoredDepth(tmp_path / "d.h5", scale=1, encoding="float16" if encoding == "float16" else "float32")
        record = Record("a", Stored(tmp_path / "i.png"), depth, PixelIntrinsics(FX, FY, CX, CY))
        np.testing.assert_array_equal(read_frame(record, ImportSettings()).depth, z.astype(np.float32))


@pytest.mark.parametrize("dtype", ["u2", "u4", "i4", "f4", "f8"])
def test_markers_are_stored_values_before_offset_and_scale(run: Run, tmp_path: Path, dtype: str) -> None:
    values = np.full((H, W), 1300).astype(dtype)
    values[0], values[1], values[2], values[3] = 0, 500, 65535, 300
    np.save(tmp_path / "d.npy", values)
    said = {"depth": "d.npy", "scale": 400, "offset": 500, "invalid": 300, "infinite": "65535"}
    depth, _, _ = run(said)
    # Without an offset 0 would be unknown; with one it is a depth behind the camera here, and 500 one of zero.
    assert np.isnan(depth[[0, 1, 3]]).all() and np.isposinf(depth[2]).all()
    np.testing.assert_allclose(depth[4:], 2.0, rtol=1e-4)
    depth, _, _ = run({**said, "offset": -100, "invalid": "0 300"})
    assert np.isnan(depth[[0, 3]]).all() and np.isfinite(depth[1]).all()
    depth, _, _ = run({**said, "offset": -100})
    np.testing.assert_allclose(depth[0], 0.25, rtol=1e-3)


@pytest.mark.parametrize("kind", ["inverse", "disparity"])
def test_zero_inverse_depth_is_unknown_unless_it_is_said_to_be_infinitely_far(
    run: Run, tmp_path: Path, kind: str
) -> None:
    values = np.full((H, W), 0.5, np.float32)
    values[:3] = 0
    np.save(tmp_path / "d.npy", values)
    assert np.isnan(run({"depth": "d.npy", "kind": kind})[0][:3]).all()
    depth = run({"depth": "d.npy", "kind": kind, "infinite": 0})[0]
    assert np.isposinf(depth[:3]).all() and np.isfinite(depth[3:]).all()


@pytest.mark.parametrize(("kind", "unit"), [("z", 1.0), ("ray", 1.0), ("inverse", 1.0), ("z", 0.5)])
def test_depth_is_infinite_from_metres_on(kind: str, unit: float) -> None:
    camera = np.array([[FX / W, 0, (CX + 0.5) / W], [0, FY / H, (CY + 0.5) / H], [0, 0, 1]])
    distance = np.full((H, W), 30.0)
    distance[2], distance[4] = 99.0, 100.5
    stored = {"z": distance, "ray": distance, "inverse": 1 / distance}[kind] / (unit if kind == "z" else 1)
    depth = StoredDepth(Path("d.npy"), kind=kind, scale=1.0, infinite_from=100.0)  # type: ignore[arg-type]
    z = metric_z(stored, depth, camera, metres_a_unit=unit)
    assert np.isposinf(z[4]).all() and np.isfinite(np.delete(z, 4, 0)).all()


def test_a_row_goes_before_an_option_even_where_both_name_one_value(run: Run, tmp_path: Path) -> None:
    values = np.full((H, W), 1000, np.uint16)
    values[0] = 65535
    cv2.imwrite(str(tmp_path / "d.png"), values)
    assert np.isposinf(run({"depth": "d.png", "infinite": 65535}, invalid=[65535])[0][0]).all()
    with pytest.raises(InputError, match="65535 in both"):
        GivenValues.of({"invalid": [65535], "infinite": [65535]})


def test_what_a_layout_calls_unknown_can_be_said_to_be_infinitely_far() -> None:
    depth = StoredDepth(Path("d.png"), scale=100.0, invalid=(65535.0,))
    record = Record("a", Stored(Path("i.png")), depth, PixelIntrinsics(FX, FY, CX, CY))
    changed = GivenValues.of({"infinite": [65535]}).applied_to(record).depth
    assert isinstance(changed, StoredDepth) and (changed.invalid, changed.infinite) == ((), (65535.0,))


def test_words_of_stored_values_that_a_frame_of_points_cannot_obey_are_told() -> None:
    points = StoredPoints(Path("sweep.bin"), read=lambda path: np.zeros((0, 3)))
    record = Record("a", Stored(Path("i.png")), points, PixelIntrinsics(FX, FY, CX, CY))
    said = GivenValues.of({"scale": 100.0, "depth_unit": None}).applied_to(record)
    assert said.depth_unit is None and any("--scale did not count" in note for note in said.notes)


def test_24_bits_without_a_scale_are_refused_with_the_scale_of_carla(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "d.png", channels_of(np.full((H, W), 70000, np.uint32), "rgb24"))
    with pytest.raises(DatasetError, match=r"scale: must be said.*rgb24.*--depth-scale 16777.215 for CARLA"):
        run({"depth": "d.png", "encoding": "rgb24"})


@pytest.mark.parametrize("wrong", ["float32", "float32-bgra"])
def test_bytes_in_the_other_order_are_refused_and_the_right_one_named(run: Run, tmp_path: Path, wrong: str) -> None:
    right = {"float32": "float32-bgra", "float32-bgra": "float32"}[wrong]
    slope = 2 + np.linspace(0, 3, W)[None, :] + np.linspace(0, 0.7, H)[:, None]
    save(tmp_path / "d.png", encode(slope, right, "u1"))
    with pytest.raises(DatasetError, match=f"--encoding {right}"):
        run({"depth": "d.png", "encoding": wrong})


@pytest.mark.parametrize("encoding", sorted(set(ENCODINGS) - {"linear", "moge-png"}))
def test_pixels_that_an_encoding_cannot_have_are_refused_by_its_name(run: Run, tmp_path: Path, encoding: str) -> None:
    np.save(tmp_path / "d.npy", some_z(0).astype(np.float64))
    with pytest.raises(DatasetError, match=rf"to be {encoding}; found float64"):
        run({"depth": "d.npy", "encoding": encoding, "scale": 1})


def test_8_bits_are_depth_only_where_that_is_said_and_told(run: Run, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "d.png"), np.full((H, W), 51, np.uint8))
    with pytest.raises(DatasetError, match="--encoding linear"):
        run({"depth": "d.png", "scale": 25.5})
    depth, _, report = run({"depth": "d.png", "scale": 25.5, "encoding": "linear"})
    np.testing.assert_allclose(depth, 2.0, rtol=1e-4)
    assert any("256 steps" in note for note in report.notes)


def own_png(path: Path, z: Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_depth(path, z.astype(np.float32))
    return path


def test_this_formats_own_depth_is_read_as_what_it_is_whatever_is_said_of_scale(run: Run, tmp_path: Path) -> None:
    z = some_z(5)
    z[0], z[1] = np.nan, np.inf
    own_png(tmp_path / "d.png", z)
    for said in ({}, {"scale": 1000}, {"scale": 256, "invalid": 65535}, {"encoding": "moge-png"}):
        depth, meta, report = run({"depth": "d.png", **said})
        np.testing.assert_allclose(depth, z, rtol=2e-4)
        assert meta["depth_unit"] == 1.0
        assert ("encoding" in said) or any("near and far" in note for note in report.notes)
    assert np.isnan(run({"depth": "d.png", "invalid": "inf"})[0][1]).all()
    np.testing.assert_allclose(run({"depth": "d.png", "encoding": "moge-png", "scale": 2})[0], z / 2, rtol=2e-4)


@pytest.mark.parametrize("said", [{"encoding": "linear"}, {"kind": "disparity"}, {"encoding": "float16"}])
def test_what_contradicts_this_formats_own_depth_is_refused(run: Run, tmp_path: Path, said: dict[str, str]) -> None:
    own_png(tmp_path / "d.png", some_z(5))
    with pytest.raises(DatasetError, match="near and far of a MoGe depth PNG"):
        run({"depth": "d.png", **said})


def test_this_formats_own_depth_without_one_of_its_fields_is_refused_and_not_read_as_integers(
    run: Run, tmp_path: Path
) -> None:
    own_png(tmp_path / "d.png", some_z(5))
    data = (tmp_path / "d.png").read_bytes()
    start = data.index(b"tEXtfar\0") - 4
    length = int.from_bytes(data[start : start + 4], "big")
    (tmp_path / "d.png").write_bytes(data[:start] + data[start + 12 + length :])
    with pytest.raises(DatasetError, match="16-bit PNG without far"):
        run({"depth": "d.png"})


def test_a_folder_of_this_formats_own_depth_needs_no_scale_and_a_preset_does_not_spoil_it(tmp_path: Path) -> None:
    z = some_z(6)
    z[0] = np.inf
    for number in range(3):
        own_png(tmp_path / f"source/depth/{number}.png", z)
        (tmp_path / "source/rgb").mkdir(exist_ok=True)
        write_image(tmp_path / f"source/rgb/{number}.png", np.zeros((H, W, 3), np.uint8))
    for number, options in enumerate(({}, {"preset": "tum"}, {"depth_scale": 1000}, {"invalid": [np.inf]})):
        camera = f"{FX},{FY},{CX},{CY}"
        report = import_rgbd_folder(tmp_path / "source", tmp_path / f"{number}", intrinsics=camera, **options)  # type: ignore[arg-type]
        depth = read_depth(report.out_dir / report.instances[0] / "depth.png")
        np.testing.assert_allclose(depth[1:], z[1:], rtol=2e-4)
        assert np.isnan(depth[0]).all() if "invalid" in options else np.isposinf(depth[0]).all()


def test_every_record_without_a_reader_of_its_own_recognises_this_formats_own_depth(tmp_path: Path) -> None:
    z = some_z(7)
    own_png(tmp_path / "source/d.png", z)
    write_image(tmp_path / "source/i.png", np.zeros((H, W, 3), np.uint8))
    # As the KITTI depth importer says it.
    depth = StoredDepth(tmp_path / "source/d.png", scale=256.0)
    record = Record("a", Stored(tmp_path / "source/i.png"), depth, PixelIntrinsics(FX, FY, CX, CY))
    report = writing.run_import("kitti", tmp_path / "source", tmp_path / "out", [record], ImportSettings())
    np.testing.assert_allclose(read_depth(report.out_dir / "a/depth.png"), z, rtol=2e-4)


def test_an_array_is_named_behind_its_file_or_in_a_column_but_not_differently(run: Run, tmp_path: Path) -> None:
    z = some_z(8)
    np.savez(tmp_path / "d.npz", left=z, right=z * 2)
    np.testing.assert_allclose(run({"depth": "d.npz:right"})[0], 2 * z, rtol=2e-4)
    np.testing.assert_allclose(run({"depth": "d.npz", "depth_array": "left"})[0], z, rtol=2e-4)
    with pytest.raises(DatasetError, match="'left' and 'right'"):
        run({"depth": "d.npz:right", "depth_array": "left"})
    with pytest.raises(DatasetError, match=r"the arrays left, right.*FILE:NAME"):
        run({"depth": "d.npz"})
    with pytest.raises(DatasetError, match="depth_array: is for files that hold several"):
        np.save(tmp_path / "d.npy", z)
        run({"depth": "d.npy", "depth_array": "left"})


def test_a_marker_of_the_infinitely_far_that_no_frame_holds_is_told(run: Run, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "d.png"), np.full((H, W), 1000, np.uint16))
    assert any("No frame holds" in note for note in run({"depth": "d.png", "infinite": 65535})[2].notes)


def test_every_word_of_the_vocabulary_is_in_the_documentations_table_and_no_other() -> None:
    text = (DOCS / "importing.md").read_text(encoding="utf-8")
    section = text.split("## One vocabulary of values")[1].split("\n## ")[0]
    words = re.findall(r"^\| `--([a-z-]+)`", section, re.MULTILINE)
    assert words == [word.name.replace("_", "-") for word in WORDS]
    for encoding in ENCODINGS:
        assert f"`{encoding}`" in section


def test_every_importer_has_every_word_with_one_help_and_tables_have_the_columns() -> None:
    helps: dict[str, set[str]] = {}
    for name, command in import_group.commands.items():
        options = {option: one for one in command.params for option in one.opts if isinstance(one, click.Option)}
        # Sweeps of points have no stored values, and what imports nothing has no label type.
        if name in {"dgp", "nuscenes"} or "--label-type" not in options:
            continue
        for word in WORDS:
            assert {word.option, *word.also} <= set(options), (name, word.name)
            helps.setdefault(word.name, set()).add(str(options[word.option].help))
    assert all(len(texts) == 1 for texts in helps.values())
    assert {word.name for word in WORDS} <= set(OPTIONAL)


@given(
    value=st.floats(width=32, allow_nan=True, allow_infinity=True),
    kind=st.sampled_from(["z", "ray", "disparity", "inverse"]),
    dtype=st.sampled_from(["f2", "f4", "f8"]),
    offset=st.sampled_from([0.0, 3.5]),
    scale=st.sampled_from([None, 1e-30, 1e30]),
    shape=st.sampled_from([(1, 1), (1, 9), (9, 1), (8, 9)]),
)
@settings(max_examples=150, deadline=None)
def test_no_value_whatever_becomes_a_depth_that_no_file_holds(
    value: float, kind: str, dtype: str, offset: float, scale: float | None, shape: tuple[int, int]
) -> None:
    with np.errstate(over="ignore"):
        stored = np.full(shape, value).astype(dtype)
    depth = StoredDepth(Path("d.npy"), kind=kind, scale=scale, offset=offset)  # type: ignore[arg-type]
    record = Record("a", Stored(Path("i.png")), depth, PixelIntrinsics(FX, FY, CX, CY))
    z = metric_z(stored, depth, np.array([[0.8, 0, 0.5], [0, 0.8, 0.5], [0, 0, 1]]))
    look_at_values(stored, depth, z, record, Told())
    assert z.dtype == np.float32 and not (z <= 0).any()
    # Only what is stored as infinitely far is it, and a disparity of nothing.
    assert not np.isinf(z).any() or np.isposinf(stored).all() or kind == "disparity"
