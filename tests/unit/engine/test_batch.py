"""The order in which a batch does things, and what follows from what."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from gsync.base.errors import Stopped
from gsync.base.model import ROOT_GFID
from gsync.engine.batch import Batch
from gsync.engine.contents import Contents
from gsync.engine.enumeration import Enumeration
from gsync.engine.fill import Fill, Group
from gsync.engine.flight import Flight
from gsync.engine.removals import Removals
from gsync.engine.worklist import DataNeed, EnumDir, NameState
from gsync.link.protocol import FillCode
from gsync.master.tree import Verdict
from lab.batches import NOW, Between, Entries, file_at, folder_at, gfid_of, nothing_at, stat_of

FOLDER, A, B = gfid_of(1), gfid_of(2), gfid_of(3)


def batch_of(world: Between, check_stop: Callable[[], None] = lambda: None, *, walks: bool = False) -> Batch:
    tree, slave, db, failures, clock = world.master, world.slave, world.db, world.failures, world.clock
    return Batch(
        tree, db, Fill(tree, slave, db, failures, world, clock, walks, 0 if walks else None),
        Group(db, clock),
        Enumeration(tree, slave, db, failures, clock), Flight(tree, world.syncer, failures, world.progress),
        Removals(tree, slave, db, world.ledger, failures, world.progress, clock),
        Contents(tree, slave, db, failures, check_stop), world.progress, check_stop, lambda: None, clock)


def test_a_new_file_is_sent_and_then_named(world: Between) -> None:
    world.dirty(b"a")
    world.master.at[ROOT_GFID, b"a"] = file_at((ROOT_GFID, b"a"), A)
    world.slave.first[A] = FillCode.NEW
    batch_of(world).apply()
    assert [(request.gfid, request.place) for request in world.syncer.sent] == [(A, "N")]
    assert [row.gfid for row in world.slave.filled] == [A, A]
    assert world.named(NameState.DONE) == [b"a"]


def test_a_name_whose_file_has_arrived_is_asked_for_again(world: Between) -> None:
    """Rule 11: nothing is placed by what an earlier look said."""
    world.dirty(b"a")
    world.master.at[ROOT_GFID, b"a"] = file_at((ROOT_GFID, b"a"), A)
    world.slave.first[A] = FillCode.NEW
    batch = batch_of(world)
    world.syncer.on_send = world.master.at.clear
    batch.apply()
    assert [row.gfid for row in world.slave.filled] == [A]
    assert [row.bname for row in world.slave.removed] == [b"a"]


def test_a_file_whose_name_is_another_ones_by_now_is_looked_for(world: Between) -> None:
    """Rule 16."""
    def moves() -> None:
        world.master.at = {(ROOT_GFID, b"b"): file_at((ROOT_GFID, b"b"), A)}
        world.master.names[A] = [(ROOT_GFID, b"b")]

    world.dirty(b"a")
    world.master.at[ROOT_GFID, b"a"] = file_at((ROOT_GFID, b"a"), A)
    world.slave.first[A] = FillCode.NEW
    world.syncer.on_send = moves
    batch_of(world).apply()
    assert [row.bname for row in world.slave.filled] == [b"a", b"b"]


def test_a_name_that_a_directory_moved_away_from_is_asked_for_again(world: Between) -> None:
    """Rule 16."""
    world.dirty(b"d")
    world.master.at = {(ROOT_GFID, b"d"): folder_at((ROOT_GFID, b"d"), FOLDER),
                       (ROOT_GFID, b"old"): file_at((ROOT_GFID, b"old"), A)}
    world.slave.vacated = [(ROOT_GFID, b"old")]
    batch_of(world).apply()
    assert [row.bname for row in world.slave.filled] == [b"d", b"old"]


@pytest.mark.parametrize("by", ["a fill", "a removal"])
def test_what_was_pushed_to_limbo_is_looked_for(world: Between, by: str) -> None:
    """Rule 16."""
    world.dirty(b"a")
    if by == "a fill":
        world.master.at[ROOT_GFID, b"a"] = file_at((ROOT_GFID, b"a"), A)
    world.master.at[ROOT_GFID, b"b"] = file_at((ROOT_GFID, b"b"), B)
    world.master.names[B] = [(ROOT_GFID, b"b")]
    world.slave.displaced = [B]
    batch_of(world).apply()
    assert [row.bname for row in world.slave.filled][-1] == b"b"


def test_names_are_removed_when_all_others_are_filled(world: Between) -> None:
    """Rule 17: what a removed name held may be wanted by another one, of a file still on its way too."""
    world.dirty(b"gone", b"new")
    world.master.at[ROOT_GFID, b"new"] = file_at((ROOT_GFID, b"new"), A)
    world.slave.first[A] = FillCode.NEW
    batch_of(world).apply()
    assert world.slave.calls == ["fill", "fill", "remove"]


def test_attributes_are_set_last_those_of_the_parents_of_names_too(world: Between) -> None:
    """Rules 9 and 18."""
    world.dirty(b"gone", parent=FOLDER)
    world.master.stats[FOLDER] = stat_of()
    batch_of(world).apply()
    assert world.slave.calls == ["remove", "meta"]
    assert world.slave.attributes == [FOLDER]


def test_the_name_of_a_file_that_vanished_on_its_way_is_asked_for_again(world: Between) -> None:
    """Rule 14."""
    world.dirty(b"a")
    world.master.at[ROOT_GFID, b"a"] = file_at((ROOT_GFID, b"a"), A)
    world.slave.first[A] = FillCode.NEW
    world.syncer.errors[A] = [errno.ENOENT]
    world.syncer.on_send = world.master.at.clear
    batch_of(world).apply()
    assert [row.bname for row in world.slave.removed] == [b"a"]
    assert world.failed() == []


def test_the_name_of_a_file_that_cannot_be_sent_stays_as_it_is_at_the_slave(world: Between) -> None:
    """Rule 14."""
    world.dirty(b"a")
    world.master.at[ROOT_GFID, b"a"] = file_at((ROOT_GFID, b"a"), A)
    world.slave.first[A] = FillCode.NEW
    world.syncer.errors[A] = [errno.EACCES]
    batch_of(world).apply()
    assert len(world.slave.filled) == 1
    assert world.slave.removed == []
    assert world.named(NameState.FAILED) == [b"a"]


def test_a_new_directory_is_named_when_its_files_have_landed_in_it(world: Between) -> None:
    world.dirty(b"d")
    world.master.at[ROOT_GFID, b"d"] = folder_at((ROOT_GFID, b"d"), FOLDER)
    world.master.dirs[FOLDER] = Entries(FOLDER, [file_at((FOLDER, b"a"), A)])
    world.slave.first = {FOLDER: FillCode.MADE, A: FillCode.DIRECT}
    batch_of(world).apply()
    assert [(request.bname, request.place) for request in world.syncer.sent] == [(b"a", "D")]
    assert [row.bname for row in world.slave.filled] == [b"d", b"a", b"d"]


def test_the_names_in_a_directory_that_turns_out_to_be_new_come_with_its_enumeration(world: Between) -> None:
    world.dirty(b"d")
    world.dirty(b"a", parent=FOLDER)
    world.master.at = {(ROOT_GFID, b"d"): folder_at((ROOT_GFID, b"d"), FOLDER),
                       (FOLDER, b"a"): file_at((FOLDER, b"a"), A)}
    world.master.dirs[FOLDER] = Entries(FOLDER, [file_at((FOLDER, b"a"), A)])
    world.slave.first = {FOLDER: FillCode.MADE, A: FillCode.DIRECT}
    batch_of(world).apply()
    assert [row.bname for row in world.slave.filled] == [b"d", b"a", b"d"]


def test_a_file_that_changed_while_it_was_read_is_sent_once_more(world: Between) -> None:
    world.dirty(b"a")
    world.master.at[ROOT_GFID, b"a"] = file_at((ROOT_GFID, b"a"), A)
    world.slave.first[A], world.slave.knows = FillCode.NEW, {A}
    world.syncer.changes = {A}
    world.master.stats[A] = stat_of()
    batch_of(world).apply()
    assert [request.place for request in world.syncer.sent] == ["N", "P"]


def test_a_name_that_the_recorder_does_not_know_yet_is_asked_for_again(world: Between) -> None:
    """Rule 10."""
    world.dirty(b"a", parent=FOLDER)
    world.master.at[FOLDER, b"a"] = nothing_at((FOLDER, b"a"), Verdict.UNKNOWN)
    world.on_wait = world.master.at.clear
    batch_of(world).apply()
    assert world.recorded == [NOW]
    assert [row.bname for row in world.slave.removed] == [b"a"]


def test_a_directory_that_the_recorder_does_not_know_yet_is_read_when_it_does(world: Between) -> None:
    """Rule 10."""
    world.db.add_dirs([EnumDir(FOLDER, None, False, False)])
    world.master.dirs[FOLDER] = nothing_at((FOLDER, b""), Verdict.UNKNOWN)
    reader = Entries(FOLDER, [file_at((FOLDER, b"a"), A)])
    world.on_wait = lambda: world.master.dirs.update({FOLDER: reader})
    batch_of(world).apply()
    assert [row.bname for row in world.slave.filled] == [b"a"]


def test_a_name_that_the_slave_refuses_is_not_asked_for_again_in_the_same_batch(world: Between) -> None:
    world.dirty(b"a")
    world.master.at[ROOT_GFID, b"a"] = file_at((ROOT_GFID, b"a"), A)
    world.slave.codes[A], world.slave.refused[b"a"] = FillCode.ERROR, errno.EIO
    batch_of(world).apply()
    assert len(world.slave.filled) == 1
    assert world.progress.failed == 1


def test_open_directories_are_closed_when_a_batch_ends_early(world: Between) -> None:
    entries = [file_at((FOLDER, b"%d" % n), gfid_of(10 + n)) for n in range(5000)]
    reader = Entries(FOLDER, entries)
    world.master.dirs[FOLDER] = reader
    world.db.add_dirs([EnumDir(FOLDER, None, False, False)])

    def check_stop() -> None:
        if world.slave.filled:
            raise Stopped

    with pytest.raises(Stopped):
        batch_of(world, check_stop).apply()
    assert reader.closed


def test_the_last_look_at_a_name_is_told(world: Between) -> None:
    """Rule 20: what is resolved then is in doubt until the recorder has passed it."""
    world.dirty(b"a")
    batch = batch_of(world)
    world.time.seconds = 7
    batch.apply()
    assert batch.last_resolve == world.clock.now()


def test_a_directory_is_not_named_before_its_files_have_landed(world: Between) -> None:
    def time_goes_by() -> None:
        world.time.seconds += 1000
        named_early.extend(row.bname for row in world.slave.filled[2:])

    named_early: list[bytes] = []
    world.dirty(b"d")
    world.master.at[ROOT_GFID, b"d"] = folder_at((ROOT_GFID, b"d"), FOLDER)
    world.master.dirs[FOLDER] = Entries(FOLDER, [file_at((FOLDER, b"a"), A)])
    world.slave.first = {FOLDER: FillCode.MADE, A: FillCode.DIRECT}
    world.syncer.slow, world.syncer.while_waiting = 3, time_goes_by
    batch_of(world).apply()
    assert named_early == []
    assert world.slave.filled[-1].bname == b"d"


def test_a_file_that_could_not_go_straight_to_its_name_is_asked_for(world: Between) -> None:
    """Rule 14."""
    world.dirty(b"d")
    world.master.at = {(ROOT_GFID, b"d"): folder_at((ROOT_GFID, b"d"), FOLDER),
                       (FOLDER, b"a"): file_at((FOLDER, b"a"), A)}
    world.master.dirs[FOLDER] = Entries(FOLDER, [file_at((FOLDER, b"a"), A)])
    world.slave.first = {FOLDER: FillCode.MADE, A: FillCode.DIRECT}
    world.syncer.errors[A] = [errno.EEXIST]
    batch_of(world).apply()
    assert [row.bname for row in world.slave.filled] == [b"d", b"a", b"a", b"d"]


def test_what_is_sent_whole_is_not_sent_again_in_place(world: Between) -> None:
    world.dirty(b"a")
    world.db.add_gfids([A], DataNeed.SEND)
    world.master.at[ROOT_GFID, b"a"] = file_at((ROOT_GFID, b"a"), A)
    world.slave.first[A], world.slave.knows, world.master.stats[A] = FillCode.NEW, {A}, stat_of()
    batch_of(world).apply()
    assert [request.place for request in world.syncer.sent] == ["N"]
    assert A not in world.slave.attributes


def test_a_known_file_that_changed_since_the_floor_is_compared(world: Between) -> None:
    world.dirty(b"a")
    world.master.at[ROOT_GFID, b"a"] = file_at((ROOT_GFID, b"a"), A)
    world.slave.knows, world.master.stats[A], world.master.digests[A] = {A}, stat_of(), (1, "new")
    batch_of(world, walks=True).apply()
    assert world.slave.compared == [[A]]
    assert [request.place for request in world.syncer.sent] == ["P"]


def test_a_held_delete_is_released_when_the_master_has_the_name_again(world: Between) -> None:
    world.ledger.hold([((ROOT_GFID, b"a"), b"a")], NOW)
    world.dirty(b"a")
    world.master.at[ROOT_GFID, b"a"] = file_at((ROOT_GFID, b"a"), A)
    batch_of(world).apply()
    assert world.ledger.count_held() == 0


def test_names_in_a_directory_that_is_enumerated_anyway_are_asked_for_once(world: Between) -> None:
    world.dirty(b"a", parent=FOLDER)
    world.db.add_dirs([EnumDir(FOLDER, None, False, False)])
    world.master.at[FOLDER, b"a"] = file_at((FOLDER, b"a"), A)
    world.master.dirs[FOLDER] = Entries(FOLDER, [file_at((FOLDER, b"a"), A)])
    batch_of(world).apply()
    assert [row.bname for row in world.slave.filled] == [b"a"]


def test_the_master_forgets_the_places_that_only_the_batch_knew(world: Between) -> None:
    world.dirty(b"a")
    world.master.at[ROOT_GFID, b"a"] = file_at((ROOT_GFID, b"a"), A)
    world.slave.first[A], world.syncer.changes = FillCode.NEW, {A}
    batch_of(world).apply()
    assert world.master.hints == {}


def test_the_master_can_ask_for_the_handles_of_directories_that_are_to_be_read(world: Between) -> None:
    batch_of(world).apply()
    world.db.add_dirs([EnumDir(FOLDER, b"handle", False, False)])
    assert world.master.handle_of(FOLDER) == b"handle"
