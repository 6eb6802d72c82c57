"""Stereo pairs with measured disparity: Middlebury, ETH3D, KITTI, and any left pictures with disparity maps.

    Middlebury 2014, 2021     ETH3D two-view          KITTI 2012, 2015
    SCENE/                    SCENE/                  [training/]
    ├── im0.png               ├── im0.png             ├── image_2/000000_10.png     (2012: colored_0)
    ├── disp0.pfm             ├── disp0GT.pfm         ├── disp_occ_0/000000_10.png  (2012: disp_occ)
    └── calib.txt             ├── mask0nocc.png       └── calib_cam_to_cam/000000.txt  (2012: calib)
                              └── calib.txt

The depth of a disparity d is baseline * f / (d + doffs). `calib.txt` gives the left camera as cam0, doffs and the
baseline in millimetres; unknown disparities are infinite. Its f and doffs are in pixels of the size that it states,
disparities in pixels of their own map. KITTI's are PNGs of 16 bits in 1 / 256 pixel, 0 unknown,
and its baseline is between the projection matrices of the two cameras.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, Unpack, get_args

import numpy.typing as npt

from moge_core.datasets.importers.calls import repeatable
from moge_core.datasets.importers.float_maps import pfm_size
from moge_core.datasets.importers.frame_layouts import pair_frames
from moge_core.datasets.importers.intrinsics import parse_intrinsics
from moge_core.datasets.importers.kitti import files_by_stem, numbers_of, read_calibration
from moge_core.datasets.importers.lidar import folders_with
from moge_core.datasets.importers.pairing import Pairing
from moge_core.datasets.importers.pinhole import PixelIntrinsics, intrinsics_from_matrix
from moge_core.datasets.importers.records import (
    UNKNOWN_CAMERA,
    ImportOptions,
    ImportSettings,
    Record,
    Stored,
    StoredDepth,
    finding_of,
)
from moge_core.datasets.importers.source_files import find_sources
from moge_core.datasets.importers.vocabulary import GivenValues, scaled
from moge_core.datasets.importers.writing import ImportReport, check_folders, run_import
from moge_core.datasets.layout import Finding, Progress
from moge_core.errors import DatasetError, FormatError, InputError, MoGeError

IMPORTER = "stereo"

Layout: TypeAlias = Literal["middlebury", "kitti", "plain"]
LAYOUTS: tuple[str, ...] = get_args(Layout)

_DISPARITY_NAMES = ("disp0.pfm", "disp0GT.pfm")
_MASK_NAMES = ("mask0nocc.png",)
_IMAGE_NAMES = ("im0.png", "im0.jpg")
# Folder of images, the cameras whose distance is the baseline, and the folders of disparities by preference.
_KITTI_FOLDERS = (
    ("image_2", (2, 3), ("disp_occ_0", "disp_noc_0")),
    ("colored_0", (2, 3), ("disp_occ", "disp_noc")),
    ("image_0", (0, 1), ("disp_occ", "disp_noc")),
)
_KITTI_SCALE = 256.0
_PLAIN_OPTIONS = ("--left", "--disparity")

Frames: TypeAlias = Iterator[Record | Finding]


@repeatable(IMPORTER)
def import_stereo(
    source_dir: str | Path,
    out_dir: str | Path,
    *,
    layout: Layout | None = None,
    left: str | None = None,
    disparity: str | None = None,
    intrinsics: str | Path | PixelIntrinsics | None = None,
    intrinsics_size: tuple[int, int] | None = None,
    disparity_scale: float | None = None,
    calib_dir: str | Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[ImportOptions],
) -> ImportReport:
    """Make a dataset of left pictures and their disparity, or bring one made earlier up to date.

    Args:
        source_dir: a scene or a folder of them, up to two folders down; for `plain`, any folder.
        out_dir: the dataset to make or add to.
        layout: `middlebury` (and ETH3D), `kitti` or `plain`; by default the one that is found, `plain` with `left`.
        left, disparity: for `plain`, which files are left pictures and which disparity maps: patterns relative to the
            source. They are paired by the frame numbers or names that both carry.
        intrinsics: for `plain`, of the left camera in pixels: "fx,fy,cx,cy" or a file, see `parse_intrinsics`.
        intrinsics_size: (width, height) that they refer to, where that is not the pictures' size.
        disparity_scale: another name of `scale`, stored units a pixel.
        calib_dir: KITTI's calibrations, one file a frame, where they do not lie beside the pictures.
        progress: called as `progress(done, total)`.
        options: what every importer takes, see `ImportOptions`.

    Raises:
        InputError: an option outside its domain, or one that is needed and not given.
        DatasetError: no layout or several, or no frame that could be imported.
        FormatError: a file of intrinsics that holds none.
    """
    source, out = check_folders(source_dir, out_dir)
    settings = ImportSettings.of(scaled(options, "disparity_scale", disparity_scale))
    if layout is not None and layout not in LAYOUTS:
        raise InputError("layout", f"must be one of {', '.join(LAYOUTS)}", found=repr(layout))
    scenes = sorted({path.parent for name in _IMAGE_NAMES for path in folders_with(source, name)})
    kitti = _kitti_folders(source)
    kind = layout or ("plain" if left is not None or disparity is not None else _found(source, scenes, kitti))
    notes: list[str] = []
    taken_for: list[str] = []
    if kind == "middlebury":
        records = _scene_records(source, scenes, settings.values)
    elif kind == "kitti":
        records = _kitti_records(source, kitti, None if calib_dir is None else Path(calib_dir))
    else:
        patterns = _needed(left, "left"), _needed(disparity, "disparity")
        sources = find_sources(source, *patterns, exclude=out, options=_PLAIN_OPTIONS)
        if intrinsics is None and not settings.dry_run:
            raise InputError("intrinsics", "must be given for the layout plain: left, disparity and intrinsics")
        camera = UNKNOWN_CAMERA if intrinsics is None else _camera(source, intrinsics, intrinsics_size)
        plain = StoredDepth(source, kind="disparity", invalid=(math.inf,))
        frames = pair_frames(source, sources, patterns=patterns, options=_PLAIN_OPTIONS)
        notes, taken_for = list(frames.notes), frames.taken_for
        records = _plain_records(source, frames.pairing, camera, plain)
        if settings.values.baseline is None:
            notes.append("Without --baseline the depth has no unit.")
    return run_import(
        IMPORTER,
        source,
        out,
        records,
        settings,
        options={"layout": kind},
        notes=notes,
        taken_for=taken_for,
        progress=progress,
    )


def _found(source: Path, scenes: Sequence[Path], kitti: Sequence[Path]) -> str:
    found = [name for name, folders in (("middlebury", scenes), ("kitti", kitti)) if folders]
    if len(found) == 1:
        return found[0]
    raise DatasetError(
        source,
        "must hold one layout of stereo data: im0.png with calib.txt (Middlebury, ETH3D), or disp_occ_0/ (KITTI)",
        found=" and ".join(found) or "neither",
        fix="Choose with --layout." if found else "Say with --left, --disparity and --intrinsics which files they are.",
    )


def _needed(pattern: str | None, option: str) -> str:
    if pattern is None:
        raise InputError(option, "must be given for the layout plain: left, disparity and intrinsics")
    return pattern


def _scene_records(source: Path, scenes: Sequence[Path], given: GivenValues) -> Frames:
    for scene in scenes:
        name = scene.name if scene == source else scene.relative_to(source).as_posix()
        image = next(scene / file for file in _IMAGE_NAMES if (scene / file).is_file())
        disparity = _first(scene, _DISPARITY_NAMES)
        if disparity is None:
            evidence = f"none of {', '.join(_DISPARITY_NAMES)} is there"
            yield Finding(name, "paired", "error", evidence, "Get the ground truth; test scenes have none.")
            continue
        path = scene / "calib.txt"
        try:
            camera, own_baseline, own_doffs, notes = _read_calib(path)
            if given.doffs is None and camera.size is not None:
                own_doffs *= pfm_size(disparity)[0] / camera.size[0]
        except (MoGeError, OSError) as error:
            yield finding_of(name, error)
            continue
        depth = StoredDepth(
            disparity,
            kind="disparity",
            invalid=(math.inf,),
            baseline=own_baseline,
            doffs=own_doffs,
        )
        # Zero where nothing was measured. What only the left camera sees is grey there, and measured.
        mask = _first(scene, _MASK_NAMES)
        known = None if mask is None else Stored(mask, _read_mask)
        yield Record(name, Stored(image), depth, camera, mask=known, extra_files=(path,), notes=notes)


def _read_mask(path: Path) -> npt.NDArray[Any]:
    from moge_core.io import read_mask

    return read_mask(path)


def _read_calib(path: Path) -> tuple[PixelIntrinsics, float, float, tuple[str, ...]]:
    """Camera, baseline in metres, doffs in pixels of the camera and remarks, of Middlebury's `key=value` lines."""
    if not path.is_file():
        raise FormatError(path, "must hold the calibration", found="no such file", fix="Get the calibration.")
    text = path.read_text(encoding="utf-8", errors="replace")
    values = {key.strip(): value.strip() for key, equals, value in (line.partition("=") for line in text.splitlines())}
    try:
        matrix = [float(number) for number in re.split(r"[\s;,]+", values["cam0"].strip("[] ")) if number]
        baseline, doffs = float(values["baseline"]) / 1000, float(values.get("doffs", 0))
        size = (int(values["width"]), int(values["height"])) if "width" in values and "height" in values else None
    except (KeyError, ValueError) as error:
        rule = "must hold cam0=[f 0 cx; 0 f cy; 0 0 1], baseline= and doffs="
        raise FormatError(path, rule, found=f"{type(error).__name__}: {error}") from error
    in_metres = "A calibrated baseline is below 1 mm. If it is in metres, give it with --baseline."
    notes = (in_metres,) if baseline < 1e-3 else ()
    return replace(intrinsics_from_matrix(matrix, f"{path}: cam0"), size=size), baseline, doffs, notes


