"""Depth files of every kind that people publish: the right numbers of the right array, or an error that names both."""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import numpy.typing as npt
import OpenEXR
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moge_core.datasets.importers.arrays import read_array
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.records import Record, Stored, StoredDepth
from moge_core.datasets.importers.stored_depth import read_stored
from moge_core.datasets.importers.tiff_files import read_tiff_channels, tiff_no_data
from moge_core.datasets.importers.told import Told
from moge_core.errors import FormatError, ImageTooLargeError
from moge_core.io import limits

Array = npt.NDArray[Any]
H, W = 5, 7


def ramp(dtype: str = "f4", first: float = 1.0) -> Array:
    return (first + np.arange(H * W).reshape(H, W)).astype(dtype)


def write_tiff(path: Path, *pages: Array, no_data: str | None = None, packed: bool = False, subfile: int = 0) -> None:
    """A TIFF with a page for each array (H, W) or (H, W, C); `subfile` is the type of all but the first."""
    data = bytearray(b"II*\0\0\0\0\0")
    place_of_next = 4

    def put(part: bytes) -> int:
        place = len(data)
        data.extend(part + b"\0" * (len(part) % 2))
        return place

    for number, page in enumerate(pages):
        bands = page.shape[2] if page.ndim == 3 else 1
        kind = {"u": 1, "i": 2, "f": 3}[page.dtype.kind]
        pixels = zlib.compress(page.tobytes()) if packed else page.tobytes()
        shorts = {258: [8 * page.dtype.itemsize] * bands, 339: [kind] * bands}
        tags = [(254, 4, 1, subfile if number else 0), (256, 4, 1, page.shape[1]), (257, 4, 1, page.shape[0])]
        for tag, values in shorts.items():
            content = values[0] if bands == 1 else put(struct.pack(f"<{bands}H", *values))
            tags.append((tag, 3, bands, content))
        tags += [(259, 3, 1, 8 if packed else 1), (262, 3, 1, 2 if bands > 2 else 1), (273, 4, 1, put(pixels))]
        tags += [(277, 3, 1, bands), (278, 4, 1, page.shape[0]), (279, 4, 1, len(pixels)), (284, 3, 1, 1)]
        if bands == 4:
            tags.append((338, 3, 1, 2))
        if no_data is not None:
            text = no_data.encode() + b"\0"
            inline = int.from_bytes(text, "little") if len(text) <= 4 else put(text)
            tags.append((42113, 2, len(text), inline))
        struct.pack_into("<I", data, place_of_next, len(data))
        entries = b"".join(
            struct.pack("<HHI", tag, kind_of, count)
            + (struct.pack("<HH", value, 0) if kind_of == 3 and count == 1 else struct.pack("<I", value))
            for tag, kind_of, count, value in sorted(tags)
        )
        put(struct.pack("<H", len(tags)) + entries + b"\0\0\0\0")
        place_of_next = len(data) - 4
    path.write_bytes(data)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "i4", "f4", "f8"])
def test_a_tiff_of_any_number_type_is_read_as_it_is(tmp_path: Path, dtype: str, packed: bool) -> None:
    write_tiff(tmp_path / "a.tif", ramp(dtype), packed=packed)
    values = read_array(tmp_path / "a.tif")
    assert values.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(values, ramp(dtype))


def test_a_tiled_tiff_is_read(tmp_path: Path) -> None:
    from PIL import Image

    values = np.random.default_rng(0).uniform(1, 9, (40, 50)).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif", compression="tiff_lzw", tiffinfo={322: 16, 323: 16})
    np.testing.assert_array_equal(read_array(tmp_path / "a.tif"), values)


