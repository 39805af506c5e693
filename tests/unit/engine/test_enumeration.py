"""What is read of directories, and when a new one is complete."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from gsync.base.clock import SYSTEM_CLOCK
from gsync.base.model import ROOT_GFID, Gfid
from gsync.engine.enumeration import READERS, Enumeration, Listed
from gsync.engine.worklist import EnumDir, NameState
from gsync.master.tree import DirReader, Resolved, Verdict
from lab.batches import Between, Entries, file_at, gfid_of, nothing_at

FOLDER, A, B = gfid_of(1), gfid_of(2), gfid_of(3)
FILE = file_at((FOLDER, b"a"), A)


def enumeration_of(world: Between, *, direct: bool = True, empty: bool = False, created: frozenset[Gfid] = frozenset(),
                   listed: int = 100) -> Enumeration:
    return Enumeration(world.master, world.slave, world.db, world.failures, world.clock, direct, empty, created, listed)


def directory(world: Between, *entries: Resolved, new: bool, fails: int = 0) -> Entries:
    """A directory to be enumerated."""
    reader = Entries(FOLDER, entries, fails)
    world.master.dirs[FOLDER] = reader
    world.db.add_dirs([EnumDir(FOLDER, None, False, new)])
    return reader


def read(enumeration: Enumeration) -> tuple[Listed, list[Gfid]]:
    """The first page, and new directories that are complete then."""
    enumeration.open(())
    page = enumeration.page(())
    assert page is not None
    return page, enumeration.end(page.ended)


def test_where_no_directory_is_to_be_read_there_is_no_page(world: Between) -> None:
    enumeration = enumeration_of(world)
    assert enumeration.open(()) == ([], [])
    assert enumeration.page(()) is None


def test_a_directory_is_read_page_by_page(world: Between) -> None:
    entries = [file_at((FOLDER, b"%d" % n), gfid_of(10 + n)) for n in range(5)]
    directory(world, *entries, new=False)
    enumeration = enumeration_of(world, listed=2)
    pages = []
    enumeration.open(())
    while (page := enumeration.page(())) is not None:
        pages.append(page.to_ask)
    assert pages == [entries[:2], entries[2:4], entries[4:]]


def test_a_directory_that_was_read_is_closed(world: Between) -> None:
    reader = directory(world, FILE, new=False)
    read(enumeration_of(world))
    assert reader.closed


def test_whatever_is_open_is_closed_in_the_end(world: Between) -> None:
    reader = directory(world, FILE, new=False)
    enumeration = enumeration_of(world, listed=1)
    read(enumeration)
    assert not reader.closed
    enumeration.close()
    assert reader.closed


def test_a_directory_to_be_enumerated_gets_its_attributes_in_the_end(world: Between) -> None:
    enumeration_of(world).add([EnumDir(FOLDER, None, False, True)])
    assert world.db.meta(b"", 10, dirs=True) == [FOLDER]
    assert world.db.take_dirs(10) == [EnumDir(FOLDER, None, False, True)]


# known directories: both sides


def test_names_that_only_the_slave_has_are_looked_at(world: Between) -> None:
    directory(world, FILE, new=False)
    world.slave.names[FOLDER] = [b"a", b"old"]
    read(enumeration_of(world))
    assert world.named(NameState.DIRTY) == [b"old"]


def test_a_known_directory_gets_its_attributes(world: Between) -> None:
    directory(world, new=False)
    read(enumeration_of(world))
    assert world.db.meta(b"", 10, dirs=True) == [FOLDER]


def test_a_directory_that_cannot_be_read_is_a_failure_and_nothing_in_it_is_removed(world: Between) -> None:
    world.master.names[FOLDER] = [(ROOT_GFID, b"d")]
    world.slave.names[FOLDER] = [b"a"]
    directory(world, new=False)
    world.master.dirs[FOLDER] = nothing_at((FOLDER, b""), Verdict.ERROR, errno.EACCES)
    enumeration_of(world).open(())
    assert world.failed() == [("dir", b"path of d", errno.EACCES)]
    assert world.named(NameState.DIRTY) == []


def test_a_directory_that_cannot_be_read_to_its_end_is_a_failure_and_nothing_in_it_is_removed(world: Between) -> None:
    directory(world, FILE, new=False, fails=errno.EIO)
    world.slave.names[FOLDER] = [b"a", b"unread"]
    read(enumeration_of(world))
    assert world.failed() == [("dir", b"?", errno.EIO)]
    assert world.named(NameState.DIRTY) == []


def test_a_master_that_is_away_is_no_failure_of_the_directory(world: Between) -> None:
    world.master.away = {errno.ENOTCONN}
    directory(world, FILE, new=False, fails=errno.ENOTCONN)
    with pytest.raises(OSError, match="not connected"):
        read(enumeration_of(world))
    assert world.failed() == []


def test_a_directory_that_the_recorder_does_not_know_yet_waits_for_it_once(world: Between) -> None:
    directory(world, new=False)
    world.master.dirs[FOLDER] = nothing_at((FOLDER, b""), Verdict.UNKNOWN)
    enumeration = enumeration_of(world)
    _, unknown = enumeration.open(())
    assert unknown == [EnumDir(FOLDER, None, False, False)]
    world.db.add_dirs(unknown)
    assert enumeration.open({FOLDER}) == ([], [])


def test_the_covered_names_of_a_directory_that_is_not_read_are_looked_at_one_by_one(world: Between) -> None:
    world.dirty(b"a", parent=FOLDER)
    directory(world, new=False)
    world.db.cover()
    world.master.dirs[FOLDER] = nothing_at((FOLDER, b""), Verdict.ABSENT)
    enumeration_of(world).open(())
    assert world.named(NameState.DIRTY) == [b"a"]


# new directories, built in limbo


def test_the_files_of_a_new_directory_go_unasked_where_the_slave_was_empty(world: Between) -> None:
    directory(world, FILE, new=True)
    page, _ = read(enumeration_of(world, empty=True))
    assert (page.unasked, page.to_ask) == ([FILE], [])


def test_elsewhere_only_those_that_were_created_in_the_time_of_the_batch(world: Between) -> None:
    old = file_at((FOLDER, b"b"), B)
    directory(world, FILE, old, new=True)
    page, _ = read(enumeration_of(world, created=frozenset({A})))
    assert (page.unasked, page.to_ask) == ([FILE], [old])


def test_an_engine_that_cannot_put_them_there_sends_none_unasked(world: Between) -> None:
    directory(world, FILE, new=True)
    page, _ = read(enumeration_of(world, direct=False, empty=True))
    assert (page.unasked, page.to_ask) == ([], [FILE])


def test_a_file_of_several_names_is_asked_for(world: Between) -> None:
    item = file_at((FOLDER, b"a"), A, nlink=2)
    directory(world, item, new=True)
    page, _ = read(enumeration_of(world, empty=True))
    assert page.to_ask == [item]


def test_a_file_that_is_on_its_way_is_asked_for(world: Between) -> None:
    directory(world, FILE, new=True)
    enumeration = enumeration_of(world, empty=True)
    enumeration.open(())
    page = enumeration.page({A})
    assert page is not None
    assert page.to_ask == [FILE]


def test_the_files_of_a_known_directory_are_asked_for(world: Between) -> None:
    directory(world, FILE, new=False)
    page, _ = read(enumeration_of(world, empty=True))
    assert page.to_ask == [FILE]


def test_an_empty_new_directory_is_complete_when_it_was_read(world: Between) -> None:
    directory(world, new=True)
    _, complete = read(enumeration_of(world))
    assert complete == [FOLDER]


def test_a_new_directory_that_is_gone_again_is_complete(world: Between) -> None:
    directory(world, new=True)
    world.master.dirs[FOLDER] = nothing_at((FOLDER, b""), Verdict.ABSENT)
    assert enumeration_of(world).open(()) == ([FOLDER], [])


def test_a_new_directory_is_complete_when_its_last_file_has_landed(world: Between) -> None:
    directory(world, FILE, file_at((FOLDER, b"b"), B), new=True)
    enumeration = enumeration_of(world, empty=True)
    assert read(enumeration)[1] == []
    assert enumeration.landed(FOLDER, 1) == []
    assert enumeration.landed(FOLDER, 1) == [FOLDER]


def test_files_that_were_asked_for_count_as_well(world: Between) -> None:
    directory(world, FILE, new=True)
    enumeration = enumeration_of(world)
    enumeration.open(())
    page = enumeration.page(())
    assert page is not None
    enumeration.expect(page.to_ask)
    assert enumeration.end(page.ended) == []
    assert enumeration.landed(FOLDER, 1) == [FOLDER]


def test_a_new_directory_of_which_all_has_landed_is_not_complete_before_it_was_read_to_its_end(world: Between) -> None:
    directory(world, FILE, file_at((FOLDER, b"b"), B), new=True)
    enumeration = enumeration_of(world, empty=True, listed=1)
    read(enumeration)
    assert enumeration.landed(FOLDER, 1) == []


def test_a_complete_directory_takes_no_more_files(world: Between) -> None:
    directory(world, FILE, new=True)
    enumeration = enumeration_of(world, empty=True)
    read(enumeration)
    assert FOLDER in enumeration.unattached
    enumeration.landed(FOLDER, 1)
    assert FOLDER not in enumeration.unattached


def test_where_files_cannot_go_straight_into_directories_none_takes_any(world: Between) -> None:
    directory(world, FILE, new=True)
    enumeration = enumeration_of(world, direct=False, listed=1)
    enumeration.open(())
    assert FOLDER not in enumeration.unattached


# threads


class Slow(DirReader):
    """A directory without an end; whoever reads a page of it is told."""

    def __init__(self, gfid: Gfid, look: Callable[[], object]) -> None:
        self.gfid, self._look, self.failed = gfid, look, 0

    def page(self, limit: int) -> list[Resolved]:
        self._look()
        return [file_at((self.gfid, b"%d" % i), gfid_of(100 + i)) for i in range(limit)]

    def close(self) -> None:
        pass


@pytest.fixture
def read_all(world: Between) -> Iterator[Callable[[Callable[[], object]], set[Gfid]]]:
    """Read a page of READERS directories; returned is which ones were read."""
    looks: list[Callable[[], object]] = []
    for number in range(READERS):
        world.master.dirs[gfid_of(number)] = Slow(gfid_of(number), lambda: looks[-1]())
    world.db.add_dirs(EnumDir(gfid, None, True, False) for gfid in world.master.dirs)
    enumeration = Enumeration(world.master, world.slave, world.db, world.failures, SYSTEM_CLOCK,
                              listed=3 * READERS)
    enumeration.open(())

    def read(look: Callable[[], object]) -> set[Gfid]:
        looks.append(look)
        page = enumeration.page(())
        assert page is not None
        assert len(page.to_ask) == 3 * READERS
        return {item.name[0] for item in page.to_ask}

    yield read
    enumeration.close()


def test_a_file_system_that_makes_us_wait_is_read_in_parallel(
        world: Between, read_all: Callable[[Callable[[], object]], set[Gfid]]) -> None:
    together = threading.Barrier(READERS, timeout=60)
    assert read_all(lambda: time.sleep(0.02)) == set(world.master.dirs)
    assert read_all(together.wait) == set(world.master.dirs)  # nobody gets past it alone


def test_a_fast_one_is_read_by_one_thread(read_all: Callable[[Callable[[], object]], set[Gfid]]) -> None:
    threads = set()
    for _ in range(3):
        read_all(lambda: threads.add(threading.get_ident()))
    assert threads == {threading.get_ident()}
