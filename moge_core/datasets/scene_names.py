"""What the path of a frame says: which scene it is of, which camera took it, and which frame of a video it is.

kitchen/cam0/frame_0012      place kitchen, camera cam0, frame 12
chess/seq-01/frame-000116    room chess, place chess/seq-01, frame 116
rgb/1305031102.175304        camera rgb, stamp 1305031102.175304 s
hall_0007                    family hall, frame 7
"""

from __future__ import annotations

import functools
import re
from calendar import timegm
from dataclasses import dataclass

# Words that tell cameras of one rig, or kinds of one frame, from each other; they name no scene.
_CAMERA_WORD = re.compile(
    r"cam|cameras?|left|right|front|rear|back|side|cent(er|re)|middle|top|bottom|view|stereo|fisheye"
)
_KIND_WORD = re.compile(
    r"rgbd?|colou?rs?|image|images|imgs?|frames?|pictures?|photos?|data|png|jpe?g"
    r"|rect|rectified|undistorted|sync|bit|final|clean"
)
# Words of kinds that a camera's number may follow, as KITTI's `image_02`.
_NUMBERED_KIND = re.compile(r"rgb|color|image|img|data|bit")
# Recordings of one place: 7-Scenes (chess/seq-01), TartanAir (Easy/P001), and the weathers of Virtual KITTI 2
# (Scene01/15-deg-left), see their dataset pages.
_RECORDING = re.compile(
    r"(seq|sequence|traj|trajectory|take|recording)[-_ ]?\d+|P\d{3}|easy|hard|(data_)?(easy|hard)"
    r"|clone|fog|morning|overcast|rain|sunset|\d+-deg-(left|right)",
    re.IGNORECASE,
)
# Folders that hold scenes and name none.
_CONTAINER = re.compile(r"train(ing)?|val|valid|validation|test(ing)?|data|datasets?|sequences?|scenes?|scans?|raw|all")
# ScanNet numbers the scans of one room, scene0000_00 and scene0000_01 (http://www.scan-net.org).
_RESCAN = re.compile(r"(scene\d{4})_\d{2}")

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
# A number with decimals is one number; a point after a word (`frame.0001`) is none.
_NUMBER = re.compile(r"(?<![\d.])\d+\.\d+(?=\D|$)|\d+")
_DATE_TIME = re.compile(r"(?<!\d)((?:19|20)\d{2})[-_]?(\d{2})[-_]?(\d{2})[-_T]?(\d{2})[-_:]?(\d{2})[-_:]?(\d{2})(?!\d)")
# A stamp counts seconds, milli-, micro- or nanoseconds since 1970; of numbers below 2001 nobody can tell.
_STAMP_UNITS = ((1e9, 1e10, 1.0), (1e12, 1e13, 1e-3), (1e15, 1e16, 1e-6), (1e18, 1e19, 1e-9))


@dataclass(frozen=True, slots=True)
class FrameName:
    """The parts of a path.

    Attributes:
        room: what all recordings of one place have in common; of these the scene is held out.
        place: the folders, without those that name a camera or a kind.
        camera: those that do.
        family: the last part without its number and what names a camera.
        number: of the frame; None where the name has none.
        stamp_s: the number as a time in seconds, where it is one: since 1970, a date, or a number with decimals.
    """

    room: str
    place: str
    camera: str
    family: str
    number: float | None
    stamp_s: float | None


def parse_frame_name(path: str) -> FrameName:
    """Take the path of an instance or of a picture (without its extension) apart; `/` between folders."""
    folder, _, last = path.rpartition("/")
    above = []
    # The picture of `0001/color` has its name from the folder.
    while folder and _is_named_by_its_folder(last, folder):
        above.append(last)
        folder, _, last = folder.rpartition("/")
    room, place, camera = _parse_folder(folder)
    family, number, stamp_s, suffix = _parse_last(last)
    cameras = [part for part in (camera, *above, suffix) if part]
    return FrameName(room, place, "/".join(cameras), family, number, stamp_s)


# A million frames are in far fewer folders.
@functools.lru_cache(maxsize=1024)
def _parse_folder(folder: str) -> tuple[str, str, str]:
    """Room, place and camera."""
    parts = folder.split("/") if folder else []
    place = [part for part in parts if not _names_camera_or_kind(part)]
    return _room_of(place), "/".join(place), "/".join(part for part in parts if _names_camera_or_kind(part))


def _names_camera_or_kind(part: str) -> bool:
    words = [word.lower() for word in _WORDS.findall(part)]
    texts = [word for word in words if not word.isdigit()]
    if not texts or not all(_CAMERA_WORD.fullmatch(word) or _KIND_WORD.fullmatch(word) for word in texts):
        return False
    is_numbered = len(texts) < len(words)
    return not is_numbered or any(_CAMERA_WORD.fullmatch(word) or _NUMBERED_KIND.fullmatch(word) for word in texts)


def _is_named_by_its_folder(last: str, folder: str) -> bool:
    if last.isdigit() or not _names_camera_or_kind(last):
        return False
    has_number = any(character.isdigit() for character in last)
    return not has_number or (folder.rpartition("/")[2].isdigit() and _is_camera(last))


def _room_of(place: list[str]) -> str:
    above = place
    while len(above) > 1 and _RECORDING.fullmatch(above[-1]) and not _is_container(above[:-1]):
        above = above[:-1]
    rescan = _RESCAN.fullmatch(above[-1]) if above else None
    return "/".join([*above[:-1], rescan[1]] if rescan else above)


def _is_container(folders: list[str]) -> bool:
    return all(_CONTAINER.fullmatch(folder.lower()) for folder in folders)


def _parse_last(last: str) -> tuple[str, float | None, float | None, str]:
    """Family, number, stamp and camera of the last part."""
    kept, suffix = last, ""
    if not last.isdigit():
        parts = re.split(r"([-_ ])", last)
        camera = [part for part in parts if _is_camera(part) and _names_camera_or_kind(part)]
        kept = "".join(part for part in parts if part not in camera)
        suffix = "_".join(camera)
    numbers = list(_NUMBER.finditer(kept))
    if not numbers:
        return kept.strip("-_ ."), None, None, suffix
    found = numbers[-1]
    number = float(found[0])
    stamp = next((number * unit for low, high, unit in _STAMP_UNITS if low <= number < high), None)
    date = _DATE_TIME.search(kept)
    if stamp is None and date is not None and (seconds := _seconds_of(date)) is not None:
        return kept[: date.start()].strip("-_ ."), seconds, seconds, suffix
    if stamp is None and "." in found[0]:
        stamp = number
    return kept[: found.start()].strip("-_ ."), number, stamp, suffix


def _is_camera(part: str) -> bool:
    return any(_CAMERA_WORD.fullmatch(word.lower()) for word in _WORDS.findall(part))


def _seconds_of(date: re.Match[str]) -> float | None:
    year, month, day, hour, minute, second = map(int, date.groups())
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60):
        return None
    return float(timegm((year, month, day, hour, minute, second)))
