"""Poses that lie beside the frames of a folder: found by themselves, and left out where they are wrong.

With them `moge validate` can judge focal length and scale, see the rule `reprojects`. The forms are those of
`pose_files`. A trajectory is compared with the stamps of the images, as TUM's own tools do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np

from moge_core.datasets.importers.frame_lists import IMAGE_LISTS, stamps_listed
from moge_core.datasets.importers.frame_names import read_name
from moge_core.datasets.importers.intrinsics import frame_keys
from moge_core.datasets.importers.pairing import pair_by_frame
from moge_core.datasets.importers.pose_files import (
    NamedPoses,
    Poses,
    are_rigid,
    colmap_folders,
    read_colmap_poses,
    read_frame_json,
    read_json_poses,
    read_matrix,
    read_odometry,
    read_trajectory,
)
from moge_core.datasets.importers.pose_units import ReadDepth, is_in_metres, metres_a_unit
from moge_core.datasets.importers.source_files import each_once, walk
from moge_core.datasets.importers.stamps import stamp_of
from moge_core.errors import DatasetError, FormatError, MoGeError

Pose: TypeAlias = tuple[float, ...]
"""Camera to world, row by row, 16 numbers."""

_TRAJECTORIES = ("groundtruth.txt", "ground_truth.txt")
_JSON = ("metadata.json", "metadata", "transforms.json")
# By the numbers of frames.
_TABLES = ("odometry.csv",)
_WORD_POSE = re.compile(r"(?:^|[^a-z])poses?(?:[^a-z]|$)")


@dataclass
class FoundPoses:
    """What poses lie beside.

    Attributes:
        poses: of each image that has one.
        notes: where they are from, and which were left out and why.
    """

    poses: dict[PurePosixPath, Pose] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def poses_beside(
    source: Path,
    images: Sequence[PurePosixPath],
    *,
    exclude: Path,
    max_time_difference: float,
    has_unit: bool,
    read_depth: ReadDepth,
) -> FoundPoses:
    """Poses of the images of a folder.

    Args:
        source: the folder.
        images: relative to it.
        exclude: a folder that is not looked into.
        max_time_difference: seconds from an image to a pose that is taken for its own.
        has_unit: whether depth is in metres. Poses of the other kind are left out, because the two do not go together.
        read_depth: for finding out the unit of a reconstruction.
    """
    search = _Search(source, images, round(max_time_difference * 1e9), has_unit, read_depth)
    search.files_of_frames(exclude)
    for folder in sorted(
        {above for image in images for above in image.parents}, key=lambda path: (-len(path.parts), path)
    ):
        place = source / folder
        for path in [*(place / name for name in _TRAJECTORIES), *sorted(place.glob("*.traj"))]:
            if path.is_file():
                search.told_of(search.trajectory, path)
        for path in [place / name for name in (*_JSON, *_TABLES)]:
            if path.is_file():
                search.told_of(search.named, path)
        for path in colmap_folders(place):
            search.told_of(search.colmap, path)
    if search.without_unit and not search.found.poses:
        search.found.notes.append(search.without_unit)
    return search.found


def _is_named_pose(path: PurePosixPath) -> bool:
    return _WORD_POSE.search(path.with_suffix("").as_posix().lower()) is not None


class _Search:
    """Looks for the poses of images; of several sources the first that has one counts."""

    def __init__(
        self, source: Path, images: Sequence[PurePosixPath], most: int, has_unit: bool, read_depth: ReadDepth
    ) -> None:
        self.source, self.images, self.most, self.has_unit = source, images, most, has_unit
        self.read_depth = read_depth
        self.found = FoundPoses()
        self.without_unit = ""

    def told_of(self, read: Callable[[Path], None], path: Path) -> None:
        """Read a file; what it cannot be read for is told."""
        try:
            read(path)
        except (MoGeError, OSError) as error:
            why = f"{error.rule}" if isinstance(error, MoGeError) else f"{error}"
            self.found.notes.append(f"No poses were read of {self._named(path)}: it {why}.")

    def files_of_frames(self, exclude: Path) -> None:
        """Files of one frame: text that is named pose, and JSON that holds one."""
        folders = each_once(list(walk(self.source, exclude=exclude)), self.source)
        texts: list[PurePosixPath] = []
        objects: list[PurePosixPath] = []
        for folder in folders:
            files = folder.files_below(self.source)
            texts += [path for path in files if path.suffix.lower() == ".txt" and _is_named_pose(path)]
            found = [path for path in files if path.suffix.lower() == ".json"]
            # The first tells of all.
            if found and self._read(read_frame_json, found[0]) is not None:
                objects += found
        self._take_files(texts, read_matrix)
        self._take_files(objects, read_frame_json)

    def _take_files(self, files: Sequence[PurePosixPath], read: Callable[[Path], Poses]) -> None:
        # One file for several images is none of a frame.
        if len(files) < min(2, len(self.images)):
            return
        try:
            pairs = pair_by_frame(self.images, files, max_time_difference=self.most / 1e9).pairs
        except DatasetError:
            self.found.notes.append(f"{len(files)} files are named poses, and none pairs with an image: {files[0]}.")
            return
        by_folder: dict[PurePosixPath, list[tuple[PurePosixPath, PurePosixPath]]] = {}
        for pair in pairs:
            by_folder.setdefault(pair.depth.parent, []).append((pair.image, pair.depth))
        if pairs and not self.has_unit:
            self._tell_units(f"the files like {pairs[0].depth}", in_metres=True)
            return
        for folder, members in by_folder.items():
            unknown = np.full((1, 4, 4), np.nan)
            read_poses = [self._read(read, path) for _, path in members]
            poses = np.concatenate([unknown if pose is None else pose for pose in read_poses])
            self._take([image for image, _ in members], poses, f"the files {folder}/*{members[0][1].suffix}")

    def _read(self, read: Callable[[Path], Poses], path: PurePosixPath) -> Poses | None:
        try:
            return read(self.source / path)
        except (FormatError, OSError):
            return None

    def trajectory(self, path: Path) -> None:
        """A trajectory, by the stamps of the images below its folder."""
        trajectory, num_unusable = read_trajectory(path)
        folder = PurePosixPath(path.parent.relative_to(self.source).as_posix())
        below = set(self._below(folder))
        times = next(
            filter(
                None,
                (stamps_listed(self.source, folder / name, below) for name in IMAGE_LISTS),
            ),
            {},
        )
        for image in below - times.keys():
            stamp = stamp_of(read_name(image).numbers)
            if stamp is not None:
                times[image] = stamp[1]
        if not times:
            return
        if not self.has_unit:
            self._tell_units(self._named(path), in_metres=True)
            return
        timed = sorted(times)
        if num_unusable:
            self.found.notes.append(f"{num_unusable} lines of {self._named(path)} hold no pose and were passed by.")
        poses, is_near = trajectory.at(np.array([times[image] for image in timed], np.int64), self.most)
        chosen = [image for image, near in zip(timed, is_near, strict=True) if near]
        how = f"{self._named(path)}, which has one within {self.most / 1e9:g} s of them"
        self._take(chosen, poses[is_near], how, of=len(timed))

    def named(self, path: Path) -> None:
        """A file that names frames or numbers them."""
        named = read_odometry(path) if path.name in _TABLES else read_json_poses(path)
        if named is not None:
            self._take_named(named, path)

    def colmap(self, folder: Path) -> None:
        """A model of COLMAP."""
        named = read_colmap_poses(folder)
        if named is not None:
            self._take_named(named, folder)

    def _take_named(self, named: NamedPoses, path: Path) -> None:
        matches = self._matches(named, path)
        if not matches:
            return
        if not named.has_unit and self.has_unit and path.is_dir():
            unit = metres_a_unit(path, {named.names[number]: image for image, number in matches}, self.read_depth)
            if not is_in_metres(unit):
                is_told = "cannot be told from depth" if unit is None else f"is {unit:.3g} m of depth"
                self.without_unit = (
                    f"The unit of the reconstruction in {self._named(path)} {is_told}, so that its poses do not go with"
                    " depth in metres, or the scale of depth is wrong; no poses were taken."
                )
                return
        elif named.has_unit != self.has_unit:
            self._tell_units(self._named(path), in_metres=named.has_unit)
            return
        images, numbers = [image for image, _ in matches], [number for _, number in matches]
        self._take(images, named.poses[numbers], self._named(path), of=len(self.images))

    def _matches(self, named: NamedPoses, path: Path) -> list[tuple[PurePosixPath, int]]:
        """Images that a file or a model names, and the numbers of their poses."""
        by_key: dict[object, int | None] = {}
        for number, name in enumerate(named.names):
            for key in frame_keys(PurePosixPath(name.replace("\\", "/"))):
                # A name that two frames have names none of them.
                by_key[key] = number if by_key.get(key, number) == number else None
        folder = PurePosixPath((path if path.is_dir() else path.parent).relative_to(self.source).as_posix())
        below = self._below(folder) or list(self.images)
        matches: list[tuple[PurePosixPath, int]] = []
        for image in below:
            inside = image.relative_to(folder) if image.is_relative_to(folder) else image
            known = [by_key.get(key) for key in frame_keys(inside)]
            matches += [(image, number) for number in known if number is not None][:1]
        return matches

    def _take(self, images: Sequence[PurePosixPath], poses: Poses, what: str, of: int | None = None) -> None:
        """Keep the poses of images that have none yet, without wrong ones."""
        if not len(images):
            return
        rigid = are_rigid(poses)
        if not rigid.all():
            first = images[int(np.argmin(rigid))]
            self.found.notes.append(
                f"{int((~rigid).sum())} of {len(images)} poses of {what} are no motions of a camera (not finite, scaled"
                f" or mirrored), such as that of {first}; these frames have none."
            )
        kept = poses[rigid]
        if len(kept) > 1 and np.abs(kept - kept[0]).max() == 0:
            self.found.notes.append(f"All {len(kept)} poses of {what} are the same; they were taken for none.")
            return
        new = {
            image: tuple(pose.ravel().tolist())
            for image, pose, good in zip(images, poses, rigid, strict=True)
            if good and image not in self.found.poses
        }
        if new:
            self.found.poses |= new
            self.found.notes.append(f"{len(new):,} of {of or len(images):,} images have a pose of {what}.")

    def _tell_units(self, what: str, *, in_metres: bool) -> None:
        theirs, ours = ("metres", "no unit") if in_metres else ("no unit", "metres")
        self.without_unit = (
            f"The poses of {what} have {theirs} and depth has {ours}; they do not go together, and no poses were taken."
        )

    def _below(self, folder: PurePosixPath) -> list[PurePosixPath]:
        return [image for image in self.images if image.is_relative_to(folder)]

    def _named(self, path: Path) -> str:
        return path.relative_to(self.source).as_posix() + ("/" if path.is_dir() else "")
