"""When something that failed is tried again: pauses that double, up to a longest one.

`Schedule` says how long each pause is; `Tries` counts the failures in a row of one thing. What ran for `lasted` seconds
had no trouble starting, so its next failure counts as the first again. Standard library only, Python 3.9.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The pauses after failures in a row, in seconds: `first`, doubling, at most `longest`. spread: the part of a pause
    by which it is made longer or shorter, so that what failed together does not come back together."""

    first: float
    longest: float
    lasted: float = math.inf
    spread: float = 0.0

    def pause(self, failed: int, rng: Callable[[], float] = random.random) -> float:
        """Seconds before the next try after so many failures (1 and more). rng: gives numbers from 0 to 1."""
        wait = min(self.first * 2.0 ** min(max(failed, 1) - 1, 30), self.longest)
        return wait * (1 - self.spread + 2 * self.spread * rng()) if self.spread else wait


class Tries:
    """The failures in a row of one thing, and when it is due again by the clock given (at once in the beginning)."""

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
        """It is to be tried again after this pause, which counts as no failure."""
        self.due = self._clock() + pause
        return pause

    def is_due(self) -> bool:
        return self._clock() >= self.due
