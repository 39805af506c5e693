"""Durations, sizes, rates and moments are read and written in one way."""

from __future__ import annotations

import time

import pytest

from gsync.base.model import NS
from gsync.base.times import (
    parse_duration,
    parse_moment,
    parse_past,
    parse_rate,
    parse_size,
    rfc3339,
    shown_duration,
    shown_size,
    written_duration,
    written_size,
)

NOON = 1795435200 * NS  # 2026-11-23T12:00:00Z


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("1.5h", 5400), ("7D", 604800), ("2w", 1209600), (" 90 s ", 90), ("0", 0), ("0.0", 0)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_a_bare_number_is_refused_where_a_unit_is_meant() -> None:
    with pytest.raises(ValueError, match="give the unit of 30: s, m, h, d or w, as in 30s"):
        parse_duration("30")


def test_a_bare_number_has_the_unit_that_the_setting_says() -> None:
    assert (parse_duration("30", bare="s"), parse_duration("1.5", bare="d"), parse_duration("2m", bare="d")) == \
        (30, 129600, 120)


@pytest.mark.parametrize("text", ["", "h", "-5s", "5x", "5s5", "1e3s", "1:00"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration such as 30s, 12h or 7d"):
        parse_duration(text, bare="s")


@pytest.mark.parametrize("seconds", [0, 1, 59, 60, 90, 3600, 86400, 7 * 86400, 0.5])
def test_a_written_duration_is_read_as_the_same(seconds: float) -> None:
    assert parse_duration(written_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("727040", 727040), ("500K", 512000), ("10 MiB", 10 << 20), ("1.5gb", 3 << 29), ("2T", 2 << 40)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "-1", "10X", "10M/s"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="not a number of bytes such as 500K or 10M"):
        parse_size(text)


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1536, 10 << 20, 1 << 30, 5 << 40])
def test_a_written_size_is_read_as_the_same(size: int) -> None:
    assert parse_size(written_size(size)) == size


def test_rates() -> None:
    assert [parse_rate(text) for text in ("0", "500K", "10M/s", "1 MiB/s")] == [0, 512000, 10 << 20, 1 << 20]
    with pytest.raises(ValueError, match="'fast' is not a rate such as 500K or 10M"):
        parse_rate(" fast ")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("now", 7), (" now ", 7), ("2026-11-23T12:00:00Z", NOON), ("2026-11-23T13:00:00+01:00", NOON),
        ("2026-11-23 12:00:00.5Z", NOON + NS // 2), ("1795435200", NOON), ("1795435200.25", NOON + NS // 4), ("0", 0),
        ("1969-12-31T23:59:59.5Z", -NS // 2),
    ])
def test_moments(text: str, moment: int) -> None:
    assert parse_moment(text, 7) == moment


def test_a_moment_without_a_zone_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    for zone, hours in (("UTC", 0), ("XYZ-3", -3)):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert parse_moment("2026-11-23 12:00", 7) == NOON + hours * 3600 * NS
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("text", ["", "soon", "-5", "2026-13-01", "1e9", "123456789012", "2h"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match=r"isoformat|month"):
        parse_moment(text, 7)


@pytest.mark.parametrize(
    ("text", "moment"),
    [("2h", NOON - 7200 * NS), ("1.5d ago", NOON - 129600 * NS), ("now", NOON), ("2026-11-23T12:00:00Z", NOON)])
def test_moments_in_the_past(text: str, moment: int) -> None:
    assert parse_past(text, NOON) == moment


@pytest.mark.parametrize("text", ["", "soon", "5 ago", "h ago"])
def test_what_is_no_moment_in_the_past(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a time such as 2h or 3d \(ago\), 2026-11-23 or"):
        parse_past(text, NOON)


def test_rfc3339() -> None:
    assert rfc3339(NOON + 123_456_789) == "2026-11-23T12:00:00.123456Z"
    assert rfc3339(None) is None


def test_durations_for_people() -> None:
    assert [shown_duration(s) for s in (0.25, 59, 65, 3600, 200_000)] == [
        "0.2 s", "59.0 s", "1:05", "1:00:00", "2 d 7 h"]


def test_sizes_for_people() -> None:
    assert [shown_size(n) for n in (0, 1023, 1536, 10 << 20, 123 << 30, 5 << 50)] == [
        "0 B", "1023 B", "1.5 KiB", "10.0 MiB", "123 GiB", "5120 TiB"]
