"""What is looked at again, and when it is settled."""

from __future__ import annotations

from gsync.engine.doubt import Doubt
from gsync.engine.worklist import NameState
from lab.batches import Between


def looked_at_again(world: Between) -> list[bytes]:
    world.db.reset()
    world.db.add_doubt()
    return world.named(NameState.DIRTY)


def test_a_batch_is_in_doubt_until_the_recorder_has_overtaken_it(world: Between) -> None:
    doubt = Doubt(world.db)
    world.dirty(b"a")
    doubt.keep(10, 0, renewed=True)
    assert [(doubt.settled(0, upto), doubt.any) for upto in (9, 10)] == [(True, True), (True, False)]
    assert looked_at_again(world) == []


def test_after_a_gap_it_is_looked_at_again(world: Between) -> None:
    doubt = Doubt(world.db)
    world.dirty(b"a")
    doubt.keep(10, 0, renewed=True)
    assert not doubt.settled(1, 10)
    assert looked_at_again(world) == [b"a"]


def test_doubt_that_was_not_looked_at_again_stays_with_that_of_later_batches(world: Between) -> None:
    doubt = Doubt(world.db)
    world.dirty(b"a")
    doubt.keep(10, 0, renewed=True)
    world.db.reset()
    world.dirty(b"b")
    doubt.keep(20, 1, renewed=False)
    assert not doubt.settled(1, 20)
    assert looked_at_again(world) == [b"a", b"b"]


def test_a_batch_that_resolved_nothing_makes_older_doubt_no_younger(world: Between) -> None:
    doubt = Doubt(world.db)
    world.dirty(b"a")
    doubt.keep(10, 0, renewed=True)
    doubt.keep(0, 0, renewed=False)
    assert doubt.settled(0, 9) and doubt.any
