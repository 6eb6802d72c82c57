"""How long the phases of a step take where their work is done: on the host, or on the device."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from moge_core.loading.stages import StageClock


def clock_for(device: torch.device, on_enter: Callable[[str], str] | None = None) -> StageClock | DeviceClock:
    """A clock for phases whose work goes to `device`; `on_enter` as of `StageClock`."""
    if device.type != "cuda":
        return StageClock(on_enter=on_enter)
    return DeviceClock(lambda: torch.cuda.Event(enable_timing=True), on_enter)  # type: ignore[no-untyped-call]


class DeviceClock:
    """Adds up seconds between marks that the device passes, by phase.

    A host only hands work to its GPU and is done with a phase long before the GPU is; where it then waits says nothing
    of where the time went. A phase of the host alone, such as waiting for a batch, counts as far as the GPU had nothing
    else to do.

    Args:
        new_event: makes a mark with `record()`, `query()`, `synchronize()` and `elapsed_time(other)` in milliseconds.
        on_enter: as of `StageClock`.
    """

    def __init__(self, new_event: Callable[[], Any], on_enter: Callable[[str], str] | None = None) -> None:
        self._new_event, self._on_enter = new_event, on_enter
        self._spare: list[Any] = []
        self._under_way: deque[tuple[str, Any, Any]] = deque()
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts what the device does for the `with` block, also if it ends in an error."""
        begin = self._mark()
        before = self._on_enter(name) if self._on_enter else ""
        try:
            yield
        finally:
            if self._on_enter:
                self._on_enter(before)
            self._under_way.append((name, begin, self._mark()))
            # So that no more marks are kept than the device is behind; asking does not make the host wait.
            while self._under_way and self._under_way[0][2].query():
                self._count_first()

    @property
    def wall(self) -> dict[str, float]:
        """Seconds by phase; waits until the device has passed the last mark, so it is for logging only."""
        if self._under_way:
            self._under_way[-1][2].synchronize()
        while self._under_way:
            self._count_first()
        return dict(self._seconds)

    def _mark(self) -> Any:
        event = self._spare.pop() if self._spare else self._new_event()
        event.record()
        return event

    def _count_first(self) -> None:
        name, begin, end = self._under_way.popleft()
        self._seconds[name] = self._seconds.get(name, 0.0) + begin.elapsed_time(end) / 1e3
        self._spare += [begin, end]
