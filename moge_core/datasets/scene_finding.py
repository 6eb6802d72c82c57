"""Which instances of a dataset see the same things, so that they are trained on or held out together.

Asked in this order, until there are at least two scenes:

1. folders: recordings of one room (`chess/seq-01`, `scene0000_01`), the cameras of a rig (`scene/cam0`) and numbered
   parts of one video (`part1`, `part2`) are one;
2. import records: where an instance's picture came from, as meta.json tells, and what was rendered one by one;
3. names: several numbered families in one folder (`hall_0001`, `attic_0001`) are scenes, one family is one video;
4. poses: names without frame numbers, but with camera poses, are one reconstruction;
5. pictures, where none of these tells: near-equal ones are of one scene. At most 2048 are looked at.

In doubt instances are one scene: too much held together costs data, too little makes a score that flatters.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from moge_core.datasets.layout import META_NAME, POSE_KEYS
from moge_core.datasets.likeness import MAX_PICTURES, are_neighbours_alike, group_near_equal
from moge_core.datasets.scene_names import FrameName, parse_frame_name
from moge_core.datasets.video import Video, order_by_distance, order_by_names

# So many meta.json tell how a folder was made; a few tell whether it was rendered.
_SAMPLED = 64
_SAMPLED_OF_A_FOLDER = 4
# Of more folders than these none is asked what was rendered: there are scenes enough.
_MAX_FOLDERS_ASKED = 64
# So many meta.json are read one by one where the sampled ones say that it matters; about 20 s.
_MAX_RECORDS = 200_000
_MAX_META_BYTES = 1 << 20
_PART = re.compile(r"(?:part|chunk|batch|shard|split)?[-_ ]?\d+", re.IGNORECASE)
# What most means: of names that have a number, of frames that follow each other at the same distance.
_MOST, _HALF = 0.9, 0.5
# Frames of a video with stamps are at most this far apart, in the median.
_MAX_FRAME_SECONDS = 5.0


@dataclass(frozen=True)
class Scenes:
    """The scenes of a dataset.

    Attributes:
        scene_of: the scene of each instance, in the order given. A scene's name depends on the dataset alone.
        recording_of: the recording of each instance, where a scene has several; else the scene.
        found_by: how they were found, to be told.
        videos: scenes whose order is known already; the others have that of their names.
        names: of the instances, taken apart.
    """

    scene_of: Mapping[str, str]
    recording_of: Mapping[str, str]
    found_by: str
    videos: Mapping[str, Video]
    names: Mapping[str, FrameName]

    def members(self) -> dict[str, list[str]]:
        """The instances of each scene."""
        return _grouped(self.scene_of)

    def video(self, scene: str, members: Sequence[str]) -> Video:
        """The order of a scene's instances."""
        known = self.videos.get(scene)
        return known if known is not None else order_by_names({name: self.names[name] for name in members})


def find_scenes(root: Path, instances: Iterable[str]) -> Scenes:
    """Find the scenes of a dataset.

    Files that cannot be read tell nothing; no error comes of them. What is found depends on the dataset alone, not on
    the order of the instances or on the machine.

    Args:
        root: the dataset.
        instances: paths as a list names them.
    """
    listed = list(dict.fromkeys(instances))
    ordered = sorted(listed)
    names = _with_parts_joined({name: parse_frame_name(name) for name in ordered})
    rooms = {name: parsed.room for name, parsed in names.items()}
    places = {name: parsed.place for name, parsed in names.items()}
    if len(set(rooms.values())) > 1:
        found = _in_folders(root, Scenes(rooms, places, "folders", {}, names))
    elif len(set(places.values())) > 1:
        found = _in_folders(root, Scenes(places, places, "folders", {}, names))
    else:
        found = _in_one_folder(root, ordered, names)
    return replace(found, scene_of={name: found.scene_of[name] for name in listed})


# --- several folders ---


def _with_parts_joined(names: dict[str, FrameName]) -> dict[str, FrameName]:
    """Folders such as `part1` and `part2`, where one goes on numbering where the other ends, are one video."""
    numbers: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for parsed in names.values():
        parent, _, folder = parsed.place.rpartition("/")
        if parsed.number is not None and _PART.fullmatch(folder):
            numbers[parent][folder].append(parsed.number)
    joined = {
        f"{parent}/{folder}" if parent else folder: parent
        for parent, parts in numbers.items()
        if len(parts) > 1 and _go_on(list(parts.values()))
        for folder in parts
    }
    if not joined:
        return names
    return {
        name: replace(parsed, place=joined[parsed.place], room=joined[parsed.place])
        if parsed.place in joined
        else parsed
        for name, parsed in names.items()
    }


