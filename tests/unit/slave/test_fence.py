"""Passes and locks of a slave tree: who may work in it, seen without agents."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.base.errors import SlaveError
from gsync.link.protocol import Busy, Fenced
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


# the agent's lock

HURRY = fence.Patience(own=0.0, others=0.0)


@pytest.fixture
def agents(state: int) -> Iterator[tuple[int, int]]:
    """The agent's lock, held by the first, which has said so; and opened again."""
    fds = fence.open_lock(state, fence.AGENT_LOCK), fence.open_lock(state, fence.AGENT_LOCK)
    fence.lock_agent(fds[0], fence.announce(state, 1, ONE), "mine", "")
    yield fds
    for fd in fds:
        os.close(fd)


def test_the_agent_of_another_session_is_not_ours_to_end(agents: tuple[int, int]) -> None:
    with pytest.raises(SlaveError, match="session mine is using this slave"):
        fence.wait_for_others(agents[1], "another", "", HURRY)


def test_another_stream_of_ours_is_waited_for_and_not_ended(state: int, agents: tuple[int, int]) -> None:
    with pytest.raises(Busy):
        fence.wait_for_others(agents[1], "mine", "1of2", HURRY)
    with pytest.raises(Busy):
        fence.lock_agent(agents[1], fence.announce(state, 1, OTHERS), "mine", "1of2", HURRY)


def test_our_own_earlier_agent_keeps_nobody_waiting(agents: tuple[int, int]) -> None:
    fence.wait_for_others(agents[1], "mine", "", HURRY)
    assert fence.is_locked(agents[1])


def test_whoever_looks_whether_others_work_leaves_the_lock_free(state: int, agents: tuple[int, int]) -> None:
    fence.unlock(agents[0])
    fence.wait_for_others(agents[1], "another", "", HURRY)
    assert not fence.is_locked(agents[0])


def test_an_older_agent_that_holds_the_lock_is_killed(state: int) -> None:
    older, younger = (fence.open_lock(state, fence.AGENT_LOCK) for _ in range(2))
    fence.lock_agent(older, fence.announce(state, 1, ONE), "mine", "")
    agent = subprocess.Popen(["sleep", "600"], pass_fds=[older])
    os.close(older)  # the lock is the child's now
    try:
        fence.lock_agent(younger, fence.announce(state, 2, TWO), "mine", "")
        assert agent.wait() == -signal.SIGKILL
        assert fence.holder(younger)["pid"] == os.getpid()
    finally:
        agent.kill()
        agent.wait()
        os.close(younger)


def test_whoever_was_displaced_meanwhile_gets_no_lock(state: int) -> None:
    old = fence.announce(state, 1, ONE)
    fence.announce(state, 2, TWO)
    lock = fence.open_lock(state, fence.AGENT_LOCK)
    with pytest.raises(Fenced):
        fence.lock_agent(lock, old, "mine", "")
    assert fence.holder(lock) == {}
    os.close(lock)


def test_whoever_is_displaced_while_it_waits_for_the_lock_gives_up(state: int, agents: tuple[int, int]) -> None:
    displaced = fence.announce(state, 1, TWO)
    fence.announce(state, 2, ONE)
    with pytest.raises(Fenced):
        fence.lock_agent(agents[1], displaced, "mine", "", HURRY)


def test_a_receiver_of_an_older_connection_is_killed(state: int, locks: tuple[int, int]) -> None:
    own = fence.announce(state, 1, ONE)
    theirs = fence.open_lock(state, fence.RECEIVERS_LOCK)
    fence.take_shared(theirs)
    receiver = subprocess.Popen(["sleep", "600"], pass_fds=[theirs])
    os.close(theirs)
    try:
        fence.receivers_gone(lambda: fence.take_alone(locks[0]), locks[0], own)
        assert receiver.wait() == -signal.SIGKILL
        with pytest.raises(BlockingIOError):
            fence.take_shared(locks[1])
    finally:
        receiver.kill()
        receiver.wait()


def test_whose_agent_is_at_work_is_told_while_it_holds_the_lock(state: int, agents: tuple[int, int]) -> None:
    assert fence.at_work(state) == "mine"
    fence.unlock(agents[0])
    assert fence.at_work(state) == ""


def test_refusals_leave_nothing_open(state: int) -> None:
    fence.announce(state, 2, TWO).close()
    before = len(os.listdir("/proc/self/fd"))
    for refused in (fence.announce, fence.show):
        with pytest.raises(Fenced):
            refused(state, 1, ONE)
    assert len(os.listdir("/proc/self/fd")) == before