def _kitti_folders(source: Path) -> list[Path]:
    names = sorted({name for _, _, disparity_dirs in _KITTI_FOLDERS for name in disparity_dirs})
    return sorted({path.parent for name in names for path in folders_with(source, name)})


def _kitti_records(source: Path, folders: Sequence[Path], calib_dir: Path | None) -> Frames:
    for folder in folders:
        place = folder.name if folder == source else folder.relative_to(source).as_posix()
        for image_dir, cameras, disparity_dirs in _KITTI_FOLDERS:
            disparities = next((folder / name for name in disparity_dirs if (folder / name).is_dir()), None)
            if disparities is None or not (folder / image_dir).is_dir():
                continue
            images, maps = files_by_stem(folder / image_dir, (".png", ".jpg")), files_by_stem(disparities, (".png",))
            for stem in sorted(maps.keys() - images.keys()):
                where = f"{place}/{disparities.name}/{stem}.png"
                yield Finding(where, "paired", "warning", f"{image_dir} has no such picture", "Add it, or ignore it.")
            for stem in sorted(images.keys() & maps.keys()):
                yield _kitti_record(f"{place}/{image_dir}/{stem}", folder, images[stem], maps[stem], cameras, calib_dir)
            break
        else:
            yield Finding(
                place, "paired", "error", "there are disparities and no pictures", "Get image_2 or colored_0."
            )


