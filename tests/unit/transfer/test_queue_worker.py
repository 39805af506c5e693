"""The worker: what becomes of transfers, whatever happens to them, to stores and to workers."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gsync.base.errors import UsageError
from gsync.transfer.queue import handlers
from gsync.transfer.queue.handlers import OWN, Context, Handler
from gsync.transfer.queue.intake import Intake
from gsync.transfer.queue.leases import Leases
from gsync.transfer.queue.orders import Orders
from gsync.transfer.queue.registry import Stores
from gsync.transfer.queue.requests import NewOperation, NewRequest, NewTransfer, Transfer, TransferState
from gsync.transfer.queue.retry import RetryPolicy
from gsync.transfer.queue.transfers import Transfers
from gsync.transfer.queue.worker import QueueSettings, QueueWorker, is_dead, worker_id
from gsync.transfer.stores.store import Category, Content, StoreError

NOW = RetryPolicy(first_pause=0.0, longest_pause=0.0)


class Place:
    """Two directories, a state directory, and short ways to use them."""

    def __init__(self, folder: Path) -> None:
        self.home = str(folder / "home")
        self.a, self.b = folder / "a", folder / "b"
        for path in (self.a, self.b):
            path.mkdir()
        self.db = Transfers(self.home)
        self.stores = Stores(self.db)
        self.stores.add("a", str(self.a))
        self.stores.add("b", str(self.b))

    def transfer(self, name: str, **more: Any) -> NewTransfer:
        path = os.fsencode(name)
        return NewTransfer("a", path, "b", path, **more)

    def write(self, *names: str) -> None:
        for name in names:
            (self.a / name).write_text(f"content of {name}")

    def submit(self, *names: str, owner: str = "me", **arguments: Any) -> str:
        return Intake(self.db).submit(NewRequest("queue", owner, [
            NewOperation("copy", [self.transfer(name) for name in names], arguments)]))

    def run(self, request: str | None = None, handlers: Mapping[str, Handler] = OWN, **settings: Any) -> None:
        QueueWorker(self.home, QueueSettings(**{"policy": NOW, **settings}), once=True, request=request,
                    handlers=handlers).run()

    def of(self, request: str) -> list[tuple[str, str, int]]:
        return [(os.fsdecode(t.path), t.state.value, t.tries) for t in self.db.page(request=request)]

    def only(self, request: str) -> Transfer:
        [t] = self.db.page(request=request)
        return t


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_files_links_and_directories_are_brought_with_their_attributes(place: Place) -> None:
    place.write("x")
    os.chmod(place.a / "x", 0o640)
    os.utime(place.a / "x", ns=(1, 1_500_000_000_123_456_789))
    os.symlink("to\nnowhere", place.a / "l")
    (place.a / "d").mkdir(0o750)
    id_ = place.submit("x", "l", "d")
    place.run()
    assert place.of(id_) == [("x", "DONE", 0), ("l", "DONE", 0), ("d", "DONE", 0)]
    assert (place.b / "x").read_text() == "content of x"
    assert os.readlink(place.b / "l") == "to\nnowhere"
    st = os.stat(place.b / "x")
    assert (st.st_mode & 0o777, st.st_mtime_ns) == (0o640, 1_500_000_000_123_456_789)
    first = place.db.page(request=id_)[0]
    assert first.checksum == hashlib.sha256(b"content of x").hexdigest()
    assert first.size == len(b"content of x")


def test_one_bad_file_hurts_no_other(place: Place) -> None:
    place.write("x", "z")
    id_ = place.submit("x", "missing", "z")
    place.run()
    assert place.of(id_) == [("x", "DONE", 0), ("missing", "FAILED", 1), ("z", "DONE", 0)]
    assert "no such file: missing" in place.db.page(request=id_)[1].reason
    assert place.db.request(id_).state is TransferState.FAILED  # type: ignore[union-attr]


def test_what_is_there_already_and_the_same_is_done_and_what_is_another_is_not_replaced(place: Place) -> None:
    place.write("same", "other")
    (place.b / "same").write_text("content of same")
    (place.b / "other").write_text("precious")
    id_ = place.submit("same", "other")
    place.run()
    assert place.of(id_) == [("same", "DONE", 0), ("other", "FAILED", 1)]
    assert (place.b / "other").read_text() == "precious"
    id_ = place.submit("other", replace=True)
    place.run()
    assert place.of(id_) == [("other", "DONE", 0)]
    assert (place.b / "other").read_text() == "content of other"


class Copies:
    """The queue's handlers, of which copying fails the first times; counts how often it is called."""

    def __init__(self, fails: int = 0, why: str = "", number: int | None = None) -> None:
        self.calls, self._fails, self._why, self._number = 0, fails, why, number
        self._lock = threading.Lock()
        self.handlers: Mapping[str, Handler] = {**OWN, "copy": self._copy}

    def _copy(self, context: Context, t: Transfer) -> Content | None:
        with self._lock:
            self.calls += 1
            fails = self.calls <= self._fails
        if fails:
            raise StoreError(self._why, Category.TRANSIENT, self._number)
        return handlers.copy(context, t)


