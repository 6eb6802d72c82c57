"""Whether pictures show the same thing: what is asked where neither folders, records, names nor poses tell scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moge_core.datasets.layout import IMAGE_NAME

# So many pictures are looked at, at about 2 ms each.
MAX_PICTURES = 2048
# Thumbnails, in pixels.
_WIDTH, _HEIGHT = 32, 24
# Grey levels of standard deviation below which a thumbnail shows nothing.
_LEAST_CONTRAST = 4.0
# Correlation of thumbnails: of near-equal pictures, and of frames of a video that follow each other.
_NEAR_EQUAL, _ALIKE = 0.95, 0.6
# So many neighbours are compared; with fewer than the least nothing is said.
_PAIRS, _LEAST_PAIRS = 32, 8
# Longest side of pictures whose corners are compared, in pixels, and the corners that must agree.
_SIDE, _CORNERS, _LEAST_AGREEING = 320, 500, 25
# Share of the pairs that must show the same corners.
_SHARE_OF_PAIRS = 0.25
_RANSAC_PIXELS = 4.0


def are_neighbours_alike(root: Path, ordered: Sequence[str]) -> bool | None:
    """Whether each picture shows about what the next one does, judged by at most 32 pairs.

    By their thumbnails or, as a camera may have moved far, by corners that one homography maps onto each other.

    Returns:
        None where fewer than eight pairs can be read.
    """
    places = np.unique(np.linspace(0, len(ordered) - 2, min(_PAIRS, max(len(ordered) - 1, 0))).astype(int))
    pairs = [(ordered[place], ordered[place + 1]) for place in places]
    likeness = []
    sharing = 0
    for first, second in pairs:
        pictures = [_grey(root, name) for name in (first, second)]
        if pictures[0] is None or pictures[1] is None:
            continue
        one, other = (_thumbnail(picture) for picture in (pictures[0], pictures[1]))
        likeness.append(float(one @ other) if one is not None and other is not None else 0.0)
        sharing += likeness[-1] < _ALIKE and _share_corners(pictures[0], pictures[1])
    if len(likeness) < _LEAST_PAIRS:
        return None
    return bool(np.median(likeness) >= _ALIKE or sharing >= _SHARE_OF_PAIRS * len(likeness))


def group_near_equal(root: Path, ordered: Sequence[str]) -> tuple[dict[str, str], dict[str, npt.NDArray[np.float32]]]:
    """Groups of near-equal pictures, and the thumbnails by which they were found.

    Of more than 2048 pictures those that are evenly spaced are compared.

    Returns:
        for each instance the first one, by name, of its group; the thumbnails (N,) of those that were compared.
    """
    places = np.unique(np.linspace(0, len(ordered) - 1, min(MAX_PICTURES, len(ordered))).astype(int))
    thumbnails = {}
    for place in places:
        picture = _grey(root, ordered[place])
        thumbnail = None if picture is None else _thumbnail(picture)
        if thumbnail is not None:
            thumbnails[ordered[place]] = thumbnail
    first_of = {name: name for name in ordered}
    known = sorted(thumbnails)
    if len(known) < 2:
        return first_of, thumbnails
    values = np.stack([thumbnails[name] for name in known])
    # Rounded, so that the last bits of another machine's products change nothing.
    near = np.round(values @ values.T, 4) >= _NEAR_EQUAL
    for number, name in enumerate(known):
        if first_of[name] != name:
            continue
        reached, new = {number}, [number]
        while new:
            found = {int(each) for place in new for each in np.flatnonzero(near[place])} - reached
            reached |= found
            new = sorted(found)
        for place in reached:
            first_of[known[place]] = name
    return first_of, thumbnails


def _grey(root: Path, instance: str) -> npt.NDArray[np.uint8] | None:
    """The picture in grey, its longer side at most 320 pixels; None for one that cannot be read."""
    from moge_core.errors import MoGeError
    from moge_core.io import limits
    from moge_core.io.files import read_bytes
    from moge_core.io.headers import parse_image_header
    from moge_core.io.opencv import cv2

    path = root / instance / IMAGE_NAME
    try:
        data = read_bytes(path, limit=limits.MAX_FILE_BYTES)
        header = parse_image_header(data, str(path))
        limits.check_pixel_count(str(path), header.width, header.height)
        # JPEG decodes to an eighth of its size in a fraction of the time.
        spare = max(header.width, header.height) // _SIDE
        factor = next((each for each in (8, 4, 2) if spare >= each), None)
        mode = cv2.IMREAD_GRAYSCALE if factor is None else getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{factor}")
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    except (MoGeError, OSError, cv2.error):
        return None
    if picture is None:
        return None
    scale = _SIDE / max(picture.shape)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in reversed(picture.shape))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return np.asarray(picture, np.uint8)


def _thumbnail(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32] | None:
    """Of mean 0 and length 1 (N,); None for one that shows nothing."""
    from moge_core.io.opencv import cv2

    small = cv2.resize(picture, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    small -= small.mean()
    if small.std() < _LEAST_CONTRAST:
        return None
    unit: npt.NDArray[np.float32] = small / np.linalg.norm(small)
    return unit


def _share_corners(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> bool:
    from moge_core.io.opencv import cv2

    detector = cv2.ORB_create(_CORNERS)
    corners, descriptors = zip(*(detector.detectAndCompute(each, None) for each in (one, other)), strict=True)
    if any(each is None or len(each) < _LEAST_AGREEING for each in descriptors):
        return False
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(*descriptors)
    if len(matches) < _LEAST_AGREEING:
        return False
    from_points = np.array([corners[0][match.queryIdx].pt for match in matches], np.float32)
    to_points = np.array([corners[1][match.trainIdx].pt for match in matches], np.float32)
    cv2.setRNGSeed(0)
    _, agreeing = cv2.findHomography(from_points, to_points, cv2.RANSAC, _RANSAC_PIXELS)
    return agreeing is not None and int(agreeing.sum()) >= _LEAST_AGREEING
