"""Requests, operations and transfers: states, compare-and-set, fair shares, orders, the spool."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.base.errors import UsageError
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
