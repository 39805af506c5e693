"""The rate in status: an average of the last seconds."""

from __future__ import annotations

from gsync.service.status_writer import RATE_OVER, Rate


def test_the_first_sample_has_no_rate() -> None:
    assert Rate().take(100.0, 7, 700) == {"files": 0.0, "bytes": 0.0}


def test_it_is_the_increase_since_the_oldest_sample() -> None:
    rate = Rate()
    rate.take(100.0, 10, 1000)
    rate.take(101.0, 10, 1000)
    assert rate.take(102.0, 30, 5000) == {"files": 10.0, "bytes": 2000.0}


def test_samples_that_are_too_old_do_not_count() -> None:
    rate = Rate()
    rate.take(100.0, 0, 0)
    rate.take(103.0, 1000, 1000)
    assert rate.take(100.0 + RATE_OVER + 0.5, 1000, 1000) == {"files": 0.0, "bytes": 0.0}
