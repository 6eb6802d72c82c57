"""Pictures that carry an EXIF orientation: picture, depth and camera are turned together, or none of them is."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from boxes_in_front import boxes_in_front, orientation_in, write_with_orientation
from click.testing import CliRunner
from PIL import Image

from moge_core.cli import cli
from moge_core.datasets.importers import origins
from moge_core.datasets.importers.edges import EdgesOfDepth
from moge_core.datasets.importers.frames import Parts, normalised_intrinsics
from moge_core.datasets.importers.orientation import turn_to_depth
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.records import ImportSettings, Record, Stored, StoredDepth, StoredPoints
from moge_core.datasets.importers.table import import_table
from moge_core.datasets.importers.told import Told
from moge_core.datasets.importers.writing import ImportReport
from moge_core.errors import DatasetError, InstanceError
from moge_core.io import read_depth, read_image, read_meta
from moge_core.io.headers import without_exif
from moge_core.io.image import read_stored_image, turned_upright

TURNS = range(2, 9)
# Turning back what an orientation turns.
BACK = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}


def save(folder: Path, image: npt.NDArray[np.uint8], depth: npt.NDArray[np.float32], orientation: int) -> Path:
    """A table of one frame, whose camera is of the depth map's size."""
    write_with_orientation(folder / "photo.jpg", image, orientation)
    np.save(folder / "depth.npy", depth)
    height, width = depth.shape
    row = {"name": "f", "image": "photo.jpg", "depth": "depth.npy", "fx": width, "fy": width}
    row |= {"cx": (width - 1) / 2, "cy": (height - 1) / 2}
    (folder / "t.jsonl").write_text(json.dumps(row))
    return folder / "t.jsonl"


def run(folder: Path, **options: Any) -> ImportReport:
    return import_table(folder / "t.jsonl", folder / "out", **options)


def difference(folder: Path, image: npt.NDArray[np.uint8]) -> float:
    seen = read_image(folder / "out" / "f" / "image.jpg")
    assert seen.shape == image.shape
    return float(np.abs(seen.astype(float) - image).mean())


@pytest.mark.parametrize(
    ("orientation", "shape"), [*((turn, (128, 96)) for turn in TURNS), *((turn, (112, 112)) for turn in (5, 6, 8))]
)
@pytest.mark.parametrize("belongs", ["stored", "upright"])
def test_the_picture_is_turned_to_its_depth_and_leaves_without_the_tag(
    tmp_path: Path, orientation: int, belongs: str, shape: tuple[int, int]
) -> None:
    image, depth = boxes_in_front(*shape)
    stored = image if belongs == "stored" else turned_upright(image, BACK[orientation])
    save(tmp_path, stored, depth, orientation)
    report = run(tmp_path)
    assert difference(tmp_path, image) < 8
    assert orientation_in(tmp_path / "out" / "f" / "image.jpg") is None
    assert np.allclose(read_depth(tmp_path / "out" / "f" / "depth.png"), depth, rtol=1e-3)
    assert np.allclose(read_meta(tmp_path / "out" / "f" / "meta.json")["intrinsics"][:2, 2], 0.5)
    assert any("1 of 1 frames" in note and "EXIF" in note for note in report.notes)
    assert run(tmp_path).num_written == 0


@pytest.mark.parametrize("orientation", [3, 6])
def test_what_is_right_as_stored_is_not_encoded_again(tmp_path: Path, orientation: int) -> None:
    image, depth = boxes_in_front(128, 96)
    save(tmp_path, image, depth, orientation)
    run(tmp_path)
    with Image.open(tmp_path / "photo.jpg") as before, Image.open(tmp_path / "out" / "f" / "image.jpg") as after:
        assert np.array_equal(np.asarray(before), np.asarray(after))
        assert after.quantization == before.quantization


def test_a_picture_without_a_tag_is_copied_as_it_is(tmp_path: Path) -> None:
    image, depth = boxes_in_front(128, 96)
    save(tmp_path, image, depth, 1)
    run(tmp_path)
    assert (tmp_path / "out" / "f" / "image.jpg").read_bytes() == (tmp_path / "photo.jpg").read_bytes()


