"""Where the names of a page stand after they were filled, and what else follows from it."""

from __future__ import annotations

import errno
import struct
from collections.abc import Container

import pytest

from gsync.base.model import ROOT_GFID, Gfid
from gsync.engine.fill import GROUP, GROUP_AGE, MAX_STUCK, MAX_TRIES, Fill, Filled, Group
from gsync.engine.worklist import Dirty, EnumDir, NameState
from gsync.link.protocol import FillCode
from gsync.master.tree import Resolved, Verdict
from lab.batches import NOW, Between, file_at, folder_at, gfid_of, nothing_at

FOLDER, A, B = gfid_of(1), gfid_of(2), gfid_of(3)


def fill_of(world: Between, *, recursive: bool = False, floor: int | None = None) -> Fill:
    return Fill(world.master, world.slave, world.db, world.failures, world, world.clock, recursive, floor)


def filled(world: Between, item: Resolved, fill: Fill | None = None, *, flying: Container[Gfid] = (),
           unattached: Container[Gfid] = ()) -> Filled:
    """One dirty name is filled."""
    rows = world.dirty(item.name[1], parent=item.name[0])
    return (fill or fill_of(world)).page([item], rows, flying, unattached)


def test_a_name_that_the_slave_has_is_done(world: Between) -> None:
    filled(world, file_at((ROOT_GFID, b"a"), A))
    assert world.named(NameState.DONE) == [b"a"]


def test_a_new_file_is_sent_to_limbo_and_its_name_waits(world: Between) -> None:
    world.slave.codes[A] = FillCode.NEW
    item = file_at((ROOT_GFID, b"a"), A)
    assert filled(world, item).new == [item]
    assert world.named(NameState.DATA) == [b"a"]


@pytest.mark.parametrize(("there", "asked"), [(1, False), (0, True)])
def test_what_the_slave_has_at_a_mount_point_is_left_alone(world: Between, there: int, asked: bool) -> None:
    """rule 46"""
    handle = struct.pack("=i", -2) + ROOT_GFID + b"d"
    world.slave.weights[b"d"] = there
    filled(world, folder_at((ROOT_GFID, b"d"), FOLDER)._replace(handle=handle))
    assert world.named(NameState.DONE) == [b"d"]
    assert bool(world.slave.filled) is asked


def test_a_new_directory_is_enumerated_and_its_name_waits(world: Between) -> None:
    world.slave.codes[FOLDER] = FillCode.MADE
    assert filled(world, folder_at((ROOT_GFID, b"d"), FOLDER)).dirs == [EnumDir(FOLDER, b"handle", False, True)]
    assert world.named(NameState.BUILDING) == [b"d"]


def test_a_file_of_an_unattached_directory_goes_straight_to_its_name(world: Between) -> None:
    world.slave.codes[A] = FillCode.DIRECT
    item = file_at((FOLDER, b"a"), A)
    assert filled(world, item, unattached={FOLDER}).direct == [item]
    assert world.named(NameState.DONE) == [b"a"]


def test_a_file_goes_by_way_of_limbo_once_its_directory_is_complete(world: Between) -> None:
    world.slave.codes[A] = FillCode.DIRECT
    item = file_at((FOLDER, b"a"), A)
    assert filled(world, item, unattached=()).new == [item]
    assert world.named(NameState.DATA) == [b"a"]


def test_the_agent_is_not_asked_for_a_file_that_is_on_its_way(world: Between) -> None:
    filled(world, file_at((ROOT_GFID, b"a"), A), flying={A})
    assert world.slave.filled == []
    assert world.named(NameState.DATA) == [b"a"]


def test_the_agent_is_not_asked_for_a_directory_that_is_being_built(world: Between) -> None:
    world.db.add_dirs([EnumDir(FOLDER, None, False, True)])
    filled(world, folder_at((ROOT_GFID, b"d"), FOLDER))
    assert world.slave.filled == []
    assert world.named(NameState.BUILDING) == [b"d"]


def test_an_absent_name_is_kept_for_removal_with_the_time_of_the_look(world: Between) -> None:
    filled(world, nothing_at((ROOT_GFID, b"a")))
    assert [(name, since) for _, name, since in world.db.absent(10)] == [((ROOT_GFID, b"a"), NOW)]


