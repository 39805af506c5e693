"""The list of slices by number: it grows, survives torn ends, and a place in another history is not found in it."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gsync.base.model import ROOT_GFID
from gsync.changelog import layout
from gsync.changelog.layout import HistoryGap
from gsync.changelog.records import Fop, Meta
from gsync.changelog.slices import Place, Slices, checksum
from gsync.changelog.writer import ChangelogWriter

NOW = 1_700_000_000


@pytest.fixture
def folder(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path / "changelogs")


def record(folder: bytes, *tss: int) -> None:
    """Slices that end at these times."""
    writer = ChangelogWriter(folder, NOW)
    for ts in tss:
        writer.append([Meta(Fop.SETATTR, ROOT_GFID)])
        writer.roll(ts)
    writer.close()


def numbers(folder: bytes, after: int = 0) -> list[int]:
    return [each.number for each in Slices(folder).after(after)]


def place(folder: bytes) -> Place:
    """The last one."""
    slices = Slices(folder)
    return slices.place(slices.last())


def test_slices_are_numbered_over_all_starts(folder: bytes) -> None:
    record(folder, NOW, NOW + 1)
    id_ = Slices(folder).id()
    record(folder, NOW + 10)
    found = list(Slices(folder).after(0))
    assert [(each.number, each.ts) for each in found] == [(1, NOW), (2, NOW + 1), (3, NOW + 10)]
    assert [(each.size, each.crc) for each in found] == [
        checksum(layout.changelog_path(folder, each.ts)) for each in found]
    assert Slices(folder).id() == id_
    assert numbers(folder, 2) == [3]
    assert Slices(folder).at_or_before(NOW + 9) == found[1]
    assert Slices(folder).at_or_before(NOW - 1) is None


def test_a_place_is_held_by_its_own_history_only(folder: bytes, tmp_path: Path) -> None:
    """Set back to a copy that was taken before, it holds what it had then; what came instead is another slice."""
    record(folder, NOW)
    shutil.copytree(os.fsdecode(folder), tmp_path / "copy")
    before = place(folder)
    record(folder, NOW + 1)
    after = place(folder)
    assert Slices(folder).holds(before) and Slices(folder).holds(after)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "copy", os.fsdecode(folder))
    assert Slices(folder).holds(before) and not Slices(folder).holds(after)
    record(folder, NOW + 5)
    assert not Slices(folder).holds(after)
    assert not Slices(folder).holds(replace(place(folder), digest="00000000"))
    assert not Slices(folder).holds(replace(before, history="0" * 32))


def test_the_beginning_of_another_history_is_not_held(folder: bytes) -> None:
    record(folder, NOW)
    slices = Slices(folder)
    assert slices.holds(slices.place(None))
    assert not slices.holds(Place("0" * 32, 0))


def test_a_place_survives_as_text() -> None:
    there = Place("ab" * 16, 7, NOW, "0123abcd")
    assert Place.parse(str(there)) == there
    for text in ("", "x", "a:b:c:d", "a:1:2", "a:-1:2:d"):
        assert Place.parse(text) is None


@pytest.mark.parametrize("torn", range(1, 32))
def test_what_is_torn_at_the_end_is_written_again(folder: bytes, torn: int) -> None:
    record(folder, NOW, NOW + 1)
    there, path = place(folder), layout.slices_path(folder)
    os.truncate(path, os.path.getsize(path) - torn)
    assert numbers(folder) == [1]
    record(folder)
    assert place(folder) == there


def test_zeros_at_the_end_are_written_again(folder: bytes) -> None:
    """As a power cut leaves a file that had grown."""
    record(folder, NOW, NOW + 1)
    there, path = place(folder), layout.slices_path(folder)
    with open(path, "r+b") as file:
        file.seek(-32, os.SEEK_END)
        file.write(bytes(32))
    record(folder)
    assert place(folder) == there


@pytest.fixture(params=range(0, 96, 8))
def damaged(request: pytest.FixtureRequest, folder: bytes) -> Iterator[bytes]:
    """A byte of the header or of the first two of four records is another one."""
    record(folder, NOW, NOW + 1, NOW + 2, NOW + 3)
    with open(layout.slices_path(folder), "r+b") as file:
        file.seek(request.param)
        byte = file.read(1)
        file.seek(request.param)
        file.write(bytes([byte[0] ^ 0xFF]))
    yield folder


def test_damage_is_a_gap_and_then_another_history(damaged: bytes) -> None:
    """Not silence: nobody who had a place goes on from it."""
    there = Place("0" * 32, 4)
    try:
        there = place(damaged)
        list(Slices(damaged).after(0))
    except HistoryGap:
        pass
    record(damaged)
    assert numbers(damaged) == [1, 2, 3, 4]
    assert not Slices(damaged).holds(there) or Slices(damaged).id() == there.history


def test_a_history_that_an_older_gsync_recorded_is_listed_unchecked(folder: bytes) -> None:
    record(folder, NOW, NOW + 1)
    os.unlink(layout.slices_path(folder))
    assert Slices(folder).id() is None
    record(folder, NOW + 2)
    assert [(each.number, each.crc is None) for each in Slices(folder).after(0)] == [(1, True), (2, True), (3, False)]


def test_what_is_forgotten_ends_where_the_kept_ones_begin(folder: bytes) -> None:
    record(folder, *range(NOW, NOW + 10))
    last = place(folder)
    writer = ChangelogWriter(folder, NOW)
    writer.slices.forget(NOW + 3)
    assert numbers(folder) == list(range(1, 11))  # less than half: not worth it
    writer.slices.forget(NOW + 7)
    writer.append([Meta(Fop.SETATTR, ROOT_GFID)])
    writer.roll(NOW + 20)
    writer.close()
    assert numbers(folder, 7) == [8, 9, 10, 11]
    assert numbers(folder, 8) == [9, 10, 11]
    assert Slices(folder).holds(last)
    with pytest.raises(HistoryGap, match="begins with 8"):
        numbers(folder, 6)


def test_a_list_is_read_whole_however_long_it_is(folder: bytes) -> None:
    """Slices are numbered on from its end: a list that seemed to end before would begin another history."""
    record(folder, NOW)
    id_ = Slices(folder).id()
    with open(layout.slices_path(folder), "ab") as file:
        for number in range(2, 10_001):
            fields = struct.pack(">QQQI", number, NOW + number, 0, 0)
            file.write(fields + zlib.crc32(fields).to_bytes(4, "big"))
    record(folder, NOW + 20_000)
    assert Slices(folder).id() == id_
    assert [each.number for each in Slices(folder).after(9_999)] == [10_000, 10_001]