def test_a_transient_error_is_tried_again_and_the_last_try_is_the_last(place: Place) -> None:
    place.write("x")
    copies = Copies(99, "store b: disk full", errno.ENOSPC)
    id_ = place.submit("x")
    for _ in range(9):
        place.run(handlers=copies.handlers, policy=RetryPolicy(max_retries=2, first_pause=0.0, longest_pause=0.0))
    assert place.of(id_) == [("x", "FAILED", 3)]
    assert copies.calls == 3
    assert place.only(id_).reason == "store b: disk full"


def test_a_pause_comes_before_the_next_try(place: Place) -> None:
    place.write("x")
    copies = Copies(1, "store b: EIO")
    id_ = place.submit("x")
    place.run(handlers=copies.handlers, policy=RetryPolicy(first_pause=1000.0))
    t = place.only(id_)
    assert (t.state, t.tries) == (TransferState.RETRY, 1)
    assert 700 < (t.not_before - time.time_ns()) / 1e9 < 1300
    Orders(place.db).retry(request=id_)
    place.run()
    assert place.of(id_) == [("x", "DONE", 0)]


def test_settings_that_change_hold_while_it_runs(place: Place) -> None:
    """It would try for ever by those that it began with; a file that cannot be read for a moment changes nothing."""
    place.write("x")
    copies = Copies(1 << 60, "store b: I/O error")
    id_ = place.submit("x")
    answers: Iterator[UsageError | QueueSettings] = iter(
        [UsageError("gsync.conf: line 1"), QueueSettings(policy=RetryPolicy(max_retries=0), lease=1.0)])
    seen: list[str] = []

    def reread() -> QueueSettings:
        answer = next(answers)
        seen.append(place.only(id_).state.value)
        if isinstance(answer, UsageError):
            raise answer
        return answer

    QueueWorker(place.home, QueueSettings(policy=replace(NOW, max_retries=1 << 60), lease=1.0), reread=reread,
                handlers=copies.handlers, once=True).run()
    assert "FAILED" not in seen
    assert place.only(id_).state is TransferState.FAILED


def test_a_store_that_is_down_is_banned_and_no_try_is_charged(place: Place) -> None:
    place.write("x", "y")
    os.rename(place.b, f"{place.b}.away")
    id_ = place.submit("x", "y")
    place.run(policy=RetryPolicy(ban=1000.0))
    assert {(state, tries) for _, state, tries in place.of(id_)} == {("RETRY", 0)}
    assert place.stores.banned("b")
    assert not place.stores.banned("a")
    place.run()
    assert {(state, tries) for _, state, tries in place.of(id_)} == {("RETRY", 0)}
    os.rename(f"{place.b}.away", place.b)
    place.stores.allow("b")
    place.run()
    assert {(state, tries) for _, state, tries in place.of(id_)} == {("DONE", 0)}


