"""What is held out of a dataset, and its two parts: one to choose by, one to claim a score on.

Whole scenes are held out where there are several. Of a single video it is a block of frames, and the frames around it
are neither trained on nor scored: at least 5 % of the video, and 2 s where names are stamps, on each side that borders
on frames that are trained on.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from moge_core.datasets.scene_finding import Scenes
from moge_core.datasets.video import GAP_SECONDS, GAP_SHARE, Video, block_of
from moge_core.errors import DatasetError

# A mean over fewer instances is no score to claim.
LEAST_CLAIMED = 8


@dataclass(frozen=True)
class Holding:
    """What is trained on and what is held out, each in the order given.

    Attributes:
        train, held_out: instances.
        gap: what is in neither, because it is next to both.
        num_scenes: how many scenes are held out, wholly or a block of them, and of how many.
        told: how, in a sentence each.
    """

    train: list[str]
    held_out: list[str]
    gap: list[str]
    num_scenes: tuple[int, int]
    told: tuple[str, ...]


@dataclass(frozen=True)
class Parts:
    """What is held out, divided.

    Attributes:
        selection: the best step, and its plain or averaged weights, are chosen by these.
        claimed: the score of that choice is claimed on these; empty where too few remain.
        told: how it was divided, or why no score is claimed.
    """

    selection: list[str]
    claimed: list[str]
    told: str


def hold_out(
    scenes: Scenes, fraction: float, kept: Mapping[str, bool] | None = None, placed: Mapping[str, bool] | None = None
) -> Holding:
    """Hold scenes out, or a block of the only one.

    Args:
        scenes: of the dataset, from `find_scenes`.
        fraction: share of the scenes, or of the only one's frames.
        kept: instances that have their side already, and whether it is the held-out one.
        placed: the same of scenes, whatever instances they have.

    Raises:
        DatasetError: a single scene that is too short for a block.
    """
    kept, placed = kept or {}, placed or {}
    units = _units(scenes, kept)
    sides: dict[str, bool] = {}
    blocks: dict[str, tuple[Video, tuple[int, int]]] = {}
    apart: dict[str, list[str]] = {}
    for scene, members in units.items():
        known = {kept[name] for name in members if name in kept}
        if len(known) == 2:
            video = scenes.video(scene, members)
            block = block_of(video, fraction, [name for name in members if kept.get(name)])
            if block is not None and not _is_trained_on(video, block, kept):
                blocks[scene] = video, block
            else:
                # It was several scenes when less was known: what has its side stays there.
                apart[scene] = [name for name in members if kept.get(name)]
        elif known or scene in placed:
            sides[scene] = known.pop() if known else placed[scene]
    whole = [scene for scene in units if scene not in blocks and scene not in apart]
    if len(units) == 1 and whole:
        (scene,) = units
        blocks[scene] = _block_of_the_only_one(scenes, scene, units[scene], fraction)
        held: set[str] = set()
    elif blocks or apart:
        held = {scene for scene in whole if sides.get(scene, place_of(scene) < fraction)}
    else:
        held = choose_scenes({scene: place_of(scene) for scene in whole}, fraction, sides)
    out = {name for scene in held for name in units[scene]}.union(*apart.values())
    gap: set[str] = set()
    for scene, (video, (first, last)) in blocks.items():
        before, after = video.before(first), video.after(last)
        for name in units[scene]:
            place = video.place_of[name]
            if first <= place <= last:
                out.add(name)
            elif before < place < after:
                gap.add(name)
    train = [name for name in scenes.scene_of if name not in out and name not in gap]
    return Holding(
        train=train,
        held_out=[name for name in scenes.scene_of if name in out],
        gap=[name for name in scenes.scene_of if name in gap],
        num_scenes=(len(held) + len(blocks) + len(apart), len(units)),
        told=_told(scenes, units, held, blocks, gap),
    )


def divide(scenes: Scenes, held_out: Sequence[str]) -> Parts:
    """Divide what is held out: by scenes, or where it is of one, by blocks with a gap.

    Args:
        scenes: of the dataset, from `find_scenes`.
        held_out: instances of it.
    """
    members: dict[str, list[str]] = {}
    for name in held_out:
        members.setdefault(scenes.scene_of[name], []).append(name)
    claimed = _claimed_scenes(members) if len(members) > 1 else _claimed_block(scenes, members)
    dropped = claimed[1]
    of_claim = set(claimed[0])
    selection = [name for name in held_out if name not in of_claim and name not in dropped]
    if not of_claim:
        why = f"no score is claimed: {len(held_out)} instances of {_count(len(members), 'scene')} are held out, and no"
        why += f" part of at least {LEAST_CLAIMED} can be kept from the choice of weights"
        return Parts(list(held_out), [], f"{why}; {_remedy(scenes, members)}")
    how = f"by scenes ({_count(len(members), 'scene')})" if len(members) > 1 else "by blocks of one video, with a gap"
    told = f"{len(selection)} held-out instances to choose weights by, {len(of_claim)} others for the score: {how}"
    return Parts(selection, [name for name in held_out if name in of_claim], told)


def neighbours_trained_on(scenes: Scenes, held_out: Collection[str], train: Collection[str]) -> int:
    """How many held-out instances are of a scene that is trained on, and nearer to that than a gap."""
    out, trained = set(held_out), set(train)
    number = 0
    for scene, members in scenes.members().items():
        mine = [name for name in members if name in out]
        if not mine or not any(name in trained for name in members):
            continue
        video = scenes.video(scene, members)
        places = sorted({video.place_of[name] for name in members if name in trained})
        number += sum(_is_near(video, video.place_of[name], places) for name in mine)
    return number


def choose_scenes(places: Mapping[str, float], fraction: float, kept: Mapping[str, bool]) -> set[str]:
    """The scenes to hold out, of at least two: those whose place is below the fraction.

    Where none is, as among a handful, the one of the lowest place is; and one is always left to train on.

    Args:
        places: of each scene, in [0, 1).
        fraction: share to hold out.
        kept: scenes that have their side already. They lose it only where one of the sides would be empty and no other
            scene is there.
    """
    held_out = {scene for scene, place in places.items() if kept.get(scene, place < fraction)}
    free = places.keys() - kept.keys() or places.keys()
    if not held_out:
        held_out = {min(free, key=places.__getitem__)}
    elif len(held_out) == len(places):
        held_out.remove(max(free, key=places.__getitem__))
    return held_out


def place_of(scene: str) -> float:
    """Where a scene falls in [0, 1), the same for ever."""
    return int.from_bytes(hashlib.sha256(scene.encode()).digest()[:8], "big") / 2**64


def _units(scenes: Scenes, kept: Mapping[str, bool]) -> dict[str, list[str]]:
    """The scenes; of one that was divided between both sides when less was known of it, its recordings."""
    units: dict[str, list[str]] = {}
    for scene, members in scenes.members().items():
        recordings = {scenes.recording_of[name] for name in members}
        if len(recordings) > 1 and len({kept[name] for name in members if name in kept}) == 2:
            for name in members:
                units.setdefault(scenes.recording_of[name], []).append(name)
        else:
            units[scene] = members
    return units


def _is_trained_on(video: Video, block: tuple[int, int], kept: Mapping[str, bool]) -> bool:
    return any(block[0] <= place <= block[1] and kept.get(name) is False for name, place in video.place_of.items())


def _block_of_the_only_one(
    scenes: Scenes, scene: str, members: Sequence[str], fraction: float
) -> tuple[Video, tuple[int, int]]:
    video = scenes.video(scene, members)
    block = block_of(video, fraction)
    if block is None:
        raise DatasetError(
            "val_fraction",
            "needs two scenes, or one that is long enough for a block of it, a gap and something to train on",
            found=f"one scene (by {scenes.found_by}) of {_count(video.length, 'frame')}",
            fix="Import more scenes, each with a --name-prefix of its own, or hold out less.",
        )
    return video, block


def _claimed_scenes(members: Mapping[str, Sequence[str]]) -> tuple[list[str], set[str]]:
    """Instances of the scenes to claim on, about half of all and never all."""
    places = {scene: place_of(f"claimed {scene}") for scene in members}
    chosen = choose_scenes(places, 0.5, {})

    def count(some: Collection[str]) -> int:
        return sum(len(members[scene]) for scene in some)

    for scene in sorted(places.keys() - chosen, key=places.__getitem__):
        if count(chosen) < LEAST_CLAIMED and len(chosen) < len(places) - 1:
            chosen.add(scene)
    if count(chosen) < LEAST_CLAIMED:
        # One scene is much larger than the others: it alone is claimed on.
        chosen = {max(sorted(members), key=lambda scene: len(members[scene]))}
    if count(chosen) < LEAST_CLAIMED:
        return [], set()
    return [name for scene in chosen for name in members[scene]], set()


def _claimed_block(scenes: Scenes, members: Mapping[str, Sequence[str]]) -> tuple[list[str], set[str]]:
    """Instances of one scene to claim on, the first ones, and those of the gap after them."""
    if not members:
        return [], set()
    ((scene, names),) = members.items()
    video = scenes.video(scene, [name for name, of in scenes.scene_of.items() if of == scene])
    ordered = sorted(names, key=lambda name: (video.place_of[name], name))
    places = [video.place_of[name] for name in ordered]
    cuts = []
    for last in sorted(set(places)):
        end, start = bisect.bisect_right(places, last), bisect.bisect_left(places, video.after(last))
        if end >= LEAST_CLAIMED and start < len(places):
            cuts.append((end, start))
    if not cuts:
        return [], set()
    end, start = max(cuts, key=lambda cut: min(cut[0], len(places) - cut[1]))
    return ordered[:end], set(ordered[end:start])


def _remedy(scenes: Scenes, members: Mapping[str, Sequence[str]]) -> str:
    """What would let a score be claimed."""
    everything = scenes.members()
    if len(everything) == 1 and members:
        ((scene, names),) = everything.items()
        video = scenes.video(scene, names)
        # The claimed frames, a gap, and one to choose by.
        share = math.ceil(100 * (video.after(LEAST_CLAIMED - 1) + 1) / video.length) / 100
        if share < 1 and block_of(video, share) is not None:
            return f"`--val-fraction {share:g}`, or `--eval_fraction {share:g}` of a training, would do"
        return "the video is too short for that"
    return "import more scenes, or hold more of them out"


def _is_near(video: Video, place: int, trained: Sequence[int]) -> bool:
    return bisect.bisect_right(trained, video.before(place)) < bisect.bisect_left(trained, video.after(place))


def _told(
    scenes: Scenes,
    units: Mapping[str, Sequence[str]],
    held: Collection[str],
    blocks: Mapping[str, tuple[Video, tuple[int, int]]],
    gap: Collection[str],
) -> tuple[str, ...]:
    num_held, num_all = sum(len(units[scene]) for scene in held), sum(map(len, units.values()))
    whole = f"; {len(held)} held out whole, {num_held:,} of {num_all:,} instances" if held else ""
    told = [f"{_count(len(units), 'scene')} found by {scenes.found_by}{whole}"]
    for scene, (video, (first, last)) in blocks.items():
        ordered = sorted(units[scene], key=lambda name: (video.place_of[name], name))
        block = [name for name in ordered if first <= video.place_of[name] <= last]
        around = sum(name in gap for name in ordered)
        stamped = f" and at least {GAP_SECONDS:g} s" if video.seconds is not None else ""
        told.append(
            f"of one video of {_count(video.length, 'frame')} {block[0]} to {block[-1]} are held out; {around}"
            " instances next to them are neither trained on nor held out"
            f" (a gap of {GAP_SHARE:.0%} of the video{stamped})"
        )
    return tuple(told)


def _count(number: int, one: str) -> str:
    return f"{number:,} {one}{'' if number == 1 else 's'}"
