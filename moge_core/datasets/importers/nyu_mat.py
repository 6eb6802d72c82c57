"""NYU Depth v2, the 1449 labelled frames in one MATLAB file.

    report = import_nyu_mat("nyu_depth_v2_labeled.mat", "data/nyu")

    nyu_depth_v2_labeled.mat     MATLAB 7.3, which is HDF5; sizes as Python sees them, axes reversed
    ├── images      (N, 3, 640, 480) uint8
    ├── depths      (N, 640, 480)    metres, holes filled in from the colours around them
    ├── rawDepths   (N, 640, 480)    metres as measured, 0 where the sensor saw nothing
    ├── labels      (N, 640, 480)    uint16 object class, 0 none
    └── names       (1, C)           names of classes 1..C

The sensor ends at 10 metres: what is further away was stored as 9.995. From 9.99 on, depth is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.array_checks import require
from moge_core.datasets.importers.arrays import read_hdf5
from moge_core.datasets.importers.calls import repeatable
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.records import ImportOptions, ImportSettings, Record, Stored, StoredDepth
from moge_core.datasets.importers.writing import ImportReport, check_folders, run_import
from moge_core.datasets.layout import Finding, Progress
from moge_core.errors import DatasetError, FormatError

IMPORTER = "nyu-mat"
FILE_NAME = "nyu_depth_v2_labeled.mat"

# The colour camera of the toolbox that came with the data.
_CAMERA = PixelIntrinsics(518.857901, 519.469611, 325.582449, 253.736166, (640, 480))
_SATURATED_FROM = 9.99


@repeatable(IMPORTER)
def import_nyu_mat(
    source: str | Path,
    out_dir: str | Path,
    *,
    raw: bool = False,
    labels: bool = False,
    progress: Progress | None = None,
    **options: Unpack[ImportOptions],
) -> ImportReport:
    """Turn the labelled NYU frames into a dataset, or bring one made earlier up to date. See the module for the file.

    Args:
        source: the .mat file, or the folder with `nyu_depth_v2_labeled.mat`.
        out_dir: the dataset to make or add to.
        raw: take depth as it was measured, with its holes, instead of the map that was filled in.
        labels: write the object classes as segmentation.
        progress: called as `progress(done, total)`.
        options: what every importer takes, see `ImportOptions`.

    Raises:
        DatasetError: no such file, or no frame that could be imported.
        FormatError: another file.
        InputError: an option outside its domain.
        MissingDependencyError: h5py is not installed.
    """
    source, out = check_folders(source, out_dir)
    path = source / FILE_NAME if source.is_dir() else source
    if not path.is_file():
        raise DatasetError(source, f"must hold {FILE_NAME}", found="no such file")
    settings = ImportSettings.of(options)
    depth_key = "rawDepths" if raw else "depths"
    count, names = _contents(path, depth_key, with_labels=labels)
    notes = [] if raw else ["Holes of the sensor were filled in by the publisher; --raw takes what was measured."]
    return run_import(
        IMPORTER,
        path,
        out,
        _records(path, depth_key, count, names),
        settings,
        options={"raw": raw, "labels": labels},
        notes=notes,
        progress=progress,
    )


def _contents(path: Path, depth_key: str, *, with_labels: bool) -> tuple[int, dict[str, int] | None]:
    """Number of frames and, where asked for, the ids of the class names."""
    h5py = require("h5py")
    try:
        with h5py.File(path, "r") as file:
            wanted = {"images": 4, depth_key: 3, **({"labels": 3, "names": 2} if with_labels else {})}
            shapes: dict[str, tuple[int, ...]] = {}
            for key in wanted:
                item = file.get(key)
                if not isinstance(item, h5py.Dataset):
                    listed = ", ".join(sorted(file)[:10]) or "nothing"
                    raise FormatError(path, f"must hold {key}", found=listed, fix=f"Give {FILE_NAME}.")
                shapes[key] = tuple(item.shape or ())
            names = shapes.pop("names", None)
            counts = {shape[:1] for shape in shapes.values()}
            if len(counts) > 1 or any(len(shape) != wanted[key] or not shape[0] for key, shape in shapes.items()):
                raise FormatError(path, f"must hold images (N, 3, W, H) and {depth_key} (N, W, H)", found=shapes)
            count = shapes["images"][0]
            # Sizes cost a file nothing to announce; a frame that was stored takes at least a byte.
            if count > path.stat().st_size:
                raise FormatError(path, "must be large enough for its frames", found=f"{count:,} frames")
            return count, None if names is None else _class_names(h5py, file, path)
    except OSError as error:
        fix = "Files of other versions of MATLAB are no HDF5; save with -v7.3."
        raise FormatError(path, "must be a MATLAB 7.3 file", found=error, fix=fix) from error


def _class_names(h5py: Any, file: Any, path: Path) -> dict[str, int]:
    """{name: id} from MATLAB's cell array: references to arrays of characters."""
    names = file["names"]
    if names.size > 65535 or h5py.check_ref_dtype(names.dtype) is not h5py.Reference:
        raise FormatError(path, "names must be a cell array of strings", found=f"{names.dtype} of shape {names.shape}")
    labels: dict[str, int] = {}
    for number, reference in enumerate(names[()].reshape(-1), start=1):
        text = file[reference] if reference else None
        if not isinstance(text, h5py.Dataset) or text.size > 1000 or text.dtype.kind != "u":
            raise FormatError(path, "names must be a cell array of strings", found=f"another value at {number}")
        labels["".join(map(chr, text[()].reshape(-1).tolist()))] = number
    return labels


def _records(path: Path, depth_key: str, count: int, names: Mapping[str, int] | None) -> Iterator[Record | Finding]:
    for index in range(count):
        yield Record(
            name=f"{index:05d}",
            image=Stored(path, partial(_read_image, index=index), part=f"images/{index}"),
            depth=StoredDepth(path, partial(_read_depth, key=depth_key, index=index), part=f"{depth_key}/{index}"),
            camera=_CAMERA,
            segmentation=None
            if names is None
            else Stored(path, partial(_read_frame, key="labels", index=index), part=f"labels/{index}"),
            labels=names or {},
        )


def _read_frame(path: Path, key: str, index: int) -> npt.NDArray[Any]:
    """One frame with its axes the right way round; no other is read."""
    return np.ascontiguousarray(read_hdf5(path, key, index).T)


def _read_image(path: Path, index: int) -> npt.NDArray[Any]:
    return _read_frame(path, "images", index)


def _read_depth(path: Path, key: str, index: int) -> npt.NDArray[Any]:
    depth = _read_frame(path, key, index)
    if depth.dtype.kind != "f":
        raise FormatError(path, f"{key} must be metres in floating point", found=depth.dtype)
    return np.where(depth >= _SATURATED_FROM, np.nan, depth)
