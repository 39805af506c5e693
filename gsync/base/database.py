"""The one way to open an SQLite file: its schema and version, its durability, one style of transaction, small facts.

Statements commit by themselves unless they stand in `with db.atomic():`. A `Database` is a plain connection of sqlite3
otherwise, so `execute` costs nothing more. A file with an older version is brought up to the known one; a newer one is
refused and left as it is. What the tables mean is their owners' matter. Standard library only, Python 3.9.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from gsync.base.errors import UsageError

PATIENCE = 60.0  # seconds to wait for another process's transaction
FACTS = "CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value) WITHOUT ROWID;\n"  # for `fact` and `set_fact`

_D = TypeVar("_D", bound="Database")


class Database(sqlite3.Connection):
    """One SQLite file, to be made with `open` or `temporary`. One thread, unless opened for several."""

    path = ""

    @classmethod
    def open(cls: type[_D], path: str, schema: str = "", version: int = 0, *,
             migrations: Mapping[int, str] | None = None, wal: bool = True, synchronous: str = "NORMAL",
             cache_kib: int = 0, timeout: float = PATIENCE, readonly: bool = False, threads: bool = False) -> _D:
        """The file `path`, made if it is missing; ":memory:" in tests. UsageError if a newer gsync has written it.

        schema: statements that may run again (IF NOT EXISTS); none of them may hold a `;` of its own. migrations: by
        version, the statements that make the next one of it. version 0: the file carries none. synchronous: NORMAL
        where a power cut may take back the last transactions, FULL where not. wal=False where other hosts see the file.
        """
        target = f"file:{_quoted(path)}?mode=ro" if readonly else path
        db = sqlite3.connect(target, uri=readonly, isolation_level=None, timeout=timeout, factory=cls,
                             check_same_thread=not threads)
        db.path = path
        try:
            db._prepare(schema, version, migrations or {}, wal, synchronous, cache_kib, readonly)
        except BaseException:
            db.close()
            raise
        return db

    @classmethod
    def temporary(cls: type[_D], schema: str) -> _D:
        """Tables of this process alone: on disk only when they grow, in one transaction that is never committed."""
        db = cls.open("", schema, wal=False, synchronous="OFF")
        db.begin()
        return db

    def _prepare(self, schema: str, version: int, migrations: Mapping[int, str], wal: bool, synchronous: str,
                 cache_kib: int, readonly: bool) -> None:
        found = self.version()
        if version and found > version:
            raise UsageError(f"{self.path}: of format {found}, written by a newer gsync; this one knows formats up to "
                             f"{version}: use the newer gsync")
        if cache_kib:
            self.execute(f"PRAGMA cache_size=-{cache_kib}")
        if readonly:
            return
        if wal:
            self.execute("PRAGMA journal_mode=WAL")
        self.execute(f"PRAGMA synchronous={synchronous}")
        if found == version:
            self.executescript(schema)  # changes nothing, and waits for nobody, where all is there
            return
        steps = [migrations[old] for old in range(found, version)] if found else []
        try:
            self.executescript("\n".join(["BEGIN IMMEDIATE;", *steps, schema, f"PRAGMA user_version={version};",
                                          "COMMIT;"]))
        except BaseException:
            self.roll_back()
            raise

    def version(self) -> int:
        """The version that the file carries, 0 for a new one."""
        return int(self.execute("PRAGMA user_version").fetchone()[0])

    # transactions

    def begin(self) -> None:
        """Begin a transaction that nobody else's write comes between. For what `atomic` cannot enclose."""
        self.execute("BEGIN IMMEDIATE")

    def roll_back(self) -> None:
        """Take back the transaction, if SQLite has not done so already (a full disk)."""
        if self.in_transaction:
            self.execute("ROLLBACK")

    @contextmanager
    def atomic(self: _D) -> Iterator[_D]:
        """All or nothing, also if the process is killed; within another one it is part of that."""
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

    # facts: small values that belong with the tables

    def fact(self, key: str) -> Any:
        """The value kept under key, None if there is none."""
        row = self.execute("SELECT value FROM facts WHERE key=?", (key,)).fetchone()
        return row[0] if row else None

    def set_fact(self, key: str, value: object) -> None:
        self.execute("INSERT OR REPLACE INTO facts VALUES (?,?)", (key, value))


def _quoted(path: str) -> str:
    """A path within an SQLite URI."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