def _kitti_record(
    name: str,
    folder: Path,
    image: Path,
    disparity: Path,
    cameras: tuple[int, int],
    calib_dir: Path | None,
) -> Record | Finding:
    # Pictures are 000000_10 (with disparity) and 000000_11 (the next moment); a calibration is for both.
    file = f"{image.stem.split('_')[0]}.txt"
    places = [calib_dir] if calib_dir is not None else [folder / "calib_cam_to_cam", folder / "calib"]
    path = next((place / file for place in places if (place / file).is_file()), places[0] / file)
    try:
        calibration = read_calibration(path)
        form = "P_rect_0{}" if "P_rect_00" in calibration or f"P_rect_0{cameras[0]}" in calibration else "P{}"
        P, other = (numbers_of(calibration, form.format(n), 12, path).reshape(3, 4) for n in cameras)
        camera = intrinsics_from_matrix(P[:, :3], path)
        apart = float(P[0, 3] - other[0, 3]) / camera.fx
        depth = StoredDepth(disparity, kind="disparity", scale=_KITTI_SCALE, baseline=apart)
    except (MoGeError, OSError) as error:
        return finding_of(name, error)
    return Record(name, Stored(image), depth, camera, extra_files=(path,))


def _plain_records(source: Path, pairing: Pairing, camera: PixelIntrinsics, depth: StoredDepth) -> Frames:
    for lone, other in ((pairing.lone_images, "disparity map"), (pairing.lone_depths, "picture")):
        for path in lone:
            evidence = f"no {other} has its frame token"
            yield Finding(str(path), "paired", "warning", evidence, "Add its partner, or ignore it.")
    for pair in pairing.pairs:
        yield Record(
            str(pair.instance),
            Stored(source / pair.image),
            replace(depth, path=source / pair.depth),
            camera,
            size_is_said_by="--intrinsics-size WxH",
        )


def _camera(source: Path, intrinsics: str | Path | PixelIntrinsics, size: tuple[int, int] | None) -> PixelIntrinsics:
    if isinstance(intrinsics, PixelIntrinsics):
        camera = intrinsics
    else:
        camera = parse_intrinsics(intrinsics, search_dir=source, size=size)
    return replace(camera, fy=abs(camera.fy), size=size or camera.size, depth_scale=None)


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)