@pytest.mark.parametrize(("orientation", "written"), [(1, 0), (3, 1)])
def test_of_datasets_made_before_only_frames_with_a_tag_are_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int, written: int
) -> None:
    image, depth = boxes_in_front(128, 96)
    save(tmp_path, image, depth, orientation)
    with monkeypatch.context() as before:
        before.setattr(origins, "changed_reading", lambda record: [])
        run(tmp_path)
    assert run(tmp_path).num_written == written


def test_exif_and_xmp_go_and_the_colour_profile_stays() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(boxes_in_front(32, 24)[0]).save(file, "JPEG", exif=exif, xmp=xmp, icc_profile=b"profile" * 9)
    with Image.open(io.BytesIO(without_exif(file.getvalue()))) as image:
        assert image.getexif().get(0x0112) is None
        assert image.info["icc_profile"] == b"profile" * 9
    assert read_stored_image(io.BytesIO(without_exif(file.getvalue())))[1] == 1


def test_what_nothing_tells_is_taken_as_upright_and_the_printed_options_settle_it(tmp_path: Path) -> None:
    image, depth = boxes_in_front(128, 96)
    table = save(tmp_path, image, np.full_like(depth, 2), 3)
    report = run(tmp_path)
    assert difference(tmp_path, image[::-1, ::-1]) < 8
    (told,) = (note for note in report.notes if "EXIF" in note)
    assert "--orientation stored or --orientation upright" in told
    assert "(1 of 1 frames)" in told
    for said, right in (("stored", image), ("upright", image[::-1, ::-1])):
        result = CliRunner().invoke(
            cli, ["import", "table", str(table), "-o", str(tmp_path / "out"), "--orientation", said]
        )
        assert result.exit_code == 0, result.output
        assert "--orientation" not in result.output
        assert difference(tmp_path, right) < 8


def test_what_was_said_and_cannot_be_is_refused_with_what_can(tmp_path: Path) -> None:
    image, depth = boxes_in_front(128, 96)
    save(tmp_path, image, depth, 6)
    with pytest.raises(DatasetError) as refused:
        run(tmp_path, orientation="upright")
    assert refused.value.fix == "Import with --orientation stored."
    run(tmp_path, orientation="stored")
    assert difference(tmp_path, image) < 8


