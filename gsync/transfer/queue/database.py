"""The SQLite file of all bounded transfers: how it is opened, written by one process at a time, and read by any.

Every process of a node shares $GSYNC_HOME/transfers.db; each thread opens it for itself. A writer waits for another
one, and names that process if it takes too long; readers never wait. Other rooms keep their tables here too, so that
one transaction can change theirs and the queue's. Not here: what the queue's tables mean (transfers).
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.database import Database
from gsync.base.durable import make_dirs
from gsync.base.errors import LockedError, UsageError
from gsync.base.process import is_stopped

FILE = "transfers.db"
PATIENCE = 30.0    # seconds that a writer waits for another one
_WRITE_LOCK = 120  # the byte of the wal-index that SQLite calls WAL_WRITE_LOCK
_LOOK = 1.0        # seconds after which a waiting writer looks who holds the lock


class DatabaseHeld(LockedError, sqlite3.OperationalError):
    """Another process holds the database's write lock too long."""

    def __init__(self, path: str, pid: int | None, patience: float) -> None:
        if pid is None:
            text = "another process is writing to it and does not finish"
        elif is_stopped(pid):
            text = (f"process {pid} was stopped while writing to it; kill -CONT {pid} resumes it, kill -9 {pid} ends "
                    "it; nothing is lost either way")
        else:
            text = f"process {pid} has been writing to it for {patience:.0f} s; gsync resumes when it finishes"
        super().__init__(f"{path}: {text}")


class _File(Database):
    """A database whose transactions wait for other processes' to end."""

    clock: Clock = SYSTEM_CLOCK
    patience = PATIENCE

    def begin(self) -> None:
        """Wait for the writer. Raises DatabaseHeld after `patience` seconds, or at once if the writer's process is
        stopped."""
        end = self.clock.monotonic() + self.patience
        while True:
            try:
                super().begin()
                return
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise
                pid = _writer(self.path)
                if self.clock.monotonic() > end or (pid is not None and is_stopped(pid)):
                    raise DatabaseHeld(self.path, pid, self.patience) from exc


class QueueDatabase:
    """The database in the state directory `home`, created if missing. looking: this process only reads; a missing file
    counts as empty and is not created. patience: seconds to wait for another writer."""

    def __init__(self, home: str, schema: str, version: int, *, looking: bool = False, clock: Clock = SYSTEM_CLOCK,
                 patience: float = PATIENCE) -> None:
        self.home = home
        self.clock = clock
        self._looking = looking
        path = os.path.join(home, FILE)
        try:
            if looking and not os.path.exists(path):
                self._db = _File.open(":memory:", schema, version, wal=False, threads=True)
                return
            make_dirs(home)
            self._db = _File.open(path, schema, version, synchronous="FULL", timeout=_LOOK, threads=True)
            self._db.clock, self._db.patience = clock, patience
            os.chmod(path, 0o600)
        except (OSError, sqlite3.Error) as exc:
            raise UsageError(f"{path}: {getattr(exc, 'strerror', None) or exc}") from exc

    def close(self) -> None:
        self._db.close()

    def atomic(self) -> AbstractContextManager[Database]:
        """One transaction without any other writer; a nested one joins the outer one."""
        return self._db.atomic()

    def make_tables(self, schema: str) -> None:
        """Create another room's missing tables and indexes; waits for no writer if none is missing. A process that only
        reads gets empty temporary tables instead of missing ones."""
        there = {row[0] for row in self.read("SELECT name FROM sqlite_master")}
        missing = set(re.findall(r"IF NOT EXISTS (\w+)", schema)) - there
        if not missing:
            return
        if self._looking:
            for statement in schema.split(";"):
                found = re.match(r"\s*CREATE TABLE IF NOT EXISTS (\w+)", statement)
                if found and found[1] in missing:
                    self._db.execute(statement.replace("CREATE TABLE", "CREATE TEMP TABLE", 1))
            return
        with self.atomic() as db:
            for statement in schema.split(";"):
                db.execute(statement)

    def read(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        """Read rows; never waits for a writer."""
        return self._db.execute(sql, values).fetchall()

    def each(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """Read rows one at a time."""
        return iter(self._db.execute(sql, values))

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Make all reads in the block see the same moment."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")


def _writer(path: str) -> int | None:
    """The pid of this host's process that holds SQLite's write lock, from /proc/locks."""
    try:
        st = os.stat(path + "-shm")
        with open("/proc/locks", encoding="ascii") as file:
            lines = [line.split() for line in file]
    except OSError:
        return None
    inode = f"{os.major(st.st_dev):02x}:{os.minor(st.st_dev):02x}:{st.st_ino}"
    return next((int(line[4]) for line in lines if len(line) == 8 and line[3] == "WRITE" and line[5] == inode
                 and int(line[6]) <= _WRITE_LOCK and (line[7] == "EOF" or int(line[7]) >= _WRITE_LOCK)), None)