def _go_on(parts: Sequence[Sequence[float]]) -> bool:
    """Whether each range of numbers begins one step after another ends."""
    ranges = sorted((min(part), max(part), len(set(part))) for part in parts)
    step = max((last - first) / max(count - 1, 1) for first, last, count in ranges) or 1.0
    return all(0 < after[0] - before[1] <= 2 * step for before, after in itertools.pairwise(ranges))


def _in_folders(root: Path, found: Scenes) -> Scenes:
    """Instances that were rendered one by one are scenes of their own; right below the dataset no folder names one."""
    members = found.members()
    scene_of, recording_of = dict(found.scene_of), dict(found.recording_of)
    told, videos, names = [found.found_by], dict(found.videos), dict(found.names)
    if len(members) <= _MAX_FOLDERS_ASKED:
        apart = {
            scene
            for scene, those in members.items()
            if _all_rendered([_Record.read(root, name) for name in _spread(those, _SAMPLED_OF_A_FOLDER)])
        }
        alone = {name: name for name, scene in found.scene_of.items() if scene in apart}
        scene_of |= alone
        recording_of |= alone
        if apart:
            told = ["records of what was rendered one by one", *(told if len(apart) < len(members) else ())]
            members = {scene: those for scene, those in members.items() if scene not in apart}
    if "" in members:
        below = _in_one_folder(root, members[""], {name: found.names[name] for name in members[""]})
        scene_of |= below.scene_of
        recording_of |= below.recording_of
        videos |= below.videos
        names |= below.names
        told.append(f"right below the dataset {below.found_by}")
    return Scenes(scene_of, recording_of, " and ".join(told), videos, names)


# --- one folder, or the cameras of one ---


def _in_one_folder(root: Path, ordered: Sequence[str], names: Mapping[str, FrameName]) -> Scenes:
    place = names[ordered[0]].place if ordered else ""
    sample = _spread(ordered, _SAMPLED)
    records = {name: _Record.read(root, name) for name in sample}
    if _all_rendered(list(records.values())):
        return _each_its_own(ordered, names, "records of what was rendered one by one")
    if _do_sources_tell_more(records, names) and len(ordered) <= _MAX_RECORDS:
        records = {name: _Record.read(root, name) for name in ordered}
        names = {name: records[name].source or names[name] for name in ordered}
        sources = {name: _joined(place, parsed.place) for name, parsed in names.items()}
        if len(set(sources.values())) > 1:
            return Scenes(sources, sources, "the folders that were imported from", {}, names)
    families = _families(names)
    if families is not None:
        named = {name: _joined(place, family) for name, family in families.items()}
        return Scenes(named, named, "numbered families of names", {}, names)
    return _one_group(root, ordered, names, place or ".", records)


def _one_group(
    root: Path, ordered: Sequence[str], names: Mapping[str, FrameName], scene: str, records: Mapping[str, _Record]
) -> Scenes:
    """Names do not tell scenes apart: one video, one reconstruction, or photographs that have nothing in common."""
    together = dict.fromkeys(ordered, scene)

    def as_one(told: str, videos: Mapping[str, Video] | None = None) -> Scenes:
        return Scenes(together, together, told, videos or {}, names)

    num_numbered = sum(parsed.number is not None for parsed in names.values())
    has_poses = bool(records) and all(record.centre is not None for record in records.values())
    if num_numbered >= _MOST * len(ordered):
        if _is_steady(names):
            return as_one("frame numbers of one video")
        if has_poses:
            return as_one("camera poses of one recording")
        alike = are_neighbours_alike(root, sorted(ordered, key=lambda name: (names[name].number or 0.0, name)))
        if alike is not False:
            return as_one("frame numbers" if alike is None else "pictures that are alike from number to number")
        return _each_its_own(ordered, names, "pictures that are unlike, although they are numbered")
    if all(not parsed.family and parsed.number is None for parsed in names.values()):
        return as_one("cameras of one moment")
    if has_poses and len(ordered) <= _MAX_RECORDS:
        centres = {name: _Record.read(root, name).centre for name in ordered}
        known = {name: centre for name, centre in centres.items() if centre is not None}
        if len(known) == len(ordered):
            return as_one("camera poses of one reconstruction", {scene: order_by_distance(known)})
    groups, thumbnails = group_near_equal(root, ordered)
    sizes = Counter(groups.values())
    if max(sizes.values(), default=0) > max(_HALF * len(ordered), 1):
        order = {scene: order_by_distance(thumbnails)} if len(thumbnails) == len(ordered) else None
        return as_one("pictures that are near-equal", order)
    told = "names without frame numbers"
    if len(ordered) > MAX_PICTURES:
        told += f" ({MAX_PICTURES:,} of {len(ordered):,} pictures were compared with each other)"
    elif len(sizes) < len(ordered):
        told += " and near-equal pictures"
    return Scenes(groups, groups, told, {}, names)


