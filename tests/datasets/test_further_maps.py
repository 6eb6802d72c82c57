"""Normals, masks and segmentations of imports: codings are undone, and what does not fit its depth is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from moge_core.cli.importing import import_group
from moge_core.datasets.importers.further_maps import compare_maps, turn_maps
from moge_core.datasets.importers.map_files import read_normal_map
from moge_core.datasets.importers.records import ImportSettings, Stored
from moge_core.datasets.importers.table import import_table
from moge_core.datasets.normal_axes import CODES, NormalAxes, matrix_of, opposite_of
from moge_core.datasets.sample_scenes import Scene, render_scene
from moge_core.errors import InputError, MoGeError
from moge_core.io import read_depth, read_mask, read_normal, read_segmentation, write_image

Array = npt.NDArray[Any]
Run = Callable[..., Any]

SIZE = (160, 120)


def stored_scene(index: int, seed: int = 5) -> Scene:
    return render_scene(seed, index, SIZE)


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A room with holes of depth."""
    return stored_scene(16)


@pytest.fixture
def run(tmp_path: Path, scene: Scene) -> Run:
    """Write a scene and further maps beside it, and import the table of one row by the command."""

    def run(*options: str, of: Scene = scene, **maps: Array | Path) -> Result:
        height, width = of.depth.shape
        write_image(tmp_path / "image.png", of.image, format="png")
        np.save(tmp_path / "depth.npy", of.depth)
        K = of.intrinsics.astype(float)
        camera = {"fx": K[0, 0] * width, "fy": K[1, 1] * height}
        camera |= {"cx": K[0, 2] * width - 0.5, "cy": K[1, 2] * height - 0.5}
        row = {"name": "a", "image": "image.png", "depth": "depth.npy", **camera}
        for name, values in maps.items():
            if isinstance(values, Path):
                row[name] = str(values)
            else:
                np.save(tmp_path / f"{name}.npy", values)
                row[name] = f"{name}.npy"
        (tmp_path / "t.jsonl").write_text(json.dumps(row))
        arguments = ["table", str(tmp_path / "t.jsonl"), "-o", str(tmp_path / "out"), *options]
        return CliRunner().invoke(import_group, arguments)

    return run


def error_of(normal: Array, path: Path, share: float = 0.99) -> float:
    """Degrees between what was written and the truth, which such a share of the pixels is within."""
    cosine = np.clip((read_normal(path).astype(np.float64) * normal).sum(axis=-1), -1, 1)
    return float(np.degrees(np.nanquantile(np.arccos(cosine), share)))


def remedy(result: Result) -> list[str]:
    """The option that an error names, as a user would type it."""
    assert result.exit_code != 0, result.output
    words = result.output.split("Import again with ")[1].replace(";", " ").replace(". ", " ").split()
    return words[:2] if words[0] == "--normal-axes" else [words[0].rstrip(".")]


CODINGS: dict[str, tuple[Callable[[Array], Array], float]] = {
    "as they are": (lambda n: n.astype(np.float32), 0.03),
    "float16": (lambda n: n.astype(np.float16), 0.1),
    "0 to 1": (lambda n: ((n + 1) / 2).astype(np.float32), 0.03),
    "0 to 255": (lambda n: np.rint(np.nan_to_num((n + 1) / 2 * 255)).astype(np.uint8), 0.5),
    "0 to 255 in floats": (lambda n: (n + 1) / 2 * 255, 0.03),
    "around 128": (lambda n: np.where(np.isnan(n), 0, np.rint(n * 127 + 128)).astype(np.uint8), 0.9),
    "0 to 65535": (lambda n: np.rint(np.nan_to_num((n + 1) / 2 * 65535)).astype(np.uint16), 0.03),
    "-127 to 127": (lambda n: np.rint(np.nan_to_num(n * 127)).astype(np.int8), 0.5),
    "-32767 to 32767": (lambda n: np.rint(np.nan_to_num(n * 32767)).astype(np.int16), 0.03),
    "channels first": (lambda n: np.moveaxis(n, 2, 0).astype(np.float32), 0.03),
}


@pytest.mark.parametrize("name", CODINGS)
def test_vectors_are_found_in_every_way_in_which_they_are_stored(
    run: Run, scene: Scene, tmp_path: Path, name: str
) -> None:
    store, tolerance = CODINGS[name]
    known = scene.normal
    result = run(normal=store(known))
    assert result.exit_code == 0, result.output
    assert error_of(scene.normal, tmp_path / "out/a/normal.png") < tolerance
    assert ("Normals stored from" in result.output) == (name not in {"as they are", "float16", "channels first"})


