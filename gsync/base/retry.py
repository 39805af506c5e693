"""When to retry what failed: pauses that double, up to a maximum.

`Schedule` gives the length of each pause; `Tries` counts consecutive failures. A run of `lasted` seconds counts as a
success, so the next failure is the first again. Standard library only, Python 3.9.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Pauses in seconds: `first`, doubling, at most `longest`. spread: the fraction by which a pause randomly varies,
    so that what failed together does not retry together."""

    first: float
    longest: float
    lasted: float = math.inf
    spread: float = 0.0

    def pause(self, failed: int, rng: Callable[[], float] = random.random) -> float:
        """Seconds to wait after this many consecutive failures (from 1). rng returns numbers from 0 to 1."""
        wait = min(self.first * 2.0 ** min(max(failed, 1) - 1, 30), self.longest)
        return wait * (1 - self.spread + 2 * self.spread * rng()) if self.spread else wait


class Tries:
    """Consecutive failures of one thing, and when its next try is due by the given clock; the first is due at once."""

    def __init__(self, schedule: Schedule, clock: Callable[[], float] = time.monotonic,
                 rng: Callable[[], float] = random.random) -> None:
        self.failed = 0
        self.due = -math.inf
        self._schedule = schedule
        self._clock = clock
        self._rng = rng
        self._started = math.inf

    def start(self) -> None:
        """A try begins."""
        self._started = self._clock()

    def succeed(self) -> None:
        """It works: the next failure is the first one."""
        self.failed = 0

    def fail(self) -> float:
        """It failed; the pause before the next try."""
        if self._clock() - self._started > self._schedule.lasted:
            self.failed = 0
        self._started = math.inf  # it ended; one that does not even start has not lasted
        self.failed += 1
        return self.wait(self._schedule.pause(self.failed, self._rng))

    def wait(self, pause: float) -> float:
        """Retry after this pause; does not count as a failure."""
        self.due = self._clock() + pause
        return pause

    def is_due(self) -> bool:
        return self._clock() >= self.due
