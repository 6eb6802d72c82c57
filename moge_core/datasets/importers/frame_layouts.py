"""From a folder to its frames: which files are there, which of them belong together, and what is to be told of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from moge_core.datasets.importers.frame_lists import ListedPairs, read_frame_lists
from moge_core.datasets.importers.pairing import Pairing, pair_by_frame
from moge_core.datasets.importers.passed_by import described
from moge_core.datasets.importers.source_files import Sources
from moge_core.datasets.importers.vocabulary import DepthKind


@dataclass(frozen=True)
class Frames:
    """The pairs of a folder.

    Attributes:
        pairing: pairs, and what has no partner.
        taken_for: what was taken for what, for the summary of every import.
        notes: what a person should look at: what was passed by, stamps that differ, a kind told by names.
    """

    pairing: Pairing
    taken_for: list[str]
    notes: list[str]


def pair_frames(
    source: Path,
    sources: Sources,
    *,
    patterns: tuple[str | None, str | None] = (None, None),
    max_time_difference: float | None = None,
    options: tuple[str, str] = ("--image", "--depth"),
    folder_of_frame: bool = False,
) -> Frames:
    """Pair the images and depth maps of a folder by lists beside them, by their names, and by time.

    Args:
        source: the folder.
        sources: its files.
        patterns: by which images and depth maps were chosen; None where they were found.
        max_time_difference: seconds by which stamps of a pair may differ; None compares no stamps.
        options: by which a user says which files are images and depth maps, for errors.
        folder_of_frame: whether each frame has a folder of its own with a folder for each kind of data in it, so that
            the only image and the only depth map of such a folder belong together, whatever their names.

    Raises:
        DatasetError: see `pair_by_frame`.
    """
    image_pattern, depth_pattern = patterns
    both = None if image_pattern is None or depth_pattern is None else (image_pattern, depth_pattern)
    listed = _only_of_their_folders(sources) if folder_of_frame else ListedPairs()
    if not folder_of_frame and both is None and max_time_difference is not None:
        listed = read_frame_lists(source, sources.images, sources.depths, max_time_difference)
    pairing = pair_by_frame(
        sources.images,
        sources.depths,
        patterns=both,
        listed=listed,
        max_time_difference=max_time_difference,
        options=options,
    )
    left_over = [
        f"{len(lone):,} {what}{'s' * (len(lone) != 1)}"
        for lone, what in ((pairing.lone_images, "image"), (pairing.lone_depths, "depth map"))
        if lone
    ]
    rest = f"without a partner: {' and '.join(left_over)}" if left_over else "no file is left over"
    taken_for = [
        f"Images: {described(sources.images)}. Depth maps: {described(sources.depths)}.",
        f"{len(pairing.pairs):,} pair{'s' * (len(pairing.pairs) != 1)}; {rest}.",
    ]
    return Frames(pairing, taken_for, [*sources.notes, *pairing.notes])


def _only_of_their_folders(sources: Sources) -> ListedPairs:
    folders: dict[PurePosixPath, tuple[list[PurePosixPath], list[PurePosixPath]]] = {}
    for side, paths in enumerate((sources.images, sources.depths)):
        for path in paths:
            folders.setdefault(path.parent.parent, ([], []))[side].append(path)
    return ListedPairs(
        [(images[0], depths[0]) for images, depths in folders.values() if len(images) == len(depths) == 1]
    )


def told_by_name(kind: DepthKind) -> str:
    """The note of a kind of depth that names told."""
    return {
        "z": "",
        "ray": "The depth maps are named distances from the camera and were read as such (kind ray).",
        "disparity": "The depth maps are named disparities, but were read as z, because a name tells no"
        " baseline: import again with --kind disparity --baseline METRES if they are, or with --kind z if not.",
        "inverse": "The depth maps are named inverse depth, but were read as z: import again with --kind inverse if"
        " they are, or with --kind z if not.",
    }[kind]