def test_a_picture_of_normals_is_read_as_people_make_them(run: Run, scene: Scene, tmp_path: Path) -> None:
    colours = np.rint(np.nan_to_num((scene.normal * [1, -1, -1] + 1) / 2 * 255)).astype(np.uint8)
    for name, share, tolerance in (("normal.png", 0.99, 0.6), ("normal.jpg", 0.5, 2.0)):
        cv2.imwrite(str(tmp_path / name), colours[..., ::-1])
        told = run(normal=tmp_path / name)
        assert remedy(told) == ["--normal-axes", "opengl"]
        assert run(*remedy(told), normal=tmp_path / name).exit_code == 0
        assert error_of(scene.normal, tmp_path / "out/a/normal.png", share) < tolerance


@pytest.mark.parametrize("values", [np.full((120, 160, 3), 0.35), np.full((120, 160, 3), 7, np.uint8)])
def test_what_is_no_vector_in_any_coding_is_refused(run: Run, values: Array) -> None:
    result = run(normal=values)
    assert result.exit_code != 0
    assert "unit length" in result.output and "--normal-axes none" in result.output


@pytest.mark.parametrize("code", ["RUB", "LUB", "RUF", "LDF", "FLU", "FRU"])
def test_other_axes_are_named_and_the_option_that_is_printed_converts_them(
    run: Run, scene: Scene, tmp_path: Path, code: str
) -> None:
    stored = (scene.normal @ matrix_of(code).T).astype(np.float32)
    told = run(normal=stored)
    assert not (tmp_path / "out/a").exists()
    assert NormalAxes.of(remedy(told)[1]) == NormalAxes(code)
    assert run(*remedy(told), normal=stored).exit_code == 0
    assert error_of(scene.normal, tmp_path / "out/a/normal.png") < 0.03


def test_axes_that_were_said_and_are_wrong_are_refused_with_those_that_are_right(run: Run, scene: Scene) -> None:
    assert remedy(run("--normal-axes", "opengl", normal=scene.normal)) == ["--normal-axes", "opencv"]
    assert remedy(run("--normal-axes", "RUF", normal=-scene.normal)) == ["--normal-axes", "LUB"]


def test_normals_may_be_left_out_and_then_the_import_is_up_to_date(run: Run, scene: Scene, tmp_path: Path) -> None:
    assert run("--normal-axes", "none", normal=-scene.normal).exit_code == 0
    assert import_table(tmp_path / "t.jsonl", tmp_path / "out", normal_axes="none").num_written == 0
    assert sorted(path.name for path in (tmp_path / "out/a").iterdir()) == ["depth.png", "image.jpg", "meta.json"]


def test_normals_of_the_world_without_a_pose_are_found_and_refused(run: Run, scene: Scene) -> None:
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    told = run(normal=(scene.normal @ turn.T).astype(np.float32))
    assert told.exit_code != 0
    assert "as axes of the world" in told.output and "--normal-axes world" in told.output
    assert "need the pose" in run("--normal-axes", "world", normal=scene.normal).output


def frame_of(scene: Scene, **maps: Any) -> Any:
    """A frame in memory, as importers have it after its parts are of one size."""
    from moge_core.datasets.importers.frames import Frame
    from moge_core.datasets.importers.told import Told

    given: dict[str, Any] = {"normal": None, "mask": None, "segmentation": None, **maps}
    K = scene.intrinsics.astype(np.float64)
    return Frame(scene.image, scene.depth.copy(), K, None, told=Told(), **given)


