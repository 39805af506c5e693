"""The pending work of one batch: dirty names, DATA and META gfids, directories to enumerate. Paged, in SQLite.

A batch's tables are its only memory of the work, so memory does not grow with the backlog. After a crash they are made
again from the changelogs. Only a walk is resumed from them (`resume`), and only from the work that its last
agent.commit covered. *Doubt* outlasts a batch: names whose resolve the recorder had not yet overtaken (rule 20).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from gsync.base.database import FACTS, Database
from gsync.base.model import Gfid, Name

PAGE = 2000  # rows handled at once


class NameState(IntEnum):
    """The state of a dirty name."""

    DIRTY = 0      # to be resolved and filled
    DATA = 1       # its file is on the way to limbo/new
    BUILDING = 2   # its directory is being built in limbo/new
    BLOCKED = 3    # its parent is not there, or is below it
    ABSENT = 4     # to be removed once nothing is left to fill
    UNKNOWN = 5    # the recorder must catch up first
    READY = 6      # the inode is complete: fill it with the next group
    DONE = 7
    FAILED = 8     # given up in this batch: in the ledger
    COVERED = 9    # an enumeration of its directory looks at it


class DataNeed(IntEnum):
    """The content that a batch owes an inode."""

    NONE = 0
    COMPARE = 1    # suspect: send only if size or hash differ
    SEND = 2


class Dirty(NamedTuple):
    """A row of the names table."""

    rowid: int
    name: Name
    tries: int
    gfid: Gfid | None = None   # the inode whose arrival it waited for


class EnumDir(NamedTuple):
    """A directory whose names are to be looked at."""

    gfid: Gfid
    handle: bytes | None
    recursive: bool   # known directories below it as well (a walk)
    new: bool         # made by this batch: the slave has no names in it


_SCHEMA = """
CREATE TABLE IF NOT EXISTS names (
  id INTEGER PRIMARY KEY, pargfid BLOB NOT NULL, bname BLOB NOT NULL, state INTEGER NOT NULL DEFAULT 0,
  tries INTEGER NOT NULL DEFAULT 0, gfid BLOB, since INTEGER, UNIQUE (pargfid, bname));
