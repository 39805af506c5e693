"""The writer: layout, order of times, and that a death at any of its steps loses nothing that it promised."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gsync.base.model import NS
from gsync.changelog import htime, layout
from gsync.changelog.htime import MOST_RECORDS
from gsync.changelog.layout import Changelog
from gsync.changelog.reader import History
from gsync.changelog.records import Data, Record, encode, read_records
from gsync.changelog.writer import ChangelogWriter
from lab.changelogs import SAMPLE, changelog, gfid
from lab.syncs import Syncs

T = 1_700_000_000


@pytest.fixture
def folder(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path / "changelogs")


def contents(some: Changelog) -> list[Any]:
    with open(some.path, "rb") as file:
        return list(read_records(file))


def everything(folder: bytes) -> dict[int, list[Any]]:
    return {each.ts: contents(each) for each in History(folder).since(0)}


def write(folder: bytes, slices: dict[int, list[Record]], now: int = T, list_size: int = MOST_RECORDS) -> None:
    writer = ChangelogWriter(folder, now, list_size)
    for ts, some in slices.items():
        writer.append(some)
        writer.roll(ts)
    writer.close()


def test_what_was_rolled_is_history(folder: bytes) -> None:
    write(folder, {T + 1: SAMPLE, T + 60: SAMPLE[:2]})
    write(folder, {T + 86400: SAMPLE[2:]})
    assert everything(folder) == {T + 1: SAMPLE, T + 60: SAMPLE[:2], T + 86400: SAMPLE[2:]}


def test_records_are_durable_before_their_place_that_before_the_lists_and_these_before_roll_returns(
        folder: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ChangelogWriter(folder, T)
    writer.append(SAMPLE)
    writer.roll(T + 1)
    writer.append(SAMPLE)
    syncs = Syncs(monkeypatch)
    writer.roll(T + 2)
    name = f"CHANGELOG.{T + 2}"
    assert syncs.calls == [("fsync", "CHANGELOG"), ("rename", name), ("fsync", "14"), ("fsync", "changelogs"),
                           ("fsync", "gsync.slices"), ("fsync", f"HTIME.{T}")]


def test_what_a_death_left_is_durable_before_its_place(folder: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, {T + 1: SAMPLE})
    Path(os.fsdecode(folder), "CHANGELOG").write_bytes(changelog(SAMPLE[:1]))
    syncs = Syncs(monkeypatch)
    ChangelogWriter(folder, T + 2).close()
    assert syncs.calls[:2] == [("fsync", "CHANGELOG"), ("rename", f"CHANGELOG.{T + 2}")]


def test_an_empty_list_does_not_hide_the_one_before_it(folder: bytes) -> None:
    """A death right after it was begun."""
    write(folder, {T + 1: SAMPLE, T + 2: SAMPLE})
    Path(os.fsdecode(layout.htime_path(folder, T + 3))).touch()
    assert htime.HtimeWriter(folder, T + 9).last_ts == T + 2


def test_the_layout_is_that_of_glusterfs_in_utc(folder: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    try:
        writer = ChangelogWriter(folder, T)
        writer.append([Data(gfid(1))])
        live = Path(os.fsdecode(folder), "CHANGELOG")
        assert stat.S_IMODE(live.stat().st_mode) == 0o600
        done = writer.roll(T + 9)
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    assert done == Changelog(T + 9, folder + b"/2023/11/14/CHANGELOG.1700000009")
    assert not live.exists()
    assert stat.S_IMODE(os.stat(done.path).st_mode) == 0o600
    assert Path(os.fsdecode(done.path)).read_bytes() == changelog([Data(gfid(1))])
    assert Path(os.fsdecode(folder), "htime", "HTIME.1700000000").read_bytes() == done.path + b"\0"


@pytest.mark.root
def test_the_list_has_the_xattrs_of_glusterfs(folder: bytes) -> None:
    write(folder, {T + 1: SAMPLE, T + 60: SAMPLE})
    assert os.getxattr(layout.htime_path(folder, T), "trusted.glusterfs.htime") == b"%d:2" % (T + 60)
    assert os.getxattr(layout.htime_folder(folder), "trusted.glusterfs.current_htime") == b"HTIME.%d" % T


def test_a_file_system_without_xattrs_is_fine(folder: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    write(folder, {T + 1: SAMPLE})
    assert everything(folder) == {T + 1: SAMPLE}


def test_an_empty_slice_writes_nothing(folder: bytes) -> None:
    writer = ChangelogWriter(folder, T)
    writer.append([])
    writer.append(b"")
    assert writer.roll(T + 1) is None
    assert writer.last_ts < T + 1
    assert History(folder).last_ts is None
    assert list(layout.stored(folder)) == []


def test_encoded_records_and_values_are_the_same(folder: bytes) -> None:
    writer = ChangelogWriter(folder, T)
    writer.append(encode(SAMPLE[0]))
    writer.append(SAMPLE[1:])
    assert writer.pending == sum(len(encode(record)) for record in SAMPLE)
    writer.roll(T + 1)
    assert writer.pending == 0
    assert everything(folder) == {T + 1: SAMPLE}


def test_times_only_go_forward_whatever_the_clock_does(folder: bytes) -> None:
    writer = ChangelogWriter(folder, T)
    assert writer.next_ts(T) == T
    for now, expected in [(T + 5, T + 5), (T + 5, T + 6), (T - 1000, T + 7), (T + 100, T + 100)]:
        writer.append([Data(gfid(1))])
        with pytest.raises(ValueError, match="not later"):
            writer.roll(writer.last_ts)
        done = writer.roll(writer.next_ts(now))
        assert done is not None and done.ts == expected
    writer.close()
    assert ChangelogWriter(folder, T - 5000).next_ts(T - 5000) == T + 101
    assert list(everything(folder)) == [T + 5, T + 6, T + 7, T + 100]


def test_a_clock_before_2001_still_gives_records_of_equal_length(folder: bytes) -> None:
    write(folder, {5: SAMPLE, 999_999_999: SAMPLE, T: SAMPLE}, now=1)
    assert list(everything(folder)) == [5, 999_999_999, T]


def test_history_is_covered_from_the_first_open_on(folder: bytes) -> None:
    write(folder, {T + 1: SAMPLE}, now=T)
    write(folder, {T + 100: SAMPLE}, now=T + 50)
    assert History(folder).reaches_back_to(T * NS)
    assert not History(folder).reaches_back_to(T * NS - 1)


def test_a_moved_folder_goes_on_with_a_new_list(folder: bytes) -> None:
    write(folder, {T: SAMPLE}, now=T)
    moved = folder + b" moved"
    os.rename(folder, moved)
    write(moved, {T + 1: SAMPLE[:1], T + 2: SAMPLE[:2]}, now=T)
    assert everything(moved) == {T: SAMPLE, T + 1: SAMPLE[:1], T + 2: SAMPLE[:2]}
    assert len(layout.htime_paths(moved)) == 2
    assert History(moved).reaches_back_to(T * NS)


def test_a_full_list_is_followed_by_another(folder: bytes) -> None:
    slices = {T + i: SAMPLE[:1] for i in range(1, 9)}
    write(folder, slices, list_size=3)
    assert [start for start, _ in layout.htime_paths(folder)] == [T, T + 3, T + 6]
    assert everything(folder) == slices
    assert History(folder).reaches_back_to(T * NS)


def test_a_live_file_cut_anywhere_keeps_its_whole_records(folder: bytes) -> None:
    some = [SAMPLE[2], SAMPLE[0], SAMPLE[3]]
    data = changelog(some)
    write(folder, {T + 1: SAMPLE})
    now = T + 1
    for cut in range(len(data) + 1):
        now += 1
        Path(os.fsdecode(folder), "CHANGELOG").write_bytes(data[:cut])
        ChangelogWriter(folder, now).close()
        whole = [record for i, record in enumerate(some) if len(changelog(some[: i + 1])) <= cut]
        assert everything(folder).get(now, []) == whole
        assert not os.path.exists(layout.live_path(folder))
    assert list(everything(folder))[-1] == now


@pytest.mark.parametrize("junk", [b"", bytes(4096), b"no changelog\n" + encode(SAMPLE[0])])
def test_a_live_file_without_a_header_is_dropped(folder: bytes, junk: bytes) -> None:
    write(folder, {T + 1: SAMPLE})
    Path(os.fsdecode(folder), "CHANGELOG").write_bytes(junk)
    write(folder, {T + 2: SAMPLE})
    assert everything(folder) == {T + 1: SAMPLE, T + 2: SAMPLE}


def test_a_slice_that_a_death_kept_from_the_list_counts_for_the_next_time(folder: bytes) -> None:
    write(folder, {T + 50: SAMPLE})
    os.truncate(layout.htime_path(folder, T), 0)
    Path(os.fsdecode(folder), "CHANGELOG").write_bytes(changelog(SAMPLE[:1]))
    ChangelogWriter(folder, T + 2).close()
    assert everything(folder) == {T + 50: SAMPLE, T + 51: SAMPLE[:1]}


@pytest.mark.parametrize("tail", [b"/home/x/changelogs/2023/11", bytes(300), b"\0"])
def test_an_unreadable_end_of_the_list_is_cut_off(folder: bytes, tail: bytes) -> None:
    write(folder, {T + 1: SAMPLE, T + 2: SAMPLE})
    with open(layout.htime_path(folder, T), "ab") as file:
        file.write(tail)
    os.unlink(layout.changelog_path(folder, T + 2))  # purged, say: still no reason to go back
    assert ChangelogWriter(folder, T).last_ts == T + 2
    write(folder, {T + 3: SAMPLE})
    listed = htime.Htime(layout.htime_path(folder, T)).records_after(0)
    assert [record.ts for record in listed] == [T + 1, T + 2, T + 3]


def test_a_lost_list_is_made_anew_from_the_changelogs(folder: bytes) -> None:
    write(folder, {T + 1: SAMPLE, T + 86400: SAMPLE})
    os.unlink(layout.htime_path(folder, T))
    write(folder, {T + 86402: SAMPLE}, now=T + 86401)
    assert everything(folder) == {T + 1: SAMPLE, T + 86400: SAMPLE, T + 86402: SAMPLE}


# Deaths. The writer works in a child process, which ends itself right before or after the n-th system call
# that changes something.

CHANGING = ["open", "mkdir", "rename", "unlink", "fsync", "pwrite", "ftruncate"]


def die_at(step: int, after: bool, work: Callable[[], None]) -> bool:
    """Do the work in a child that dies at the step-th changing call; False if it came to an end before."""
    pid = os.fork()
    if pid == 0:
        calls = 0

        def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
            def stepping(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == step and not after:
                    os._exit(9)
                result = call(*args, **kwargs)
                if calls == step:
                    os._exit(9)
                return result

            return stepping

        for name in CHANGING:
            setattr(os, name, wrapped(getattr(os, name)))
        try:
            work()
        except BaseException:  # noqa: BLE001 the child must not go on as another pytest
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 9)
    return status == 9


def rolled_in_child(folder: bytes, promised: int, slices: dict[int, list[Record]], now: int) -> None:
    """As write(), telling the file descriptor `promised` of each slice that roll() has promised."""
    writer = ChangelogWriter(folder, now, list_size=2)
    for ts, some in slices.items():
        writer.append(some)
        assert writer.roll(ts) is not None
        os.write(promised, b"%d\n" % ts)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("left", [b"", changelog(SAMPLE[:3])[:-1]], ids=["clean", "leftover"])
def test_a_death_at_any_step_loses_no_rolled_slice(
    tmp_path: Path, after: bool, left: bytes
) -> None:
    slices = {T + 1: SAMPLE, T + 2: SAMPLE[:2], T + 90_000: SAMPLE[2:]}
    step, died = 0, True
    while died:
        step += 1
        folder = os.fsencode(tmp_path / f"{step}")
        write(folder, {T - 1: SAMPLE[:1]}, now=T - 10, list_size=2)
        if left:
            Path(os.fsdecode(folder), "CHANGELOG").write_bytes(left)
        reader, promised = os.pipe()
        died = die_at(step, after, lambda: rolled_in_child(folder, promised, slices, T))  # noqa: B023 called at once
        os.close(promised)
        with open(reader, "rb") as file:
            kept = [int(line) for line in file]
        write(folder, {T + 100_000: SAMPLE}, now=T + 99_999, list_size=2)
        all_found = everything(folder)
        assert {T - 1, *kept, T + 100_000} <= set(all_found), f"step {step}"
        for ts in kept:
            assert all_found[ts] == slices[ts], f"step {step}"
        # All that is there is listed, once and in order; a slice that was not promised is whole or not there.
        listed = [r.ts for _, path in layout.htime_paths(folder) for r in htime.Htime(path).records_after(-1)]
        assert listed == sorted(set(listed)) == [each.ts for each in layout.stored(folder)], f"step {step}"
        known = [*slices.values(), SAMPLE[:1], SAMPLE[:2], SAMPLE]
        assert all(some in known for some in all_found.values()), f"step {step}"
        assert History(folder).reaches_back_to((T - 10) * NS), f"step {step}"
    assert step > 20


@pytest.mark.parametrize("name", ["rename", "fsync", "pwrite", "mkdir"])
def test_a_roll_that_failed_can_be_tried_again(folder: bytes, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A full disk, say: the same records are in exactly one changelog in the end."""
    writer = ChangelogWriter(folder, T)
    writer.append(SAMPLE)
    real, failures = getattr(os, name), 3

    def full(*args: Any) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, name, full)
    ts = T
    while failures:
        ts += 1
        with pytest.raises(OSError, match="No space"):
            writer.roll(ts)
    writer.roll(ts + 1)
    writer.append(SAMPLE[:1])
    writer.roll(ts + 2)
    assert list(everything(folder).values()) == [SAMPLE, SAMPLE[:1]]