@pytest.mark.parametrize("axes", ["world", "world-opengl", "world-FLU"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_normals_of_the_world_are_named_and_turned_by_the_pose(scene: Scene, axes: str, scale: float) -> None:
    from moge_core.datasets.importers.frames import Parts
    from moge_core.datasets.importers.pinhole import PixelIntrinsics
    from moge_core.datasets.importers.records import Record, StoredDepth
    from moge_core.datasets.importers.told import Told

    turn = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn * scale, (1, 2, 3)
    camera = PixelIntrinsics(100, 100, 80, 60)
    place = Path("x")
    record = Record("a", Stored(place), StoredDepth(place), camera, normal=Stored(place), pose=tuple(pose.ravel()))
    code = NormalAxes.of(axes).code
    stored = scene.normal.astype(np.float64) @ (matrix_of(code) @ turn).T
    with pytest.raises(MoGeError) as caught:
        compare_maps(frame_of(scene, normal=stored), record, ImportSettings())
    assert f"--normal-axes {axes};" in str(caught.value.fix)
    parts = Parts(scene.image, 1, None, None, None, camera, stored, None, None, Told())
    turn_maps(parts, record, ImportSettings(normal_axes=axes))
    np.testing.assert_allclose(parts.normal, scene.normal, atol=1e-5)
    compare_maps(frame_of(scene, normal=parts.normal), record, ImportSettings(normal_axes=axes))


@pytest.mark.parametrize("index", range(6))
def test_right_maps_are_left_in_peace(run: Run, tmp_path: Path, index: int) -> None:
    of = stored_scene(index, seed=77)
    known = np.isfinite(of.depth)
    ids = np.where(known, np.digitize(np.nan_to_num(of.normal[..., 0]), np.linspace(-1, 1, 7)), 0)
    bumpy = of.normal + np.random.default_rng(0).normal(0, 0.2, of.normal.shape)
    bumpy /= np.linalg.norm(bumpy, axis=-1, keepdims=True)
    result = run(of=of, normal=bumpy.astype(np.float32), mask=known, segmentation=ids)
    assert result.exit_code == 0, result.output
    notes = [line for line in result.output.splitlines() if "note:" in line]
    assert not [note for note in notes if re.search("normal|mask|segmentation", note, re.IGNORECASE)]
    np.testing.assert_array_equal(read_mask(tmp_path / "out/a/mask.png"), known)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "out/a/segmentation.png")[0], ids)


@pytest.mark.parametrize("what", ["normal", "segmentation"])
@pytest.mark.parametrize("fault", ["of another frame", "shifted against their frame"])
def test_maps_of_another_frame_or_shifted_are_told(run: Run, scene: Scene, what: str, fault: str) -> None:
    other = stored_scene(6) if fault.startswith("of") else scene
    ids = np.unique(np.nan_to_num(np.round(other.normal, 1)).reshape(-1, 3), axis=0, return_inverse=True)[1]
    values = {"normal": other.normal, "segmentation": ids.reshape(other.depth.shape).astype(np.int32)}[what]
    if other is scene:
        values = np.roll(values, 8, axis=1)
    result = run(**{what: values})
    assert result.exit_code == 0, result.output
    assert f"seem to be {fault}" in result.output and "(1 of 1 frames)" in result.output


def test_an_inverted_mask_is_refused_with_the_option_that_turns_it(run: Run, scene: Scene, tmp_path: Path) -> None:
    mask = np.isfinite(scene.depth)
    assert 0.02 < mask.mean() < 0.98
    told = run(mask=~mask)
    assert remedy(told) == ["--invert-mask"]
    assert run(*remedy(told), mask=~mask).exit_code == 0
    np.testing.assert_array_equal(read_mask(tmp_path / "out/a/mask.png"), mask)
    np.testing.assert_array_equal(np.isfinite(read_depth(tmp_path / "out/a/depth.png")), mask)


def test_a_mask_that_leaves_nothing_is_told(run: Run, scene: Scene) -> None:
    result = run(mask=np.zeros(scene.depth.shape, np.uint8))
    assert "Masks leave less than 2% of the known depth" in result.output and "--invert-mask" in result.output


@pytest.mark.parametrize("kind", ["bool", "0 and 1", "0 and 255", "float", "channel", "palette"])
def test_a_mask_is_read_in_every_way_in_which_it_is_stored(run: Run, scene: Scene, tmp_path: Path, kind: str) -> None:
    from PIL import Image

    mask = np.isfinite(scene.depth)
    path = tmp_path / "m.png"
    if kind == "palette":
        picture = Image.fromarray(mask.astype(np.uint8))
        picture.putpalette([0, 0, 0, 128, 0, 0])
        picture.save(path)
    values = {
        "bool": mask,
        "0 and 1": mask.astype(np.uint8),
        "0 and 255": mask.astype(np.uint8) * 255,
        "float": mask.astype(np.float32),
        "channel": mask[..., None],
        "palette": path,
    }[kind]
    assert run(mask=values).exit_code == 0
    np.testing.assert_array_equal(read_mask(tmp_path / "out/a/mask.png"), mask)


def test_a_mask_in_transparency_or_in_a_palette_without_black_is_refused(
    run: Run, scene: Scene, tmp_path: Path
) -> None:
    from PIL import Image

    mask = np.isfinite(scene.depth).astype(np.uint8)
    white = np.full((*mask.shape, 3), 255, np.uint8)
    cv2.imwrite(str(tmp_path / "rgba.png"), np.dstack([white, mask * 255]))
    picture = Image.fromarray(mask)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.save(tmp_path / "palette.png")
    assert "transparency" in run(mask=tmp_path / "rgba.png").output
    assert "palette" in run(mask=tmp_path / "palette.png").output


