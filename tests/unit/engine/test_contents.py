"""Whose content is sent again, and whose attributes are set."""

from __future__ import annotations

import errno

import pytest

from gsync.base.model import ROOT_GFID, Gfid
from gsync.engine.contents import COMPARED, Contents
from gsync.engine.worklist import DataNeed
from lab.batches import Between, file_at, folder_at, gfid_of, stat_of

A, B, FOLDER = gfid_of(1), gfid_of(2), gfid_of(3)


def contents_of(world: Between, stime: int | None = None) -> Contents:
    return Contents(world.master, world.slave, world.db, world.failures, lambda: None, stime)


def known(world: Between, gfid: Gfid, need: DataNeed, *, mtime: int = 0, size: int = 1, same: bool = False) -> None:
    """A file that the slave has, and that the batch owes this."""
    world.db.add_gfids([gfid], need)
    world.slave.knows.add(gfid)
    world.master.stats[gfid] = stat_of(mtime=mtime, size=size)
    world.master.digests[gfid] = (size, "new")
    world.slave.digests[gfid] = (size, "new" if same else "old")


def stale(world: Between, stime: int | None = None) -> list[Gfid]:
    return [gfid for page in contents_of(world, stime).stale() for gfid in page]


def test_content_that_was_written_is_sent_without_a_look_at_it(world: Between) -> None:
    known(world, A, DataNeed.SEND, same=True)
    assert stale(world) == [A]
    assert world.slave.compared == []


def test_content_that_the_slave_does_not_have_is_not_sent_in_place(world: Between) -> None:
    world.db.add_gfids([A], DataNeed.SEND)
    assert stale(world) == []


@pytest.mark.parametrize(("same", "sent"), [(True, []), (False, [A])])
def test_suspect_content_is_sent_if_it_differs(world: Between, same: bool, sent: list[Gfid]) -> None:
    known(world, A, DataNeed.COMPARE, same=same)
    assert stale(world) == sent


def test_content_that_the_slave_cannot_read_is_sent(world: Between) -> None:
    known(world, A, DataNeed.COMPARE, same=True)
    del world.slave.digests[A]
    assert stale(world) == [A]


@pytest.mark.parametrize(("mtime", "sent"), [(9, []), (10, [A])])
def test_what_was_last_written_before_the_stime_is_compared(world: Between, mtime: int, sent: list[Gfid]) -> None:
    known(world, A, DataNeed.SEND, mtime=mtime, same=True)
    assert stale(world, stime=10) == sent


def test_the_agent_does_not_compare_too_much_at_once(world: Between) -> None:
    for gfid in (A, B):
        known(world, gfid, DataNeed.COMPARE, size=COMPARED, same=True)
    stale(world)
    assert world.slave.compared == [[A], [B]]


def test_small_files_are_compared_in_one_call(world: Between) -> None:
    for gfid in (A, B):
        known(world, gfid, DataNeed.COMPARE, same=True)
    stale(world)
    assert world.slave.compared == [[A, B]]


def test_a_file_that_cannot_be_looked_at_is_sent_so_that_sending_says_why(world: Between) -> None:
    known(world, A, DataNeed.COMPARE)
    world.master.stats[A] = errno.EIO
    assert stale(world) == [A]


def test_a_master_that_is_away_ends_the_batch(world: Between) -> None:
    known(world, A, DataNeed.COMPARE)
    world.master.stats[A], world.master.away = errno.ENOTCONN, {errno.ENOTCONN}
    with pytest.raises(OSError, match="not connected"):
        stale(world)


def test_a_suspect_file_is_compared_and_a_suspect_symlink_or_directory_is_not(world: Between) -> None:
    contents_of(world).suspect([file_at((ROOT_GFID, b"a"), A), folder_at((ROOT_GFID, b"d"), FOLDER)])
    assert world.db.data(b"", 10) == [(A, DataNeed.COMPARE)]
    assert world.db.meta(b"", 10, dirs=False) == [A, FOLDER]


def test_attributes_of_directories_are_set_last(world: Between) -> None:
    folder = gfid_of(0)  # by its gfid it would be the first
    for gfid in (A, B, folder):
        world.master.stats[gfid] = stat_of()
    world.db.add_gfids([folder], DataNeed.NONE, is_dir=True)
    world.db.add_gfids([A, B], DataNeed.NONE)
    contents_of(world).set_attributes()
    assert world.slave.attributes == [A, B, folder]


def test_an_inode_that_is_gone_has_no_attributes_to_set(world: Between) -> None:
    world.db.add_gfids([A], DataNeed.NONE)
    contents_of(world).set_attributes()
    assert (world.slave.attributes, world.failed()) == ([], [])


def test_attributes_that_cannot_be_read_are_a_failure(world: Between) -> None:
    world.db.add_gfids([A], DataNeed.NONE)
    world.master.stats[A], world.master.names[A] = errno.EACCES, [(ROOT_GFID, b"a")]
    contents_of(world).set_attributes()
    assert world.failed() == [("meta", b"path of a", errno.EACCES)]


def test_a_master_that_is_away_is_no_failure_of_the_attributes(world: Between) -> None:
    world.db.add_gfids([A], DataNeed.NONE)
    world.master.stats[A], world.master.away = errno.ENOTCONN, {errno.ENOTCONN}
    with pytest.raises(OSError, match="not connected"):
        contents_of(world).set_attributes()
    assert world.failed() == []


def test_attributes_that_the_slave_refuses_are_a_failure(world: Between) -> None:
    world.db.add_gfids([A], DataNeed.NONE)
    world.master.stats[A], world.master.names[A] = stat_of(), [(ROOT_GFID, b"a")]
    world.slave.meta_errors[A] = errno.EPERM
    contents_of(world).set_attributes()
    assert world.failed() == [("meta", b"path of a", errno.EPERM)]


def test_an_inode_that_the_slave_does_not_have_is_no_failure(world: Between) -> None:
    world.db.add_gfids([A], DataNeed.NONE)
    world.master.stats[A], world.slave.meta_errors[A] = stat_of(), -1
    contents_of(world).set_attributes()
    assert world.failed() == []
