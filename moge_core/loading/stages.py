"""Where the time goes: processor and wall time by stage of the work on a sample."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class StageClock:
    """Adds up seconds by stage.

    Attributes:
        cpu: processor seconds of this process, by stage.
        wall: seconds that passed, by stage; what exceeds `cpu` was spent waiting, for a disk for instance.
        counts: how often things happened, by name.
        on_enter: is told of each stage that begins and gives the one before, of which it is told when the stage ends.
    """

    cpu: dict[str, float] = field(default_factory=dict)
    wall: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    on_enter: Callable[[str], str] | None = None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time of the `with` block, also if it ends in an error."""
        cpu, wall = time.process_time(), time.perf_counter()
        before = self.on_enter(name) if self.on_enter else ""
        try:
            yield
        finally:
            if self.on_enter:
                self.on_enter(before)
            self._add(name, time.process_time() - cpu, time.perf_counter() - wall)

    def count(self, name: str, number: int = 1) -> None:
        """Note that something happened."""
        self.counts[name] = self.counts.get(name, 0) + number

    def add(self, other: StageClock) -> None:
        """Take in the seconds and counts of another clock."""
        for name, number in other.counts.items():
            self.count(name, number)
        for name, cpu in other.cpu.items():
            self._add(name, cpu, other.wall[name])

    def _add(self, name: str, cpu: float, wall: float) -> None:
        self.cpu[name] = self.cpu.get(name, 0.0) + cpu
        self.wall[name] = self.wall.get(name, 0.0) + wall
