"""Retention: the oldest go, never what is needed, and history never claims more than there is."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsync.base.model import NS
from gsync.changelog import layout
from gsync.changelog.archive import ChangelogArchive
from gsync.changelog.htime import MOST_RECORDS
from gsync.changelog.reader import History
from gsync.changelog.records import Data
from gsync.changelog.retention import Purged, purge
from gsync.changelog.writer import ChangelogWriter
from lab.changelogs import changelog, gfid

T = 1_700_000_000
DAY = 86400
SIZE = len(changelog([Data(gfid(1))]))
UNLIMITED = 1 << 60


@pytest.fixture
def folder(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path / "changelogs")


def record(folder: bytes, *tss: int, list_size: int = MOST_RECORDS) -> None:
    writer = ChangelogWriter(folder, min(tss) - 1, list_size)
    for ts in tss:
        writer.append([Data(gfid(1))])
        writer.roll(ts)
    writer.close()


def left(folder: bytes) -> list[int]:
    return [each.ts for each in layout.stored(folder)]


def test_what_is_old_enough_goes(folder: bytes) -> None:
    record(folder, T, T + 1, T + 2, T + 3)
    assert purge(folder, T + 102, 100, UNLIMITED, None) == Purged(2, 2 * SIZE, 0)
    assert left(folder) == [T + 2, T + 3]
    assert purge(folder, T + 102, 100, UNLIMITED, None) == Purged(0, 0, 0)


def test_what_is_over_the_bound_of_bytes_goes(folder: bytes) -> None:
    record(folder, T, T + 1, T + 2, T + 3)
    assert purge(folder, T + 4, UNLIMITED, 2 * SIZE + 1, None) == Purged(2, 2 * SIZE, 0)
    assert left(folder) == [T + 2, T + 3]
    assert purge(folder, T + 4, UNLIMITED, 0, None) == Purged(2, 2 * SIZE, 0)
    assert left(folder) == []


def test_what_is_needed_stays_and_is_counted(folder: bytes) -> None:
    record(folder, T, T + 1, T + 2, T + 3)
    assert purge(folder, T + DAY, 0, 0, (T + 1) * NS) == Purged(2, 2 * SIZE, 2)
    assert left(folder) == [T + 2, T + 3]
    assert purge(folder, T + DAY, 0, 0, (T + 3) * NS - 1) == Purged(1, SIZE, 1)
    assert left(folder) == [T + 3]
    assert purge(folder, T + DAY, 0, 0, 0) == Purged(0, 0, 1)


def test_history_begins_after_what_was_purged(folder: bytes) -> None:
    record(folder, T, T + 1, T + 2, T + 3)
    assert History(folder).reaches_back_to((T - 1) * NS)
    purge(folder, T + 102, 100, UNLIMITED, None)
    history = History(folder)
    assert history.covered_from() == (T + 1) * NS
    assert history.reaches_back_to((T + 1) * NS)
    assert not history.reaches_back_to((T + 1) * NS - 1)
    assert [each.ts for each in history.since((T + 1) * NS)] == [T + 2, T + 3]


def test_a_later_mark_is_not_put_back(folder: bytes) -> None:
    record(folder, T, T + 1, T + 2)
    layout.set_covered_from(folder, (T + 2) * NS + 7)
    purge(folder, T + 102, 101, UNLIMITED, None)
    assert History(folder).covered_from() == (T + 2) * NS + 7


def test_folders_of_days_that_are_gone_go_too(folder: bytes) -> None:
    record(folder, T, T + DAY, T + 60 * DAY, T + 500 * DAY)
    purge(folder, T + 500 * DAY, 0, UNLIMITED, None)
    assert sorted(os.listdir(folder)) == [b"2025", b"htime"]
    assert left(folder) == [T + 500 * DAY]


def test_recording_goes_on_after_everything_was_purged(folder: bytes) -> None:
    record(folder, T, T + 1)
    purge(folder, T + DAY, 0, 0, None)
    assert left(folder) == []
    record(folder, T + 2 * DAY)
    assert left(folder) == [T + 2 * DAY]
    history = History(folder)
    assert history.reaches_back_to((T + 1) * NS)
    assert [each.ts for each in history.since((T + 1) * NS)] == [T + 2 * DAY]


def test_lists_of_nothing_but_purged_changelogs_go_too(folder: bytes) -> None:
    record(folder, *range(T, T + 7), list_size=2)
    assert len(layout.htime_paths(folder)) == 4
    purge(folder, T + 10, 10 - 5, UNLIMITED, None)
    assert left(folder) == [T + 5, T + 6]
    assert len(layout.htime_paths(folder)) == 2
    purge(folder, T + 10, 0, 0, None)
    assert len(layout.htime_paths(folder)) == 1
    assert History(folder).last_ts == T + 6


def test_a_purge_that_died_left_a_history_that_tells_the_truth(folder: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    record(folder, *range(T, T + 6))
    real, calls = os.unlink, 0

    class Died(BaseException):
        pass

    def die_at_the_third(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Died
        real(*args)

    monkeypatch.setattr(os, "unlink", die_at_the_third)
    with pytest.raises(Died):
        purge(folder, T + 10, 10 - 4, UNLIMITED, None)
    assert left(folder) == [T + 2, T + 3, T + 4, T + 5]
    history = History(folder)
    assert history.covered_from() == (T + 3) * NS
    assert history.reaches_back_to((T + 3) * NS)
    assert not history.reaches_back_to((T + 2) * NS)
    assert purge(folder, T + 10, 10 - 4, UNLIMITED, None) == Purged(2, 2 * SIZE, 0)
    assert left(folder) == [T + 4, T + 5]


@given(
    gaps=st.lists(st.integers(1, 2 * DAY), min_size=1, max_size=12),
    keep_seconds=st.integers(0, 10 * DAY),
    keep=st.integers(0, 12),
    needed=st.none() | st.integers(0, 20 * DAY),
)
def test_the_oldest_that_limits_and_needs_allow(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[int], keep_seconds: int, keep: int, needed: int | None
) -> None:
    folder = os.fsencode(tmp_path_factory.mktemp("purge"))
    tss = [T + sum(gaps[: i + 1]) for i in range(len(gaps))]
    record(folder, *tss)
    now = tss[-1] + DAY
    over = [ts for i, ts in enumerate(tss) if i < len(tss) - keep or ts < now - keep_seconds]
    needed_from = None if needed is None else (T + needed) * NS
    expected = [ts for ts in over if needed_from is None or ts * NS <= needed_from]
    result = purge(folder, now, keep_seconds, keep * SIZE, needed_from)
    assert left(folder) == [ts for ts in tss if ts not in expected]
    assert result == Purged(len(expected), SIZE * len(expected), len(over) - len(expected))
    assert History(folder).reaches_back_to((expected[-1] if expected else tss[0] - 1) * NS)


def test_what_is_purged_is_in_the_archive(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "changelogs")
    writer = ChangelogWriter(folder, 1_700_000_000)
    kept = []
    for ts in range(1_700_000_001, 1_700_000_006):
        writer.append([Data(bytes(16))])
        rolled = writer.roll(ts)
        assert rolled is not None
        kept.append(os.path.basename(rolled.path).decode())
    writer.close()
    archive = ChangelogArchive(os.fsencode(tmp_path / "archive"), 1 << 20)
    purged = purge(folder, 1_700_000_005, 2, 1 << 30, None, archive)
    assert purged.deleted == 2
    with tarfile.open(tmp_path / "archive" / "archive_202311.tar") as tar:
        assert [os.path.basename(name) for name in tar.getnames()] == kept[:2]