def test_a_mask_of_many_values_is_told(run: Run, scene: Scene) -> None:
    confidence = np.where(np.isfinite(scene.depth), np.arange(scene.depth.shape[1]) % 3, 0).astype(np.uint8)
    assert "more than two values" in run(mask=confidence).output


def test_colours_in_place_of_ids_are_refused_by_name_and_whole_floats_are_ids(
    run: Run, scene: Scene, tmp_path: Path
) -> None:
    ids = (np.arange(scene.depth.size) // 500).reshape(scene.depth.shape)
    colours = np.dstack([ids % 7, ids % 11, ids % 13]).astype(np.uint8) * 16
    cv2.imwrite(str(tmp_path / "colours.png"), colours)
    for values in (tmp_path / "colours.png", colours, np.moveaxis(colours, 2, 0)):
        assert "not a colour for each class" in run(segmentation=values).output
    assert run(segmentation=ids.astype(np.float32)).exit_code == 0
    np.testing.assert_array_equal(read_segmentation(tmp_path / "out/a/segmentation.png")[0], ids)
    assert "whole numbers" in run(segmentation=ids + 0.5).output
    assert "0..65535" in run(segmentation=ids + 65536).output


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kind=st.sampled_from(["nan", "zero", "random", "tiny", "huge", "const"]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64, np.uint8, np.int8, np.uint16, np.int64]),
)
@settings(max_examples=60, deadline=None)
def test_any_array_is_read_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int], kind: str, dtype: Any
) -> None:
    path = tmp_path_factory.mktemp("any") / "n.npy"
    rng = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        values = {
            "nan": np.full((*shape, 3), np.nan),
            "zero": np.zeros((*shape, 3)),
            "random": rng.normal(size=(*shape, 3)),
            "tiny": np.full((*shape, 3), 1e-30),
            "huge": np.full((*shape, 3), 3e38),
            "const": np.full((*shape, 3), [0.0, 0.0, -1.0]),
        }[kind]
        stored = np.nan_to_num(values, posinf=0, neginf=0) if np.dtype(dtype).kind != "f" else values
        np.save(path, stored.astype(dtype))
    try:
        normal = read_normal_map(Stored(path), set())
    except MoGeError:
        return
    assert normal.shape == (*shape, 3)
    lengths = np.linalg.norm(normal.astype(np.float64), axis=-1)
    assert not (lengths == 0).any()


@given(st.sampled_from(CODES), st.booleans())
def test_names_of_axes_say_what_they_mean_and_are_read_back(code: str, is_of_world: bool) -> None:
    axes = NormalAxes(code, is_of_world)
    assert NormalAxes.of(axes.name) == axes
    matrix = matrix_of(code)
    np.testing.assert_array_equal(matrix @ matrix.T, np.eye(3))
    np.testing.assert_array_equal(matrix_of(opposite_of(code)), -matrix)
    pose = tuple(np.eye(4).ravel())
    np.testing.assert_allclose(axes.to_camera(pose) @ matrix, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("text", ["", "gl", "RRF", "RDFX", "world-", "worldly", "x"])
def test_other_words_for_axes_are_refused_by_name(text: str) -> None:
    if text == "world-":
        assert NormalAxes.of(text).name == "world"
        return
    with pytest.raises(InputError, match="normal_axes"):
        ImportSettings(normal_axes=text)


def test_a_map_of_one_pixel_and_a_frame_without_depth_are_no_reason_to_stop(tmp_path: Path) -> None:
    write_image(tmp_path / "i.png", np.zeros((1, 1, 3), np.uint8), format="png")
    np.save(tmp_path / "d.npy", np.ones((1, 1), np.float32))
    np.save(tmp_path / "n.npy", np.array([[[0, 0, -1.0]]]))
    np.save(tmp_path / "m.npy", np.ones((1, 1), bool))
    row = {"name": "a", "image": "i.png", "depth": "d.npy", "fx": 1, "fy": 1, "cx": 0, "cy": 0}
    (tmp_path / "t.jsonl").write_text(json.dumps(row | {"normal": "n.npy", "mask": "m.npy", "segmentation": "m.npy"}))
    assert import_table(tmp_path / "t.jsonl", tmp_path / "out").instances == ["a"]
    np.save(tmp_path / "d.npy", np.full((1, 1), np.nan, np.float32))
    assert import_table(tmp_path / "t.jsonl", tmp_path / "out").instances == ["a"]
