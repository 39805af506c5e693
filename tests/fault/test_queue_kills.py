"""The queue with workers that are killed at random, a full destination, a database that cannot be written."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gsync.transfer.queue.intake import Intake
from gsync.transfer.queue.leases import Leases
from gsync.transfer.queue.listing import find_lines
from gsync.transfer.queue.requests import NewOperation, NewRequest, NewTransfer, TransferState
from gsync.transfer.queue.retry import RetryPolicy
from gsync.transfer.queue.transfers import Transfers
from gsync.transfer.queue.worker import QueueSettings, QueueWorker
from lab import REPOSITORY as ROOT
from lab.images import FsImage

NAMES = [b"plain", b"new\nline", b"\xff\xfe", b"-dash", b"%41 b*", b"n" * 255]


def contents(folder: Path) -> dict[bytes, bytes]:
    found = {}
    for at, _, files in os.walk(os.fsencode(folder)):
        for name in files:
            with open(os.path.join(at, name), "rb") as file:
                found[os.path.relpath(os.path.join(at, name), os.fsencode(folder))] = file.read()
    return found


def run_worker(home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "gsync", "queue", "run", "--state", home, "-o", "queue-jobs=2", "-o",
         "queue-retry-pause=0", "-o", "queue-max-retries=1000", "-o", "log-level=ERROR"], cwd=ROOT,
        stdin=subprocess.DEVNULL)


@pytest.mark.slow
def test_workers_killed_at_random_bring_every_file_once_and_whole(tmp_path: Path) -> None:
    source, destination, home = tmp_path / "a", tmp_path / "b", tmp_path / "home"
    source.mkdir()
    destination.mkdir()
    rng = random.Random(7)
    db = Transfers(str(home))
    ids = []
    for owner in range(6):
        moves = []
        for n in range(60):
            path = os.path.join(b"%d" % owner, b"%d" % n, NAMES[n % len(NAMES)])
            os.makedirs(os.path.dirname(os.path.join(os.fsencode(source), path)))
            with open(os.path.join(os.fsencode(source), path), "wb") as file:
                file.write(rng.randbytes(rng.choice([0, 100, 5000, 3_000_000])))
            moves.append(NewTransfer(str(source), path, str(destination), path))
        ids.append(Intake(db).submit(NewRequest("queue", f"owner{owner}", [NewOperation("copy", moves)])))
    workers = [run_worker(home) for _ in range(3)]
    kills = 0
    try:
        while db.counts().get(TransferState.DONE, 0) < 360:
            failed = [line[-1] for line in find_lines(db, states=[TransferState.FAILED, TransferState.KILLED])]
            assert not failed
            time.sleep(rng.random() * 0.6)
            if kills < 12:
                victim = rng.randrange(3)
                workers[victim].kill()
                workers[victim].wait()
                workers[victim] = run_worker(home)
                kills += 1
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        for worker in workers:
            worker.wait()
    assert contents(destination) == contents(source)  # and nothing else: no half file either
    assert [db.request(ident).state for ident in ids] == [TransferState.DONE] * 6  # type: ignore[union-attr]
    assert Leases(db, "").workers() == set() or all(not Leases(db, worker).held() for worker
                                                    in Leases(db, "").workers())


@pytest.mark.root
@pytest.mark.slow
def test_a_full_destination_fails_what_does_not_fit_and_keeps_nothing_half(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.mkdir()
    for name, size in (("small1", 1000), ("huge", 64 << 20), ("small2", 1000)):
        (source / name).write_bytes(bytes(size))
    with FsImage(tmp_path / "disk", 24 << 20, "ext4") as disk:
        home = str(tmp_path / "home")
        db = Transfers(home)
        target = disk.path / "target"
        target.mkdir()
        ident = Intake(db).submit(NewRequest("queue", "me", [NewOperation("copy", [
            NewTransfer(str(source), name, str(target), name) for name in (b"small1", b"huge", b"small2")])]))
        settings = QueueSettings(policy=RetryPolicy(max_retries=2, first_pause=0.0, longest_pause=0.0))
        for _ in range(4):
            QueueWorker(home, settings, once=True).run()
        rows = {t.path: t for t in db.page(request=ident)}
        assert {path: t.state for path, t in rows.items()} == {
            b"small1": TransferState.DONE, b"huge": TransferState.FAILED, b"small2": TransferState.DONE}
        assert rows[b"huge"].tries == 3
        assert "No space left" in rows[b"huge"].reason
        assert sorted(os.listdir(target)) == ["small1", "small2"]
        db.close()


def test_results_wait_while_the_database_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for n in range(10):
        (tmp_path / "a" / f"f{n}").write_text(str(n))
    home = str(tmp_path / "home")
    db = Transfers(home)
    ident = Intake(db).submit(NewRequest("queue", "me", [NewOperation("copy", [
        NewTransfer(str(tmp_path / "a"), b"f%d" % n, str(tmp_path / "b"), b"f%d" % n) for n in range(10)])]))
    real = Transfers.advance
    refused: Counter[TransferState] = Counter()

    def advance(self: Transfers, ids: Any, was: Any, now: TransferState, *args: Any, **more: Any) -> list[int]:
        if refused[now] < 2:
            refused[now] += 1
            raise sqlite3.OperationalError("database or disk is full")
        return real(self, ids, was, now, *args, **more)

    monkeypatch.setattr(Transfers, "advance", advance)
    stop = threading.Event()
    thread = threading.Thread(target=QueueWorker(home, QueueSettings(), stop=stop).run)
    thread.start()
    while db.counts(ident) != {TransferState.DONE: 10} and thread.is_alive():
        time.sleep(0.05)
    stop.set()
    thread.join()
    assert db.counts(ident) == {TransferState.DONE: 10}
    assert [t.tries for t in db.page(request=ident)] == [0] * 10
    assert refused[TransferState.SUBMITTED] == refused[TransferState.VERIFYING] == refused[TransferState.DONE] == 2
    db.close()
