"""Names at a slave directory, and at a slave volume in memory: the contract of tests/slave_contract.py; and in which
order a page goes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gsync.base.model import ROOT_GFID, Gfid
from gsync.link.protocol import FillRow, RemoveRow
from lab.slave_model import FIFO, Slave
from lab.slave_side import DirectorySide, MemoryVolumeSide, NamesSide
from lab.slave_volume import MemoryVolume
from tests.slave_contract import NamesContract


@pytest.fixture(params=["directory", "volume of one brick", "volume of several bricks"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NamesSide]:
    if request.param == "directory":
        with closing(DirectorySide(tmp_path)) as directory:
            yield directory
    else:
        yield MemoryVolumeSide(MemoryVolume(refuses_twins=request.param == "volume of one brick"))


@pytest.fixture
def top(side: NamesSide) -> Gfid:
    return side.folder(b"top")


class TestNames(NamesContract):
    """Of each of them."""


def fifo(number: int) -> FillRow:
    """A new one in the root."""
    bname = b"%d" % number
    return FillRow(ROOT_GFID, bname, bytes(15) + bname, FIFO, 1, 1, os.geteuid(), os.getegid(), 10**18, 10**18, 0, None,
                   None)


def names(slave: Slave) -> set[bytes]:
    return {bname for bname, _ in slave.apply.names_in(ROOT_GFID, None, 100)[0]}


def test_what_a_page_makes_and_notes_is_on_disk_before_a_name_changes(slave: Slave) -> None:
    """rule 24"""
    slave.steps.clear()
    slave.apply.fill([fifo(1)])
    assert slave.steps == ["special made", "names to touch noted", "synced", "renamed", "names changed", "names follow"]


def test_what_a_removal_notes_is_on_disk_before_a_name_changes(slave: Slave) -> None:
    """rule 24"""
    slave.apply.fill([fifo(1)])
    slave.steps.clear()
    slave.apply.remove([RemoveRow(ROOT_GFID, b"1", 1)], False)
    assert slave.steps[:2] == ["names to touch noted", "synced"]
    assert slave.steps.index("detached") < slave.steps.index("names changed")


@pytest.mark.parametrize(("step", "changed"), [("special made", set()), ("renamed", {b"1"})])
def test_a_full_slave_ends_the_page_and_what_was_done_is_remembered(slave: Slave, step: str, changed: set[bytes]
                                                                    ) -> None:
    def second_time(number: int, name: str) -> None:
        if name == step and slave.steps.count(step) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    slave.steps.clear()
    slave.on_step = second_time
    with pytest.raises(OSError, match="No space"):
        slave.apply.fill([fifo(1), fifo(2), fifo(3)])
    assert slave.steps.count(step) == 2
    slave.on_step = lambda number, name: None
    assert names(slave) - {b"2"} == changed
    assert slave.apply.fill([fifo(1), fifo(2), fifo(3)]).answers == ["ok"] * 3
    assert names(slave) == {b"1", b"2", b"3"}
