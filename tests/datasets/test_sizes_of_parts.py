"""Image and depth of different sizes: a crop is no scaling, and sparse depth keeps its returns when made smaller."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from boxes_in_front import boxes_in_front
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from moge_core.cli import cli
from moge_core.datasets.importers.crops import is_usual_ratio
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.records import Record, Stored, StoredDepth
from moge_core.datasets.importers.reread import changed_reading
from moge_core.datasets.importers.sizes import any_of_block, nearest_returns
from moge_core.datasets.importers.table import import_table
from moge_core.datasets.importers.writing import ImportReport
from moge_core.errors import DatasetError
from moge_core.io import read_depth, read_image, read_mask, read_meta, read_segmentation, write_image, write_mask

W, H = 320, 240
FX, CX, CY = 260.0, 150.0, 126.0
# Off-centre, of nearly the shape of the whole, as NYU's toolbox cuts it.
LEFT, TOP, RIGHT, BOTTOM = 21, 23, 301, 236


def save(folder: Path, image: npt.NDArray[np.uint8], depth: npt.NDArray[Any], **more: Any) -> Path:
    """A table of one frame with the camera of an image of W x H."""
    folder.mkdir(parents=True, exist_ok=True)
    write_image(folder / "photo.jpg", image)
    np.save(folder / "depth.npy", depth)
    row = {"name": "f", "image": "photo.jpg", "depth": "depth.npy", "fx": FX, "fy": FX, "cx": CX, "cy": CY, **more}
    (folder / "t.jsonl").write_text(json.dumps(row))
    return folder / "t.jsonl"


def run(folder: Path, **options: Any) -> ImportReport:
    return import_table(folder / "t.jsonl", folder / "out", **options)


def check_crop(folder: Path, image: npt.NDArray[np.uint8], depth: npt.NDArray[np.float32]) -> None:
    """Image, depth and camera are those of the crop."""
    made = folder / "out" / "f"
    cropped, width, height = image[TOP:BOTTOM, LEFT:RIGHT], RIGHT - LEFT, BOTTOM - TOP
    seen = read_image(made / "image.jpg")
    assert seen.shape == cropped.shape
    assert np.abs(seen.astype(float) - cropped).mean() < 8
    assert np.allclose(read_depth(made / "depth.png"), depth[TOP:BOTTOM, LEFT:RIGHT], rtol=1e-3)
    K = read_meta(made / "meta.json")["intrinsics"]
    expected = [FX / width, FX / height, (CX - LEFT + 0.5) / width, (CY - TOP + 0.5) / height]
    assert np.allclose([K[0, 0], K[1, 1], K[0, 2], K[1, 2]], expected, rtol=1e-5)


def type_the_remedy(table: Path, error: str) -> None:
    found = re.search(r"--depth-at (-?\d+,-?\d+)", error)
    assert found is not None, error
    arguments = ["import", "table", str(table), "-o", str(table.parent / "out"), "--depth-at", found[1]]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("seed", range(3))
def test_a_cropped_depth_map_is_refused_and_the_printed_option_crops_the_image_alike(tmp_path: Path, seed: int) -> None:
    image, depth = boxes_in_front(W, H, seed)
    table = save(tmp_path, image, depth[TOP:BOTTOM, LEFT:RIGHT])
    with pytest.raises(DatasetError, match="must show the same field") as refused:
        run(tmp_path)
    type_the_remedy(table, str(refused.value))
    check_crop(tmp_path, image, depth)
    assert run(tmp_path, depth_at=(LEFT, TOP)).num_written == 0


def test_a_cropped_image_is_refused_and_the_printed_option_crops_the_depth_map_alike(tmp_path: Path) -> None:
    image, depth = boxes_in_front(W, H)
    width, height = RIGHT - LEFT, BOTTOM - TOP
    cropped = np.ascontiguousarray(image[TOP:BOTTOM, LEFT:RIGHT])
    table = save(tmp_path, cropped, depth, cx=CX - LEFT, cy=CY - TOP, width=width, height=height)
    with pytest.raises(DatasetError, match="must show the same field") as refused:
        run(tmp_path)
    type_the_remedy(table, str(refused.value))
    check_crop(tmp_path, image, depth)
    # The image stayed as it was.
    assert (tmp_path / "out" / "f" / "image.jpg").read_bytes() == (tmp_path / "photo.jpg").read_bytes()


def test_a_crop_of_another_shape_is_refused_with_its_place(tmp_path: Path) -> None:
    image, depth = boxes_in_front(W, H)
    table = save(tmp_path, image, depth[60:220, 10:310])
    with pytest.raises(DatasetError, match="at least the same shape") as refused:
        run(tmp_path)
    assert "--depth-at 10,60" in str(refused.value)
    type_the_remedy(table, str(refused.value))


def test_a_crop_of_the_image_at_half_size_is_refused(tmp_path: Path) -> None:
    image, depth = boxes_in_front(W, H)
    half = depth[1::2, 1::2]
    save(tmp_path, image, half[6:114, 8:152])
    with pytest.raises(DatasetError, match=r"as a crop of the image, made smaller 2 times, at 1[2-9]?,"):
        run(tmp_path)


@pytest.mark.parametrize("size", [(280, 210), (160, 120), (256, 192), (107, 80), (288, 216), (43, 32), (400, 300)])
def test_what_is_smaller_or_larger_is_no_crop(tmp_path: Path, size: tuple[int, int]) -> None:
    image, depth = boxes_in_front(W, H)
    save(tmp_path, image, cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST))
    report = run(tmp_path)
    assert not [note for note in report.notes if "--depth-at" in note]
    assert [note for note in report.notes if f"{size[0]}x{size[1]}" in note]


@pytest.mark.parametrize(
    ("image", "depth", "usual"),
    [
        ((1296, 968), (640, 480), True),
        ((1920, 1440), (256, 192), True),
        ((1440, 1920), (192, 256), True),
        ((640, 480), (638, 478), True),
        ((1, 1), (2, 2), True),
        ((640, 480), (561, 427), False),
        ((561, 427), (640, 480), False),
        ((640, 480), (304, 228), False),
    ],
)
def test_ratios_that_nobody_scales_by_are_known(image: tuple[int, int], depth: tuple[int, int], *, usual: bool) -> None:
    assert is_usual_ratio(image, depth) is usual


def test_an_unusual_ratio_without_edges_is_told(tmp_path: Path) -> None:
    image, _ = boxes_in_front(W, H)
    save(tmp_path, image, np.full((213, 280), 2, np.float32))
    (told,) = (note for note in run(tmp_path).notes if "unusual ratio" in note)
    assert "--depth-at X,Y" in told and "(1 of 1 frames)" in told


@pytest.mark.parametrize("at", [(41, 0), (0, 28), (-1, 0), (300, 200)])
def test_a_depth_map_that_does_not_lie_in_the_image_is_refused(tmp_path: Path, at: tuple[int, int]) -> None:
    image, depth = boxes_in_front(W, H)
    save(tmp_path, image, depth[TOP:BOTTOM, LEFT:RIGHT])
    with pytest.raises(DatasetError, match="must lie in the image where --depth-at says"):
        run(tmp_path, depth_at=at)


@pytest.mark.parametrize("size", [(W, H), (2 * W, 2 * H)])
def test_intrinsics_of_the_whole_image_may_be_of_another_resolution(tmp_path: Path, size: tuple[int, int]) -> None:
    image, depth = boxes_in_front(W, H)
    scale = size[0] / W
    camera = {"fx": FX * scale, "fy": FX * scale, "cx": (CX + 0.5) * scale - 0.5, "cy": (CY + 0.5) * scale - 0.5}
    save(tmp_path, image, depth[TOP:BOTTOM, LEFT:RIGHT], width=size[0], height=size[1], **camera)
    run(tmp_path, depth_at=(LEFT, TOP))
    check_crop(tmp_path, image, depth)


def test_further_maps_are_cropped_with_what_they_are_of(tmp_path: Path) -> None:
    image, depth = boxes_in_front(W, H)
    ids = np.arange(W * H, dtype=np.uint16).reshape(H, W) % 200
    np.save(tmp_path / "ids.npy", ids)
    write_mask(tmp_path / "mask.png", (ids > 10)[TOP:BOTTOM, LEFT:RIGHT])
    save(tmp_path, image, depth[TOP:BOTTOM, LEFT:RIGHT], segmentation="ids.npy", mask="mask.png")
    run(tmp_path, depth_at=(LEFT, TOP))
    expected = ids[TOP:BOTTOM, LEFT:RIGHT]
    assert np.array_equal(read_segmentation(tmp_path / "out" / "f" / "segmentation.png")[0], expected)
    assert np.array_equal(read_mask(tmp_path / "out" / "f" / "mask.png"), expected > 10)


def test_only_frames_that_are_read_otherwise_are_made_anew(tmp_path: Path) -> None:
    def record(image: tuple[int, int], depth: tuple[int, int]) -> Record:
        write_image(tmp_path / "a.jpg", np.zeros((image[1], image[0], 3), np.uint8))
        cv2.imwrite(str(tmp_path / "a.png"), np.ones((depth[1], depth[0]), np.uint16))
        return Record(
            "f", Stored(tmp_path / "a.jpg"), StoredDepth(tmp_path / "a.png"), PixelIntrinsics(500, 500, 30, 30)
        )

    assert changed_reading(record((64, 48), (64, 48))) == []
    assert changed_reading(record((64, 48), (32, 24))) == []
    assert changed_reading(record((640, 480), (561, 427))) == ["an unusual ratio of sizes"]
    assert (
        changed_reading(
            Record("f", Stored(tmp_path / "no.jpg"), StoredDepth(tmp_path / "a.png"), PixelIntrinsics(1, 1, 0, 0))
        )
        == []
    )


@st.composite
def sparse_maps(draw: st.DrawFn) -> tuple[npt.NDArray[np.float32], tuple[int, int]]:
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    depth = rng.uniform(1, 80, (height, width)).astype(np.float32)
    depth[rng.random((height, width)) > draw(st.floats(0, 1))] = np.nan
    depth[rng.random((height, width)) > 0.95] = np.inf
    return depth, (draw(st.integers(1, width)), draw(st.integers(1, height)))


@given(sparse_maps())
def test_each_pixel_has_the_nearest_return_of_its_block(case: tuple[npt.NDArray[np.float32], tuple[int, int]]) -> None:
    depth, (width, height) = case
    made = nearest_returns(depth, (width, height))
    blocks: dict[tuple[int, int], list[float]] = {}
    for (row, column), value in np.ndenumerate(depth):
        blocks.setdefault((row * height // depth.shape[0], column * width // depth.shape[1]), []).append(float(value))
    expected = np.full((height, width), np.nan)
    for place, values in blocks.items():
        known = [value for value in values if not np.isnan(value)]
        expected[place] = min(known, default=np.nan)
    assert np.array_equal(made, expected.astype(np.float32), equal_nan=True)
    assert np.array_equal(any_of_block(~np.isnan(depth), (width, height)), ~np.isnan(expected))


def lidar(share: float) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(1)
    depth = np.where(rng.random((H, W)) < share, rng.uniform(2, 60, (H, W)), 0)
    return depth.astype(np.float32)


def test_sparse_depth_keeps_its_returns_when_it_is_made_smaller(tmp_path: Path) -> None:
    stored = lidar(0.05)
    save(tmp_path, np.zeros((H // 4, W // 4, 3), np.uint8), stored, width=W, height=H)
    report = run(tmp_path)
    made = read_depth(tmp_path / "out" / "f" / "depth.png")
    occupied = (stored.reshape(H // 4, 4, W // 4, 4) > 0).any(axis=(1, 3))
    assert np.array_equal(np.isfinite(made), occupied)
    nearest = np.where(stored > 0, stored, np.inf).reshape(H // 4, 4, W // 4, 4).min(axis=(1, 3))
    assert np.allclose(made[occupied], nearest[occupied], rtol=1e-3)
    assert any("the nearest return of each pixel's block" in note for note in report.notes)


def test_a_sparse_mask_says_which_returns_are_kept(tmp_path: Path) -> None:
    stored = lidar(0.05)
    trusted = stored > 20
    write_mask(tmp_path / "mask.png", trusted)
    save(tmp_path, np.zeros((H // 4, W // 4, 3), np.uint8), stored, width=W, height=H, mask="mask.png")
    run(tmp_path)
    made = read_depth(tmp_path / "out" / "f" / "depth.png")
    assert np.array_equal(np.isfinite(made), trusted.reshape(H // 4, 4, W // 4, 4).any(axis=(1, 3)))
    assert np.nanmin(made) > 19.9


def test_dense_depth_is_picked_as_ever(tmp_path: Path) -> None:
    stored = lidar(0.4)
    save(tmp_path, np.zeros((H // 4, W // 4, 3), np.uint8), stored, width=W, height=H)
    report = run(tmp_path)
    made, picked = read_depth(tmp_path / "out" / "f" / "depth.png"), stored[2::4, 2::4]
    assert np.array_equal(np.isfinite(made), picked > 0)
    assert any("by nearest neighbour" in note for note in report.notes)