def _each_its_own(ordered: Sequence[str], names: Mapping[str, FrameName], told: str) -> Scenes:
    alone = {name: name for name in ordered}
    return Scenes(alone, alone, told, {}, names)


def _families(names: Mapping[str, FrameName]) -> dict[str, str] | None:
    """The family of each name where most are of several numbered families; None where they are not."""
    numbered = Counter(parsed.family for parsed in names.values() if parsed.number is not None)
    large = {family for family, count in numbered.items() if count > 1}
    if len(large) < 2 or sum(numbered[family] for family in large) < _MOST * len(names):
        return None
    return {name: parsed.family if parsed.family in large else name for name, parsed in names.items()}


def _is_steady(names: Mapping[str, FrameName]) -> bool:
    """Whether numbers follow each other at one distance, or stamps as those of a video."""
    numbers = np.unique([parsed.number for parsed in names.values() if parsed.number is not None])
    if len(numbers) < 3:
        return True
    gaps = np.diff(numbers)
    if all(parsed.stamp_s is not None for parsed in names.values()):
        stamps = np.unique([parsed.stamp_s for parsed in names.values()])
        return bool(np.median(np.diff(stamps)) <= _MAX_FRAME_SECONDS)
    _, counts = np.unique(gaps, return_counts=True)
    return bool(counts.max() >= _HALF * len(gaps))


# --- what meta.json records ---


@dataclass(frozen=True)
class _Record:
    """What meta.json tells of where an instance came from.

    Attributes:
        source: the name of the imported picture, taken apart.
        centre: of the camera in the world (3,).
        is_rendered: on its own, as a sample scene is.
    """

    source: FrameName | None = None
    centre: npt.NDArray[np.float64] | None = None
    is_rendered: bool = False

    @classmethod
    def read(cls, root: Path, instance: str) -> _Record:
        try:
            with (root / instance / META_NAME).open("rb") as file:
                meta = json.loads(file.read(_MAX_META_BYTES))
        except (OSError, ValueError, RecursionError):
            return cls()
        if not isinstance(meta, dict):
            return cls()
        source, scene = meta.get("source"), meta.get("scene")
        image = source.get("image") if isinstance(source, dict) else None
        return cls(
            source=_source_name(image) if isinstance(image, str) else None,
            centre=_centre_of(meta),
            is_rendered=isinstance(scene, dict) and scene.get("generator") == "moge sample-scenes",
        )


def _source_name(image: str) -> FrameName:
    """`../b/frame.mat#12` is frame 12 of the file."""
    path, _, part = image.partition("#")
    stem = PurePosixPath(path).with_suffix("").as_posix() if PurePosixPath(path).name else path
    return parse_frame_name(f"{stem}/{part}" if part else stem)


def _centre_of(meta: Mapping[str, Any]) -> npt.NDArray[np.float64] | None:
    value = next((meta[key] for key in POSE_KEYS if key in meta), None)
    try:
        pose = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    return pose[:3, 3] if pose.shape == (4, 4) and np.isfinite(pose).all() else None


def _all_rendered(records: Sequence[_Record]) -> bool:
    return bool(records) and all(record.is_rendered for record in records)


def _do_sources_tell_more(records: Mapping[str, _Record], names: Mapping[str, FrameName]) -> bool:
    """Whether the names of the imported pictures say what those of the instances do not."""
    sources = {name: record.source for name, record in records.items() if record.source is not None}
    if len(sources) < len(records) or not sources:
        return False
    parsed = list(sources.values())
    own = [names[name] for name in sources]
    if len({each.place for each in parsed}) > 1 or _has_stamps(parsed) > _has_stamps(own):
        return True
    is_numbered = sum(each.number is not None for each in parsed), sum(each.number is not None for each in own)
    return is_numbered[0] < _HALF * len(parsed) < is_numbered[1] or is_numbered[1] < _HALF * len(own) < is_numbered[0]


def _has_stamps(names: Sequence[FrameName]) -> bool:
    return all(parsed.stamp_s is not None for parsed in names)


# --- small things ---


def _spread(names: Sequence[str], most: int) -> list[str]:
    """At most so many of the names, evenly spaced."""
    if not names:
        return []
    places = np.unique(np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int))
    return [names[place] for place in places]


def _joined(place: str, more: str) -> str:
    return "/".join(part for part in (place, more) if part) or "."


def _grouped(key_of: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name, key in key_of.items():
        groups[key].append(name)
    return dict(groups)