def test_corrupt_data_is_fetched_from_another_replica(place: Place) -> None:
    good = hashlib.sha256(b"good").hexdigest()
    (place.a / "bad").write_text("baad")
    (place.a / "good").write_text("good")
    id_ = Intake(place.db).submit(NewRequest("queue", "me", [NewOperation("copy", [
        NewTransfer("a", b"bad", "b", b"x", 4, good, replicas=(("a", b"good"),))])]))
    place.run()
    place.run()
    t = place.only(id_)
    assert (t.state, t.source_path, t.tries) == (TransferState.DONE, b"good", 1)
    assert (place.b / "x").read_text() == "good"


def test_a_replica_is_removed_only_while_the_other_is_whole(place: Place) -> None:
    place.write("kept", "only")
    (place.b / "kept").write_text("content of kept")
    (place.b / "only").write_text("something else")
    id_ = Intake(place.db).submit(NewRequest("queue", "me", [NewOperation("remove", [
        place.transfer("kept"), place.transfer("only"), place.transfer("gone")])]))
    place.run()
    assert place.of(id_) == [("kept", "DONE", 0), ("only", "FAILED", 1), ("gone", "DONE", 0)]
    assert "it is the only replica" in place.db.page(request=id_)[1].reason
    assert sorted(os.listdir(place.b)) == ["only"]


def test_a_kind_that_nobody_knows_here_is_left_to_others(place: Place) -> None:
    id_ = Intake(place.db).submit(NewRequest("deliver", "me", [NewOperation("deliver", [place.transfer("x")])]))
    place.run()
    assert place.of(id_) == [("x", "NEW", 0)]


def test_a_handler_with_a_bug_ends_its_job_not_the_worker(place: Place) -> None:
    """aso_18: there the handler of exceptions raised itself, and the user was blocked until a restart."""
    def bug(context: Context, t: Transfer) -> None:
        raise ZeroDivisionError("oops")

    place.write("x")
    bad = Intake(place.db).submit(NewRequest("queue", "me", [NewOperation("meta", [place.transfer("x")])]))
    good = place.submit("x")
    for _ in range(9):
        place.run(handlers={**OWN, "meta": bug})
    assert place.only(bad).state is TransferState.FAILED
    assert "ZeroDivisionError('oops')" in place.only(bad).reason
    assert place.only(good).state is TransferState.DONE


# kill

def test_killed_on_the_way(place: Place) -> None:
    (place.a / "big").write_bytes(bytes(64 << 20))
    place.write("small")
    id_ = place.submit("big", "small")
    begun = threading.Event()

    def copy(context: Context, t: Transfer) -> Content | None:
        def progress(size: int) -> None:
            if size:
                begun.set()
                time.sleep(0.01)
            context.progress(size)

        return handlers.copy(Context(context.transfers, context.stores, context.arguments, progress), t)

    worker = QueueWorker(place.home, QueueSettings(policy=NOW), handlers={**OWN, "copy": copy}, once=True)
    thread = threading.Thread(target=worker.run)
    thread.start()
    assert begun.wait(30)
    assert Orders(place.db).kill(request=id_) == 2
    thread.join()
    assert [state for _, state, _ in place.of(id_)] == ["KILLED", "KILLED"]
    assert os.listdir(place.b) == []
    place.run()
    assert [state for _, state, _ in place.of(id_)] == ["KILLED", "KILLED"]


def test_aso_17_what_was_killed_too_late_is_done(place: Place) -> None:
    """There finished files became KILLED."""
    place.write("x")
    id_ = place.submit("x")

    def copy(context: Context, t: Transfer) -> Content | None:
        content = handlers.copy(context, t)
        assert Orders(place_db).kill(request=id_) == 1
        return content

    place_db = Transfers(place.home)
    place.run(handlers={**OWN, "copy": copy})
    assert place.only(id_).state is TransferState.DONE
    assert (place.a / "x").exists()  # and the source is nobody's to remove


# workers that die