def test_colmap_has_the_pixels_as_they_are_stored_whatever_the_edges_say(tmp_path: Path) -> None:
    image, depth = boxes_in_front(96, 96)
    work = tmp_path / "dense"
    write_with_orientation(work / "images" / "a.jpg", image, 6)
    (work / "sparse").mkdir()
    (work / "stereo" / "depth_maps").mkdir(parents=True)
    (work / "sparse" / "cameras.txt").write_text("1 PINHOLE 96 96 90 90 48 48\n")
    (work / "sparse" / "images.txt").write_text("1 1 0 0 0 0 0 0 1 a.jpg\n\n")
    (work / "sparse" / "points3D.txt").write_text("")
    turned = np.ascontiguousarray(np.rot90(depth))
    (work / "stereo" / "depth_maps" / "a.jpg.geometric.bin").write_bytes(b"96&96&1&" + turned.tobytes())
    result = CliRunner().invoke(cli, ["import", "colmap", str(work), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    seen = read_image(tmp_path / "out" / "a" / "image.jpg")
    assert np.abs(seen.astype(float) - image).mean() < 8


@pytest.mark.parametrize(
    ("turn", "named"),
    [(6, "turned by 90 degrees clockwise"), (8, "turned by 90 degrees counter-clockwise"), (5, "transposed")],
)
def test_a_standing_picture_of_lying_depth_is_called_turned_and_not_cropped(
    tmp_path: Path, turn: int, named: str
) -> None:
    image, depth = boxes_in_front(128, 96)
    # Turned by this, the picture lies as its depth does.
    save(tmp_path, np.ascontiguousarray(turned_upright(image, BACK[turn])), depth, 1)
    with pytest.raises(DatasetError, match=named) as refused:
        run(tmp_path)
    assert "crop" not in str(refused.value)


def test_a_turned_picture_without_edges_is_called_turned_too(tmp_path: Path) -> None:
    image, depth = boxes_in_front(128, 96)
    save(tmp_path, np.ascontiguousarray(np.rot90(image)), np.full_like(depth, 3), 1)
    with pytest.raises(DatasetError, match="one is turned by a quarter against the other"):
        run(tmp_path)


def parts_of(image: npt.NDArray[np.uint8], orientation: int, camera: PixelIntrinsics) -> tuple[Parts, Record]:
    points = StoredPoints(Path("sweep.bin"))
    parts = Parts(image, orientation, None, None, None, camera, None, None, None, Told())
    return parts, Record("f", Stored(Path("a.jpg")), points, camera)


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("belongs", ["stored", "upright"])
def test_with_points_the_camera_tells(belongs: str, *, sized: bool) -> None:
    image = boxes_in_front(64, 40)[0]
    width, height = (64, 40) if belongs == "stored" else (40, 64)
    camera = PixelIntrinsics(50, 50, width / 2, height / 2, (width, height) if sized else None)
    parts, record = parts_of(image, 6, camera)
    turn_to_depth(parts, record, ImportSettings())
    assert parts.image.shape == (height, width, 3)
    assert "--orientation" not in "".join(parts.told.suspicions)


def test_intrinsics_of_the_picture_on_its_side_are_refused_with_those_that_are_right() -> None:
    camera = PixelIntrinsics(500, 510, 330, 235, (640, 480))
    with pytest.raises(InstanceError) as refused:
        normalised_intrinsics(camera, 480, 640)
    # A pixel x, y of the upright picture of 640x480 is 479 - y, x of the one turned clockwise.
    assert "510,500,244,330 if that is clockwise" in str(refused.value.fix)
    assert "510,500,235,309 if it is counter-clockwise" in str(refused.value.fix)
    with pytest.raises(InstanceError, match="say the width before the height"):
        normalised_intrinsics(PixelIntrinsics(500, 500, 239.5, 319.5, (640, 480)), 480, 640)


def test_a_camera_of_the_pixels_as_stored_is_never_taken_for_that_of_the_upright_picture(tmp_path: Path) -> None:
    """Depth is upright, the camera is not; that is said of the picture, and what is right can be typed."""
    image, depth = boxes_in_front(96, 120)
    table = save(tmp_path, turned_upright(image, BACK[6]), depth, 6)
    row = json.loads(table.read_text()) | {"fx": 150, "fy": 160, "cx": 50.5, "cy": 59.5}
    table.write_text(json.dumps(row))
    run(tmp_path)
    right = read_meta(tmp_path / "out" / "f" / "meta.json")["intrinsics"]
    row |= {"fx": 160, "fy": 150, "cx": 59.5, "cy": 95 - 50.5}
    table.write_text(json.dumps(row))
    with pytest.raises(DatasetError, match="must refer to images that lie like these, 96x120") as refused:
        run(tmp_path)
    fix = str(refused.value.fix)
    assert "fx,fy,cx,cy are 150,160,50.5,59.5 if that is clockwise" in fix
    assert "say that they refer to 96x120 (the columns width and height)" in fix
    row |= {"fx": 150, "fy": 160, "cx": 50.5, "cy": 59.5}
    table.write_text(json.dumps(row))
    run(tmp_path)
    np.testing.assert_array_equal(read_meta(tmp_path / "out" / "f" / "meta.json")["intrinsics"], right)


@pytest.mark.slow
def test_edges_tell_how_real_frames_are_turned(samples_dir: Path) -> None:
    frames = [frame for frame in json.loads((samples_dir / "MANIFEST.json").read_text()) if is_dense(frame)]
    assert len(frames) > 12
    undecided = 0
    for frame in frames:
        image = read_image(samples_dir / frame["image"])
        stored = np.asarray(Image.open(samples_dir / frame["depth"]))
        meaning = StoredDepth(samples_dir / frame["depth"], scale=1000, invalid=tuple(frame["invalid"]))
        edges = EdgesOfDepth(stored, meaning)
        fits = {turn: edges.whole_fit(turned_upright(image, turn)) for turn in (1, 2, 3, 4)}
        best = {turn: fit[1] for turn, fit in fits.items() if fit is not None}
        here, others = best.pop(1), max(best.values())
        assert others < max(0.2, here + 0.1), frame["image"]
        undecided += here < max(0.2, others + 0.1)
    # Depth of one frame is shifted against its picture, as its sensor published it.
    assert undecided <= 1


def is_dense(frame: dict[str, Any]) -> bool:
    names = (frame["image"] or "", frame["depth"] or "")
    return names[1].endswith((".png", ".pgm")) and frame["expected"]["valid"] > 0.5 and bool(names[0])
