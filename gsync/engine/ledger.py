"""The failure ledger: what could not be synced, why, and when it is retried. It also holds back deletes.

A row is about a name (its inode never got there) or about a gfid (its data or attributes are stale). The stime may pass
a row, because `status` counts it. A row is retried with growing pauses, and goes away when a later batch had no trouble
with it. A held delete is a name that the master no longer has, and that the slave keeps until somebody approves.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from gsync.base.database import Database
from gsync.base.durable import fsync_dir
from gsync.base.errors import Transient
from gsync.base.model import NS, Gfid, Name
from gsync.base.retry import Schedule

RETRIES = Schedule(first=30.0, longest=3600.0, spread=0.25)  # seconds
SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS failures (
  key BLOB PRIMARY KEY, what TEXT, gfid BLOB, pargfid BLOB, bname BLOB, path BLOB, errno INTEGER, message TEXT,
  tries INTEGER, first INTEGER, last INTEGER, next INTEGER, tried INTEGER);
CREATE TABLE IF NOT EXISTS held (
  pargfid BLOB, bname BLOB, path BLOB, since INTEGER, approved INTEGER, tried INTEGER,
  PRIMARY KEY (pargfid, bname));
"""
_COPIES = 100       # tries
_COPY_AGAIN = 0.05  # seconds


@dataclass(frozen=True)
class Failure:
    """One thing that could not be done; `name` None for a failure of an inode's data or attributes."""

    what: str               # "name", "data", "meta", "dir"
    gfid: Gfid | None
    name: Name | None
    path: bytes             # for people
    errno: int
    message: str
    tries: int = 0
    first: int = 0          # ns
    last: int = 0

    @property
    def key(self) -> bytes:
        return self.what.encode() + (b"\0".join(self.name) if self.name else self.gfid or b"")


class Ledger:
    """The ledger of one brick's worker in the file `path`. One thread."""

    def __init__(self, path: str, clock: Callable[[], int] = time.time_ns,
                 rng: Callable[[], float] = random.random) -> None:
        self._db, self._clock, self._rng = _connect(path), clock, rng

    def close(self) -> None:
        self._db.close()

    def record(self, failure: Failure) -> None:
        """Note a failure, or another failed try of it; the next try is due after a pause that doubles."""
        now = self._clock()
        with self._db.atomic():
            row = self._db.execute("SELECT tries, first FROM failures WHERE key=?", (failure.key,)).fetchone()
            tries, first = (row[0] + 1, row[1]) if row else (1, now)
            wait = int(RETRIES.pause(tries, self._rng) * NS)
            pargfid, bname = failure.name or (None, None)
            self._db.execute("INSERT OR REPLACE INTO failures VALUES (?,?,?,?,?,?,?,?,?,?,?,?,0)", (
                failure.key, failure.what, failure.gfid, pargfid, bname, failure.path, failure.errno,
                failure.message, tries, first, now, now + wait))

    def take_due(self, now: int) -> list[Failure]:
        """Rows that are due; they are marked as tried in this batch."""
        with self._db.atomic():
            self._db.execute("UPDATE failures SET tried=(next<=?)", (now,))
        return self._rows("WHERE tried=1")

    def settle(self) -> None:
        """The batch is committed: rows that it tried and that did not fail again are resolved."""
        with self._db.atomic():
            self._db.execute("DELETE FROM failures WHERE tried=1")
            self._db.execute("DELETE FROM held WHERE tried=1")

    # held deletes

    def hold(self, rows: Iterable[tuple[Name, bytes]], now: int) -> None:
        """Keep these names (with their paths, for people) at the slave until the delete is approved."""
        with self._db.atomic():
            self._db.executemany("INSERT OR IGNORE INTO held VALUES (?,?,?,?,0,0)",
                                      ((*name, path, now) for name, path in rows))

    def release(self, names: Iterable[Name]) -> None:
        """The master has these names again."""
        with self._db.atomic():
            self._db.executemany("DELETE FROM held WHERE pargfid=? AND bname=?", names)

    def approve(self) -> int:
        """Let the worker delete all held names; return how many."""
        with self._db.atomic():
            return self._db.execute("UPDATE held SET approved=1").rowcount

    def discard(self) -> int:
        """Forget the held deletes, so that the names stay at the slave; return how many."""
        with self._db.atomic():
            return self._db.execute("DELETE FROM held").rowcount

    def any_approved(self) -> bool:
        return self._db.execute("SELECT 1 FROM held WHERE approved=1 LIMIT 1").fetchone() is not None

    def take_approved(self) -> list[Name]:
        """The names whose delete is approved; they are marked as done by this batch."""
        with self._db.atomic():
            self._db.execute("UPDATE held SET tried=approved")
        return [(r[0], r[1]) for r in self._db.execute("SELECT pargfid, bname FROM held WHERE tried=1")]

    def is_approved(self, name: Name) -> bool:
        row = self._db.execute("SELECT 1 FROM held WHERE pargfid=? AND bname=? AND tried=1", name).fetchone()
        return row is not None

    def count_held(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM held").fetchone()[0])

    def held(self) -> list[tuple[bytes, int]]:
        """The held paths, and since when each is held (ns)."""
        return [(r[0], r[1]) for r in self._db.execute("SELECT path, since FROM held ORDER BY path")]

    # reading

    def hurry(self, gfid: Gfid | None = None) -> int:
        """Make every row due, or those of one inode; return how many."""
        with self._db.atomic():
            return self._db.execute("UPDATE failures SET next=0 WHERE gfid=? OR ? IS NULL", (gfid, gfid)).rowcount

    def drop(self, gfid: Gfid) -> int:
        """Forget the rows of an inode; return how many."""
        with self._db.atomic():
            return self._db.execute("DELETE FROM failures WHERE gfid=?", (gfid,)).rowcount

    def next_due(self) -> int | None:
        """When the next row is due, in ns; None if the ledger is empty."""
        value = self._db.execute("SELECT min(next) FROM failures").fetchone()[0]
        return None if value is None else int(value)

    def count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM failures").fetchone()[0])

    def all(self) -> list[Failure]:
        return self._rows("ORDER BY first")

    def _rows(self, where: str) -> list[Failure]:
        rows: Iterable[tuple[str, bytes | None, bytes | None, bytes | None, bytes, int, str, int, int, int]]
        rows = self._db.execute("SELECT what, gfid, pargfid, bname, path, errno, message, tries, first, last"
                                f" FROM failures {where}")
        return [Failure(what, gfid, (p, b) if p is not None and b is not None else None, path, err, message, tries,
                        first, last) for what, gfid, p, b, path, err, message, tries, first, last in rows]


class SharedLedger(Ledger):
    """The ledger of one of several workers that take over from each other: a file per epoch in the folder.

    A frozen worker may hold SQLite's lock for ever, in the middle of a transaction. So the next worker continues with a
    copy, made once the slave refuses the older worker: anything the older one writes afterwards does not count.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(":memory:")
        self._folder = folder

    def rest(self) -> None:
        """Another worker is active: close the file."""
        self._reopen(":memory:")

    def begin(self, epoch: int) -> None:
        """Continue with the previous worker's ledger, once the slave knows the epoch. Transient."""
        path = os.path.join(self._folder, f"ledger.{epoch}.db")
        before = ledger_epochs(self._folder)
        try:
            if before and before[-1] < epoch:
                _copy(os.path.join(self._folder, f"ledger.{before[-1]}.db"), path)
            self._reopen(path)
            for old in before[:-1]:  # the last one may still be open
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._folder, f"ledger.{old}.db"))
        except (OSError, sqlite3.Error) as exc:
            raise Transient(f"the ledger on the meta volume: {exc}") from exc

    def _reopen(self, path: str) -> None:
        db = _connect(path, wal=False)  # other nodes cannot see a write-ahead log
        self._db.close()
        self._db = db


