"""What failed is tried again after pauses that double, up to a longest one."""

from __future__ import annotations

import pytest

from gsync.base.retry import Schedule, Tries


class Time:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_pauses_double_and_have_an_end() -> None:
    assert [Schedule(5.0, 60.0).pause(failed) for failed in (1, 2, 3, 4, 5, 1000)] == [5, 10, 20, 40, 60, 60]


@pytest.mark.parametrize(("random", "pause"), [(0.0, 7.5), (0.5, 10.0), (1.0, 12.5)])
def test_a_spread_is_to_both_sides(random: float, pause: float) -> None:
    assert Schedule(10.0, 60.0, spread=0.25).pause(1, lambda: random) == pause


def test_without_a_spread_nothing_is_left_to_chance() -> None:
    assert Schedule(10.0, 60.0).pause(1, lambda: 1.0) == 10.0


def test_each_failure_in_a_row_has_a_longer_pause() -> None:
    tries = Tries(Schedule(1.0, 60.0), Time())
    assert [tries.fail() for _ in range(3)] == [1, 2, 4]


def test_a_success_makes_the_next_failure_the_first() -> None:
    tries = Tries(Schedule(1.0, 60.0), Time())
    tries.fail()
    tries.succeed()
    assert tries.fail() == 1.0


@pytest.mark.parametrize(("ran", "pause"), [(30.0, 2.0), (31.0, 1.0)])
def test_what_lasted_had_no_trouble_starting(ran: float, pause: float) -> None:
    clock = Time()
    tries = Tries(Schedule(1.0, 60.0, lasted=30.0), clock)
    tries.fail()
    tries.start()
    clock.now += ran
    assert tries.fail() == pause


def test_what_lasted_once_and_does_not_start_any_more_waits_longer_each_time() -> None:
    clock = Time()
    tries = Tries(Schedule(1.0, 60.0, lasted=30.0), clock)
    tries.start()
    clock.now += 3600
    assert [tries.fail() for _ in range(3)] == [1, 2, 4]


def test_it_is_due_after_the_pause() -> None:
    clock = Time()
    tries = Tries(Schedule(4.0, 60.0), clock)
    assert tries.is_due()
    tries.fail()
    clock.now += 3.5
    assert not tries.is_due()
    clock.now += 0.5
    assert tries.is_due()


def test_a_wait_is_no_failure() -> None:
    clock = Time()
    tries = Tries(Schedule(4.0, 60.0), clock)
    tries.wait(9.0)
    assert (tries.failed, tries.due) == (0, clock.now + 9.0)