def test_a_tiff_of_half_floats_is_refused_by_name(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", ramp("f2"))
    with pytest.raises(FormatError, match="16-bit floats"):
        read_array(tmp_path / "a.tif")


@pytest.mark.parametrize(("dtype", "text", "marker"), [("f4", "-9999", -9999), ("f8", "1e20", 1e20), ("i2", "-1 ", -1)])
def test_gdals_value_for_no_data_means_unknown(
    tmp_path: Path, dtype: str, text: str, marker: float, capfd: pytest.CaptureFixture[str]
) -> None:
    values = ramp(dtype)
    values[1] = marker
    write_tiff(tmp_path / "a.tif", values, no_data=text)
    assert tiff_no_data(tmp_path / "a.tif") == marker
    assert stored(tmp_path / "a.tif")[1].invalid == (marker,)
    assert stored(tmp_path / "a.tif", infinite=(float(marker),))[1].invalid == ()
    assert capfd.readouterr().err == ""


def stored(path: Path, **said: Any) -> tuple[Array, StoredDepth, Told]:
    told = Told()
    depth = StoredDepth(path, **said)
    values, meaning = read_stored(Record("a", Stored(path), depth, PixelIntrinsics(1, 1, 1, 1)), told)
    return values, meaning, told


def test_pages_of_a_tiff_are_chosen_by_number_and_never_silently(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", ramp("f4"), ramp("f4", 100))
    with pytest.raises(FormatError, match=r"2 pages.*--depth-array"):
        read_array(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_array(tmp_path / "a.tif", "2"), ramp("f4", 100))
    for name in ("0", "3", "depth"):
        with pytest.raises(FormatError, match="page or band"):
            read_array(tmp_path / "a.tif", name)
    # Overviews and masks are no pages of their own.
    for kind in (1, 4):
        write_tiff(tmp_path / "b.tif", ramp("f4"), ramp("f4", 100)[::2, ::2].copy(), subfile=kind)
        np.testing.assert_array_equal(read_array(tmp_path / "b.tif"), ramp("f4"))


def test_bands_of_a_tiff_are_chosen_by_number_and_never_silently(tmp_path: Path) -> None:
    bands = np.stack([ramp("f4", first) for first in (1, 100, 1000)], -1)
    write_tiff(tmp_path / "a.tif", bands)
    with pytest.raises(FormatError, match="3 bands"):
        read_array(tmp_path / "a.tif")
    for number in range(3):
        np.testing.assert_array_equal(read_array(tmp_path / "a.tif", str(number + 1)), bands[..., number])
    pixels = np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8)
    write_tiff(tmp_path / "b.tif", pixels)
    np.testing.assert_array_equal(read_tiff_channels(tmp_path / "b.tif"), pixels)
    write_tiff(tmp_path / "c.tif", bands[..., :2].copy())
    with pytest.raises(FormatError, match="2 bands"):
        read_array(tmp_path / "c.tif", "1")


@given(cut=st.integers(0, 200), at=st.integers(0, 200), byte=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_damaged_tiff_is_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, cut: int, at: int, byte: int
) -> None:
    path = tmp_path_factory.mktemp("tiff") / "a.tif"
    write_tiff(path, ramp("f4"), no_data="-1")
    data = bytearray(path.read_bytes())
    data[at % len(data)] = byte
    path.write_bytes(data[: len(data) - cut])
    with contextlib.suppress(FormatError, ImageTooLargeError):
        assert read_array(path).ndim == 2


def test_a_tiff_larger_than_an_image_may_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiff(tmp_path / "a.tif", ramp("f8"))
    monkeypatch.setattr(limits, "MAX_IMAGE_PIXELS", H * W - 1)
    with pytest.raises(ImageTooLargeError):
        read_array(tmp_path / "a.tif")


def write_exr(path: Path, *parts: dict[str, Array]) -> None:
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    if len(parts) == 1:
        OpenEXR.File(header, dict(parts[0])).write(str(path))
    else:
        names = ("Combined", "Depth", "Rest")
        OpenEXR.File([OpenEXR.Part(dict(header), dict(part), names[i]) for i, part in enumerate(parts)]).write(
            str(path)
        )


Z, ONE, OTHER = ramp(), np.ones((H, W), np.float32), ramp(first=200)
RGB = {"R": OTHER, "G": OTHER + 1, "B": OTHER + 2}
COMBINED = {f"ViewLayer.Combined.{name}": values for name, values in {**RGB, "A": ONE}.items()}


@pytest.mark.parametrize(
    ("channels", "taken"),
    [
        ({"Z": Z}, None),
        ({"V": Z}, None),
        ({"Y": Z, "A": ONE}, "Y"),
        ({"R": Z, "A": ONE}, "R"),
        ({"V": OTHER, "Depth.V": Z, "Depth.A": ONE}, "Depth.V"),
        ({**RGB, "A": ONE, "Z": Z}, "Z"),
        ({**COMBINED, "ViewLayer.Depth.Z": Z}, "ViewLayer.Depth.Z"),
        ({**COMBINED, **{f"ViewLayer.Normal.{axis}": OTHER for axis in "XYZ"}, "ViewLayer.Depth.Z": Z}, "Depth.Z"),
        ({f"P.{axis}": OTHER for axis in "XYZ"} | {"depth.V": Z}, "depth.V"),
        ({"Color.R": OTHER, "Color.G": OTHER, **{f"WorldDepth.{name}": Z for name in "RGB"}}, "WorldDepth.R"),
        ({"R": Z, "G": Z, "B": Z}, None),
        ({"Z": Z.astype(np.float16), "A": ONE.astype(np.float16)}, "Z"),
    ],
)
def test_the_channel_that_is_depth_is_taken_by_its_name_and_told(
    tmp_path: Path, channels: dict[str, Array], taken: str | None
) -> None:
    write_exr(tmp_path / "a.exr", channels)
    values, _, told = stored(tmp_path / "a.exr")
    np.testing.assert_array_equal(values, Z)
    assert len(told.notes) == (taken is not None)
    assert taken is None or any(f"{taken} (of" in note for note in told.notes)


@pytest.mark.parametrize(
    "channels",
    [
        {"A": ONE},
        {"left.Depth.Z": Z, "right.Depth.Z": OTHER},
        {"Depth.R": Z, "Depth.G": OTHER},
        {"U": Z, "V": OTHER},
        {f"Normal.{axis}": Z for axis in "XYZ"},
    ],
)
def test_no_plausible_channel_or_several_are_refused_with_the_list(tmp_path: Path, channels: dict[str, Array]) -> None:
    write_exr(tmp_path / "a.exr", channels)
    with pytest.raises(FormatError, match="the channels") as caught:
        stored(tmp_path / "a.exr")
    assert "--depth-array" in str(caught.value)
    for name, values in channels.items():
        np.testing.assert_array_equal(stored(tmp_path / "a.exr", depth_array=name)[0], values)


def test_a_channel_of_an_exr_is_named_in_full_or_by_its_end_in_any_part(tmp_path: Path) -> None:
    write_exr(tmp_path / "a.exr", {**RGB}, {"Z": Z}, {"Y": OTHER})
    np.testing.assert_array_equal(stored(tmp_path / "a.exr")[0], Z)
    for name in ("Depth.Z", "Z", "z"):
        np.testing.assert_array_equal(stored(tmp_path / "a.exr", depth_array=name)[0], Z)
    np.testing.assert_array_equal(stored(tmp_path / "a.exr", depth_array="Rest.Y")[0], OTHER)
    with pytest.raises(FormatError, match="must have the channel W"):
        stored(tmp_path / "a.exr", depth_array="W")


@pytest.mark.parametrize(
    "head",
    [
        "Pf\n7 5\n-1.0\n",
        "Pf\r\n7 5\r\n-1.0\r\n",
        "Pf  # depth\n# of a scan\n 7\n\t5\n-1e0 \n",
        "Pf 7 5 -1.0\n# in metres\n",
    ],
)
def test_a_pfm_with_comments_and_any_blanks_is_read(tmp_path: Path, head: str) -> None:
    (tmp_path / "a.pfm").write_bytes(head.encode() + Z[::-1].astype("<f4").tobytes())
    np.testing.assert_array_equal(read_array(tmp_path / "a.pfm"), Z)
    big = head.replace("-1", "+1").encode() + Z[::-1].astype(">f4").tobytes()
    (tmp_path / "a.pfm").write_bytes(big)
    np.testing.assert_array_equal(read_array(tmp_path / "a.pfm"), Z)


def test_a_colour_pfm_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.pfm").write_bytes(b"PF\n7 5\n-1\n" + bytes(4 * 3 * H * W))
    with pytest.raises(FormatError, match="colour map, PF"):
        read_array(tmp_path / "a.pfm")


def test_a_dpt_of_sintel_is_read_and_a_truncated_one_refused(tmp_path: Path) -> None:
    data = struct.pack("<fii", 202021.25, W, H) + Z.tobytes()
    (tmp_path / "a.dpt").write_bytes(data)
    np.testing.assert_array_equal(read_array(tmp_path / "a.dpt"), Z)
    for damaged, word in ((data[:-1], "truncated"), (b"\0" + data[1:], "tag"), (data[:8], "tag")):
        (tmp_path / "a.dpt").write_bytes(damaged)
        with pytest.raises(FormatError, match=word):
            read_array(tmp_path / "a.dpt")


def test_datasets_in_groups_of_hdf5_are_found_by_path_and_the_one_called_depth_is_told(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["cam/depth"], file["cam/rgb"] = Z, OTHER
        file["loop"] = h5py.SoftLink("/")
    values, _, told = stored(tmp_path / "a.h5")
    np.testing.assert_array_equal(values, Z)
    assert any("cam/depth was taken" in note for note in told.notes)
    np.testing.assert_array_equal(stored(tmp_path / "a.h5", depth_array="/cam/rgb")[0], OTHER)
    # Other maps than depth are never taken by a name.
    with pytest.raises(FormatError, match="cam/depth, cam/rgb"):
        read_array(tmp_path / "a.h5")


def test_three_equal_channels_of_16_bits_are_one_map(tmp_path: Path) -> None:
    grey = ramp("u2", 1000)
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([grey] * 3))
    values, _, told = stored(tmp_path / "a.png")
    np.testing.assert_array_equal(values, grey)
    assert any("three equal channels" in note for note in told.notes)
    cv2.imwrite(str(tmp_path / "b.png"), np.dstack([grey, grey, grey + 1]))
    with pytest.raises(FormatError, match="16-bit RGB"):
        stored(tmp_path / "b.png")
