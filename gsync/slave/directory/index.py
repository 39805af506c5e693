"""The slave's index: the names with the master's gfids, and the state that must outlive the agent.

limbo/new and limbo/old have invented gfids (LIMBO_NEW, LIMBO_OLD), so an entry there has a name like any other:
(LIMBO_OLD, hex of the gfid). Beside the names:
  limbo       since when an entry of limbo/old waits, and its former base name
  touched     names that batches since the last commit of a stime may have changed, with the inodes that were or belong
              there
  incomplete  directories made since then, whose content may be missing
  opened_up   directories whose mode was lifted for a moment, and their proper mode
  doomed      directories that are gone, whose rows below are still to be dropped
  adopted     inodes with several links that an adopting batch has taken over: their gfids by handle
Transactions are the caller's. Standard library only, Python 3.9.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gsync.base.errors import SlaveError, UsageError
from gsync.base.model import Gfid, Name
from gsync.base.namespace import IndexEntry, Namespace
from gsync.slave.limbo import Waiting
from gsync.slave.streams import Streams

_SCHEMA = """
CREATE TABLE IF NOT EXISTS limbo (bname BLOB PRIMARY KEY, since INTEGER NOT NULL, was BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS touched (
  pargfid BLOB NOT NULL, bname BLOB NOT NULL, gfid BLOB NOT NULL,
  handle BLOB NOT NULL, kind INTEGER NOT NULL, since INTEGER NOT NULL,
  PRIMARY KEY (pargfid, bname, gfid)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS touched_handle ON touched (handle);
CREATE INDEX IF NOT EXISTS touched_gfid ON touched (gfid);
CREATE TABLE IF NOT EXISTS incomplete (gfid BLOB PRIMARY KEY, done INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS opened_up (n INTEGER PRIMARY KEY, gfid BLOB NOT NULL UNIQUE, mode INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS doomed (gfid BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS adopted (handle BLOB PRIMARY KEY, gfid BLOB NOT NULL) WITHOUT ROWID;
"""
_ASKED_AT_ONCE = 500   # below SQLite's limit on parameters, 999 in old versions
_DOOMED_AT_ONCE = 500  # directories whose rows are dropped in one transaction
_CHECKPOINT = 8000     # pages of the log: gfids are random, so with SQLite's 1000 each page would be written many times


class Touched(NamedTuple):
    """A name that may have changed, and an inode that was there or belongs there."""

    pargfid: Gfid
    bname: bytes
    gfid: Gfid
    handle: bytes
    kind: int
    since: int


class SlaveIndex(Streams, Namespace):
    """The index in the file `path`. SlaveError if a newer gsync wrote it."""

    schema = Namespace.schema + _SCHEMA
    version = 1
    fact, set_fact = Namespace.fact, Namespace.set_fact

    def __init__(self, path: str) -> None:
        try:
            super().__init__(path)
        except UsageError as exc:
            raise SlaveError(f"the slave's index {exc}") from exc
        self.db.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT}")

    def forget_stimes(self) -> None:
        """Those of all streams."""
        self.db.execute("UPDATE facts SET value=NULL WHERE key GLOB 'stime*' OR key GLOB 'entry_stime*'")

    # reading

    def entries_of_all(self, gfids: Sequence[Gfid]) -> dict[Gfid, list[IndexEntry]]:
        """The names of each of these inodes; far cheaper than one query each."""
        found: dict[Gfid, list[IndexEntry]] = {gfid: [] for gfid in gfids}
        distinct = list(found)
        for at in range(0, len(distinct), _ASKED_AT_ONCE):
            some = distinct[at:at + _ASKED_AT_ONCE]
            for row in self.db.execute("SELECT pargfid, bname, gfid, kind, handle FROM entries WHERE gfid IN "
                                       f"({','.join('?' * len(some))})", some):
                found[row[2]].append(IndexEntry(*row))
        return found

    def is_empty(self, gfid: Gfid) -> bool:
        """Whether no name in this directory is known."""
        return self.db.execute("SELECT 1 FROM entries WHERE pargfid=? LIMIT 1", (gfid,)).fetchone() is None

    def waiting(self, after: bytes, limit: int) -> list[Waiting]:
        """A page of the entries of limbo/old."""
        return [Waiting._make(r) for r in self.db.execute(
            "SELECT bname, since, was FROM limbo WHERE bname>? ORDER BY bname LIMIT ?", (after, limit))]

    def waits(self, bname: bytes) -> Waiting | None:
        row = self.db.execute("SELECT bname, since, was FROM limbo WHERE bname=?", (bname,)).fetchone()
        return Waiting._make(row) if row else None

    def count_waiting(self) -> int:
        return int(self.db.execute("SELECT count(*) FROM limbo").fetchone()[0])

    def touched_names(self, after: Name | None, limit: int) -> list[Name]:
        """A page of the touched names."""
        pargfid, bname = after or (b"", b"")
        return self.db.execute(
            "SELECT DISTINCT pargfid, bname FROM touched WHERE (pargfid, bname)>(?,?) ORDER BY pargfid, bname LIMIT ?",
            (pargfid, bname, limit)).fetchall()

    def is_touched(self, name: Name) -> bool:
        return self.db.execute("SELECT 1 FROM touched WHERE pargfid=? AND bname=?", name).fetchone() is not None

    def touched_inode(self, handle: bytes) -> tuple[Gfid, int] | None:
        """gfid and kind of the inode with this handle, if a touched name has it."""
        row = self.db.execute("SELECT gfid, kind FROM touched WHERE handle=? LIMIT 1", (handle,)).fetchone()
        return (row[0], row[1]) if row else None

    def touched_gfid(self, gfid: Gfid) -> Touched | None:
        """The latest row about this inode."""
        row = self.db.execute("SELECT pargfid, bname, gfid, handle, kind, since FROM touched WHERE gfid=? "
                              "ORDER BY since DESC LIMIT 1", (gfid,)).fetchone()
        return Touched._make(row) if row else None

    def lost_dirs(self) -> list[Gfid]:
        """Directories among the touched inodes that have no name."""
        return [r[0] for r in self.db.execute(
            "SELECT DISTINCT gfid FROM touched WHERE kind=? AND NOT EXISTS "
            "(SELECT 1 FROM entries WHERE entries.gfid=touched.gfid)", (stat.S_IFDIR,))]

    def incomplete(self, after: Gfid, limit: int) -> list[Gfid]:
        return [r[0] for r in self.db.execute(
            "SELECT gfid FROM incomplete WHERE gfid>? ORDER BY gfid LIMIT ?", (after, limit))]

    def opened_up(self) -> list[tuple[Gfid, int]]:
        """Directories whose mode is lifted, in the order in which they were changed."""
        return self.db.execute("SELECT gfid, mode FROM opened_up ORDER BY n").fetchall()

    def adopted(self, handle: bytes) -> Gfid | None:
        row = self.db.execute("SELECT gfid FROM adopted WHERE handle=?", (handle,)).fetchone()
        return row[0] if row else None

    # writing

    def wait_in_limbo(self, waiting: Waiting) -> None:
        self.db.execute("INSERT OR REPLACE INTO limbo VALUES (?,?,?)", waiting)

    def leave_limbo(self, bname: bytes) -> None:
        """An entry has left limbo/old."""
        self.db.execute("DELETE FROM limbo WHERE bname=?", (bname,))

    def put_direct(self, entries: Sequence[IndexEntry]) -> list[int]:
        """Add files that were made straight in unattached directories. Files that the slave has under another name are
        left out; their positions are returned."""
        known = self.entries_of_all([entry.gfid for entry in entries])
        refused = {i for i, entry in enumerate(entries) if any(e.name != entry.name for e in known[entry.gfid])}
        self.put(entry for i, entry in enumerate(entries) if i not in refused)
        return sorted(refused)

    def touch(self, rows: Iterable[Touched]) -> None:
        self.db.executemany("INSERT OR REPLACE INTO touched VALUES (?,?,?,?,?,?)", rows)

    def add_incomplete(self, gfid: Gfid) -> None:
        self.db.execute("INSERT OR REPLACE INTO incomplete VALUES (?,0)", (gfid,))

    def complete(self, gfids: Iterable[Gfid]) -> None:
        self.db.executemany("UPDATE incomplete SET done=1 WHERE gfid=?", ((g,) for g in gfids))

    def forget_incomplete(self) -> None:
        """A directory without a name cannot be completed, and completions reported before a restart do not count."""
        self.db.execute("DELETE FROM incomplete WHERE NOT EXISTS (SELECT 1 FROM entries WHERE "
                        "entries.gfid=incomplete.gfid)")
        self.db.execute("UPDATE incomplete SET done=0")

    def committed(self, whole: bool) -> None:
        """A commit has made everything durable; `whole`: a batch has ended, and nothing is in doubt any more."""
        if whole:
            for table in ("touched", "incomplete", "adopted"):
                self.db.execute(f"DELETE FROM {table}")
        else:
            self.db.execute("DELETE FROM incomplete WHERE done=1")

    def open_up(self, gfid: Gfid, mode: int) -> None:
        self.db.execute("INSERT OR IGNORE INTO opened_up (gfid, mode) VALUES (?,?)", (gfid, mode))

    def closed_again(self, gfid: Gfid) -> None:
        self.db.execute("DELETE FROM opened_up WHERE gfid=?", (gfid,))

    def adopt(self, handle: bytes, gfid: Gfid) -> None:
        self.db.execute("INSERT OR REPLACE INTO adopted VALUES (?,?)", (handle, gfid))

    def drop_name(self, entry: IndexEntry) -> None:
        """The inode has left this name. A directory has only one name, so everything below it has gone, too."""
        self.remove(entry.pargfid, entry.bname)
        if stat.S_ISDIR(entry.kind):
            self.doom(entry.gfid)
            while self.drop_doomed():
                pass

    def move(self, entry: IndexEntry, pargfid: Gfid, bname: bytes) -> IndexEntry:
        """An inode has moved from one name to another."""
        self.remove(entry.pargfid, entry.bname)
        moved = entry._replace(pargfid=pargfid, bname=bname)
        self.put([moved])
        return moved

    def doom(self, gfid: Gfid) -> None:
        """Schedule the rows below a directory for `drop_doomed`."""
        self.db.execute("INSERT OR IGNORE INTO doomed VALUES (?)", (gfid,))

    def drop_doomed(self) -> bool:
        """Drop the rows below some of the doomed directories; False if none are left."""
        doomed = [r[0] for r in self.db.execute("SELECT gfid FROM doomed LIMIT ?", (_DOOMED_AT_ONCE,))]
        for gfid in doomed:
            for d in self.db.execute("SELECT gfid FROM entries WHERE pargfid=? AND kind=?",
                                     (gfid, stat.S_IFDIR)).fetchall():
                self._parents.pop(d[0], None)
                self.db.execute("INSERT OR IGNORE INTO doomed VALUES (?)", d)
            self.db.execute("DELETE FROM entries WHERE pargfid=?", (gfid,))
            self.db.execute("DELETE FROM incomplete WHERE gfid=?", (gfid,))
            self.db.execute("DELETE FROM doomed WHERE gfid=?", (gfid,))
        return bool(doomed)
