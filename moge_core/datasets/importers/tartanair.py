"""TartanAir, version 1 and 2: rendered flights through rooms, towns and woods. Depth is z in metres.

    report = import_tartanair("tartanair", "data/tartanair")

    source/                                          any folders above a trajectory
    ├── ENV/Easy|Hard/P000/                          version 1, 640x480, 90 degrees across
    │   ├── image_left/000000_left.png               likewise image_right
    │   └── depth_left/000000_left_depth.npy         float32
    └── ENV/Data_easy|Data_hard/P000/                version 2, 640x640, 90 degrees across
        ├── image_lcam_front/000000_lcam_front.png   lcam and rcam, each front, back, left, right, top, bottom
        └── depth_lcam_front/000000_lcam_front_depth.png   the bytes of a float32 as four channels

The renderer puts the sky on a sphere kilometres away; depth from `sky_from` on is infinite.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.arrays import read_array
from moge_core.datasets.importers.calls import repeatable
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.records import ImportOptions, ImportSettings, Record, Stored, StoredDepth
from moge_core.datasets.importers.source_files import each_once, walk
from moge_core.datasets.importers.writing import ImportReport, check_folders, run_import
from moge_core.datasets.layout import Finding, Progress
from moge_core.errors import DatasetError, FormatError
from moge_core.io import limits
from moge_core.io.files import read_bytes
from moge_core.io.png import RGBA, decode_png, parse_png

IMPORTER = "tartanair"

# Published as c = (320, 240), which counts from the corner of the image: f = 320 then makes 90 degrees, symmetrically.
_CAMERAS = {
    1: PixelIntrinsics(320, 320, 319.5, 239.5, (640, 480)),
    2: PixelIntrinsics(320, 320, 319.5, 319.5, (640, 640)),
}
_VIEW = re.compile(r"image_(?:(?P<v1>left|right)|(?P<v2>[lr]cam_(?:front|back|left|right|top|bottom)))")


@repeatable(IMPORTER)
def import_tartanair(
    source: str | Path,
    out_dir: str | Path,
    *,
    sky_from: float = 1000.0,
    progress: Progress | None = None,
    **options: Unpack[ImportOptions],
) -> ImportReport:
    """Turn TartanAir trajectories into a dataset, or bring one made earlier up to date. See the module for the layout.

    Args:
        source: folder of environments, an environment, or a trajectory.
        out_dir: the dataset to make or add to.
        sky_from: metres from which depth is infinite, `infinite_from` by another name. The largest scenes are some
            hundred metres deep.
        progress: called as `progress(done, total)`.
        options: what every importer takes, see `ImportOptions`.

    Raises:
        DatasetError: no such folder, no images in it, or no frame that could be imported.
        InputError: an option outside its domain.
    """
    source, out = check_folders(source, out_dir)
    if not source.is_dir():
        raise DatasetError(source, "must be a folder with TartanAir trajectories", found="a file")
    sky_from = options.pop("infinite_from", None) or sky_from
    settings = ImportSettings.of(options, label_type="synthetic")
    records = _records(source, sky_from)
    return run_import(IMPORTER, source, out, records, settings, options={"sky_from": sky_from}, progress=progress)


def read_packed_depth(path: str | Path) -> npt.NDArray[np.float32]:
    """Depth (H, W) from a PNG whose four 8-bit channels hold the bytes of a float32.

    The least byte is in the blue channel, then green, red and alpha: the files were written by OpenCV, which orders
    channels so.

    Raises:
        FormatError: another pixel format, or damaged.
        ImageTooLargeError: more pixels than `limits.MAX_IMAGE_PIXELS`.
    """
    data = read_bytes(path, limit=limits.MAX_FILE_BYTES)
    header = parse_png(data, str(path))
    if header.color_type != RGBA or header.bit_depth != 8:
        raise FormatError(path, "must be a PNG of four channels of 8 bits", found=header.pixel_format)
    pixels = decode_png(data, str(path), header)
    return np.ascontiguousarray(pixels[..., [2, 1, 0, 3]]).view("<f4")[..., 0].astype(np.float32)


def _read_depth(path: Path) -> npt.NDArray[Any]:
    return read_packed_depth(path) if path.suffix == ".png" else read_array(path)


def _records(source: Path, sky_from: float) -> Iterator[Record | Finding]:
    found = [folder for folder in walk(source) if folder.path.relative_to(source).match("image_*")]
    folders = [folder.path for folder in each_once(found, source)]
    if not folders:
        layout = "P000/image_left or P000/image_lcam_front"
        raise DatasetError(source, f"must hold TartanAir trajectories: {layout}", found="no folder of images")
    for folder in folders:
        place = folder.parent.name if folder.parent == source else folder.parent.relative_to(source).as_posix()
        match = _VIEW.fullmatch(folder.name)
        if match is None:
            evidence = "no known pinhole camera has this name"
            fix = "Cameras are left, right and {l,r}cam_{front,back,left,right,top,bottom}."
            yield Finding(f"{place}/{folder.name}", "pinhole", "warning", evidence, fix)
            continue
        view = match["v1"] or match["v2"]
        images = {path.stem: path for path in sorted(folder.glob(f"*_{view}.[jp][pn]g"))}
        depths = {
            path.stem.removesuffix("_depth"): path
            for suffix in ("png", "npy")
            for path in sorted(folder.with_name(f"depth_{view}").glob(f"*_{view}_depth.{suffix}"))
        }
        for stem in sorted(images.keys() | depths.keys()):
            name = f"{place}/{view}/{stem.removesuffix('_' + view)}"
            if stem not in images or stem not in depths:
                missing = "image" if stem not in images else "depth map"
                evidence = f"there is no {missing} of {stem}"
                yield Finding(name, "paired", "warning", evidence, "Add its partner, or ignore it.")
                continue
            yield Record(
                name=name,
                image=Stored(images[stem]),
                depth=StoredDepth(depths[stem], _read_depth, far_from=sky_from),
                camera=_CAMERAS[1 if match["v1"] else 2],
            )
