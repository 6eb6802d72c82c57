"""Decoded depth on a local disk, for datasets whose PNGs cost more to inflate than to read.

Entries are blosc2-compressed codes, each in a file of its own, so that any number of workers, ranks and runs share a
cache without a lock. An entry whose source has changed since is replaced, a damaged one ignored. When the limit is
reached nothing more is added: instances are drawn evenly, so exchanging entries would not raise the share of hits.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moge_core.errors import ConfigError
from moge_core.io import atomic_open
from moge_core.io.depth import CodedDepth

_NUM_FOLDERS = 256


@dataclass(frozen=True)
class DepthCache:
    """A folder of decoded depth maps.

    Args:
        folder: where entries lie; made when the first one is written.
        max_bytes: limit of all entries together. It holds for each of 256 folders on its own, and so to within an
            entry for each concurrent writer.

    Raises:
        ConfigError: the package blosc2 is not installed.
    """

    folder: Path
    max_bytes: int

    def __post_init__(self) -> None:
        if importlib.util.find_spec("blosc2") is None:
            raise ConfigError(
                "data.depth_cache", "needs the package blosc2", fix="pip install 'moge-pipeline[cache]', or remove it."
            )

    def get(self, source: Path) -> CodedDepth | None:
        """The depth map of the file `source`, if the cache has it as the file is now."""
        import blosc2

        try:
            data = self._entry(source).read_bytes()
            head, _, body = data.partition(b"\n")
            facts = json.loads(head)
            if facts["source"] != _identity(source):
                return None
            codes = np.frombuffer(blosc2.decompress(body), np.uint16).reshape(facts["shape"])
            return CodedDepth(codes, facts["near"], facts["far"], facts["unit"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            return None

    def put(self, source: Path, coded: CodedDepth) -> None:
        """Keep a depth map, unless the cache is full or cannot be written."""
        import blosc2

        facts: dict[str, Any] = asdict(coded)
        facts |= {"source": _identity(source), "shape": facts.pop("codes").shape}
        body = blosc2.compress2(
            np.ascontiguousarray(coded.codes),
            typesize=2,
            codec=blosc2.Codec.LZ4,
            clevel=5,
            nthreads=1,
            filters=[blosc2.Filter.BITSHUFFLE],
        )
        entry = self._entry(source)
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            used = sum(file.stat().st_size for file in os.scandir(entry.parent) if file.name != entry.name)
            if used + len(body) <= self.max_bytes // _NUM_FOLDERS:
                with atomic_open(entry) as file:
                    file.write(json.dumps(facts).encode() + b"\n" + body)
        except OSError:
            return  # a cache that cannot be written to costs time and nothing else

    def _entry(self, source: Path) -> Path:
        name = hashlib.sha256(os.fsencode(source)).hexdigest()
        return self.folder / name[:2] / name[2:34]


def _identity(source: Path) -> list[int]:
    state = source.stat()
    return [state.st_size, state.st_mtime_ns]