def test_an_enumerated_name_that_is_gone_again_is_forgotten(world: Between) -> None:
    fill_of(world).page([nothing_at((FOLDER, b"a"))], None, (), ())
    assert world.db.absent(10) == []


def test_an_excluded_name_is_neither_filled_nor_removed(world: Between) -> None:
    filled(world, nothing_at((ROOT_GFID, b"a"), Verdict.EXCLUDED))
    assert world.slave.filled == []
    assert world.named(NameState.DONE) == [b"a"]


def test_a_name_that_the_master_cannot_look_at_is_a_failure(world: Between) -> None:
    filled(world, nothing_at((ROOT_GFID, b"a"), Verdict.ERROR, errno.EIO))
    assert world.failed() == [("name", b"path of a", errno.EIO)]
    assert world.named(NameState.FAILED) == [b"a"]


def test_a_name_that_the_slave_refuses_is_a_failure(world: Between) -> None:
    world.slave.codes[A], world.slave.refused[b"a"] = FillCode.ERROR, errno.ENAMETOOLONG
    filled(world, file_at((ROOT_GFID, b"a"), A))
    assert world.failed() == [("name", b"path of a", errno.ENAMETOOLONG)]
    assert world.named(NameState.FAILED) == [b"a"]


def test_what_was_vacated_and_displaced_is_told(world: Between) -> None:
    world.slave.vacated, world.slave.displaced = [(ROOT_GFID, b"old")], [B]
    done = filled(world, folder_at((ROOT_GFID, b"d"), FOLDER))
    assert (done.vacated, done.displaced) == ([(ROOT_GFID, b"old")], [B])


# a walk


def test_a_known_directory_is_walked_too(world: Between) -> None:
    done = filled(world, folder_at((ROOT_GFID, b"d"), FOLDER), fill_of(world, recursive=True))
    assert done.dirs == [EnumDir(FOLDER, b"handle", True, False)]


def test_a_known_directory_is_walked_once(world: Between) -> None:
    world.db.add_dirs([EnumDir(FOLDER, None, True, False)])
    assert filled(world, folder_at((ROOT_GFID, b"d"), FOLDER), fill_of(world, recursive=True)).dirs == []


@pytest.mark.parametrize(("floor", "suspect"), [(10, True), (11, False), (None, False)])
def test_a_known_file_is_suspect_if_it_changed_since_the_floor(world: Between, floor: int | None, suspect: bool
                                                              ) -> None:
    item = file_at((ROOT_GFID, b"a"), A, ctime=10)
    done = filled(world, item, fill_of(world, recursive=True, floor=floor))
    assert done.suspects == ([item] if suspect else [])


def test_an_adopted_file_is_suspect(world: Between) -> None:
    world.slave.codes[A] = FillCode.ADOPTED
    item = file_at((ROOT_GFID, b"a"), A)
    assert filled(world, item).suspects == [item]


def test_an_adopted_directory_is_walked(world: Between) -> None:
    world.slave.codes[FOLDER] = FillCode.ADOPTED
    assert filled(world, folder_at((ROOT_GFID, b"d"), FOLDER)).dirs == [EnumDir(FOLDER, b"handle", True, False)]


# names that cannot be filled at once


def test_an_unknown_name_is_dirty_again_once_the_recorder_has_caught_up(world: Between) -> None:
    fill = fill_of(world)
    filled(world, nothing_at((FOLDER, b"a"), Verdict.UNKNOWN), fill)
    assert world.named(NameState.UNKNOWN) == [b"a"]
    fill.catch_up()
    assert world.recorded == [NOW]
    assert world.named(NameState.DIRTY) == [b"a"]


def test_a_name_is_absent_if_the_recorder_has_caught_up_and_knows_no_such_parent(world: Between) -> None:
    fill = fill_of(world)
    item = nothing_at((FOLDER, b"a"), Verdict.UNKNOWN, errno.ENOENT)
    filled(world, item, fill)
    assert world.named(NameState.UNKNOWN) == [b"a"]
    fill.catch_up()
    filled(world, item, fill)
    assert [name for _, name, _ in world.db.absent(10)] == [(FOLDER, b"a")]


def test_directories_that_the_recorder_has_caught_up_with_are_remembered(world: Between) -> None:
    fill = fill_of(world)
    fill.catch_up([FOLDER])
    assert FOLDER in fill.waited


