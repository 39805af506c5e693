"""Requests, operations and transfers: states, compare-and-set, fair shares, orders, the spool."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gsync.base.clock import Clock
from gsync.base.errors import UsageError
from gsync.base.model import NS
from gsync.transfer.queue.intake import Intake
from gsync.transfer.queue.leases import Leases
from gsync.transfer.queue.orders import Orders
from gsync.transfer.queue.requests import NewOperation, NewRequest, NewTransfer, TransferState
from gsync.transfer.queue.transfers import Transfers


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Transfers]:
    transfers = Transfers(str(tmp_path))
    yield transfers
    transfers.close()


def request(owner: str = "me", files: int = 3, operations: int = 1, priority: int = 0) -> NewRequest:
    moves = [NewTransfer("a", b"f%d" % i, "b", b"\xff\n%d" % i, 10) for i in range(files)]
    return NewRequest("queue", owner, [NewOperation("copy", moves) for _ in range(operations)], priority=priority)


def states(db: Transfers, ident: str) -> list[str]:
    return [t.state.value for t in db.page(request=ident)]


def test_state_goes_upward_and_the_next_operation_begins_when_the_one_before_is_done(db: Transfers) -> None:
    ident = Intake(db).submit(request(files=2, operations=2))
    assert states(db, ident) == ["NEW", "NEW", "QUEUED", "QUEUED"]
    first = Leases(db, "w").acquire(10, 60)
    assert [t.path for t in first] == [b"\xff\n0", b"\xff\n1"]
    assert db.request(ident).state is TransferState.SUBMITTED  # type: ignore[union-attr]
    db.advance([first[0].id], TransferState.ACQUIRED, TransferState.DONE)
    assert states(db, ident) == ["DONE", "ACQUIRED", "QUEUED", "QUEUED"]
    db.advance([first[1].id], TransferState.ACQUIRED, TransferState.DONE)
    assert states(db, ident) == ["DONE", "DONE", "NEW", "NEW"]
    assert db.request(ident).state is TransferState.NEW  # type: ignore[union-attr]
    second = Leases(db, "w").acquire(10, 60)
    db.advance([t.id for t in second], TransferState.ACQUIRED, TransferState.DONE)
    assert db.request(ident).state is TransferState.DONE  # type: ignore[union-attr]
    assert [o.state for o in db.operations(ident)] == [TransferState.DONE, TransferState.DONE]


def test_what_comes_after_a_failed_operation_is_killed_and_retry_brings_all_back(db: Transfers) -> None:
    ident = Intake(db).submit(request(files=1, operations=2))
    [one] = Leases(db, "w").acquire(10, 60)
    db.advance([one.id], TransferState.ACQUIRED, TransferState.FAILED, reason="no permission")
    assert states(db, ident) == ["FAILED", "KILLED"]
    assert db.request(ident).state is TransferState.FAILED  # type: ignore[union-attr]
    assert Orders(db).retry(request=ident) == 2
    assert states(db, ident) == ["NEW", "QUEUED"]


def test_of_two_that_want_the_same_change_one_wins(db: Transfers, tmp_path: Path) -> None:
    Intake(db).submit(request(files=1))
    other = Transfers(str(tmp_path))
    [one] = Leases(db, "w").acquire(10, 60)
    assert Leases(other, "v").acquire(10, 60) == []
    assert db.advance([one.id], TransferState.ACQUIRED, TransferState.SUBMITTED, by="w") == [one.id]
    assert other.advance([one.id], TransferState.ACQUIRED, TransferState.DONE) == []
    assert other.advance([one.id], TransferState.SUBMITTED, TransferState.DONE, by="v") == []
    other.close()


def test_killed_stays_killed_and_what_had_finished_stays_done(db: Transfers) -> None:
    ident = Intake(db).submit(request(files=3))
    one, two = Leases(db, "w").acquire(2, 60)
    db.advance([one.id], TransferState.ACQUIRED, TransferState.DONE)
    assert Orders(db).kill(request=ident) == 2
    assert states(db, ident) == ["DONE", "KILL", "KILLED"]
    assert Leases(db, "w").killed() == {two.id}
    assert db.advance([two.id], TransferState.ACQUIRED, TransferState.DONE) == []
    db.advance([two.id], TransferState.KILL, TransferState.KILLED)
    assert db.request(ident).state is TransferState.KILLED  # type: ignore[union-attr]
    assert Orders(db).kill(request=ident) == 0


def test_owners_get_fair_shares_and_a_priority_doubles_one(db: Transfers) -> None:
    for _ in range(40):
        Intake(db).submit(request("greedy", 10))
    for owner in ("modest", "quiet"):
        Intake(db).submit(request(owner, 100))
    Intake(db).submit(request("urgent", 100, priority=1))
    served: Counter[str] = Counter()
    for _ in range(25):
        got = Leases(db, "w").acquire(5, 60)
        served[got[0].owner] += len(got)
        db.advance([t.id for t in got], TransferState.ACQUIRED, TransferState.DONE)
    assert served["urgent"] == 50
    assert served["greedy"] == served["modest"] == served["quiet"] == 25


def test_one_worker_serves_an_owner_at_a_time_and_leases_run_out(db: Transfers) -> None:
    Intake(db).submit(request("a", 4))
    Intake(db).submit(request("b", 4))
    mine = Leases(db, "w").acquire(1, 60)
    assert mine[0].owner == "a"
    assert Leases(db, "v").acquire(9, 60)[0].owner == "b"
    assert Leases(db, "u").acquire(9, 60) == []
    Leases(db, "w").release("a")
    gone = Leases(db, "u").acquire(1, -1)
    assert gone[0].owner == "a"
    assert [t.id for t in Leases(db, "x").expired()] == [gone[0].id]
    assert Leases(db, "x").adopt(Leases(db, "x").expired()[0], 60)
    assert not Leases(db, "y").adopt(gone[0], 60)
    assert Leases(db, "x").expired() == []


class Time:
    """A clock that a test moves, in seconds."""

    def __init__(self) -> None:
        self.seconds = 1000

    def now(self) -> int:
        return self.seconds * NS


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def timed(tmp_path: Path, time: Time) -> Iterator[Transfers]:
    transfers = Transfers(str(tmp_path), clock=Clock(now=time.now))
    yield transfers
    transfers.close()


def test_what_is_renewed_runs_from_now_for_transfers_and_their_owner(timed: Transfers, time: Time) -> None:
    Intake(timed).submit(request("a", 2))
    Leases(timed, "w").acquire(1, 60)
    time.seconds += 50
    Leases(timed, "w").renew(60)
    time.seconds += 50
    assert Leases(timed, "v").expired() == []
    assert Leases(timed, "v").acquire(9, 60) == []
    time.seconds += 11
    assert len(Leases(timed, "v").expired()) == 1
    assert len(Leases(timed, "v").acquire(9, 60)) == 1


def test_a_renewal_is_of_the_worker_s_own_leases_alone(timed: Transfers, time: Time) -> None:
    Intake(timed).submit(request("a", 1))
    [one] = Leases(timed, "w").acquire(1, 60)
    time.seconds += 61
    Leases(timed, "v").renew(60)
    assert Leases(timed, "v").expired() == [one]


def test_a_transfer_that_was_renewed_meanwhile_is_not_taken_over(timed: Transfers, time: Time) -> None:
    Intake(timed).submit(request("a", 1))
    Leases(timed, "w").acquire(1, 60)
    time.seconds += 61
    [seen] = Leases(timed, "v").expired()
    Leases(timed, "w").renew(60)
    assert not Leases(timed, "v").adopt(seen, 60)
    assert Leases(timed, "w").held() == [replace(seen, lease=(time.seconds + 60) * NS)]


def test_the_leases_of_a_dead_worker_end_at_once_for_transfers_and_their_owner(timed: Transfers, time: Time) -> None:
    Intake(timed).submit(request("a", 2))
    [one] = Leases(timed, "w").acquire(1, 60)
    Leases(timed, "v").expire("w")
    assert [t.id for t in Leases(timed, "v").expired()] == [one.id]
    assert [t.id for t in Leases(timed, "v").acquire(9, 60)] == [one.id + 1]


def test_an_owner_is_released_by_its_own_worker_alone(db: Transfers) -> None:
    Intake(db).submit(request("a", 2))
    Leases(db, "w").acquire(1, 60)
    Leases(db, "v").release("a")
    assert Leases(db, "v").acquire(9, 60) == []


def test_a_worker_holds_what_it_has_not_ended(db: Transfers) -> None:
    Intake(db).submit(request(files=3))
    one, two, three = Leases(db, "w").acquire(3, 60)
    db.advance([one.id], TransferState.ACQUIRED, TransferState.DONE)
    Orders(db).kill(ids=[two.id])
    assert {t.id for t in Leases(db, "w").held()} == {two.id, three.id}
    assert Leases(db, "v").held() == []


def test_what_a_worker_takes_is_bounded_in_bytes_but_one_is_always_taken(db: Transfers) -> None:
    Intake(db).submit(request(files=4))  # of 10 bytes each
    assert len(Leases(db, "w").acquire(9, 60, max_bytes=5)) == 1
    assert len(Leases(db, "w").acquire(9, 60, max_bytes=20)) == 2


def test_a_page_is_of_the_owner_the_link_and_the_operation_that_were_asked_for(db: Transfers) -> None:
    mine, other = Intake(db).submit(request("me", 1, operations=2)), Intake(db).submit(NewRequest("queue", "you", [
        NewOperation("copy", [NewTransfer("a", b"f", "c", b"f")])]))
    first, second = db.operations(mine)
    assert [t.request for t in db.page(owner="you")] == [other]
    assert [t.request for t in db.page(link=("a", "c"))] == [other]
    assert [t.request for t in db.page(link=("", "b"))] == [mine, mine]
    assert [t.operation for t in db.page(operation=second.id)] == [second.id]
    assert [t.operation for t in db.page(request=mine, state=TransferState.NEW)] == [first.id]


def test_the_arguments_of_an_operation_are_kept(db: Transfers, tmp_path: Path) -> None:
    ident = Intake(db).submit(request(files=1, operations=2))
    first, second = db.operations(ident)
    db.set_arguments(first.id, {"done": 1})
    other = Transfers(str(tmp_path))
    assert [dict(o.arguments) for o in other.operations(ident)] == [{"done": 1}, dict(second.arguments)]
    other.close()


@pytest.mark.parametrize("operations", [[], [NewOperation("copy", [])]], ids=["no operations", "no transfers"])
def test_a_request_of_nothing_is_refused(db: Transfers, operations: list[NewOperation]) -> None:
    with pytest.raises(ValueError, match="a request has operations"), db.atomic():
        db.insert(NewRequest("queue", "me", operations))
    assert list(db.requests()) == []


def test_banned_stores_are_left_alone(db: Transfers) -> None:
    Intake(db).submit(request())
    with db.atomic() as sql:
        sql.execute("INSERT INTO bans VALUES ('b', NULL, 'by hand', 0)")
    assert Leases(db, "w").acquire(9, 60) == []


def test_retry_waits_for_its_time(db: Transfers) -> None:
    Intake(db).submit(request(files=1))
    [one] = Leases(db, "w").acquire(9, 60)
    db.advance([one.id], TransferState.ACQUIRED, TransferState.RETRY, not_before=1 << 62, reason="no answer")
    assert db.wake() == 0
    assert db.next_due() == 1 << 62
    Orders(db).retry(ids=[one.id])
    assert [t.id for t in Leases(db, "w").acquire(9, 60)] == [one.id]


def test_what_the_database_cannot_take_waits_in_the_spool_and_a_bad_file_holds_up_nothing(
        db: Transfers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Transfers, request: NewRequest) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Transfers, "insert", broken)
        ident = Intake(db).submit(request(files=2))
    assert db.request(ident) is None
    (tmp_path / "spool" / "0000.json").write_text("{")
    assert Intake(db).sweep() == 1
    assert states(db, ident) == ["NEW", "NEW"]
    assert db.page(request=ident)[0].path == b"\xff\n0"
    assert sorted(os.listdir(tmp_path / "spool")) == ["0000.json.bad"]
    assert Intake(db).sweep() == 0


def test_an_operation_of_which_something_is_taken_is_shown_as_submitted(db: Transfers) -> None:
    ident = Intake(db).submit(request(files=2, operations=2))
    Leases(db, "w").acquire(1, 60)
    assert [o.state for o in db.operations(ident)] == [TransferState.SUBMITTED, TransferState.QUEUED]


@pytest.mark.parametrize(("state", "following"), [(TransferState.DONE, TransferState.NEW),
                                                  (TransferState.FAILED, TransferState.KILLED)])
def test_the_state_of_the_next_operation_follows_that_of_its_transfers(
        db: Transfers, state: TransferState, following: TransferState) -> None:
    ident = Intake(db).submit(request(files=1, operations=2))
    [one] = Leases(db, "w").acquire(9, 60)
    db.advance([one.id], TransferState.ACQUIRED, state)
    assert [o.state for o in db.operations(ident)] == [state, following]


def test_what_failed_after_an_operation_that_is_done_may_be_taken_at_once_when_retried(db: Transfers) -> None:
    ident = Intake(db).submit(request(files=1, operations=2))
    for state in (TransferState.DONE, TransferState.FAILED):
        [one] = Leases(db, "w").acquire(9, 60)
        db.advance([one.id], TransferState.ACQUIRED, state)
    assert Orders(db).retry(request=ident) == 1
    assert states(db, ident) == ["DONE", "NEW"]


def test_an_order_about_nothing_in_particular_is_refused(db: Transfers) -> None:
    ident = Intake(db).submit(request(files=1))
    for order in (Orders(db).kill, Orders(db).retry):
        with pytest.raises(ValueError, match="nothing is selected"):
            order()
    assert states(db, ident) == ["NEW"]


def test_what_an_order_would_be_about_is_counted(db: Transfers) -> None:
    ident = Intake(db).submit(request(files=4))
    one, two = Leases(db, "w").acquire(2, 60)
    db.advance([one.id], TransferState.ACQUIRED, TransferState.DONE)
    db.advance([two.id], TransferState.ACQUIRED, TransferState.FAILED)
    assert (Orders(db).count_killable(request=ident), Orders(db).count_retryable(request=ident)) == (2, 1)


def test_an_owner_of_whom_nothing_is_left_is_forgotten(db: Transfers) -> None:
    Intake(db).submit(request("gone", files=1))
    [one] = Leases(db, "w").acquire(9, 60)
    db.advance([one.id], TransferState.ACQUIRED, TransferState.DONE)
    Leases(db, "w").release("gone")
    Intake(db).submit(request("here", files=1))
    Orders(db).prune(0)
    assert [row[0] for row in db.read("SELECT owner FROM owners")] == ["here"]


def test_of_sends_that_ended_only_a_killed_one_that_brought_something_is_not_forgotten(db: Transfers) -> None:
    def send() -> str:
        return Intake(db).submit(NewRequest("send", "me", request(files=2).operations))

    done = send()
    db.advance([t.id for t in Leases(db, "w").acquire(9, 60)], TransferState.ACQUIRED, TransferState.DONE)
    killed = send()
    one, two = Leases(db, "w").acquire(9, 60)
    db.advance([one.id], TransferState.ACQUIRED, TransferState.DONE)
    db.advance([two.id], TransferState.ACQUIRED, TransferState.KILLED)
    assert db.request(killed).state is TransferState.KILLED  # type: ignore[union-attr]
    assert Orders(db).prune(0) == 1
    assert (db.request(done), db.request(killed) is None) == (None, False)


def test_history_is_pruned_but_not_what_failed(db: Transfers) -> None:
    done, failed = Intake(db).submit(request(files=1)), Intake(db).submit(request("other", files=1))
    for _ in range(2):
        [one] = Leases(db, "w").acquire(9, 60)
        db.advance([one.id], TransferState.ACQUIRED,
                   TransferState.DONE if one.request == done else TransferState.FAILED)
    assert Orders(db).prune(0) == 1
    assert db.request(done) is None
    assert db.request(failed) is not None
    assert db.request(failed[:6]) is not None


def test_a_database_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "transfers.db").write_bytes(b"nothing of SQLite's" * 100)
    with pytest.raises(UsageError, match=r"transfers\.db: file is not a database"):
        Transfers(str(tmp_path))


OTHERS = "CREATE TABLE IF NOT EXISTS units (name TEXT PRIMARY KEY);CREATE TABLE IF NOT EXISTS nights (day TEXT)"


def test_whoever_only_looks_makes_nothing_and_finds_nothing(tmp_path: Path) -> None:
    looking = Transfers(str(tmp_path / "home"), looking=True)
    assert list(looking.requests()) == []
    looking.close()
    assert list(tmp_path.iterdir()) == []


def test_whoever_only_looks_sees_the_missing_tables_of_another_room_as_empty(db: Transfers, tmp_path: Path) -> None:
    looking = Transfers(str(tmp_path), looking=True)
    looking.make_tables(OTHERS)
    assert looking.read("SELECT * FROM units") == looking.read("SELECT * FROM nights") == []
    looking.close()
    assert db.read("SELECT name FROM sqlite_master WHERE name IN ('units', 'nights')") == []


def test_tables_that_are_there_keep_nobody_waiting_for_a_writer(db: Transfers, tmp_path: Path) -> None:
    db.make_tables(OTHERS)
    other = Transfers(str(tmp_path), patience=0.0)
    with db.atomic():
        other.make_tables(OTHERS)
    other.close()


def test_what_is_read_in_a_snapshot_is_of_one_moment(db: Transfers, tmp_path: Path) -> None:
    other = Transfers(str(tmp_path))
    with db.snapshot():
        assert list(db.requests()) == []
        ident = Intake(other).submit(request())
        assert list(db.requests()) == []
    assert [r.id for r in db.requests()] == [ident]
    other.close()


def test_the_database_is_the_user_s_alone(db: Transfers, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "transfers.db").stat().st_mode) == 0o600
