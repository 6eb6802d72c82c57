"""Folders of colour images and depth maps: TUM, ICL-NUIM, 3DMatch, NYU, Replica, ScanNet, 7-Scenes, phones and kin.

    report = import_rgbd_folder("rgbd_dataset_freiburg1_desk", "data/desk", intrinsics="517.3,516.5,318.6,255.3",
                                depth_scale=5000)
    report = import_rgbd_folder("scene0000_00", "data/scannet", preset="scannet")

Each pair of an image and a depth map becomes an instance, with its pose where poses lie beside, see `poses`. Where the
depth map is smaller than the image, as phones and ScanNet have it, the image is made as small: no depth is invented.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Unpack

import numpy as np
import numpy.typing as npt

from moge_core.datasets.importers.calls import repeatable
from moge_core.datasets.importers.encodings import OF_CHANNELS
from moge_core.datasets.importers.frame_cameras import (
    FrameCameras,
    cameras_by_name,
    cameras_like,
    is_pattern,
    upright,
)
from moge_core.datasets.importers.frame_layouts import Frames, pair_frames, told_by_name
from moge_core.datasets.importers.frames import read_frame
from moge_core.datasets.importers.intrinsics import CameraFile, read_cameras
from moge_core.datasets.importers.passed_by import kind_by_names
from moge_core.datasets.importers.pinhole import PixelIntrinsics
from moge_core.datasets.importers.poses import FoundPoses, poses_beside
from moge_core.datasets.importers.presets import Preset, preset_named
from moge_core.datasets.importers.records import (
    UNKNOWN_CAMERA,
    ImportOptions,
    ImportSettings,
    Record,
    Stored,
    StoredDepth,
    finding_of,
)
from moge_core.datasets.importers.source_files import INTEGER_SUFFIXES, find_sources
from moge_core.datasets.importers.stamps import MAX_TIME_DIFFERENCE_S
from moge_core.datasets.importers.stored_depth import holds_own_format
from moge_core.datasets.importers.undistortion import check_obeyed
from moge_core.datasets.importers.vocabulary import DepthKind, scaled
from moge_core.datasets.importers.writing import ImportReport, check_folders, run_import
from moge_core.datasets.layout import Finding, Progress
from moge_core.errors import DatasetError, InputError

IMPORTER = "rgbd-folder"

# Text fields of a PNG stand in front of its pixels.
_HEAD_BYTES = 4096


@repeatable(IMPORTER)
def import_rgbd_folder(
    source_dir: str | Path,
    out_dir: str | Path,
    *,
    intrinsics: str | Path | PixelIntrinsics | None = None,
    depth_scale: float | None = None,
    preset: str | None = None,
    image_glob: str | None = None,
    depth_glob: str | None = None,
    max_time_difference: float = MAX_TIME_DIFFERENCE_S,
    intrinsics_size: tuple[int, int] | None = None,
    flip_y: bool = False,
    progress: Progress | None = None,
    **options: Unpack[ImportOptions],
) -> ImportReport:
    """Turn a folder of images and depth maps into a dataset, or bring one made earlier up to date.

    Args:
        source_dir: the folder.
        out_dir: the dataset to make or add to.
        intrinsics: in pixels: "fx,fy,cx,cy"; or a file of all frames, see `read_cameras`, whose cameras may be named
            after the frames; or a pattern of files, one a frame or, as `**/camera.txt`, one a folder. A negative fy is
            taken as |fy|: it speaks of y axes that point up, while image and depth are as people see them.
        depth_scale: another name of `scale`, stored units a metre: depth in metres is value / depth_scale (TUM 5000,
            millimetres 1000). Files of floats are in metres where it is not given.
        preset: a known source that answers what is not given, see `presets.PRESETS`.
        image_glob, depth_glob: which files are images and depth maps, relative to `source_dir`. By default every
            16-bit grey PNG or PGM and every array of floats is a depth map and every other picture an image, but for
            what is named a mask, normals and the like, see `find_sources`. With both, what `*` matched tells frames.
        max_time_difference: seconds by which the time stamps in the names of an image and its depth map, or its file of
            intrinsics, may differ. Equal names go before.
        intrinsics_size: (width, height) that the intrinsics refer to, where that is not the images' size.
        flip_y: turn image and depth upside down, and the principal point with them.
        progress: called as `progress(done, total)`.
        options: what every importer takes, see `ImportOptions`.

    Raises:
        InputError: an option outside its domain, or one that is needed and not given.
        DatasetError: no such folder, no pairs, ambiguous pairs, or no frame that could be imported.
        FormatError: a file of intrinsics that holds none.
    """
    source, out = check_folders(source_dir, out_dir)
    if not source.is_dir():
        raise DatasetError(source_dir, "must be a folder with images and depth maps", found="a file")
    known = preset_named(preset) or Preset("", "")
    label_type = known.label_type or "sfm"
    settings = ImportSettings.of(scaled(options, "depth_scale", depth_scale), label_type=label_type, flip_y=flip_y)
    given = settings.values.over(known.values)
    # Values that a preset knows as unknown and those that the user named are one set.
    invalid = {*settings.values.invalid, *known.values.invalid} - set(given.infinite)
    reading = _Reading.of(
        source,
        intrinsics if intrinsics is not None else known.camera(),
        intrinsics_size or (known.intrinsics_size if intrinsics is None else None),
        given.scale,
        sorted(invalid),
        flip_y=flip_y,
        dry_run=settings.dry_run,
        has_offset=given.offset is not None,
        wants=known.wants,
    )
    if not (np.isfinite(max_time_difference) and max_time_difference >= 0):
        raise InputError("max_time_difference", "must be seconds, 0 or more", found=max_time_difference)
    if reading.camera is not None:
        check_obeyed(
            reading.camera.distortion, intrinsics if isinstance(intrinsics, str | Path) else "intrinsics", settings
        )
    settings = replace(settings, values=replace(given, invalid=()))
    patterns = image_glob or known.image_glob, depth_glob or known.depth_glob
    try:
        is_packed = given.encoding in {"linear", *OF_CHANNELS} or given.offset is not None
        sources = find_sources(source, *patterns, exclude=out, kind=given.kind, is_packed=is_packed)
    except DatasetError as error:
        if known.wants:
            error.fix = f"This preset wants {known.wants}. {error.fix or ''}".rstrip()
        raise
    is_linear = given.encoding in {None, "linear"}
    files = [source / path for path in sources.depths]
    for name, markers in (("invalid", reading.invalid), ("infinite", given.infinite)):
        if is_linear and any(not 0 <= value <= 65535 for value in markers) and all(map(_holds_integers, files)):
            raise InputError(name, "must be stored values of 16 bits, 0 to 65535", found=list(markers))
    needs_scale = reading.depth_scale is None and not settings.dry_run
    if needs_scale and is_linear and given.kind in {None, "z", "ray"} and any(map(_holds_integers, files)):
        raise InputError(
            "depth_scale",
            "must say how many stored units a metre has, because the depth is stored as integers",
            fix=f"This preset wants {known.wants}."
            if "--depth-scale" in known.wants
            else "Give --depth-scale: 1000 for millimetres, 5000 for TUM and ICL-NUIM, 256 for KITTI.",
        )
    frames = pair_frames(
        source,
        sources,
        patterns=patterns,
        max_time_difference=max_time_difference,
        folder_of_frame=known.folder_of_frame,
    )
    kind = given.kind or kind_by_names(sources.depths)
    cameras, camera_notes = _cameras_of_frames(source, sources.images, reading, patterns[0], max_time_difference)
    found = FoundPoses()
    if known.has_poses:
        records = partial(_records, source, frames, cameras, found, reading, kind)
        found = _poses(source, out, frames, settings, kind, max_time_difference, records)
    named = None if given.kind else told_by_name(kind)
    # A scale that the user said is no default.
    preset_note = None if settings.values.scale != known.values.scale else known.note
    notes = [*reading.notes, *frames.notes, *camera_notes, *found.notes, *filter(None, [named, preset_note])]
    return run_import(
        IMPORTER,
        source,
        out,
        _records(source, frames, cameras, found, reading, kind),
        settings,
        options=reading.described(),
        notes=notes,
        taken_for=frames.taken_for,
        progress=progress,
    )


@dataclass(frozen=True)
class _Reading:
    """How the frames of one folder are read."""

    camera: PixelIntrinsics | None
    camera_pattern: str | None
    camera_file: CameraFile | None
    size: tuple[int, int] | None
    depth_scale: float | None
    invalid: tuple[float, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        source: Path,
        intrinsics: str | Path | PixelIntrinsics | None,
        size: tuple[int, int] | None,
        depth_scale: float | None,
        invalid: Sequence[float],
        *,
        flip_y: bool,
        dry_run: bool,
        has_offset: bool,
        wants: str,
    ) -> _Reading:
        notes: list[str] = []
        if intrinsics is None and not dry_run:
            rule = "must be the four numbers fx,fy,cx,cy, a file, or a preset that knows them"
            raise InputError("intrinsics", rule, fix=f"This preset wants {wants}." if wants else None)
        if size is not None and min(size) < 1:
            raise InputError("intrinsics_size", "must be a width and a height in pixels", found=size)
        # Without an offset 0 is unknown anyway.
        values = tuple(sorted({float(value) for value in invalid} - (set() if has_offset else {0.0})))
        if isinstance(intrinsics, str) and is_pattern(intrinsics):
            return cls(None, intrinsics, None, size, depth_scale, values, ())
        if intrinsics is None:
            return cls(UNKNOWN_CAMERA, None, None, size, depth_scale, values, ())
        if isinstance(intrinsics, PixelIntrinsics):
            camera = intrinsics
        else:
            file = read_cameras(intrinsics, search_dir=source, size=size)
            if len(file.cameras) > 1:
                return cls(None, None, file, size, depth_scale, values, ())
            camera = file.one()
        if camera.fy < 0:
            done = (
                "were turned upside down (--flip-y)"
                if flip_y
                else "were left as they are; use --flip-y if they look wrong"
            )
            notes.append(f"fy = {camera.fy:g} is negative and was taken as {-camera.fy:g}; image and depth {done}.")
        if (
            camera.depth_scale is not None
            and depth_scale is not None
            # RealSense writes metres a unit, 0.001, others units a metre.
            and not np.isclose([camera.depth_scale, 1 / (camera.depth_scale or 1)], depth_scale, rtol=1e-3).any()
        ):
            notes.append(
                f"The file of intrinsics says {camera.depth_scale:g} units a metre; --depth-scale {depth_scale:g} was"
                " used."
            )
        return cls(upright(camera, size), None, None, size, depth_scale, values, tuple(notes))

    def described(self) -> dict[str, object]:
        """For the log."""
        camera = self.camera
        numbers = None if camera is None else [camera.fx, camera.fy, camera.cx, camera.cy]
        return {
            "intrinsics_px": numbers or self.camera_pattern or str(self.camera_file and self.camera_file.path),
            "intrinsics_size": self.size if camera is None else camera.size,
            "depth_scale": self.depth_scale,
            "invalid": self.invalid,
        }


def _records(
    source: Path, frames: Frames, cameras: FrameCameras, found: FoundPoses, reading: _Reading, kind: DepthKind
) -> Iterator[Record | Finding]:
    pairing = frames.pairing
    for lone, other in ((pairing.lone_images, "depth map"), (pairing.lone_depths, "image")):
        for path in lone:
            yield Finding(
                str(path), "paired", "warning", f"no {other} has its frame token", "Add its partner, or ignore it."
            )
    for pair in pairing.pairs:
        camera, camera_file = cameras.get(pair.image, (reading.camera, None))
        if camera is None:
            evidence = f"no file of {reading.camera_pattern} has its frame token"
            if reading.camera_file is not None:
                evidence = f"{reading.camera_file.path} holds no camera of this name"
            yield Finding(str(pair.image), "paired", "error", evidence, "Add the frame's intrinsics.")
            continue
        if isinstance(camera, Exception):
            yield finding_of(str(pair.image), camera)
            continue
        depth = StoredDepth(source / pair.depth, scale=reading.depth_scale, invalid=reading.invalid)
        yield Record(
            name=str(pair.instance),
            image=Stored(source / pair.image),
            # Other kinds than distances need more than a name to be read.
            depth=replace(depth, kind="ray") if kind == "ray" else depth,
            camera=camera,
            size_is_said_by="--intrinsics-size WxH",
            pose=found.poses.get(pair.image),
            extra_files=() if camera_file is None else (camera_file,),
        )


def _cameras_of_frames(
    source: Path,
    images: Sequence[PurePosixPath],
    reading: _Reading,
    image_pattern: str | None,
    max_time_difference: float,
) -> tuple[FrameCameras, list[str]]:
    """The camera of each image where they do not share one, and notes."""
    if reading.camera_file is not None:
        return cameras_by_name(images, reading.camera_file, reading.size), []
    if reading.camera_pattern is None:
        return {}, []
    return cameras_like(
        reading.camera_pattern,
        source,
        images,
        size=reading.size,
        image_pattern=image_pattern,
        max_time_difference=max_time_difference,
    )


def _poses(
    source: Path,
    out: Path,
    frames: Frames,
    settings: ImportSettings,
    kind: DepthKind,
    max_time_difference: float,
    records: Callable[[], Iterator[Record | Finding]],
) -> FoundPoses:
    """Poses of the images that have depth.

    Args:
        records: the frames without poses.
    """
    given = settings.values
    scale_is_known = {"disparity": given.baseline, "inverse": given.scale}.get(kind, 1.0) is not None
    by_image: dict[Path, Record] = {}

    def read_depth(image: PurePosixPath) -> npt.NDArray[np.float32]:
        if not by_image:
            by_image.update({one.image.path: one for one in records() if isinstance(one, Record)})
        record = given.applied_to(by_image[source / image])
        return read_frame(record, settings).depth * np.float32(record.depth_unit or 1.0)

    found = poses_beside(
        source,
        [pair.image for pair in frames.pairing.pairs],
        exclude=out,
        max_time_difference=max_time_difference,
        has_unit=given.depth_unit is not None and (given.depth_unit != "layout" or scale_is_known),
        read_depth=read_depth,
    )
    if settings.flip_y and found.poses:
        return FoundPoses({}, ["Poses were left out: no camera sees what --flip-y makes of its picture."])
    return found


def _holds_integers(path: Path) -> bool:
    """Whether a depth file holds integers whose unit must be said: this format's own depth says what it is."""
    if path.suffix.lower() not in INTEGER_SUFFIXES:
        return False
    with path.open("rb") as file:
        return not holds_own_format(file.read(_HEAD_BYTES))
