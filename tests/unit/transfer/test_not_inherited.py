"""Mistakes of other transfer systems that stores and queue do not repeat, by system and number.

EOS's archive daemon 5, 6; DIRAC 13, 14; CRAB's AsyncStageOut 15 to 19; gsyncd 20. Some are shown by further tests,
named alike, in test_queue_worker.py, test_send.py (dirac_13), test_publish.py and test_asyncstageout.py (aso_16,
aso_19), and in tests/integration/test_vault.py (desi_7).
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from gsync.base.clock import Clock
from gsync.transfer.queue.intake import Intake
from gsync.transfer.queue.leases import Leases
from gsync.transfer.queue.orders import Orders
from gsync.transfer.queue.requests import NewOperation, NewRequest, TransferState
from gsync.transfer.queue.retry import RetryPolicy
from gsync.transfer.queue.transfers import Transfers
from gsync.transfer.stores.store import Category, category_of
from gsync.transfer.stores.vault import VaultStore
from gsync.transfer.stores.vaultfiles import make_vault
from lab import REPOSITORY as ROOT
from lab.tape import Tape
from tests.unit.transfer.test_queue_worker import NOW, Copies, Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_eos_5_what_waits_is_kept_in_order_and_can_be_killed(place: Place) -> None:
    """The pending list was in memory, last in first out, the same id overwrote, and none of it could be killed."""
    place.write("x")
    ids = [place.submit("x", replace=True) for _ in range(4)]
    assert len(set(ids)) == 4
    again = Transfers(place.home)  # another process, after a restart of all
    assert Orders(again).kill(request=ids[2]) == 1
    assert [t.request for t in Leases(again, "w").acquire(9, 60)] == [ids[0], ids[1], ids[3]]
    assert Intake(again).submit(NewRequest("queue", "'quo\"te\n\udcff", [NewOperation("copy", [place.transfer("x")])]))


def test_eos_6_one_bad_file_repeats_no_good_one_and_waits_before_its_next_try(place: Place) -> None:
    """The whole batch was copied again, at once."""
    names = [f"f{n}" for n in range(20)]
    place.write(*names)
    copies = Copies(1, "store b: I/O error", errno.EIO)
    id_ = place.submit(*names)
    place.run(handlers=copies.handlers, policy=RetryPolicy(first_pause=100.0))
    assert Counter(state for _, state, _ in place.of(id_)) == {"DONE": 19, "RETRY": 1}
    Orders(place.db).retry(request=id_)
    place.run(handlers=copies.handlers)
    assert {state for _, state, _ in place.of(id_)} == {"DONE"}
    assert copies.calls == 21


def test_eos_6_a_rename_that_fails_is_the_transfers_failure(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was only logged."""
    place.write("x")
    id_ = place.submit("x")

    def link(*args: object, **more: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", link)
        place.run(policy=RetryPolicy(max_retries=0))
    assert place.of(id_) == [("x", "FAILED", 1)]
    assert "quota" in place.only(id_).reason
    assert os.listdir(place.b) == []


def test_dirac_13_a_request_is_durable_when_submit_returns(place: Place) -> None:
    """Requests stayed in memory until a commit at the end; a crash left replicas that nobody knew of."""
    place.write("x")
    program = ("import os, signal, sys\n"
               "from gsync.transfer.queue.transfers import *; from gsync.transfer.queue.intake import *\n"
               "from gsync.transfer.queue.requests import *\n"
               "db = Transfers(sys.argv[1])\n"
               "request = NewRequest('queue', 'me', [NewOperation('copy', [NewTransfer('a', b'x', 'b', b'x')])])\n"
               "Intake(db).submit(request)\n"
               "os.kill(os.getpid(), signal.SIGKILL)\n")
    done = subprocess.run([sys.executable, "-c", program, place.home], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    place.run()
    assert place.db.counts() == {TransferState.DONE: 1}
    assert place.db.read("PRAGMA synchronous") == [(2,)]  # FULL: after a power cut too


def test_dirac_13_nothing_sleeps_while_one_transfer_waits_for_its_next_try(place: Place) -> None:
    """It slept up to 970 s inline. Here only the row waits."""
    place.write("x", "y")
    copies = Copies(1, "store b: I/O error")
    first, second = place.submit("x"), place.submit("y", owner="other")
    begun = time.monotonic()
    place.run(handlers=copies.handlers, policy=RetryPolicy(first_pause=10_000.0, longest_pause=10_000.0))
    assert time.monotonic() - begun < 5_000
    assert {place.only(first).state, place.only(second).state} == {TransferState.RETRY, TransferState.DONE}


def test_dirac_14_of_many_that_pick_at_once_each_transfer_goes_to_one(place: Place) -> None:
    """It selected, then updated without a condition."""
    for n in range(40):
        place.submit(*(f"f{n}.{m}" for m in range(5)), owner=f"owner{n}")
    taken: list[int] = []

    def pick(name: str) -> None:
        db = Transfers(place.home)
        while got := Leases(db, name).acquire(3, 60):
            taken.extend(t.id for t in got)
        db.close()

    threads = [threading.Thread(target=pick, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 200


def test_dirac_14_a_try_is_counted_once(place: Place) -> None:
    place.write("x")
    copies = Copies(2, "store b: I/O error")
    id_ = place.submit("x")
    place.run(handlers=copies.handlers)
    place.run(handlers=copies.handlers)
    assert (place.only(id_).state, place.only(id_).tries, copies.calls) == (TransferState.DONE, 2, 3)


def test_dirac_14_ten_poisoned_files_do_not_starve_the_spool(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Transfers, request: NewRequest) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    place.write("x")
    spool = Path(place.home, "spool")
    spool.mkdir()
    for n in range(15):
        (spool / f"0{n:03d}.json").write_text("{" * n)
    with monkeypatch.context() as patched:
        patched.setattr(Transfers, "insert", full)
        id_ = place.submit("x")
    place.run()
    assert place.of(id_) == [("x", "DONE", 0)]
    assert len(list(spool.glob("*.bad"))) == 15


def test_aso_15_every_error_has_a_fate(place: Place) -> None:
    """States that nobody had mapped were dropped, and their report deleted."""
    assert {category_of(number) for number in errno.errorcode} <= set(Category)
    for category in Category:
        for tries in range(1, 9):
            verdict = RetryPolicy(max_retries=3).judge(category, tries, 1000)
            assert verdict.again is None or verdict.again > 1000
            assert verdict.charged or verdict.ban
    assert RetryPolicy(max_retries=3).judge(category_of(None), 1, 0).again is None


def test_aso_16_a_file_of_the_spool_is_whole_and_none_overwrites_another(place: Place,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the same second were one file, and a reader removed what was half written."""
    def full(self: Transfers, request: NewRequest) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    place.write("x")
    with monkeypatch.context() as patched:
        patched.setattr(Transfers, "insert", full)
        patched.setattr(place, "db", Transfers(place.home, clock=Clock(now=lambda: 1)))
        ids = [place.submit("x", replace=True) for _ in range(5)]
    spool = Path(place.home, "spool")
    half = spool / "half.json.new"
    half.write_text("{")
    place.run()
    assert [place.only(id_).state for id_ in ids] == [TransferState.DONE] * 5
    assert os.listdir(spool) == ["half.json.new"]


@pytest.mark.parametrize("fails", [False, True])
def test_aso_17_no_copy_removes_its_source(place: Place, fails: bool) -> None:
    names = ["x", "y", "z"]
    place.write(*names)
    for name in names if fails else ():
        (place.b / name).write_text("another")
    id_ = place.submit(*names)
    place.run()
    assert {state for _, state, _ in place.of(id_)} == {"FAILED" if fails else "DONE"}
    assert sorted(os.listdir(place.a)) == names


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_aso_17_tries_are_not_off_by_one(place: Place, retries: int) -> None:
    place.write("x")
    copies = Copies(99, "store b: I/O error")
    id_ = place.submit("x")
    for _ in range(retries + 3):
        place.run(handlers=copies.handlers,
                  policy=RetryPolicy(max_retries=retries, first_pause=0.0, longest_pause=0.0))
    assert copies.calls == place.only(id_).tries == retries + 1


def test_aso_18_no_thread_is_left_of_a_worker(place: Place) -> None:
    """A set of threads leaked with each cycle."""
    place.write(*(f"f{n}" for n in range(60)))
    for n in range(60):
        place.submit(f"f{n}", owner=f"o{n % 7}")
    before = threading.active_count()
    for _ in range(3):
        place.run(files=2)
    assert place.db.counts() == {TransferState.DONE: 60}
    assert threading.active_count() == before


def test_aso_19_both_pipes_of_a_command_are_drained_and_no_shell_reads_names(tmp_path: Path) -> None:
    root = tmp_path / "vault $(touch pwned); '"
    root.mkdir()
    make_vault(str(root))
    tape = Tape(tmp_path / "tape")
    talks = tmp_path / "talks"
    talks.write_text("import sys, os\nsys.stdout.write('x' * 1000000)\nsys.stderr.write('y' * 1000000)\n"
                     "sys.stdout.flush()\nos.execv(sys.argv[1], sys.argv[1:])\n")
    options = {key: f"{sys.executable} -IS {talks} {command}" for key, command in tape.options.items()}
    vault = VaultStore(os.fsencode(root), "v", options={**tape.options, "put-command": options["put-command"]})
    vault.put(b"$(touch pwned)", io.BytesIO(b"data"))
    into = io.BytesIO()
    vault.get(b"$(touch pwned)", into)
    assert into.getvalue() == b"data"
    assert not list(tmp_path.rglob("pwned"))


def test_aso_19_what_one_request_says_holds_for_no_other(place: Place) -> None:
    """force_* flags stuck across tasks."""
    place.write("x", "y")
    for name in ("x", "y"):
        (place.b / name).write_text("old")
    forced, other = place.submit("x", replace=True), place.submit("y")
    place.run()
    assert place.only(forced).state is TransferState.DONE
    assert place.only(other).state is TransferState.FAILED
    assert (place.b / "y").read_text() == "old"


def test_gsyncd_20_after_the_last_try_a_file_is_a_row_that_stays_not_a_loss(place: Place) -> None:
    """After max_rsync_retries the batch was dropped, and the stime advanced."""
    place.write("bad", "good")
    copies = Copies(99, "store b: I/O error")
    id_ = place.submit("bad")
    for _ in range(9):
        place.run(handlers=copies.handlers, policy=NOW)
    t = place.only(id_)
    assert (t.state, t.tries, t.reason) == (TransferState.FAILED, 4, "store b: I/O error")
    assert Orders(place.db).prune(-1e9) == 0  # and no pruning forgets it
    assert place.db.request(id_) is not None
    assert json.dumps(t.reason)


def test_gsyncd_20_one_result_per_file(place: Place) -> None:
    """There was one exit status for a batch."""
    place.write("x", "z")
    (place.b / "z").write_text("another")
    id_ = place.submit("x", "missing", "z")
    place.run()
    assert [state for _, state, _ in place.of(id_)] == ["DONE", "FAILED", "FAILED"]
    reasons = [t.reason for t in place.db.page(request=id_)]
    assert "no such file" in reasons[1]
    assert "exists and differs" in reasons[2]