def ledger_epochs(folder: str) -> list[int]:
    """The epochs that have a ledger in the folder of a SharedLedger."""
    return sorted(int(match[1]) for name in os.listdir(folder)
                  if (match := re.fullmatch(r"ledger\.([0-9]+)\.db", name)))


def _copy(old: str, new: str) -> None:
    """Make a copy with every committed transaction, whoever holds locks."""
    for _ in range(_COPIES):
        before = _versions(old)
        for end in ("", "-journal"):
            try:
                shutil.copyfile(old + end, new + ".new" + end)
            except FileNotFoundError:
                with suppress(FileNotFoundError):
                    os.unlink(new + ".new" + end)
        if _versions(old) == before:
            break
        time.sleep(_COPY_AGAIN)  # its worker has not noticed yet that it is no longer the active one
    else:
        raise OSError(f"{old}: keeps changing")
    db = Database.open(new + ".new", wal=False, synchronous="FULL")  # rolls back uncommitted changes
    try:
        if db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError(f"{old} is damaged")
        db.execute("PRAGMA journal_mode=DELETE")
    finally:
        db.close()
    with open(new + ".new", "rb") as file:
        os.fsync(file.fileno())
    os.rename(new + ".new", new)
    fsync_dir(os.path.dirname(new))


def _versions(path: str) -> list[tuple[int, int, int] | None]:
    found: list[tuple[int, int, int] | None] = []
    for end in ("", "-journal"):
        try:
            st = os.stat(path + end)
        except FileNotFoundError:
            found.append(None)
        else:
            found.append((st.st_ino, st.st_size, st.st_mtime_ns))
    return found


def _connect(path: str, wal: bool = True) -> Database:
    return Database.open(path, _SCHEMA, SCHEMA_VERSION, wal=wal, synchronous="FULL")
