"""Units by pattern, and the days on which their work falls due."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from gsync.transfer.delivery.units import Pattern, due_at, fill, times_due


def test_night_and_exposure() -> None:
    unit = Pattern("{night}/{exposure}").match(b"20261231/00012345")
    assert unit is not None
    assert (unit.group, unit.day) == (b"20261231", date(2026, 12, 31))
    assert fill("checksum-{exposure}.sha256sum", unit.fields) == "checksum-00012345.sha256sum"


@pytest.mark.parametrize("path", [b"20261331/00012345", b"2026123/00012345", b"20261231/0001234", b"20261231",
                                  b"20261231/00012345/x", b"20261231/00012345\n", "２０２６１２３１/00012345".encode(),
                                  b".gsync-x/00012345"])
def test_what_fits_no_unit(path: bytes) -> None:
    assert Pattern("{night}/{exposure}").match(path) is None


def test_other_patterns() -> None:
    unit = Pattern(r"run-{run:[0-9]{4}}/{part}").match(b"run-0007/a b\n\xff")
    assert unit is not None
    assert (unit.group, unit.day, unit.fields["run"]) == (b"run-0007", None, "0007")
    assert Pattern("{sample}").match(b"one/two") is None


@pytest.mark.parametrize(("text", "why"), [
    ("{night}/", "empty path part"), ("/{night}", "empty path part"), ("{night}/../{exposure}", "empty path part"),
    ("all", "no field"),
    ("{night}/{night}", "twice"), ("{night", "without its }"), ("night}", "without its {"),
    ("{Night}", "small letters"), ("{n:[}", "regular expression"), (".gsync-x/{n}", "reserved for gsync")])
def test_what_is_no_pattern(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("{", r"\{")):
        Pattern(text)


def test_the_work_of_a_night_falls_due_on_the_next_day_in_utc() -> None:
    assert due_at(date(2026, 12, 31), 14) == datetime(2027, 1, 1, 14, tzinfo=UTC)


@pytest.mark.parametrize(("now", "times"), [
    (datetime(2027, 1, 1, 13, 59, tzinfo=UTC), 0), (datetime(2027, 1, 1, 14, tzinfo=UTC), 1),
    (datetime(2027, 1, 2, 13, tzinfo=UTC), 1), (datetime(2027, 1, 2, 14, tzinfo=UTC), 2),
    (datetime(2027, 3, 1, tzinfo=UTC), 3)])
def test_how_often_it_has_fallen_due(now: datetime, times: int) -> None:
    assert times_due(date(2026, 12, 31), 14, now, most=3) == times