CREATE INDEX IF NOT EXISTS names_state ON names (state, id);
CREATE INDEX IF NOT EXISTS names_gfid ON names (gfid) WHERE gfid IS NOT NULL;
CREATE TABLE IF NOT EXISTS gfids (
  gfid BLOB PRIMARY KEY, data INTEGER NOT NULL, meta INTEGER NOT NULL, dir INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dirs (
  id INTEGER PRIMARY KEY, gfid BLOB NOT NULL UNIQUE, handle BLOB, recursive INTEGER NOT NULL, new INTEGER NOT NULL,
  state INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS dirs_state ON dirs (state, id);
CREATE TABLE IF NOT EXISTS doubt (
  pargfid BLOB NOT NULL, bname BLOB NOT NULL, PRIMARY KEY (pargfid, bname)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS doubt_dirs (gfid BLOB PRIMARY KEY) WITHOUT ROWID;
"""
_TODO, _OPEN, _DONE, _COMMITTED = 0, 1, 2, 3
SCHEMA_VERSION = 1


class ChangelogDB:
    """The tables of one brick's worker, in the file `path`. One thread."""

    def __init__(self, path: str) -> None:
        self._db = Database.open(path, _SCHEMA + FACTS, SCHEMA_VERSION, cache_kib=16000)
        self._open = False
        self._owes_files = True  # whether gfids may have rows that are not directories

    def close(self) -> None:
        self.flush()
        self._db.close()

    def abandon(self) -> None:
        """Close without the changes since the last `flush`."""
        self._db.close()

    # Writes gather in one transaction until `flush`: per-row commits would cost more than the rows.

    def _begin(self) -> None:
        if not self._open:
            self._db.begin()
            self._open = True

    def flush(self, durable: bool = False) -> None:
        """Commit all writes so far. durable: a power cut does not undo them."""
        if self._open:
            self._db.execute("COMMIT")
            self._open = False
        if durable:
            self._db.make_durable()

    def fact(self, key: str) -> int | str | None:
        value: int | str | None = self._db.fact(key)
        return value

    def set_fact(self, key: str, value: int | str | None) -> None:
        if value is None:
            self._db.execute("DELETE FROM facts WHERE key=?", (key,))
        else:
            self._db.set_fact(key, value)

    # the batch as a whole

    def reset(self) -> None:
        """Forget the batch (doubt and facts stay)."""
        self._begin()
        for table in ("names", "gfids", "dirs"):
            self._db.execute(f"DELETE FROM {table}")
        self._owes_files = False
        self.flush()

    def resume(self) -> None:
        """After a crash in a walk: everything not committed at the slave must be done again."""
        self._begin()
        self._db.execute("UPDATE names SET state=?, gfid=NULL, tries=0", (NameState.DIRTY,))
        self._db.execute("UPDATE dirs SET state=? WHERE state<>?", (_TODO, _COMMITTED))
        self.flush()

    def forget_done(self) -> None:
        """The slave holds finished work durably: it need not be looked at again. Call after agent.commit only."""
        self._begin()
        self._db.execute("DELETE FROM names WHERE state=?", (NameState.DONE,))
        self._db.execute("UPDATE dirs SET state=? WHERE state=?", (_COMMITTED, _DONE))
        self.flush()

    # dirty names

    def add_names(self, names: Iterable[Name]) -> None:
        """Make names dirty, whatever their state; except names whose inode is on its way (they are resolved again
        then)."""
        self._begin()
        self._db.executemany(
            "INSERT INTO names (pargfid, bname) VALUES (?,?) ON CONFLICT (pargfid, bname) DO UPDATE"
            " SET state=0, tries=tries+1, gfid=NULL WHERE state NOT IN (0, 1, 2)", names)

    def add_waiting(self, rows: Iterable[tuple[bytes, bytes, int, bytes]]) -> None:
        """Add names (pargfid, bname, state, gfid) whose inode is on its way (DATA or BUILDING)."""
        self._begin()
        self._db.executemany(
            "INSERT INTO names (pargfid, bname, state, gfid) VALUES (?,?,?,?) ON CONFLICT (pargfid, bname)"
            " DO UPDATE SET state=excluded.state, gfid=excluded.gfid", rows)

    def names(self, state: NameState, limit: int) -> list[Dirty]:
        return [Dirty(r[0], (r[1], r[2]), r[3], r[4]) for r in self._db.execute(
            "SELECT id, pargfid, bname, tries, gfid FROM names WHERE state=? ORDER BY id LIMIT ?", (state, limit))]

    def set_names(self, rows: Iterable[tuple[int, int]]) -> None:
        """Set states, from (state, rowid) pairs."""
        self._begin()
        self._db.executemany("UPDATE names SET state=? WHERE id=?", rows)

    def cover(self) -> None:
        """Names in directories that are still to be enumerated on both sides are looked at only once, with the
        directory."""
        self._begin()
        self._db.execute("UPDATE names SET state=? WHERE state=? AND pargfid IN (SELECT gfid FROM dirs WHERE state=?)",
                         (NameState.COVERED, NameState.DIRTY, _TODO))

    def uncover(self, gfid: Gfid) -> None:
        """The directory is not enumerated after all."""
        self._begin()
        self._db.execute("UPDATE names SET state=? WHERE pargfid=? AND state=?",
                         (NameState.DIRTY, gfid, NameState.COVERED))

    def set_absent(self, rows: Iterable[tuple[int, int]]) -> None:
        """(since, rowid) pairs: absent at the master when looked at."""
        self._begin()
        self._db.executemany(f"UPDATE names SET state={int(NameState.ABSENT)}, since=? WHERE id=?", rows)

    def absent(self, limit: int, after: int = 0) -> list[tuple[int, Name, int]]:
        """A page of (rowid, name, since), those with a rowid greater than `after`."""
        return [(r[0], (r[1], r[2]), r[3]) for r in self._db.execute(
            "SELECT id, pargfid, bname, since FROM names WHERE state=? AND id>? ORDER BY id LIMIT ?",
            (NameState.ABSENT, after, limit))]

    def count(self, state: NameState) -> int:
        return int(self._db.execute("SELECT count(*) FROM names WHERE state=?", (state,)).fetchone()[0])

    def arrived(self, gfids: Iterable[Gfid], waiting: NameState) -> None:
        """The inodes are complete in limbo: their names can be filled."""
        self._begin()
        self._db.executemany("UPDATE names SET state=? WHERE gfid=? AND +state=?",  # +: forces the index of gfid
                             [(NameState.READY, g, waiting) for g in gfids])

    def parents(self, state: NameState) -> list[Gfid]:
        """The distinct parents of the names in a state."""
        return [r[0] for r in self._db.execute("SELECT DISTINCT pargfid FROM names WHERE state=?", (state,))]

    def names_waiting_for(self, gfid: Gfid) -> list[Dirty]:
        return [Dirty(r[0], (r[1], r[2]), r[3]) for r in self._db.execute(
            "SELECT id, pargfid, bname, tries FROM names WHERE gfid=? AND +state IN (?,?)",
            (gfid, NameState.DATA, NameState.BUILDING))]

    def move(self, was: NameState, now: NameState) -> int:
        """Change the state of all names in the state `was`; return how many."""
        self._begin()
        return self._db.execute("UPDATE names SET state=? WHERE state=?", (now, was)).rowcount

    # DATA and META

    def add_gfids(self, gfids: Iterable[Gfid], data: DataNeed, is_dir: bool = False) -> None:
        """Add META for these inodes, and DATA as requested. A directory is done after all files and names."""
        self._begin()
        self._owes_files = self._owes_files or not is_dir
        self._db.executemany(
            "INSERT INTO gfids VALUES (?,?,1,?) ON CONFLICT (gfid) DO UPDATE"
            " SET data=max(data, excluded.data), meta=1, dir=max(dir, excluded.dir)",
            ((g, int(data), int(is_dir)) for g in gfids))

    def sent_whole(self, gfids: Iterable[Gfid]) -> None:
        """These were sent new, with all their attributes: nothing is left to do for them."""
        if self._owes_files:
            self._begin()
            self._db.executemany("DELETE FROM gfids WHERE gfid=?", ((g,) for g in gfids))

    def data(self, after: Gfid, limit: int) -> list[tuple[Gfid, DataNeed]]:
        """A page of DATA gfids greater than `after`."""
        return [(r[0], DataNeed(r[1])) for r in self._db.execute(
            "SELECT gfid, data FROM gfids WHERE data>0 AND gfid>? ORDER BY gfid LIMIT ?", (after, limit))]

    def meta(self, after: Gfid, limit: int, dirs: bool) -> list[Gfid]:
        return [r[0] for r in self._db.execute(
            "SELECT gfid FROM gfids WHERE dir=? AND gfid>? ORDER BY gfid LIMIT ?", (int(dirs), after, limit))]

    def parents_to_meta(self) -> None:
        """The parents of all dirty names get META (their times changed)."""
        self._begin()
        self._db.execute("INSERT INTO gfids SELECT DISTINCT pargfid, 0, 1, 1 FROM names WHERE true"
                         " ON CONFLICT (gfid) DO UPDATE SET dir=1")

    def pending(self) -> dict[str, int]:
        """The figures of the current batch that status shows."""
        entry = self._db.execute("SELECT count(*) FROM names WHERE state NOT IN (?,?,?)",
                                 (NameState.DONE, NameState.FAILED, NameState.COVERED)).fetchone()[0]
        data, meta = self._db.execute("SELECT coalesce(sum(data>0),0), coalesce(sum(meta),0) FROM gfids").fetchone()
        return {"entry": int(entry), "data": int(data), "meta": int(meta)}

    # directories to enumerate

    def add_dirs(self, dirs: Iterable[EnumDir]) -> None:
        self._begin()
        self._db.executemany(
            "INSERT INTO dirs (gfid, handle, recursive, new) VALUES (?,?,?,?) ON CONFLICT (gfid) DO UPDATE SET"
            " handle=coalesce(excluded.handle, handle), recursive=max(recursive, excluded.recursive),"
            " new=excluded.new, state=0", ((d.gfid, d.handle, int(d.recursive), int(d.new)) for d in dirs))

    def take_dirs(self, limit: int) -> list[EnumDir]:
        """The next directories to enumerate, newest first (so few are unfinished at once); they count as open."""
        rows = self._db.execute("SELECT gfid, handle, recursive, new FROM dirs WHERE state=? ORDER BY id DESC LIMIT ?",
                                (_TODO, limit)).fetchall()
        if rows:
            self._begin()
            self._db.executemany("UPDATE dirs SET state=? WHERE gfid=?", ((_OPEN, r[0]) for r in rows))
        return [EnumDir(r[0], r[1], bool(r[2]), bool(r[3])) for r in rows]

    def dirs_done(self, gfids: Sequence[Gfid]) -> None:
        self._begin()
        self._db.executemany("UPDATE dirs SET state=? WHERE gfid=? AND state=?",
                             ((_DONE, g, _OPEN) for g in gfids))

    def building(self, gfid: Gfid) -> bool:
        """Whether this directory was made in this batch and is not complete yet."""
        row = self._db.execute("SELECT new AND state<? FROM dirs WHERE gfid=?", (_DONE, gfid)).fetchone()
        return bool(row and row[0])

    def to_be_listed(self, gfid: Gfid) -> bool:
        """Whether all names of this new directory are still to be read."""
        row = self._db.execute("SELECT new AND state=? FROM dirs WHERE gfid=?", (_TODO, gfid)).fetchone()
        return bool(row and row[0])

    def has_dir(self, gfid: Gfid) -> bool:
        """Whether the batch has enumerated the directory, or will."""
        return self._db.execute("SELECT 1 FROM dirs WHERE gfid=?", (gfid,)).fetchone() is not None

    def handle_of(self, gfid: Gfid) -> bytes | None:
        row = self._db.execute("SELECT handle FROM dirs WHERE gfid=?", (gfid,)).fetchone()
        return row[0] if row else None

    # doubt

    def add_doubt(self) -> None:
        """Look again at everything in doubt: names, and directories on both sides."""
        self._begin()
        self._db.execute("INSERT OR IGNORE INTO names (pargfid, bname) SELECT pargfid, bname FROM doubt")
        self._db.execute("INSERT OR IGNORE INTO dirs (gfid, recursive, new) SELECT gfid, 0, 0 FROM doubt_dirs")

    def keep_doubt(self) -> None:
        """The names and directories of this batch are in doubt until the recorder has overtaken their resolve."""
        self._begin()
        self._db.execute("INSERT OR IGNORE INTO doubt SELECT pargfid, bname FROM names")
        self._db.execute("INSERT OR IGNORE INTO doubt_dirs SELECT gfid FROM dirs")

    def drop_doubt(self) -> None:
        self._begin()
        self._db.execute("DELETE FROM doubt")
        self._db.execute("DELETE FROM doubt_dirs")
