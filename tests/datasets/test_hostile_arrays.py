"""Arrays that mean harm or were damaged: errors name the file, and no more memory is taken than for an image."""

from __future__ import annotations

import contextlib
import io
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import OpenEXR
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moge_core.datasets.importers.array_sources import open_arrays
from moge_core.datasets.importers.arrays import npz_headers, read_array, read_hdf5, read_npy, read_npz, read_pfm
from moge_core.errors import FormatError, ImageTooLargeError, MoGeError
from moge_core.io import limits

METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]

Read = Callable[[Path], Any]


@contextlib.contextmanager
def only_our_errors() -> Iterator[None]:
    """NumPy warns of headers that Python 2 wrote, and Python of what it parses in them; neither is an error."""
    with contextlib.suppress(MoGeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def npy_of(header: bytes, data: bytes = bytes(64)) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def header_of(descr: str = "'<f4'", order: str = "False", shape: str = "(4, 4)") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()


def zip_of(method: int) -> bytes:

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("depth.npy", npy_of(header_of(shape="(40, 30)"), bytes(range(240)) * 20))
    return file.getvalue()


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (4, 4",
        b"{'descr': ((((",
        b"'" * 3,
        b"\\",
        b"  {\n 1",
        header_of(descr="()"),
        header_of(descr="'<U0'"),
        header_of(descr="('<f4', (3,))"),
        header_of(shape="(-1, 4)"),
        header_of(shape=f"({hex(10**5000)}, 4)"),
        header_of(shape="(0, 99999999999999999999)"),
        header_of(shape="(" + "1," * 70 + ")"),
        header_of(shape="(0, 4611686018427387904, 4611686018427387904)"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_headers_that_are_none_are_refused_with_the_file(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(npy_of(header))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("depth.npy", npy_of(header))
    for name, read in (("a.npy", read_npy), ("a.npz", read_npz)):
        with pytest.raises(FormatError, match=name):
            read(tmp_path / name)


@given(
    header=st.one_of(
        st.binary(max_size=80),
        st.text("{}[]()'\"\\\n\t #:,0123456789abefxL<>f=-_descrfortan_ordshp", max_size=80).map(str.encode),
        st.builds(
            lambda header, at, byte: header[:at] + byte + header[at + 1 :],
            st.sampled_from([header_of(), header_of("[('x', '<f4')]"), header_of("'|V3'", "True", "(2, 3)")]),
            st.integers(0, 60),
            st.binary(max_size=2),
        ),
    ),
    data=st.binary(max_size=100),
)
@settings(max_examples=300, deadline=None)
def test_any_header_and_any_bytes_give_an_array_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    path.write_bytes(npy_of(header, data))
    with only_our_errors():
        read_npy(path)
    with zipfile.ZipFile(path.with_suffix(".npz"), "w") as archive:
        archive.writestr("depth.npy", path.read_bytes())
    for read in (npz_headers, read_npz, read_first_frame):
        with only_our_errors():
            read(path.with_suffix(".npz"))


def read_first_frame(path: Path) -> npt.NDArray[Any]:
    with open_arrays(path) as arrays:
        return arrays.frame("depth", 0)


ZIPS = {method: zip_of(method) for method in METHODS}


@given(method=st.sampled_from(METHODS), at=st.integers(0, 5000), bytes_there=st.binary(min_size=1, max_size=4))
@example(method=zipfile.ZIP_LZMA, at=60, bytes_there=b"\xff\xff\xff\xff")
@example(method=zipfile.ZIP_BZIP2, at=60, bytes_there=b"\xff\xff\xff\xff")
@settings(max_examples=300, deadline=None)
def test_damaged_members_give_an_array_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, method: int, at: int, bytes_there: bytes
) -> None:
    data = bytearray(ZIPS[method])
    at %= len(data)
    data[at : at + len(bytes_there)] = bytes_there
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    path.write_bytes(data)
    for read in (npz_headers, read_npz, read_first_frame):
        with only_our_errors():
            read(path)


def test_a_damaged_lzma_member_is_named(tmp_path: Path) -> None:
    data = bytearray(ZIPS[zipfile.ZIP_LZMA])
    at = data.index(b"depth.npy") + len("depth.npy") + 12
    data[at : at + 6] = b"\xff" * 6
    (tmp_path / "a.npz").write_bytes(data)
    for read in (npz_headers, read_npz, read_first_frame):
        with pytest.raises(FormatError, match=r"a\.npz"):
            read(tmp_path / "a.npz")


def write_fill(path: Path, shape: tuple[int, ...], dtype: str = "f4") -> Path:
    """A file of some hundred bytes whose array is one value over and over."""
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file.create_dataset(
                "depth", shape=shape, dtype=dtype, chunks=tuple(min(side, 64) for side in shape), fillvalue=2
            )
    else:
        group = zarr.open_group(path, mode="w")
        group.create_array(
            "depth", shape=shape, dtype=dtype, chunks=tuple(min(side, 64) for side in shape), fill_value=2
        )
    return path


def read_whole(path: Path) -> npt.NDArray[Any]:
    with open_arrays(path) as arrays:
        return arrays.whole("depth")


@pytest.mark.parametrize("shape", [(16000, 16000), (1, 16000, 16000)])
@pytest.mark.parametrize("name", ["a.h5", "a.zarr"])
def test_a_kilobyte_that_announces_a_gigabyte_of_one_value_is_refused_in_flat_memory(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    path = write_fill(tmp_path / name, shape)
    readers: list[Read] = [read_first_frame if len(shape) == 3 else read_whole]
    if name == "a.h5":
        readers += [read_hdf5, lambda path: read_hdf5(path, "depth", 0 if len(shape) == 3 else None)]
    for read in readers:
        tracemalloc.start()
        try:
            with pytest.raises(ImageTooLargeError, match="16000"):
                read(path)
            assert tracemalloc.get_traced_memory()[1] < 1 << 24
        finally:
            tracemalloc.stop()


def test_a_map_of_an_allowed_size_takes_its_own_bytes_once(tmp_path: Path) -> None:
    path = write_fill(tmp_path / "a.h5", (2048, 2048))
    np.save(tmp_path / "a.npy", np.ones((2048, 2048), np.float32))
    np.savez_compressed(tmp_path / "a.npz", np.ones((2048, 2048), np.float32))
    own = 4 * 2048 * 2048
    # PFM turns its rows, and zipfile keeps pieces while it joins them.
    (tmp_path / "a.pfm").write_bytes(b"Pf\n2048 2048\n-1\n" + bytes(own))
    for name, copies in (("a.h5", 1), ("a.npy", 1), ("a.npz", 2), ("a.pfm", 2)):
        tracemalloc.start()
        assert read_array(path.with_name(name)).dtype == np.float32
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < copies * own + (1 << 21), name


def write_map(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    values = np.zeros(shape, dtype)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, depth=values)
    elif path.suffix == ".pfm":
        path.write_bytes(f"Pf\n{shape[1]} {shape[0]}\n-1\n".encode() + values.tobytes())
    elif path.suffix == ".exr":
        header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
        OpenEXR.File(header, {"Z": values}).write(str(path))
    else:
        with h5py.File(path, "w") as file:
            file["depth"] = values


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.h5", "a.pfm", "a.exr"])
def test_more_pixels_or_bytes_than_the_largest_image_are_refused_by_every_reader(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    write_map(path, (100, 64), "f4")
    readers = [read_array] + [read_whole] * (path.suffix in {".npz", ".h5"})
    for read in readers:
        # 6,400 pixels of four bytes: as much as 8,534 pixels of three.
        for allowed, refused in ((6399, True), (8533, True), (8534, False)):
            monkeypatch.setattr(limits, "MAX_IMAGE_PIXELS", allowed)
            with pytest.raises(ImageTooLargeError) if refused else contextlib.nullcontext():
                read(path)
    if path.suffix in {".npy", ".npz", ".h5"}:
        write_map(path, (100, 64), "u1")
        monkeypatch.setattr(limits, "MAX_IMAGE_PIXELS", 6399)
        with pytest.raises(ImageTooLargeError):
            read_array(path)


def test_stacks_are_judged_frame_by_frame_and_empty_sweeps_are_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_IMAGE_PIXELS", 6400)
    for name in ("a.npz", "a.h5"):
        write_map(tmp_path / name, (50, 80, 80), "u1")
        assert read_first_frame(tmp_path / name).shape == (80, 80)
        write_map(tmp_path / name, (50, 80, 81), "u1")
        with pytest.raises(ImageTooLargeError):
            read_first_frame(tmp_path / name)
    for name in ("b.npy", "b.npz", "b.h5"):
        write_map(tmp_path / name, (0, 4), "f4")
        assert read_array(tmp_path / name).shape == (0, 4)


def test_strings_and_objects_in_hdf5_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("depth", (4, 4), dtype=h5py.string_dtype())
    with pytest.raises(FormatError, match="numbers"):
        read_hdf5(tmp_path / "a.h5")


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r", b" "])
def test_pixels_of_a_pfm_begin_after_any_line_end_even_if_they_look_like_one(tmp_path: Path, line_end: bytes) -> None:
    values = np.frombuffer(b"\n\r\n " + bytes(range(64, 84)), "<f4").reshape(2, 3)
    path = tmp_path / "a.pfm"
    path.write_bytes(line_end.join([b"Pf", b"3 2", b"-1.0", b""]) + values[::-1].tobytes())
    np.testing.assert_array_equal(read_pfm(path), values)
    path.write_bytes(line_end.join([b"Pf", b"3 2", b"-1.0", b""]) + b"\n" + values.tobytes() + b"  ")
    with pytest.raises(FormatError, match="end with its pixels"):
        read_pfm(path)