def test_what_a_dead_worker_had_is_examined_and_not_done_again(place: Place) -> None:
    """aso_19: there a job that was submitted and could not be listed was submitted again."""
    place.write("arrived", "not")
    id_ = place.submit("arrived", "not", "begun")
    dead = f"{os.uname().nodename}/999999999/1/abc"
    taken = Leases(place.db, dead).acquire(3, 3600)
    place.db.advance([t.id for t in taken[:2]], TransferState.ACQUIRED, TransferState.SUBMITTED, by=dead)
    (place.b / "arrived").write_text("content of arrived")
    place.write("begun")
    copies = Copies()
    place.run(handlers=copies.handlers)
    place.run(handlers=copies.handlers)
    assert place.of(id_) == [("arrived", "DONE", 0), ("not", "DONE", 1), ("begun", "DONE", 0)]
    assert copies.calls == 2


def test_a_lease_that_has_run_out_is_taken_over_and_its_holder_is_not_heard(place: Place) -> None:
    place.write("x")
    id_ = place.submit("x")
    [t] = Leases(place.db, "elsewhere/1/1/frozen").acquire(1, -1)
    place.db.advance([t.id], TransferState.ACQUIRED, TransferState.SUBMITTED, by="elsewhere/1/1/frozen")
    place.run()
    place.run()
    assert place.of(id_) == [("x", "DONE", 1)]
    assert place.db.advance([t.id], TransferState.DONE, TransferState.FAILED, by="elsewhere/1/1/frozen") == []


def test_a_worker_that_is_stopped_lets_go_of_what_it_has(place: Place) -> None:
    (place.a / "big").write_bytes(bytes(16 << 20))
    id_ = place.submit("big")
    stop = threading.Event()

    def copy(context: Context, t: Transfer) -> Content | None:
        stop.set()
        return handlers.copy(context, t)

    QueueWorker(place.home, QueueSettings(policy=NOW), handlers={**OWN, "copy": copy}, stop=stop).run()
    assert place.of(id_) == [("big", "NEW", 0)]
    assert os.listdir(place.b) == []
    place.run()
    assert place.of(id_) == [("big", "DONE", 0)]


def test_a_job_without_progress_is_given_up(place: Place) -> None:
    """dirac_13, aso_18: nothing of one job holds up the others for ever."""
    place.write("hangs", "x")
    hung = threading.Event()

    def copy(context: Context, t: Transfer) -> Content | None:
        if t.path == b"hangs" and not hung.is_set():
            hung.wait(60)
        return handlers.copy(context, t)

    slow, fast = place.submit("hangs", owner="one"), place.submit("x", owner="two")
    QueueWorker(place.home, QueueSettings(policy=RetryPolicy(first_pause=1000), job_timeout=0.5),
                handlers={**OWN, "copy": copy}, once=True).run()
    assert place.only(fast).state is TransferState.DONE
    assert (place.only(slow).state, place.only(slow).tries) == (TransferState.RETRY, 1)
    assert "no progress for" in place.only(slow).reason
    hung.set()
    Orders(place.db).retry(request=slow)
    place.run()
    assert place.only(slow).state is TransferState.DONE


def test_two_workers_at_once_do_each_transfer_once(place: Place) -> None:
    """dirac_14: two agents got the same request."""
    names = [f"f{n}" for n in range(200)]
    place.write(*names)
    for n in range(10):
        place.submit(*names[n::10], owner=f"owner{n}")
    copies = Copies()
    threads = [threading.Thread(target=QueueWorker(place.home, QueueSettings(policy=NOW, files=7), once=True,
                                                   handlers=copies.handlers).run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    place.run(handlers=copies.handlers)
    assert place.db.counts() == {TransferState.DONE: 200}
    assert copies.calls == 200
    assert sorted(os.listdir(place.b)) == sorted(names)


def test_worker_ids() -> None:
    assert not is_dead(worker_id())
    assert is_dead(f"{os.uname().nodename}/999999999/1/x")
    assert not is_dead("elsewhere/999999999/1/x")
    assert not is_dead("no worker's")
