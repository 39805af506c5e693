"""What is sent, and what comes back."""

from __future__ import annotations

import errno

import pytest

from gsync.base.errors import Transient
from gsync.base.model import ROOT_GFID
from gsync.engine.flight import Flight, Landed
from lab.batches import Between, file_at, gfid_of

FOLDER, A, B = gfid_of(1), gfid_of(2), gfid_of(3)
IN_TREE, IN_FOLDER = file_at((ROOT_GFID, b"a"), A), file_at((FOLDER, b"b"), B)


def flight_of(world: Between, retries: int = 2) -> Flight:
    return Flight(world.master, world.syncer, world.failures, world.progress, retries)


def landed_all(flight: Flight) -> Landed:
    """What came back in the end."""
    landed = flight.take(wait=True)
    while flight.out:
        landed = flight.take(wait=True)
    return landed


def test_a_file_of_two_names_is_sent_once(world: Between) -> None:
    flight_of(world).send([IN_TREE, file_at((ROOT_GFID, b"z"), A)], ())
    assert [request.bname for request in world.syncer.sent] == [b"a"]


def test_a_file_is_flying_until_it_is_back(world: Between) -> None:
    flight = flight_of(world)
    flight.send([IN_TREE], ())
    assert (A in flight.flying, flight.out) == (True, 1)
    flight.take(wait=False)
    assert (A in flight.flying, flight.out) == (False, 0)


def test_the_names_of_a_file_in_limbo_can_be_filled(world: Between) -> None:
    flight = flight_of(world)
    flight.send([IN_TREE], ())
    landed = flight.take(wait=True)
    assert (landed.whole, landed.named, landed.into) == ([A], [A], {})


def test_a_file_at_its_name_is_one_less_that_its_directory_lacks(world: Between) -> None:
    flight = flight_of(world)
    flight.send((), [IN_FOLDER])
    landed = flight.take(wait=True)
    assert (landed.whole, landed.named, landed.into) == ([B], [], {FOLDER: 1})


def test_a_file_sent_in_place_makes_no_name_ready(world: Between) -> None:
    flight = flight_of(world)
    flight.send_in_place([A])
    assert flight.take(wait=True) == Landed()
    assert world.progress.files == 1


def test_what_fails_is_tried_again(world: Between) -> None:
    world.syncer.errors[A] = [errno.EIO, errno.EIO]
    flight = flight_of(world, retries=2)
    flight.send([IN_TREE], ())
    assert landed_all(flight).named == [A]
    assert len(world.syncer.sent) == 3


def test_what_fails_on_its_way_straight_to_its_name_is_tried_again(world: Between) -> None:
    world.syncer.errors[B] = [errno.EIO]
    flight = flight_of(world)
    flight.send((), [IN_FOLDER])
    landed = landed_all(flight)
    assert (landed.whole, landed.gone) == ([B], [])


def test_what_fails_again_and_again_is_a_failure_of_its_name(world: Between) -> None:
    world.syncer.errors[A] = [errno.EIO] * 3
    flight = flight_of(world, retries=2)
    flight.send([IN_TREE], ())
    assert landed_all(flight).failed == [world.syncer.sent[0]]
    assert world.failed() == [("name", b"path of a", errno.EIO)]


def test_what_has_arrived_may_fail_as_often_again(world: Between) -> None:
    flight = flight_of(world, retries=1)
    for errors in ([errno.EIO], [errno.EIO]):
        world.syncer.errors[A] = errors
        flight.send([IN_TREE], ())
        assert landed_all(flight).named == [A]


def test_what_was_given_up_may_fail_as_often_again(world: Between) -> None:
    flight = flight_of(world, retries=1)
    world.syncer.errors[A] = [errno.EIO] * 2
    flight.send([IN_TREE], ())
    assert len(landed_all(flight).failed) == 1
    world.syncer.errors[A] = [errno.EIO]
    flight.send([IN_TREE], ())
    assert landed_all(flight).named == [A]


def test_what_may_not_be_read_is_not_tried_again(world: Between) -> None:
    world.syncer.errors[A] = [errno.EACCES]
    flight = flight_of(world)
    flight.send([IN_TREE], ())
    assert landed_all(flight).failed == world.syncer.sent
    assert len(world.syncer.sent) == 1


def test_the_name_of_a_file_that_is_gone_is_to_be_asked_for_again(world: Between) -> None:
    world.syncer.errors[A] = [errno.ENOENT]
    flight = flight_of(world)
    flight.send([IN_TREE], ())
    assert landed_all(flight).gone == world.syncer.sent
    assert world.failed() == []


@pytest.mark.parametrize("err", [errno.EEXIST, errno.EMLINK])
def test_a_file_that_cannot_go_straight_to_its_name_is_asked_for_again(world: Between, err: int) -> None:
    world.syncer.errors[B] = [err]
    flight = flight_of(world)
    flight.send((), [IN_FOLDER])
    landed = landed_all(flight)
    assert (landed.gone, landed.into) == (world.syncer.sent, {FOLDER: 1})


def test_a_directory_does_not_wait_for_a_file_that_failed(world: Between) -> None:
    world.syncer.errors[B] = [errno.EACCES]
    flight = flight_of(world)
    flight.send((), [IN_FOLDER])
    landed = landed_all(flight)
    assert (landed.whole, landed.into) == ([], {FOLDER: 1})


def test_content_that_cannot_be_sent_is_a_failure_of_the_inode(world: Between) -> None:
    world.syncer.errors[A] = [errno.EACCES]
    world.master.names[A] = [(ROOT_GFID, b"a")]
    flight = flight_of(world)
    flight.send_in_place([A])
    assert landed_all(flight) == Landed()
    assert world.failed() == [("data", b"path of a", errno.EACCES)]


def test_content_of_a_file_that_is_gone_is_no_failure(world: Between) -> None:
    world.syncer.errors[A] = [errno.ENOENT]
    flight = flight_of(world)
    flight.send_in_place([A])
    assert landed_all(flight) == Landed()
    assert world.failed() == []


def test_a_master_that_is_away_is_no_failure_of_the_file(world: Between) -> None:
    world.master.away, world.syncer.errors[A] = {errno.ENOTCONN}, [errno.ENOTCONN]
    flight = flight_of(world)
    flight.send([IN_TREE], ())
    with pytest.raises(Transient):
        flight.take(wait=True)
    assert world.failed() == []


def test_what_changed_while_it_was_read_is_told_once(world: Between) -> None:
    world.syncer.changes = {A}
    flight = flight_of(world)
    flight.send([IN_TREE], [IN_FOLDER])
    flight.take(wait=True)
    assert flight.take_changed() == [A]
    assert flight.take_changed() == []


def test_the_place_of_a_file_is_kept_as_long_as_it_may_be_read_again(world: Between) -> None:
    world.syncer.changes = {A}
    flight = flight_of(world)
    flight.send([IN_TREE], [IN_FOLDER])
    assert set(world.master.hints) == {A, B}
    flight.take(wait=True)
    assert set(world.master.hints) == {A}


def test_the_place_of_a_file_that_is_sent_in_place_is_kept_for_whoever_reads_it(world: Between) -> None:
    flight = flight_of(world)
    flight.send_in_place([A])
    assert set(world.master.hints) == {A}
