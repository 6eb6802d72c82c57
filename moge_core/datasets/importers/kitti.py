"""KITTI: the object and raw recordings with their velodyne sweeps, and the depth maps of the depth benchmark.

    object                              raw                                      depth
    [training/]                         DATE/                                    [train/]DRIVE/proj_depth/groundtruth/
    ├── image_2/000000.png              ├── calib_cam_to_cam.txt                 └── image_02/0000000005.png
    ├── velodyne/000000.bin             ├── calib_velo_to_cam.txt                depth_selection/val_selection_cropped/
    └── calib/000000.txt                └── DRIVE_sync/                          ├── image/
                                            ├── image_02/data/0000000000.png     ├── groundtruth_depth/
                                            └── velodyne_points/data/…           └── intrinsics/

Sweeps are float32 rows of x, y, z in metres and reflectance, in the sensor's axes. Cameras 2 (left) and 3 (right) are
the coloured ones; P2 and P3 hold their place beside camera 0, to which the sweep is calibrated. Depth maps are PNGs of
16 bits in 1 / 256 m, 0 unknown; they have no images of their own but those of the raw recordings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, Unpack, get_args

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.calls import repeatable
from moge_core.datasets.importers.intrinsics import parse_intrinsics
from moge_core.datasets.importers.lidar import Transform, chosen, folders_with, read_float_rows, stored_sweep, transform
from moge_core.datasets.importers.pinhole import PixelIntrinsics, intrinsics_from_matrix
from moge_core.datasets.importers.records import ImportOptions, ImportSettings, Record, Stored, StoredDepth, finding_of
from moge_core.datasets.importers.writing import ImportReport, check_folders, run_import
from moge_core.datasets.layout import Finding, Progress
from moge_core.errors import DatasetError, FormatError, InputError, MoGeError

IMPORTER = "kitti"

Layout: TypeAlias = Literal["object", "raw", "depth"]
LAYOUTS: tuple[str, ...] = get_args(Layout)

_CAMERAS = (2, 3)
_UNITS_PER_METRE = 256.0
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_CALIBRATION_NAME = "calib_cam_to_cam.txt"

Frames: TypeAlias = Iterator[Record | Finding]
Calibration: TypeAlias = Mapping[str, npt.NDArray[np.float64]]


@repeatable(IMPORTER)
def import_kitti(
    source_dir: str | Path,
    out_dir: str | Path,
    *,
    layout: Layout | None = None,
    cameras: Sequence[str] | None = None,
    images_dir: str | Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[ImportOptions],
) -> ImportReport:
    """Make a dataset of KITTI's recordings, or bring one made earlier up to date.

    Args:
        source_dir: the folder that holds one of the layouts above, up to two folders down.
        out_dir: the dataset to make or add to.
        layout: `object`, `raw` or `depth`; by default the one that is found.
        cameras: `image_02` and `image_03`; by default those that are there.
        images_dir: the raw recordings that belong to depth maps, where they are not in `source_dir`.
        progress: called as `progress(done, total)`.
        options: what every importer takes, see `ImportOptions`.

    Raises:
        InputError: an option outside its domain, or a camera that is not there.
        DatasetError: no layout or several, or no frame that could be imported.
    """
    source, out = check_folders(source_dir, out_dir)
    settings = ImportSettings.of(options, label_type="lidar")
    if layout is not None and layout not in LAYOUTS:
        raise InputError("layout", f"must be one of {', '.join(LAYOUTS)}", found=repr(layout))
    numbers = _camera_numbers(cameras)
    images = source if images_dir is None else Path(images_dir).resolve()
    if not images.is_dir():
        raise DatasetError(images, "must be the folder with the raw recordings", found="no such folder")
    found = _find(source)
    layouts = [name for name, folders in found.items() if folders]
    if layout is None and len(layouts) != 1:
        raise DatasetError(
            source,
            "must hold one layout of KITTI: velodyne/ and calib/ beside image_2/ (object), velodyne_points/ in drives"
            " (raw), or proj_depth/groundtruth/ or groundtruth_depth/ (depth)",
            found=" and ".join(layouts) or "none of them",
            fix="Choose with --layout." if layouts else "Name the folder as it was unpacked.",
        )
    kind = layout or layouts[0]
    folders = found[kind]
    if kind == "object":
        records = _object_records(source, folders, numbers)
    elif kind == "raw":
        records = _raw_records(folders, numbers)
    else:
        records = _depth_records(source, folders, numbers, images)
    how = {"layout": kind, "cameras": cameras and list(cameras), "images_dir": str(images)}
    return run_import(IMPORTER, source, out, records, settings, options=how, progress=progress)


def _find(source: Path) -> dict[str, list[Path]]:
    """Folders of each layout: those that hold velodyne/, drives, and folders of depth maps."""
    objects = [path.parent for path in folders_with(source, "velodyne") if (path.parent / "calib").is_dir()]
    drives = [path.parent for path in folders_with(source, "velodyne_points")]
    truths = folders_with(source, "proj_depth/groundtruth", depth=3) + folders_with(source, "groundtruth_depth")
    return {"object": objects, "raw": drives, "depth": truths}


def _object_records(source: Path, folders: Sequence[Path], wanted: Sequence[int] | None) -> Frames:
    for folder in folders:
        place = folder.name if folder == source else folder.relative_to(source).as_posix()
        sweeps = files_by_stem(folder / "velodyne", (".bin",))
        for camera in _cameras_there(folder, "image_{}", wanted):
            images = files_by_stem(folder / f"image_{camera}", _IMAGE_SUFFIXES)
            yield from _lone(images, sweeps)
            for stem in sorted(images.keys() & sweeps.keys()):
                path = folder / "calib" / f"{stem}.txt"
                name = f"{place}/image_{camera}/{stem}"
                try:
                    calibration = read_calibration(path)
                    rectify = _rotation(calibration, "R0_rect", path)
                    to_camera_0 = rectify @ _motion(calibration, "Tr_velo_to_cam", path)
                    K, beside = _projection(calibration, f"P{camera}", path)
                except (MoGeError, OSError) as error:
                    yield finding_of(name, error)
                    continue
                yield _sweep_record(name, images[stem], sweeps[stem], beside @ to_camera_0, K, (path,))


def _raw_records(drives: Sequence[Path], wanted: Sequence[int] | None) -> Frames:
    for drive in drives:
        if drive.name.endswith("_extract"):
            evidence = "its images are not rectified, so no pinhole camera made them"
            yield Finding(drive.name, "importable", "error", evidence, "Get the synced and rectified drive, *_sync.")
            continue
        sweeps = files_by_stem(drive / "velodyne_points" / "data", (".bin",))
        files = [_calibration_file(drive, name) for name in (_CALIBRATION_NAME, "calib_velo_to_cam.txt")]
        try:
            cameras, velodyne = (read_calibration(path) for path in files)
            where = files[1]
            to_camera_0 = transform(
                numbers_of(velodyne, "R", 9, where).reshape(3, 3), numbers_of(velodyne, "T", 3, where), where
            )
            to_camera_0 = _rotation(cameras, "R_rect_00", files[0]) @ to_camera_0
        except (MoGeError, OSError) as error:
            yield finding_of(drive.name, error, f" ({len(sweeps)} sweeps are left out)")
            continue
        for camera in _cameras_there(drive, "image_0{}", wanted):
            images = files_by_stem(drive / f"image_0{camera}" / "data", _IMAGE_SUFFIXES)
            yield from _lone(images, sweeps)
            try:
                K, beside = _projection(cameras, f"P_rect_0{camera}", files[0])
            except MoGeError as error:
                yield finding_of(f"{drive.name}/image_0{camera}", error, f" ({len(images)} images are left out)")
                continue
            for stem in sorted(images.keys() & sweeps.keys()):
                name = f"{drive.name}/image_0{camera}/{stem}"
                yield _sweep_record(name, images[stem], sweeps[stem], beside @ to_camera_0, K, tuple(files))


def _sweep_record(
    name: str, image: Path, sweep: Path, to_camera: Transform, camera: PixelIntrinsics, calibration: tuple[Path, ...]
) -> Record:
    points = stored_sweep(sweep, partial(read_float_rows, num_columns=4), to_camera)
    return Record(name, Stored(image), points, camera, extra_files=calibration)


def _depth_records(source: Path, folders: Sequence[Path], wanted: Sequence[int] | None, images_dir: Path) -> Frames:
    for folder in folders:
        if folder.name == "groundtruth_depth":
            place = "" if folder.parent == source else f"{folder.parent.relative_to(source).as_posix()}/"
            yield from _selection_records(folder.parent, place, wanted)
        else:
            yield from _drive_depth_records(folder, wanted, images_dir)


def _drive_depth_records(truth: Path, wanted: Sequence[int] | None, images_dir: Path) -> Frames:
    own_drive = truth.parents[1]
    name, date = own_drive.name, own_drive.name[:10]
    places = (
        images_dir / date / name,
        images_dir / name,
        own_drive,
        images_dir / "train" / name,
        images_dir / "val" / name,
    )
    for camera in _cameras_there(truth, "image_0{}", wanted):
        depths = files_by_stem(truth / f"image_0{camera}", (".png",))
        drive = next((place for place in places if (place / f"image_0{camera}" / "data").is_dir()), None)
        here = f"{name}/image_0{camera}"
        if drive is None:
            evidence = f"the images of {len(depths)} depth maps are neither here nor in {images_dir}"
            fix = f"Say with --images where {date}/{name} is."
            yield Finding(here, "paired", "error", evidence, fix)
            continue
        images = files_by_stem(drive / f"image_0{camera}" / "data", _IMAGE_SUFFIXES)
        # The depth benchmark leaves out the first and last frames of each drive, so images without depth are no news.
        yield from _lone({stem: images[stem] for stem in images.keys() & depths.keys()}, depths)
        path = _calibration_file(drive, _CALIBRATION_NAME)
        try:
            K, _ = _projection(read_calibration(path), f"P_rect_0{camera}", path)
        except (MoGeError, OSError) as error:
            yield finding_of(here, error, f" ({len(depths)} depth maps are left out)")
            continue
        for stem in sorted(images.keys() & depths.keys()):
            depth = StoredDepth(depths[stem], scale=_UNITS_PER_METRE)
            yield Record(f"{here}/{stem}", Stored(images[stem]), depth, K, extra_files=(path,))


def _selection_records(folder: Path, place: str, wanted: Sequence[int] | None) -> Frames:
    depths = files_by_stem(folder / "groundtruth_depth", (".png",))
    images = files_by_stem(folder / "image", _IMAGE_SUFFIXES)
    named = {stem.replace("_groundtruth_depth_", "_image_"): path for stem, path in depths.items()}
    if wanted is not None:
        named, images = (
            {stem: path for stem, path in files.items() if stem[-2:] in {f"0{camera}" for camera in wanted}}
            for files in (named, images)
        )
    yield from _lone(images, named)
    for stem in sorted(images.keys() & named.keys()):
        path = folder / "intrinsics" / f"{stem}.txt"
        try:
            camera = parse_intrinsics(path)
        except MoGeError as error:
            yield finding_of(place + stem, error)
            continue
        depth = StoredDepth(named[stem], scale=_UNITS_PER_METRE)
        yield Record(place + stem, Stored(images[stem]), depth, camera, extra_files=(path,))


def _camera_numbers(cameras: Sequence[str] | None) -> list[int] | None:
    if not cameras:
        return None
    names = {f"image_{form}": number for number in _CAMERAS for form in (f"{number}", f"0{number}")}
    for name in cameras:
        if name not in names:
            raise InputError("cameras", f"must be one of {', '.join(names)}", found=repr(name))
    return sorted({names[name] for name in cameras})


def _cameras_there(folder: Path, pattern: str, wanted: Sequence[int] | None) -> list[int]:
    there = [number for number in _CAMERAS if (folder / pattern.format(number)).is_dir()]
    names = None if wanted is None else [pattern.format(number) for number in wanted]
    kept = chosen(names, [pattern.format(number) for number in there], "cameras")
    return [number for number in there if pattern.format(number) in kept]


def files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files of a folder by their names without suffix, sorted; none where there is no such folder."""
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes}


