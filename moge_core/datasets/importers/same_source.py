"""Whether the instances that stand in a dataset were made from the source that is imported now, or from another.

Two sequences often have the same file names. The second must not replace the first, while a source that was mended, or
that lies elsewhere now, must go on being the same. So each import keeps digests of some files in its log:

    from the same place      the same source, if of the frames in both samples one has its image or its depth still
    from another place       the same source, if most frames in both samples have equal files

Where no sample tells, as with datasets that were made before there were any, instances are made again in memory and
compared with those that stand there.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moge_core.datasets.import_log import ImportEvent, read_import_log, unfinished_import
from moge_core.datasets.importers.frames import read_frame
from moge_core.datasets.importers.origins import origin_of
from moge_core.datasets.importers.records import ImportSettings, Record, Stored
from moge_core.datasets.layout import DEPTH_NAME, IMAGE_NAME, META_NAME
from moge_core.errors import DatasetError
from moge_core.io.files import NamedBytes

# So many frames tell sources apart, and their files are read in no time.
_SAMPLE_SIZE = 32
_NUM_FIRST = 4
_NUM_REMADE = 8
# Of a larger file so much is read at its beginning, middle and end.
_PIECE_BYTES = 1 << 18
# What is left of a folder's name in a remedy that can be typed: letters, digits, `_`, `.` and `-`.
_UNUSUAL = re.compile(r"[^\w.-]+")
# JPEG decoders and encoders of other versions differ by less than this, in levels of 255.
_SAME_LEVELS = 1.0


@dataclass
class Sample:
    """A few frames of an import by which its source is known again.

    Those whose names have the least hashes: what two sources share is in both samples then. Of files that hold many
    frames only the first frames, because others may cost reading all before them.
    """

    first: list[Record] = field(default_factory=list)
    chosen: list[tuple[int, str, Record]] = field(default_factory=list)

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        """The same records, of which some are kept."""
        for record in records:
            if len(self.first) < _NUM_FIRST:
                self.first.append(record)
            entry = (-_hash_of(record.name), record.name, record)
            if len(self.chosen) < _SAMPLE_SIZE:
                heapq.heappush(self.chosen, entry)
            elif entry > self.chosen[0]:
                heapq.heapreplace(self.chosen, entry)
            yield record

    def digests(self) -> dict[str, tuple[str | None, str | None]]:
        """Digests of the image and of the depth, by instance; None of what cannot be read."""
        records = {record.name: record for record in self.first}
        is_first = set(records)
        records |= {name: record for _, name, record in self.chosen}
        uses = Counter(part.path for record in records.values() for part in (record.image, record.depth))
        found = {}
        for name, record in records.items():
            shared = [part.read is not None and uses[part.path] > 1 for part in (record.image, record.depth)]
            if name in is_first or not any(shared):
                found[name] = (
                    _digest_of(record.image, shared=shared[0]),
                    _digest_of(record.depth, shared=shared[1]),
                )
        return found


def earlier_imports(out: Path) -> list[ImportEvent]:
    """The imports that left instances in a dataset, oldest first, one that was killed last.

    Raises:
        DatasetError: see `read_import_log`.
    """
    events, _ = read_import_log(out)
    unfinished = unfinished_import(out)
    return [*(event for event in events if event.instances), *([] if unfinished is None else [unfinished])]


def refuse_other_source(
    importer: str,
    source: Path,
    out: Path,
    records: Iterable[Record],
    settings: ImportSettings,
    events: Iterable[ImportEvent],
    digests: Mapping[str, tuple[str | None, str | None]],
    options: Mapping[str, Any],
) -> None:
    """Refuse an import that would replace what was made from another source.

    Args:
        importer: its name.
        source: what is imported.
        out: the dataset.
        records: all records, with the names of their instances.
        settings: see `ImportSettings`.
        events: earlier imports, see `earlier_imports`.
        digests: see `Sample.digests`.
        options: how the source is read, as the log has it.

    Raises:
        DatasetError: naming `--name-prefix`.
    """
    own = [event for event in events if event.importer == importer]
    made_by = {name: event for event in own for name, pair in event.sample.items() if None not in pair}
    known = {
        name: made_by[name]
        for name, pair in digests.items()
        if name in made_by and None not in pair and (out / name / META_NAME).exists()
    }
    elsewhere = [name for name, event in known.items() if event.source != str(source)]
    equal = {name: _equal(digests[name], known[name].sample[name]) for name in known}
    if elsewhere and 2 * sum(all(equal[name]) for name in elsewhere) < len(elsewhere):
        raise _other_source(known[elsewhere[0]].source, source, out, elsewhere, settings)
    here = [name for name in known if name not in elsewhere]
    if here and not any(any(equal[name]) for name in here):
        raise _other_source(known[here[0]].source, source, out, here, settings)
    places = [event for event in own if event.options.get("name_prefix", "") == settings.name_prefix]
    if not known and str(source) not in {event.source for event in places}:
        _compare_remade(importer, source, out, records, settings, places, options)


def _compare_remade(
    importer: str,
    source: Path,
    out: Path,
    records: Iterable[Record],
    settings: ImportSettings,
    places: Sequence[ImportEvent],
    options: Mapping[str, Any],
) -> None:
    """Refuse another source by making some of the instances that stand there again.

    From a place that is known to be another, both image and depth must be as they stand there, depth at least where
    the source was read as it is now. Where the dataset does not tell where it is from, one of them is enough.

    Raises:
        DatasetError: see `refuse_other_source`.
    """
    standing = [record for record in records if origin_of(out / record.name).get("importer") == importer]
    if not standing:
        return
    chosen = np.unique(np.linspace(0, len(standing) - 1, min(_NUM_REMADE, len(standing))).astype(int))
    is_read_alike = not places or _agree(places[-1].options, options)
    num_same = 0
    for record in (standing[place] for place in chosen):
        same_image, same_depth = _is_remade(record, out, settings)
        if places:
            num_same += same_image and (same_depth or not is_read_alike)
        else:
            num_same += same_image or same_depth
    if 2 * num_same < len(chosen):
        names = [record.name for record in standing]
        raise _other_source(places[-1].source if places else None, source, out, names, settings)


def _other_source(
    other: str | None, source: Path, out: Path, names: list[str], settings: ImportSettings
) -> DatasetError:
    # A name that any shell and any file system takes as it stands.
    folder = source.name if source.is_dir() else source.parent.name
    name = settings.name_prefix + (_UNUSUAL.sub("-", folder).strip("-.") or "second")
    names_tried = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    prefix = next(f"{tried}/" for tried in names_tried if not (out / tried).exists())
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    where = other if other not in {None, str(source)} else "other files than these"
    return DatasetError(
        out,
        "must not have the instances of one source replaced by those of another",
        found=f"{names[0]}{more}, made from {where}",
        fix=f"Give this source names of its own with --name-prefix {shlex.quote(prefix)}, or choose another folder.",
    )


def _equal(first: Iterable[str | None], second: Iterable[str | None]) -> list[bool]:
    """Whether images and whether depths are equal."""
    return [one == other for one, other in zip(first, second, strict=False)]


def _agree(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether what both tell of how a source is read is equal, as JSON has it."""
    then = json.loads(json.dumps(now, default=str))
    return all(before[name] == then[name] for name in before.keys() & then.keys())


