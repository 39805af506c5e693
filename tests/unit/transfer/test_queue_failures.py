"""Replication's failures as the queue shows them: read where they are, with the same pauses, dropped one by one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gsync.base.errors import UsageError
from gsync.base.model import NS, gfid_str
from gsync.engine.ledger import RETRIES, Failure, Ledger
from gsync.session.session import Session, SessionHome
from gsync.state.home import Home
from gsync.transfer.queue import failures
from gsync.transfer.queue.retry import RetryPolicy

GFID = b"g" * 16


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(str(tmp_path / "home"))
    (tmp_path / "tree").mkdir()
    home.add("photos", str(tmp_path / "tree"))
    return home


def session(home: Home, name: str, *rows: Failure) -> Session:
    sessions = SessionHome(home)
    made = sessions.find_or_new("photos", f"h:/{name}", name)
    sessions.save(made)
    if rows:
        ledger = Ledger(made.ledger_db)
        for row in rows:
            ledger.record(row)
        ledger.close()
    return made


def failure(gfid: bytes = GFID, path: bytes = b"/a\xff") -> Failure:
    return Failure("data", gfid, None, path, 13, "Permission denied")


def test_a_request_for_each_session_that_has_some(home: Home) -> None:
    session(home, "alpha", failure(), failure(b"h" * 16))
    session(home, "beta")
    (found,) = failures.all_failures(home)
    assert (found.id, len(found.rows), found.label) == ("session:alpha", 2, "photos → h:/alpha")
    assert found.created <= found.changed


def test_looking_makes_no_ledger(home: Home) -> None:
    made = session(home, "beta")
    assert failures.all_failures(home) == []
    assert failures.failures_of(home, "session:beta").rows == ()
    assert not os.path.exists(made.ledger_db)


def test_all_of_a_session_or_of_one_inode_are_tried_again(home: Home) -> None:
    made = session(home, "alpha", failure(), failure(b"h" * 16))
    assert failures.retry(home, f"session:alpha/{gfid_str(GFID)}") == 1
    ledger = Ledger(made.ledger_db)
    assert [row.gfid for row in ledger.take_due(1)] == [GFID]
    ledger.close()
    assert failures.retry(home, "session:alpha") == 2


def test_one_inode_is_dropped_with_a_reason_in_the_log_and_never_a_whole_session(home: Home) -> None:
    made = session(home, "alpha", failure(), failure(b"h" * 16))
    with pytest.raises(UsageError, match="one by one"):
        failures.drop(home, "session:alpha", "x")
    assert failures.drop(home, f"session:alpha/{gfid_str(GFID)}", "not needed") == 1
    assert [row.gfid for row in failures.failures_of(home, "session:alpha").rows] == [b"h" * 16]
    assert "not needed" in Path(made.log).read_text()


@pytest.mark.parametrize("ident", ["session:nosuch", "session:alpha/xyz"])
def test_what_is_none(home: Home, ident: str) -> None:
    session(home, "alpha", failure())
    with pytest.raises(UsageError):
        failures.retry(home, ident)


def test_the_pauses_are_those_of_the_queue(home: Home) -> None:
    """One policy: the ledger's next try is when a transfer's with these pauses would be."""
    policy = RetryPolicy(first_pause=RETRIES.first, longest_pause=RETRIES.longest, rng=lambda: 0.3)
    ledger = Ledger(session(home, "alpha").ledger_db, clock=lambda: 1000, rng=lambda: 0.3)
    for tries in range(1, 12):
        ledger.record(failure())
        assert ledger.next_due() == 1000 + int(policy.pause(tries) * NS)
    ledger.close()
