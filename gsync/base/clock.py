"""The clocks of a host as one value handed in: what waits or stamps takes a Clock, and a test brings its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock(NamedTuple):
    """now: ns since 1970, which somebody may set. monotonic: seconds, for what has to last; they stand still while the
    host is suspended. boottime: seconds that go on meanwhile."""

    now: Callable[[], int] = time.time_ns
    monotonic: Callable[[], float] = time.monotonic
    boottime: Callable[[], float] = _boottime


SYSTEM_CLOCK = Clock()
