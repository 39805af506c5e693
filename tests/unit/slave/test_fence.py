"""Passes and locks of a slave tree: who may work in it, seen without agents."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.base.errors import SlaveError
from gsync.link.protocol import Fenced
from gsync.slave import fence
from lab.syncs import Syncs

ONE, TWO, OTHERS = "11111111", "22222222", "33333333-1of2"


@pytest.fixture
def state(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "passes").mkdir()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def locks(state: int) -> Iterator[tuple[int, int]]:
    """A lock, opened twice."""
    fds = fence.open_lock(state, fence.RECEIVERS_LOCK), fence.open_lock(state, fence.RECEIVERS_LOCK)
    yield fds
    for fd in fds:
        os.close(fd)


def test_the_younger_epoch_takes_the_older_its_validity(state: int) -> None:
    old = fence.announce(state, 1, ONE)
    new = fence.announce(state, 2, TWO)
    assert new.valid and not old.valid
    with pytest.raises(Fenced, match="epoch 2 has taken over the slave; this one has epoch 1"):
        old.check()


def test_an_older_epoch_is_refused_and_leaves_nothing(state: int, tmp_path: Path) -> None:
    new = fence.announce(state, 2, TWO)
    with pytest.raises(Fenced):
        fence.announce(state, 1, ONE)
    assert new.valid
    assert len(list((tmp_path / "passes").iterdir())) == 1


def test_of_equal_epochs_the_last_one_stays(state: int) -> None:
    old, new = fence.announce(state, 1, ONE), fence.announce(state, 1, TWO)
    assert (old.valid, new.valid) == (False, True)


def test_passes_of_two_streams_stand_beside_each_other(state: int) -> None:
    mine, others = fence.announce(state, 2, ONE), fence.announce(state, 1, OTHERS)
    assert mine.valid and others.valid


def test_whoever_comes_with_a_pass_that_is_not_valid_is_refused(state: int) -> None:
    fence.announce(state, 1, ONE)
    assert fence.show(state, 1, ONE).valid
    fence.announce(state, 2, TWO)
    with pytest.raises(Fenced):
        fence.show(state, 1, ONE)


@pytest.mark.parametrize(("epoch", "ticket"), [(-1, ONE), (1 << 63, ONE), (1, "../../etc")])
def test_what_is_no_epoch_or_no_ticket_is_refused(state: int, epoch: int, ticket: str) -> None:
    with pytest.raises(SlaveError):
        fence.announce(state, epoch, ticket)


def test_a_pass_is_durable_before_those_of_others_go_and_that_before_it_counts(
        state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The highest epoch is never forgotten."""
    fence.announce(state, 1, ONE)
    syncs = Syncs(monkeypatch)
    fence.announce(state, 2, TWO)
    assert syncs.calls == [("fsync", "passes"), ("unlink", f"{1:020d}-{ONE}"), ("fsync", "passes")]


def test_receivers_share_their_lock_and_a_hello_waits_for_them(locks: tuple[int, int]) -> None:
    one, other = locks
    fence.take_shared(one)
    fence.take_shared(other)
    with pytest.raises(BlockingIOError):
        fence.take_alone(other)


def test_no_receiver_begins_while_a_hello_keeps_them_off(locks: tuple[int, int]) -> None:
    hello, receiver = locks
    fence.take_alone(hello)
    with pytest.raises(BlockingIOError):
        fence.take_shared(receiver)
    fence.unlock(hello)
    fence.take_shared(receiver)


def test_a_lock_that_is_held_is_seen_as_such_without_taking_it(locks: tuple[int, int]) -> None:
    one, other = locks
    assert not fence.is_locked(other)
    fence.take_shared(one)
    assert fence.is_locked(other)


def test_refusals_leave_nothing_open(state: int) -> None:
    fence.announce(state, 2, TWO).close()
    before = len(os.listdir("/proc/self/fd"))
    for refused in (fence.announce, fence.show):
        with pytest.raises(Fenced):
            refused(state, 1, ONE)
    assert len(os.listdir("/proc/self/fd")) == before
