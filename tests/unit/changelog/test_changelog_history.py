"""The history of a brick, GlusterFS's and gsync's: what is found, and when it does not reach back."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsync.base.model import NS
from gsync.changelog import layout
from gsync.changelog.htime import Htime, parse_record
from gsync.changelog.layout import HistoryGap
from gsync.changelog.reader import History
from gsync.changelog.records import HEADER

T = 1_700_000_000  # 2023-11-14T22:13:20Z
ELSEWHERE = b"/some/other/brick/.glusterfs/changelogs"


def make_history(folder: bytes, slices: Sequence[tuple[int, bool]], start: int, listed_in: bytes = ELSEWHERE) -> bytes:
    """An HTIME file as GlusterFS writes it, with the changelogs of the slices (ts, has changes); gives its path."""
    records = []
    for ts, has_changes in slices:
        path = layout.changelog_path(listed_in, ts)
        if has_changes:
            place = layout.changelog_path(folder, ts)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            Path(os.fsdecode(place)).write_bytes(HEADER)
        else:
            path = path.replace(b"/CHANGELOG.", b"/changelog.")
        records.append(path + b"\0")
    htime = layout.htime_path(folder, start)
    os.makedirs(os.path.dirname(htime), exist_ok=True)
    Path(os.fsdecode(htime)).write_bytes(b"".join(records))
    return htime


def found(history: History, start: int, end: int | None = None) -> list[int]:
    return [changelog.ts for changelog in history.since(start, end)]


@pytest.fixture
def folder(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path / "changelogs")


@given(
    gaps=st.lists(st.tuples(st.integers(1, 100_000), st.booleans()), max_size=30),
    cut=st.integers(0, 30),
    start=st.integers(-NS, 3_100_000 * NS),
    length=st.none() | st.integers(0, 3_100_000 * NS),
)
def test_binary_search_finds_what_a_look_at_each_does(
    gaps: list[tuple[int, bool]], cut: int, start: int, length: int | None
) -> None:
    slices, ts = [], T
    for gap, has_changes in gaps:
        ts += gap
        slices.append((ts, has_changes))
    start += T * NS
    end = None if length is None else start + length
    with tempfile.TemporaryDirectory() as tmp:
        folder = os.fsencode(tmp)
        make_history(folder, slices[:cut], T)
        make_history(folder, slices[cut:], max([T, *(ts for ts, _ in slices[:cut])]) + 1)
        history = History(folder)
        expected = [ts for ts, has in slices if has and ts * NS > start and (end is None or ts * NS <= end)]
        assert found(history, start, end) == expected
        assert history.last_ts == (slices[-1][0] if slices else None)


def test_the_folder_may_have_been_moved(folder: bytes) -> None:
    make_history(folder, [(T + 5, True)], T, listed_in=b"/elsewhere/2001/01/01")
    (changelog,) = History(folder).since(T * NS)
    assert changelog == (T + 5, folder + b"/2023/11/14/CHANGELOG.1700000005")


def test_places_without_date_folders_are_known_too() -> None:
    """As old GlusterFS lists them."""
    assert parse_record(b"/b/.glusterfs/changelogs/CHANGELOG.1700000005\0").place == b"CHANGELOG.1700000005"
    assert parse_record(b"/b/.glusterfs/changelogs/changelog.1700000005\0").place is None


def test_a_stime_within_a_second_needs_the_changelog_of_its_end(folder: bytes) -> None:
    make_history(folder, [(T + 1, True), (T + 2, True)], T)
    history = History(folder)
    assert found(history, (T + 1) * NS - 1) == [T + 1, T + 2]
    assert found(history, (T + 1) * NS) == [T + 2]
    assert found(history, (T + 1) * NS + 1) == [T + 2]
    assert found(history, T * NS, (T + 1) * NS) == [T + 1]
    assert found(history, T * NS, (T + 1) * NS - 1) == []


def test_a_torn_last_record_is_left_out(folder: bytes) -> None:
    htime = make_history(folder, [(T + 1, True), (T + 2, True)], T)
    size = os.stat(htime).st_size
    for cut in range(size // 2, size):
        os.truncate(htime, cut)
        assert found(History(folder), 0) == [T + 1]
        assert History(folder).last_ts == T + 1
    os.truncate(htime, size // 2 - 1)
    assert found(History(folder), 0) == []
    assert History(folder).last_ts is None


@pytest.mark.parametrize("damage", [bytes(30), b"/x\0", b"/a/CHANGELOG.notanumber\0"])
def test_damage_in_the_list_is_no_history(folder: bytes, damage: bytes) -> None:
    htime = make_history(folder, [(T + i, True) for i in range(1, 20)], T)
    with open(htime, "r+b") as file:
        file.seek(os.stat(htime).st_size // 2)
        file.write(damage)
    history = History(folder)
    with pytest.raises(HistoryGap, match="damaged"):
        found(history, T * NS)
    assert not history.reaches_back_to(T * NS)


def test_history_begins_with_the_newest_list(folder: bytes) -> None:
    """GlusterFS begins one each time that recording is switched on; changes before it were not recorded."""
    assert not History(folder).reaches_back_to(T * NS)
    make_history(folder, [(T + 1, True)], T)
    make_history(folder, [(T + 11, True)], T + 10)
    history = History(folder)
    assert history.covered_from() == (T + 10) * NS
    assert history.reaches_back_to((T + 10) * NS)
    assert not history.reaches_back_to((T + 10) * NS - 1)
    assert found(history, T * NS) == [T + 1, T + 11]


def test_the_mark_goes_before_the_lists(folder: bytes) -> None:
    make_history(folder, [(T + 1, True)], T)
    make_history(folder, [(T + 11, True)], T + 10)
    history = History(folder)
    layout.set_covered_from(folder, T * NS + 5)
    assert history.covered_from() == T * NS + 5
    assert history.reaches_back_to(T * NS + 5)
    assert not history.reaches_back_to(T * NS + 4)


def test_a_damaged_mark_is_no_history(folder: bytes) -> None:
    make_history(folder, [(T + 1, True)], T)
    Path(os.fsdecode(folder), "htime", "covered_from").write_bytes(b"")
    assert not History(folder).reaches_back_to((T + 1) * NS)
    with pytest.raises(HistoryGap, match="covered_from"):
        History(folder).covered_from()


def test_history_does_not_reach_back_over_a_missing_changelog(folder: bytes) -> None:
    make_history(folder, [(T + 1, True), (T + 2, True), (T + 3, True)], T)
    os.unlink(layout.changelog_path(folder, T + 2))
    history = History(folder)
    assert not history.reaches_back_to((T + 1) * NS)
    assert history.reaches_back_to((T + 2) * NS)
    changelogs = history.since(T * NS)
    assert next(changelogs).ts == T + 1
    with pytest.raises(HistoryGap, match="missing"):
        next(changelogs)


def test_a_list_that_grows_while_it_is_read_is_read_as_it_was(folder: bytes) -> None:
    htime = make_history(folder, [(T + 1, True)], T)
    records = Htime(htime).records_after(0)
    assert next(records).ts == T + 1
    make_history(folder, [(T + 1, True), (T + 2, True)], T)
    assert list(records) == []
    assert [record.ts for record in Htime(htime).records_after(0)] == [T + 1, T + 2]
