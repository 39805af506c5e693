"""Which names leave the slave, and which are held."""

from __future__ import annotations

import errno

from gsync.base.model import ROOT_GFID
from gsync.engine.removals import Removals
from gsync.engine.worklist import NameState
from lab.batches import NOW, Between, gfid_of


def removals_of(world: Between, *, max_delete: int = 0, ignore_deletes: bool = False) -> Removals:
    return Removals(world.master, world.slave, world.db, world.ledger, world.failures, world.progress, world.clock,
                    max_delete, ignore_deletes)


def absent(world: Between, *bnames: bytes) -> None:
    world.db.set_absent((NOW, rowid) for rowid in world.dirty(*bnames))


def removed(world: Between, removals: Removals) -> list[bytes]:
    assert removals.begin()
    while removals.page() is not None:
        pass
    return [row.bname for row in world.slave.removed]


def test_absent_names_are_removed(world: Between) -> None:
    absent(world, b"a", b"b")
    assert removed(world, removals_of(world)) == [b"a", b"b"]
    assert world.named(NameState.DONE) == [b"a", b"b"]
    assert world.progress.removed == 2


def test_without_absent_names_nothing_begins(world: Between) -> None:
    world.dirty(b"a")
    assert not removals_of(world).begin()


def test_what_went_to_limbo_is_told(world: Between) -> None:
    absent(world, b"a")
    world.slave.displaced = [gfid_of(1)]
    removals = removals_of(world)
    removals.begin()
    assert removals.page() == [gfid_of(1)]


def test_a_removal_that_fails_is_a_failure_of_its_name(world: Between) -> None:
    absent(world, b"a", b"b")
    world.slave.refused[b"a"] = errno.EPERM
    removed(world, removals_of(world))
    assert world.failed() == [("name", b"path of a", errno.EPERM)]
    assert (world.named(NameState.FAILED), world.named(NameState.DONE)) == ([b"a"], [b"b"])


def test_as_many_as_are_allowed_are_removed(world: Between) -> None:
    absent(world, b"a", b"b")
    assert removed(world, removals_of(world, max_delete=2)) == [b"a", b"b"]


def test_of_too_many_all_are_held(world: Between) -> None:
    absent(world, b"a", b"b", b"c")
    assert removed(world, removals_of(world, max_delete=2)) == []
    assert [path for path, _ in world.ledger.held()] == [b"path of a", b"path of b", b"path of c"]
    assert world.named(NameState.DONE) == [b"a", b"b", b"c"]


def test_a_directory_weighs_what_is_in_it(world: Between) -> None:
    absent(world, b"d")
    world.slave.weights[b"d"] = 100
    assert removed(world, removals_of(world, max_delete=99)) == []


def test_what_the_slave_has_not_is_not_held(world: Between) -> None:
    absent(world, b"a", b"d")
    world.slave.weights = {b"a": 0, b"d": 100}
    removed(world, removals_of(world, max_delete=99))
    assert [path for path, _ in world.ledger.held()] == [b"path of d"]


def test_once_too_many_later_ones_of_the_batch_are_held_too(world: Between) -> None:
    absent(world, b"a", b"b")
    removals = removals_of(world, max_delete=1)
    removed(world, removals)
    absent(world, b"c")
    assert removed(world, removals) == []


def test_what_earlier_rounds_removed_counts(world: Between) -> None:
    removals = removals_of(world, max_delete=1)
    absent(world, b"a")
    assert removed(world, removals) == [b"a"]
    absent(world, b"b")
    assert removed(world, removals) == [b"a"]


def test_approved_names_go_and_do_not_count(world: Between) -> None:
    world.ledger.hold([((ROOT_GFID, b"a"), b"a"), ((ROOT_GFID, b"b"), b"b")], NOW)
    world.ledger.approve()
    world.ledger.take_approved()
    absent(world, b"a", b"b", b"c")
    assert removed(world, removals_of(world, max_delete=1)) == [b"a", b"b", b"c"]


def test_of_too_many_the_approved_ones_go_all_the_same(world: Between) -> None:
    world.ledger.hold([((ROOT_GFID, b"a"), b"a")], NOW)
    world.ledger.approve()
    world.ledger.take_approved()
    absent(world, b"a", b"b", b"c")
    assert removed(world, removals_of(world, max_delete=1)) == [b"a"]


def test_where_deletes_are_ignored_the_last_names_stay_and_nothing_is_held(world: Between) -> None:
    absent(world, b"a", b"b")
    removed(world, removals_of(world, max_delete=1, ignore_deletes=True))
    assert world.slave.keep_last
    assert world.ledger.count_held() == 0


def test_a_held_name_that_the_master_has_again_is_held_no_more(world: Between) -> None:
    world.ledger.hold([((ROOT_GFID, b"a"), b"a"), ((ROOT_GFID, b"b"), b"b")], NOW)
    removals_of(world).release([(ROOT_GFID, b"a")])
    assert [path for path, _ in world.ledger.held()] == [b"b"]


def test_a_name_that_this_batch_held_is_released_too(world: Between) -> None:
    absent(world, b"a", b"b")
    removals = removals_of(world, max_delete=1)
    removed(world, removals)
    removals.release([(ROOT_GFID, b"a")])
    assert [path for path, _ in world.ledger.held()] == [b"path of b"]
