"""A slave whose file system keeps no inode numbers, or does not tell all names apart, as FAT. (Kills are in
test_slave_crash.)"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.base import fsid
from gsync.base.model import ROOT_GFID as ROOT
from gsync.link import protocol
from gsync.link.protocol import FillRow, RemoveRow
from gsync.slave.directory.target import DirectoryTarget
from gsync.slave.target import Asked, Opened
from lab.slave_model import REG, Slave, open_new

F, G = b"f" * 16, b"g" * 16
ASKED = Asked("volume", "volume", "session", 0, "", False, False, 0, frozenset(), ("", ()), "")


@pytest.fixture(autouse=True)
def no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsid, "_makes_up_numbers", lambda fd: True)


@pytest.fixture
def slave(root: Path) -> Iterator[Slave]:
    with Slave(root) as slave:
        yield slave


def row(bname: bytes, gfid: bytes) -> FillRow:
    return FillRow(ROOT, bname, gfid, REG, 5, 1, os.geteuid(), os.getegid(), 1, 1, 0, None, [])


def place(slave: Slave, bname: bytes, gfid: bytes) -> None:
    os.close(open_new(slave.apply.tree, gfid))
    assert slave.apply.fill([row(bname, gfid)]).answers == [protocol.OK]


def found(root: Path) -> Opened:
    target = DirectoryTarget(os.fsencode(root))
    try:
        return target.open(ASKED)
    finally:
        target.close()


def test_what_was_touched_since_the_last_commit_is_in_doubt_though_the_last_agent_ended_in_order(root: Path) -> None:
    with Slave(root) as slave:
        place(slave, b"f", F)
        slave.tree.index.set_fact("clean", 1)
    assert found(root).unclean
    with Slave(root) as again:
        assert again.apply.known([F]) == [0]
        assert again.apply.fill([row(b"f", F)]).answers == [protocol.ADOPTED]
        again.apply.commit(10, 10, 0, clear=True)
        again.tree.index.set_fact("clean", 1)
    assert not found(root).unclean
    with Slave(root) as once_more:
        assert once_more.apply.fill([row(b"f", F)]).answers == [protocol.OK]


def test_a_name_that_leads_to_a_file_of_another_name_is_neither_filled_nor_removed(
        slave: Slave, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAT gives a long name a short one, which is not listed."""
    slave.tree.caps = slave.tree.caps._replace(case_sensitive=False)
    place(slave, b"a long name", F)
    os.link(root / "a long name", root / "ALONGN~1")
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda fd: [name for name in real(fd) if name != "ALONGN~1"])
    assert [error.errno for error in slave.apply.fill([row(b"ALONGN~1", G)]).errors] == [errno.EEXIST]
    assert slave.apply.remove([RemoveRow(ROOT, b"ALONGN~1", 5)]).errors == []
    assert {"a long name", "ALONGN~1"} <= set(real(root))


def test_a_dot_at_the_end_of_a_name_is_refused_where_it_would_be_dropped(slave: Slave) -> None:
    slave.tree.caps = slave.tree.caps._replace(dots=False)
    assert [error.errno for error in slave.apply.fill([row(b"name.", F)]).errors] == [errno.EINVAL]
