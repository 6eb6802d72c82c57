"""Phases of a step are timed where their work is done."""

from __future__ import annotations

import pytest
import torch

from moge_core.loading.stages import StageClock
from moge_core.training.timing import DeviceClock, clock_for


class Gpu:
    """Stands for a device that works through what it was given, with marks as torch.cuda has them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.given: list[Event] = []
        self.num_events = self.num_waits = 0
        self.queue: list[float | Event] = []

    def launch(self, milliseconds: float) -> None:
        self.queue.append(milliseconds)

    def work(self, until: Event | None = None) -> None:
        while self.queue and (until is None or until.passed is None):
            item = self.queue.pop(0)
            if isinstance(item, Event):
                item.passed = self.now
            else:
                self.now += item


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.passed = gpu, None
        gpu.num_events += 1

    def record(self) -> None:
        self.passed = None
        self.gpu.queue.append(self)

    def query(self) -> bool:
        return self.passed is not None

    def synchronize(self) -> None:
        self.gpu.num_waits += 1
        self.gpu.work(until=self)

    def elapsed_time(self, other: Event) -> float:
        assert self.passed is not None and other.passed is not None
        return other.passed - self.passed


def test_phases_of_a_gpu_are_those_that_the_gpu_spent_though_the_host_is_far_ahead() -> None:
    gpu = Gpu()
    clock = DeviceClock(lambda: Event(gpu))
    for _ in range(3):
        for name, milliseconds in (("forward", 30.0), ("losses", 20.0), ("backward", 60.0)):
            with clock.stage(name):
                gpu.launch(milliseconds)
    assert gpu.now == 0 and gpu.num_waits == 0
    assert clock.wall == pytest.approx({"forward": 0.09, "losses": 0.06, "backward": 0.18})
    assert gpu.num_waits == 1


def test_marks_are_used_again_while_nobody_asks_for_the_times() -> None:
    gpu = Gpu()
    clock = DeviceClock(lambda: Event(gpu))
    for _ in range(200):
        with clock.stage("forward"):
            gpu.launch(1.0)
        gpu.work()
    assert gpu.num_events < 10 and gpu.num_waits == 0
    assert clock.wall == pytest.approx({"forward": 0.2})


def test_a_phase_that_fails_is_counted() -> None:
    gpu = Gpu()
    clock = DeviceClock(lambda: Event(gpu))
    with pytest.raises(ValueError), clock.stage("losses"):
        gpu.launch(5.0)
        raise ValueError
    assert clock.wall == pytest.approx({"losses": 0.005})


def test_a_cpu_has_the_clock_of_the_host() -> None:
    assert isinstance(clock_for(torch.device("cpu")), StageClock)