def _lone(images: Mapping[str, Path], others: Mapping[str, Path]) -> Iterator[Finding]:
    """What has no partner: known gaps of the recordings, or an unfinished download."""
    for stem in sorted(images.keys() ^ others.keys()):
        path, what = (images[stem], "depth") if stem in images else (others[stem], "image")
        where = "/".join(path.parts[-4:])
        yield Finding(where, "paired", "warning", f"no {what} has its number", "Add its partner, or ignore it.")


def _calibration_file(drive: Path, name: str) -> Path:
    """It lies beside the drives of a day."""
    return next((path for path in (drive.parent / name, drive / name) if path.is_file()), drive.parent / name)


def read_calibration(path: Path) -> Calibration:
    """Lines `key: numbers` of a text file; those of other values are passed by.

    Raises:
        FormatError: no such file, or no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise FormatError(path, "must hold the calibration", found="no such file", fix="Get the calibration.") from None
    except UnicodeDecodeError as error:
        raise FormatError(path, "must be text", found=error) from error
    values = {}
    for line in lines:
        key, _, numbers = line.partition(":")
        try:
            values[key.strip()] = np.array([float(number) for number in numbers.split()])
        except ValueError:
            continue
    return values


def numbers_of(calibration: Calibration, key: str, count: int, path: Path) -> npt.NDArray[np.float64]:
    """The numbers of one line.

    Raises:
        FormatError: no such line, another count, or numbers that are not finite.
    """
    values = calibration.get(key)
    if values is None or values.size != count or not np.isfinite(values).all():
        found = "none" if values is None else values.tolist()
        raise FormatError(path, f"must hold {key} with {count} finite numbers", found=found)
    return values


def _motion(calibration: Calibration, key: str, path: Path) -> Transform:
    values = numbers_of(calibration, key, 12, path).reshape(3, 4)
    return transform(values[:, :3], values[:, 3], path)


def _rotation(calibration: Calibration, key: str, path: Path) -> Transform:
    return transform(numbers_of(calibration, key, 9, path).reshape(3, 3), np.zeros(3), path)


def _projection(calibration: Calibration, key: str, path: Path) -> tuple[PixelIntrinsics, Transform]:
    """The camera of a projection matrix K (x + t), and the motion by t from camera 0's place to its own."""
    P = numbers_of(calibration, key, 12, path).reshape(3, 4)
    camera = intrinsics_from_matrix(P[:, :3], f"{path}: {key}")
    return camera, transform(np.eye(3), np.linalg.solve(P[:, :3], P[:, 3]), path)