def _is_remade(record: Record, out: Path, settings: ImportSettings) -> tuple[bool, bool]:
    """Whether an instance made of the record would have the image, and the depth, of the one that stands there."""
    from moge_core.io import read_depth, read_image, write_depth, write_image

    folder = out / record.name
    try:
        frame = read_frame(record, settings)
        picture, depth = NamedBytes(IMAGE_NAME, frame.jpeg or b""), NamedBytes(DEPTH_NAME)
        if frame.jpeg is None:
            write_image(picture, frame.image, quality=95, format="jpeg")
        write_depth(depth, frame.depth)
        picture.seek(0)
        depth.seek(0)
        image, standing = read_image(picture), read_image(folder / IMAGE_NAME)
        same_image = image.shape == standing.shape and bool(
            np.abs(image.astype(np.int16) - standing).mean() <= _SAME_LEVELS
        )
        same_depth = bool(np.array_equal(read_depth(depth), read_depth(folder / DEPTH_NAME), equal_nan=True))
    except Exception:  # told when its frame is written
        return False, False
    return same_image, same_depth


def _digest_of(part: Stored, *, shared: bool) -> str | None:
    """Of a file, or of what is read of one that holds many parts."""
    try:
        if shared and part.read is not None:
            array = np.ascontiguousarray(part.read(part.path))
            return _short_digest(str((array.dtype.str, array.shape)).encode(), array.tobytes())
        size = part.path.stat().st_size
        with part.path.open("rb") as file:
            pieces = []
            for start in (0, size // 2, max(0, size - _PIECE_BYTES)) if size > 3 * _PIECE_BYTES else (0,):
                file.seek(start)
                pieces.append(file.read(_PIECE_BYTES if size > 3 * _PIECE_BYTES else size))
        return _short_digest(str(size).encode(), *pieces)
    except Exception:
        # What no reader copes with is told when its frame is written; here it only tells nothing.
        return None


def _short_digest(*pieces: bytes) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _hash_of(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "big")
