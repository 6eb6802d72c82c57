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
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moge_core.datasets.import_log import ImportEvent, read_import_log, unfinished_import
from moge_core.datasets.importers.frames import Frame, read_frame
from moge_core.datasets.importers.records import ImportSettings, Record, Stored
from moge_core.datasets.layout import DEPTH_NAME, IMAGE_NAME, META_NAME
from moge_core.errors import DatasetError, MoGeError

# So many frames tell sources apart, and their files are read in no time.
_SAMPLE_SIZE = 32
_NUM_REMADE = 8
# Of a larger file so much is read at its beginning, middle and end.
_PIECE_BYTES = 1 << 18
# JPEG decoders and encoders of other versions differ by less than this, in levels of 255.
_SAME_LEVELS = 1.0


@dataclass
class Sample:
    """The frames of an import whose names have the least hashes: those that two sources share are in both samples."""

    records: list[tuple[int, str, Record]] = field(default_factory=list)

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        """The same records, of which some are kept."""
        for record in records:
            entry = (-_hash_of(record.name), record.name, record)
            if len(self.records) < _SAMPLE_SIZE:
                heapq.heappush(self.records, entry)
            elif entry > self.records[0]:
                heapq.heapreplace(self.records, entry)
            yield record

    def digests(self) -> dict[str, tuple[str | None, str | None]]:
        """Digests of the image and of the depth, by instance; None of what cannot be read."""
        records = sorted((record for _, _, record in self.records), key=lambda record: record.name)
        uses = Counter(part.path for record in records for part in (record.image, record.depth))
        return {
            record.name: (
                _digest_of(record.image, shared=uses[record.image.path] > 1),
                _digest_of(record.depth, shared=uses[record.depth.path] > 1),
            )
            for record in records
        }


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
    same_names = [event for event in own if event.options.get("name_prefix", "") == settings.name_prefix]
    if known or not same_names or str(source) in {event.source for event in same_names}:
        return
    standing = [record for record in records if (out / record.name / META_NAME).exists()]
    places = np.unique(np.linspace(0, len(standing) - 1, min(_NUM_REMADE, len(standing))).astype(int))
    compared = [standing[place] for place in places]
    is_read_alike = _agree(same_names[-1].options, options)
    if 2 * sum(_is_remade(record, out, settings, is_read_alike) for record in compared) < len(compared):
        names = [record.name for record in standing]
        raise _other_source(same_names[-1].source, source, out, names, settings)


def _other_source(other: str, source: Path, out: Path, names: list[str], settings: ImportSettings) -> DatasetError:
    prefix = f"{settings.name_prefix}{source.stem}/"
    number = 2
    while (out / prefix).exists():
        prefix, number = f"{settings.name_prefix}{source.stem}-{number}/", number + 1
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    where = "other files that lay there too" if other == str(source) else other
    return DatasetError(
        out,
        "must not have the instances of one source replaced by those of another",
        found=f"{names[0]}{more}, made from {where}",
        fix=f"Give this source names of its own with --name-prefix {prefix}, or import it into another folder.",
    )


def _equal(first: Iterable[str | None], second: Iterable[str | None]) -> list[bool]:
    """Whether images and whether depths are equal."""
    return [one == other for one, other in zip(first, second, strict=False)]


def _agree(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether what both tell of how a source is read is equal, as JSON has it."""
    then = json.loads(json.dumps(now, default=str))
    return all(before[name] == then[name] for name in before.keys() & then.keys())


def _is_remade(record: Record, out: Path, settings: ImportSettings, is_read_alike: bool) -> bool:
    """Whether an instance made of the record would show what the one that stands there shows."""
    from moge_core.io import read_depth, read_image, write_depth, write_image
    from moge_core.io.files import NamedBytes

    folder = out / record.name
    try:
        frame: Frame = read_frame(record, settings)
        standing = read_image(folder / IMAGE_NAME)
        picture = NamedBytes(IMAGE_NAME, frame.jpeg or b"")
        if frame.jpeg is None:
            write_image(picture, frame.image, quality=95, format="jpeg")
        picture.seek(0)
        image = read_image(picture)
        if image.shape != standing.shape or np.abs(image.astype(np.int16) - standing).mean() > _SAME_LEVELS:
            return False
        if not is_read_alike:
            # Under other options depth may be any; the picture must do.
            return True
        written = NamedBytes(DEPTH_NAME)
        write_depth(written, frame.depth)
        written.seek(0)
        return bool(np.array_equal(read_depth(written), read_depth(folder / DEPTH_NAME), equal_nan=True))
    except (MoGeError, OSError):
        return False


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
