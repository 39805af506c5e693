"""The clocks are a value."""

from __future__ import annotations

import time

from gsync.base.clock import SYSTEM_CLOCK, Clock


def test_the_clocks_of_the_system() -> None:
    before = time.time_ns(), time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
    now = SYSTEM_CLOCK.now(), SYSTEM_CLOCK.monotonic(), SYSTEM_CLOCK.boottime()
    after = time.time_ns(), time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
    assert all(first <= value <= last for first, value, last in zip(before, now, after, strict=True))


def test_a_test_brings_its_own() -> None:
    assert Clock(now=lambda: 5).now() == 5
