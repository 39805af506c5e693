"""The bandwidth limit, on a clock of the test's own."""

from __future__ import annotations

import pytest

from gsync.sync.engine import Flow, Stopped


class Clock:
    """Time passes only while somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def elapsed(rate: float | None, sizes: list[int]) -> float:
    clock = Clock()
    flow = Flow(rate, clock=clock, wait=clock.wait)
    for size in sizes:
        flow.pay(size)
    assert flow.bytes == sum(sizes)
    return clock.now - 1000.0


@pytest.mark.parametrize("sizes", [[1000] * 100, [100_000, 1], [1] * 50_000 + [50_000]])
def test_the_time_is_the_bytes_by_the_rate(sizes: list[int]) -> None:
    last = sizes[-1]  # goes at once, when all before it has gone
    assert elapsed(1000, sizes) == pytest.approx((sum(sizes) - last) / 1000, abs=0.2)


def test_without_a_rate_nobody_waits() -> None:
    assert elapsed(None, [10**12] * 3) == 0


def test_an_idle_line_does_not_save_up_more_than_a_moment() -> None:
    clock = Clock()
    flow = Flow(1000, clock=clock, wait=clock.wait)
    flow.pay(1)
    clock.now += 3600
    before = clock.now
    for _ in range(101):
        flow.pay(100)
    assert clock.now - before == pytest.approx(10, abs=0.2)


def test_several_threads_share_the_rate() -> None:
    assert Flow(1000, jobs=4).share == 250
    assert Flow(None, jobs=4).share is None


def test_a_stopped_flow_lets_nothing_through() -> None:
    flow = Flow(1)
    flow.stop()
    with pytest.raises(Stopped):
        flow.pay(1)
