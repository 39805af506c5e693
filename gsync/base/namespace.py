"""The index of a tree in SQLite: (pargfid, bname) -> gfid, kind, handle, ctime, size. The same class on both sides.

The recorder keeps the master's; the agent keeps the slave's, where gfid is the *master's* and handle is the slave
inode's. It caches the file system and can be checked: an entry holds only while the inode's handle
equals the entry's. Callers make the transactions (`with ns.transaction():`); one object per thread.
Standard library only, Python 3.9.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from gsync.base.database import FACTS, Database
from gsync.base.model import ROOT_GFID, Gfid, Name

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
  pargfid BLOB NOT NULL, bname BLOB NOT NULL, gfid BLOB NOT NULL,
  kind INTEGER NOT NULL, handle BLOB NOT NULL, ctime INTEGER NOT NULL, size INTEGER NOT NULL,
  PRIMARY KEY (pargfid, bname)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entries_gfid ON entries (gfid);
"""
_ROWS = "SELECT pargfid, bname, gfid, kind, handle, ctime, size FROM entries "
_PARENTS_KEPT = 200_000  # directory gfids whose parent is remembered: some 40 MB at most
UNKNOWN_CTIME = 0


class IndexEntry(NamedTuple):
    """One name. kind is S_IFMT of the mode; ctime in ns, UNKNOWN_CTIME where the index does not vouch for it."""

    pargfid: Gfid
    bname: bytes
    gfid: Gfid
    kind: int
    handle: bytes
    ctime: int = UNKNOWN_CTIME
    size: int = 0

    @property
    def name(self) -> Name:
        return self.pargfid, self.bname


class Namespace:
    """The index in the file `path` (":memory:" in tests), made if missing; readonly for a second process. UsageError if
    a newer gsync has written it."""

    schema = _SCHEMA + FACTS
    version = 1

    def __init__(self, path: str, readonly: bool = False) -> None:
        self.db = Database.open(path, self.schema, self.version, cache_kib=16000, readonly=readonly)
        self._parents: dict[Gfid, Name] = {}

    def close(self) -> None:
        self.db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """As `Database.atomic`."""
        try:
            with self.db.atomic():
                yield
        except BaseException:
            self._parents.clear()
            raise

    # facts: small values that belong with the index

    def fact(self, key: str) -> object:
        """The value kept under key, None if there is none."""
        return self.db.fact(key)

    def set_fact(self, key: str, value: object) -> None:
        self.db.set_fact(key, value)

    # reading

    def get(self, pargfid: Gfid, bname: bytes) -> IndexEntry | None:
        row = self.db.execute(_ROWS + "WHERE pargfid=? AND bname=?", (pargfid, bname)).fetchone()
        return IndexEntry._make(row) if row else None

    def entries_of(self, gfid: Gfid) -> list[IndexEntry]:
        """Every name of the inode: one, unless it has hard links."""
        return [IndexEntry._make(r) for r in self.db.execute(_ROWS + "WHERE gfid=?", (gfid,))]

    def entry_of(self, gfid: Gfid) -> IndexEntry | None:
        row = self.db.execute(_ROWS + "WHERE gfid=? LIMIT 1", (gfid,)).fetchone()
        return IndexEntry._make(row) if row else None

    def children(self, pargfid: Gfid, after: bytes = b"", limit: int = 1000) -> list[IndexEntry]:
        """A page of the directory's names, those greater than `after`, in byte order."""
        return [IndexEntry._make(r) for r in self.db.execute(
            _ROWS + "WHERE pargfid=? AND bname>? ORDER BY bname LIMIT ?", (pargfid, after, limit))]

    def dirs(self, after: Gfid = b"", limit: int = 1000) -> list[Gfid]:
        """A page of the gfids of directories, those greater than `after`."""
        return [r[0] for r in self.db.execute(
            "SELECT gfid FROM entries WHERE kind=? AND gfid>? ORDER BY gfid LIMIT ?", (stat.S_IFDIR, after, limit))]

    def parent_of(self, gfid: Gfid) -> Name | None:
        """The name of a directory; None for the root and for what is not in the index."""
        name = self._parents.get(gfid)
        if name is None:
            row = self.db.execute("SELECT pargfid, bname FROM entries WHERE gfid=? LIMIT 1", (gfid,)).fetchone()
            if row is None:
                return None
            name = (row[0], row[1])
            if len(self._parents) >= _PARENTS_KEPT:
                self._parents.clear()
            self._parents[gfid] = name
        return name

    def path_of(self, gfid: Gfid) -> list[bytes] | None:
        """The parts of a directory's path from the root ([] for the root); None if it is not connected to the root."""
        parts: list[bytes] = []
        seen = set()
        while gfid != ROOT_GFID:
            name = self.parent_of(gfid)
            if name is None or gfid in seen:
                return None
            seen.add(gfid)
            gfid = name[0]
            parts.append(name[1])
        parts.reverse()
        return parts

    def is_below(self, gfid: Gfid, ancestor: Gfid) -> bool:
        """Whether the directory gfid is ancestor or lies below it."""
        seen = set()
        while gfid != ancestor:
            name = self.parent_of(gfid)
            if name is None or gfid in seen:
                return False
            seen.add(gfid)
            gfid = name[0]
        return True

    def count(self) -> tuple[int, int]:
        """Number of names and bytes of all files: the work of a first crawl."""
        row = self.db.execute("SELECT count(*), coalesce(sum(size), 0) FROM entries").fetchone()
        return int(row[0]), int(row[1])

    # writing (inside the caller's transaction)

    def put(self, entries: Iterable[IndexEntry]) -> None:
        """Insert names, replacing what the index held at them."""
        rows = list(entries)
        self.db.executemany("INSERT OR REPLACE INTO entries VALUES (?,?,?,?,?,?,?)", rows)
        for e in rows:
            if stat.S_ISDIR(e.kind):
                self._parents.pop(e.gfid, None)

    def remove(self, pargfid: Gfid, bname: bytes) -> None:
        """Drop one name; of a directory only the name: its children stay under its gfid."""
        row = self.db.execute("SELECT gfid FROM entries WHERE pargfid=? AND bname=?", (pargfid, bname)).fetchone()
        if row:
            self._parents.pop(row[0], None)
            self.db.execute("DELETE FROM entries WHERE pargfid=? AND bname=?", (pargfid, bname))

    def remove_below(self, gfid: Gfid) -> list[IndexEntry]:
        """Drop everything below a directory, not its own name; returns the names of directories dropped."""
        dropped: list[IndexEntry] = []
        todo = [gfid]
        while todo:
            pargfid = todo.pop()
            dirs = [IndexEntry._make(r) for r in self.db.execute(
                _ROWS + "WHERE pargfid=? AND kind=?", (pargfid, stat.S_IFDIR))]
            self.db.execute("DELETE FROM entries WHERE pargfid=?", (pargfid,))
            dropped += dirs
            for d in dirs:
                self._parents.pop(d.gfid, None)
                todo.append(d.gfid)
        return dropped

    def set_ctime(self, gfid: Gfid, ctime: int, size: int) -> None:
        """Store an inode's ctime and size at all its names."""
        self.db.execute("UPDATE entries SET ctime=?, size=? WHERE gfid=?", (ctime, size, gfid))