def test_a_name_whose_parent_lies_elsewhere_is_never_taken_for_absent(world: Between) -> None:
    fill = fill_of(world)
    item = nothing_at((FOLDER, b"a"), Verdict.UNKNOWN)
    for _ in range(2):
        filled(world, item, fill)
        fill.catch_up()
    assert world.db.absent(10) == []


@pytest.mark.parametrize("code", [FillCode.PARENT, FillCode.CYCLE])
def test_the_parents_of_a_blocked_name_are_pulled_in(world: Between, code: FillCode) -> None:
    world.slave.codes[A], world.master.chain = code, [(ROOT_GFID, b"d")]
    fill = fill_of(world)
    filled(world, file_at((FOLDER, b"a"), A), fill)
    fill.unblock()
    assert sorted(world.named(NameState.DIRTY)) == [b"a", b"d"]


def test_from_the_second_round_on_the_recorder_has_to_catch_up(world: Between) -> None:
    world.slave.codes[A] = FillCode.PARENT
    fill = fill_of(world)
    for expected in ([], [NOW]):
        filled(world, file_at((FOLDER, b"a"), A), fill)
        fill.unblock()
        assert world.recorded == expected


def test_a_blocked_name_is_given_up_after_some_rounds(world: Between) -> None:
    world.slave.codes[A] = FillCode.PARENT
    fill = fill_of(world)
    for _ in range(MAX_STUCK + 1):
        assert world.failed() == []
        filled(world, file_at((FOLDER, b"a"), A), fill)
        fill.unblock()
    assert world.failed() == [("name", b"path of a", errno.ENOENT)]
    assert world.named(NameState.FAILED) == [b"a"]


def test_progress_elsewhere_starts_the_count_of_rounds_again(world: Between) -> None:
    world.slave.codes[A] = FillCode.PARENT
    fill = fill_of(world)
    for _ in range(MAX_STUCK + 1):
        filled(world, file_at((FOLDER, b"a"), A), fill)
        fill.unblock()
        filled(world, file_at((ROOT_GFID, b"b"), B), fill)
    assert world.failed() == []


def test_a_name_that_does_not_settle_is_given_up(world: Between) -> None:
    (rowid,) = world.dirty(b"a")
    keep = Dirty(rowid, (ROOT_GFID, b"a"), MAX_TRIES)
    assert fill_of(world).settling([keep]) == [keep]
    assert fill_of(world).settling([keep._replace(tries=MAX_TRIES + 1)]) == []
    assert world.failed() == [("name", b"path of a", errno.ELOOP)]


# complete inodes wait for company


def test_a_full_group_is_due(world: Between) -> None:
    group = Group(world.db, world.clock)
    group.arrived([A] * (GROUP - 1), NameState.DATA)
    assert not group.due()
    group.arrived([A], NameState.DATA)
    assert group.due()


def test_a_group_is_due_when_its_first_inode_has_waited(world: Between) -> None:
    group = Group(world.db, world.clock)
    group.arrived([A], NameState.DATA)
    world.time.seconds += GROUP_AGE
    group.arrived([B], NameState.DATA)
    assert not group.due()
    world.time.seconds += 0.1
    assert group.due()


def test_an_empty_group_is_never_due(world: Between) -> None:
    group = Group(world.db, world.clock)
    world.time.seconds += 1000
    assert not group.due()


def test_groups_wait_the_longer_the_longer_naming_them_takes(world: Between) -> None:
    group = Group(world.db, world.clock)
    group.took(6.0)
    group.arrived([A], NameState.DATA)
    world.time.seconds += 59
    assert not group.due()
    world.time.seconds += 2
    assert group.due()


def test_the_names_of_a_complete_inode_are_ready(world: Between) -> None:
    world.db.add_waiting([(ROOT_GFID, b"a", NameState.DATA, A), (ROOT_GFID, b"b", NameState.DATA, B)])
    Group(world.db, world.clock).arrived([A], NameState.DATA)
    assert world.named(NameState.READY) == [b"a"]


@pytest.mark.parametrize(("recursive", "floor", "waits"), [(True, 5, [77]), (True, None, []), (False, None, [])])
def test_the_recorder_has_to_catch_up_before_files_are_compared(world: Between, recursive: bool, floor: int | None,
                                                               waits: list[int]) -> None:
    fill_of(world, recursive=recursive, floor=floor).let_suspects_be_found(77)
    assert world.recorded == waits
