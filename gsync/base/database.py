"""Opens SQLite files: schema, version, durability, one style of transaction, and small facts.

Each statement commits by itself unless it runs in `with db.atomic():`. Otherwise a `Database` is a plain sqlite3
connection, so `execute` costs nothing extra. `open` migrates a file of an older version and refuses a newer one without
changing it. The tables belong to the modules that open them. Standard library only, Python 3.9.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from gsync.base.durable import fsync_dir, fsync_file
from gsync.base.errors import UsageError

PATIENCE = 60.0  # seconds to wait for another process's transaction
FACTS = "CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value) WITHOUT ROWID;\n"  # for `fact` and `set_fact`

_D = TypeVar("_D", bound="Database")


class Database(sqlite3.Connection):
    """One SQLite file, to be made with `open` or `temporary`. One thread, unless opened for several."""

    path = ""
    _named = False  # whether the names of the files are durable

    @classmethod
    def open(cls: type[_D], path: str, schema: str = "", version: int = 0, *,
             migrations: Mapping[int, str] | None = None, wal: bool = True, synchronous: str = "NORMAL",
             cache_kib: int = 0, timeout: float = PATIENCE, readonly: bool = False, threads: bool = False) -> _D:
        """Open the file `path`, creating it if missing; ":memory:" in tests. UsageError if a newer gsync wrote it.

        schema: statements that may run again (IF NOT EXISTS). migrations: by version, the statements that lead to the
        next one. version 0: the file has none. synchronous: FULL if a power cut must not undo a committed transaction,
        else NORMAL. wal=False if other hosts open the file too.
        """
        target = f"file:{_quoted(path)}?mode=ro" if readonly else path
        db = sqlite3.connect(target, uri=readonly, isolation_level=None, timeout=timeout, factory=cls,
                             check_same_thread=not threads)
        db.path = path
        try:
            cls._prepare(db, schema, version, migrations or {}, wal, synchronous, cache_kib, readonly)
        except BaseException:
            db.close()
            raise
        return db

    @classmethod
    def temporary(cls: type[_D], schema: str) -> _D:
        """Private tables of this process, on disk only once they grow; one transaction that never commits."""
        db = cls.open("", schema, wal=False, synchronous="OFF")
        db.begin()
        return db

    def _prepare(self, schema: str, version: int, migrations: Mapping[int, str], wal: bool, synchronous: str,
                 cache_kib: int, readonly: bool) -> None:
        found = self.version()
        if version and found > version:
            raise UsageError(f"{self.path}: format {found} was written by a newer gsync; this one supports formats up "
                             f"to {version}: use the newer gsync")
        if cache_kib:
            self.execute(f"PRAGMA cache_size=-{cache_kib}")
        if readonly:
            return
        if wal:
            self.execute("PRAGMA journal_mode=WAL")
        self.execute(f"PRAGMA synchronous={synchronous}")
        if found == version:
            self.executescript(schema)  # a no-op that waits for nobody if every table exists
            return
        steps = [migrations[old] for old in range(found, version)] if found else []
        try:
            self.executescript("\n".join(["BEGIN IMMEDIATE;", *steps, schema, f"PRAGMA user_version={version};",
                                          "COMMIT;"]))
        except BaseException:
            self.roll_back()
            raise

    def version(self) -> int:
        """The version in the file, 0 for a new one."""
        return int(self.execute("PRAGMA user_version").fetchone()[0])

    # transactions

    def begin(self) -> None:
        """Begin a transaction that keeps other writers out. For callers that `atomic` cannot enclose."""
        self.execute("BEGIN IMMEDIATE")

    def roll_back(self) -> None:
        """Roll the transaction back, unless SQLite already did (full disk)."""
        if self.in_transaction:
            self.execute("ROLLBACK")

    @contextmanager
    def atomic(self: _D) -> Iterator[_D]:
        """All or nothing, even if the process is killed. A nested one is part of the outer one."""
        if self.in_transaction:
            yield self
            return
        self.begin()
        try:
            yield self
            self.execute("COMMIT")
        except BaseException:
            self.roll_back()
            raise

    def make_durable(self) -> None:
        """From now on a power cut takes back nothing that was committed. For the one transaction among many that has to
        be durable at once (synchronous NORMAL)."""
        with suppress(FileNotFoundError):  # without a log the transactions are in the file itself
            fsync_file(self.path + "-wal")
        if not self._named:  # SQLite syncs the file itself whenever it writes to it
            fsync_file(self.path)
            fsync_dir(os.path.dirname(os.path.abspath(self.path)))
            self._named = True

    # facts: small values that belong with the tables

    def fact(self, key: str) -> Any:
        """The value stored under key, or None."""
        row = self.execute("SELECT value FROM facts WHERE key=?", (key,)).fetchone()
        return row[0] if row else None

    def set_fact(self, key: str, value: object) -> None:
        self.execute("INSERT OR REPLACE INTO facts VALUES (?,?)", (key, value))


def _quoted(path: str) -> str:
    """A path within an SQLite URI."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
