"""The bandwidth limit, on a clock of the test's own."""

from __future__ import annotations

import time

import pytest

from gsync.base.errors import Stopped
from gsync.sync.engine import Flow
from gsync.sync.timetable import Timetable


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


def monday(hour: int, minute: int = 0, day: int = 0) -> time.struct_time:
    """A moment of a week that begins on a Monday."""
    return time.struct_time((2024, 1, 1 + day, hour, minute, 0, day, 1 + day, 0))


OFFICE = "0; Mon-Fri 08:00-18:00 10M; sat,Sunday 50M; Fri 22:00-06:00 1K"


@pytest.mark.parametrize(
    ("when", "rate"),
    [(monday(7, 59), None), (monday(8), 10 << 20), (monday(17, 59), 10 << 20), (monday(18), None),
     (monday(12, day=5), 50 << 20), (monday(23, 59, day=6), 50 << 20), (monday(22, day=4), 1024),
     (monday(5, 59, day=5), 1024), (monday(6, day=5), 50 << 20), (monday(21, 59, day=4), None)])
def test_the_last_entry_that_fits_the_moment_holds(when: time.struct_time, rate: int | None) -> None:
    assert Timetable.parse(OFFICE).rate(when) == rate


def test_days_may_go_over_the_end_of_the_week_and_entries_may_have_spaces() -> None:
    table = Timetable.parse("Sat-Mon 24K;  Tue 0:00-24:00 2 MiB/s ;")
    assert [table.rate(monday(12, day=day)) for day in range(7)] == [24576, 2 << 20, None, None, None, 24576, 24576]
    assert Timetable.parse("Mon,Wed-Thu 1").rate(monday(0, day=2)) == 1
    assert not Timetable.parse("0; Mon 0").limits
    assert not Timetable.parse("").limits


@pytest.mark.parametrize("text", ["fast", "Mon", "Moon 1M", "Mon- 1M", "8-18 1M", "08:00-25:00 1M", "08:60-09:00 1M",
                                  "08:00-08:00 1M", "08:00-18:00", "1M; -", "Mon 08:00 1M", "-1", "24:00-08:00 1"])
def test_a_wrong_timetable_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is n"):
        Timetable.parse(text)


def test_the_rate_follows_the_timetable_also_for_who_waits_already() -> None:
    clock = Clock()
    flow = Flow(Timetable.parse("1000; 12:00-13:00 10"), clock=clock, wait=clock.wait,
                local=lambda: monday(12 if clock.now < 1100 else 13))
    assert (flow.limited, flow.rate, flow.share) == (True, 10, 10)
    flow.pay(11_000)
    flow.pay(1)  # at the first rate in 1100 s; after 100 s the second one holds
    assert clock.now == pytest.approx(1110, abs=5)
    assert flow.rate == 1000


def test_a_stopped_flow_lets_nothing_through() -> None:
    flow = Flow(1)
    flow.stop()
    with pytest.raises(Stopped):
        flow.pay(1)
