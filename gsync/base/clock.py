"""The time, as a value that is handed in: what waits or stamps takes a Clock, and a test gives it another one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """now: ns since 1970, which somebody may set. monotonic: seconds, for what has to last."""

    now: Callable[[], int] = time.time_ns
    monotonic: Callable[[], float] = time.monotonic


SYSTEM_CLOCK = Clock()
