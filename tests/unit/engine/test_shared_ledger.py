"""The ledger of workers that take over from each other."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from gsync.engine.ledger import Failure, SharedLedger, ledger_epochs


def failure(n: int) -> Failure:
    return Failure("name", None, (b"p" * 16, b"%d" % n), b"/path/%d" % n, 5, "it failed")


def begun(folder: Path, epoch: int) -> SharedLedger:
    ledger = SharedLedger(str(folder))
    ledger.begin(epoch)
    return ledger


def test_the_next_one_knows_what_the_one_before_had_noted(tmp_path: Path) -> None:
    first = begun(tmp_path, 1)
    first.record(failure(1))
    second = begun(tmp_path, 4)
    assert [each.path for each in second.all()] == [b"/path/1"]
    first.record(failure(2))  # it does not know yet that it is not the active one any more
    assert second.count() == 1
    third = begun(tmp_path, 5)
    assert third.count() == 1
    assert ledger_epochs(str(tmp_path)) == [4, 5]
    for ledger in (first, second, third):
        ledger.close()


def test_a_worker_that_is_frozen_in_a_transaction_keeps_nobody_waiting(tmp_path: Path) -> None:
    first = begun(tmp_path, 1)
    for n in range(50):
        first.record(failure(n))
    frozen = sqlite3.connect(tmp_path / "ledger.1.db", isolation_level=None)
    frozen.execute("PRAGMA cache_size=1")  # so that pages of the transaction are in the file before its end
    frozen.execute("BEGIN EXCLUSIVE")
    frozen.execute("UPDATE failures SET message=hex(randomblob(5000))")
    assert (tmp_path / "ledger.1.db-journal").stat().st_size > 0
    second = begun(tmp_path, 2)
    assert {each.message for each in second.all()} == {"it failed"}
    second.record(failure(99))
    assert second.count() == 51
    frozen.close()
    second.close()
    first.close()


def test_while_it_rests_it_has_nothing_open_on_the_meta_volume(tmp_path: Path) -> None:
    ledger = begun(tmp_path, 1)
    ledger.record(failure(1))
    ledger.rest()
    assert ledger.count() == 0
    ledger.begin(2)
    assert ledger.count() == 1
    ledger.close()
