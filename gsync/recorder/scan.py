"""Reads the tree, or a part of it, directory by directory, and compares it with the index.

Directories are visited by identity, each after its watch is set; names go to the index in pages of thousands.
Directories still to be visited are in a temporary table: memory does not grow with the tree.

    FirstScan   fills the index, records nothing; notes a directory's ctime once all its names are noted
    GapScan     records all differences from the index: creations, changes, renames, removals
    FreshScan   records everything below a directory that came from an unwatched place
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from gsync.base.fsid import Seen, is_mount_handle
from gsync.base.log import get_logger
from gsync.base.model import ROOT_GFID, Gfid, shown
from gsync.base.namespace import UNKNOWN_CTIME, IndexEntry
from gsync.recorder.detector import Detector
from gsync.recorder.live import GRANULARITY, LiveIndex, entry_at, stamp
from gsync.recorder.slice import Slice
from gsync.recorder.tree import OUTSIDE, Elsewhere, Gone, RecordedTree

_log = get_logger(__name__)

class ScanSizes(NamedTuple):
    """Numbers of names. page: names of a directory at a time; commit: per transaction of a first scan; in_memory: names
    of one directory that are compared in memory."""

    page: int = 2000
    commit: int = 10_000
    in_memory: int = 20_000


_CHECKPOINT = 20_000  # pages of the log per checkpoint: with SQLite's 1000 a first scan takes twice as long


@dataclass(frozen=True)
class Reading:
    """The means by which every scan reads. tick: called for each page, with the number of names in it."""

    tree: RecordedTree
    live: LiveIndex
    detector: Detector
    tick: Callable[[int], None]
    clock: Callable[[], int]
    sizes: ScanSizes


class _Scan:
    """The traversal. Subclasses decide what each name means."""

    def __init__(self, reading: Reading) -> None:
        self._tree, self._detector, self._sizes = reading.tree, reading.detector, reading.sizes
        self._tick, self._clock = reading.tick, reading.clock
        self._live, self._index, self._db = reading.live, reading.live.rows, reading.live.rows.db
        self._put: list[IndexEntry] = []
        self._push: list[tuple[Gfid, bytes]] = []
        self._clean_before = 0

    def _run(self, start: Iterable[tuple[Gfid, bytes]]) -> None:
        self._db.execute("DROP TABLE IF EXISTS temp.todo")
        self._db.execute("CREATE TEMP TABLE todo (n INTEGER PRIMARY KEY, gfid BLOB, handle BLOB)")
        self._push += start
        while True:
            self._write()
            page = self._db.execute("SELECT n, gfid, handle FROM todo ORDER BY n DESC LIMIT 50").fetchall()
            if not page:
                break
            self._db.execute("DELETE FROM todo WHERE n >= ?", (page[-1][0],))
            for _, gfid, handle in page:
                self._visit(gfid, handle)
        self._db.execute("DROP TABLE temp.todo")

    def _visit(self, gfid: Gfid, handle: bytes) -> None:
        try:
            fd = self._tree.open_dir(gfid, handle)
        except (Gone, Elsewhere):
            return  # its name is hinted, or will be
        except PermissionError as exc:
            self._unreadable(gfid, exc)
            return
        try:
            self._detector.watch(gfid, handle, fd)
            self._met(gfid, fd)
            known = self._known(gfid)
            if known is None:
                self._read_big(gfid, fd)
                return
            for page in self._pages(fd):
                for bname in page:
                    seen = self._look(fd, gfid, bname)
                    if seen is not None:
                        self._found(gfid, bname, seen, known.pop(bname, None))
                self._after_page(len(page))
            for entry in known.values():
                self._missing(entry)
            self._listed(gfid)
        except PermissionError as exc:
            self._unreadable(gfid, exc)
        finally:
            os.close(fd)

    def _known(self, gfid: Gfid) -> dict[bytes, IndexEntry] | None:
        """The directory's names in the index; None if they are too many to hold."""
        known = {e.bname: e for e in self._index.children(gfid, limit=self._sizes.in_memory + 1)}
        return known if len(known) <= self._sizes.in_memory else None

    def _look(self, fd: int, gfid: Gfid, bname: bytes) -> Seen | None:
        seen = self._tree.look(fd, gfid, bname)
        return None if seen is OUTSIDE else seen

    def _read_big(self, gfid: Gfid, fd: int) -> None:
        """The same for a directory whose names in the index are too many to hold."""
        self._db.execute("DROP TABLE IF EXISTS temp.present")
        self._db.execute("CREATE TEMP TABLE present (bname BLOB PRIMARY KEY) WITHOUT ROWID")
        for page in self._pages(fd):
            there = []
            for bname in page:
                seen = self._look(fd, gfid, bname)
                if seen is not None:
                    self._found(gfid, bname, seen, self._index.get(gfid, bname))
                    there.append((bname,))
            self._db.executemany("INSERT OR IGNORE INTO present VALUES (?)", there)
            self._after_page(len(page))
        after = b""
        while entries := self._index.children(gfid, after, self._sizes.page):
            for entry in entries:
                if not self._db.execute("SELECT 1 FROM present WHERE bname=?", (entry.bname,)).fetchone():
                    self._missing(entry)
            after = entries[-1].bname
        self._db.execute("DROP TABLE temp.present")

    def _pages(self, fd: int) -> Iterator[list[bytes]]:
        with os.scandir(fd) as entries:
            while page := list(islice(entries, self._sizes.page)):
                page.sort(key=os.DirEntry.inode)  # the order that suits a disk best
                self._clean_before = self._clock() - GRANULARITY
                yield [os.fsencode(entry.name) for entry in page]

    def _after_page(self, names: int) -> None:
        if len(self._put) >= self._sizes.page:
            self._write()
        self._tick(names)

    def _keep(self, entry: IndexEntry) -> None:
        """Note an entry; a directory at once, since the detector drops events of unknown directories."""
        if stat.S_ISDIR(entry.kind):
            self._index.put([entry])
            if entry.ctime == UNKNOWN_CTIME:
                self._live.note_racy(entry.gfid)
        else:
            self._put.append(entry)

    def _write(self) -> None:
        if self._put:
            self._index.put(self._put)
            for entry in self._put:
                if entry.ctime == UNKNOWN_CTIME:
                    self._unsettled(entry)
            self._put.clear()
        if self._push:
            self._db.executemany("INSERT INTO todo (gfid, handle) VALUES (?,?)", self._push)
            self._push.clear()

    def _unsettled(self, entry: IndexEntry) -> None:
        """An entry was written without a ctime."""
        self._live.note_racy(entry.gfid)

    def _descend(self, seen: Seen) -> bool:
        """Schedule a visit if this is a directory of this file system; return whether it is."""
        if stat.S_ISDIR(seen.st.st_mode) and not is_mount_handle(seen.handle):
            self._push.append((seen.gfid, seen.handle))
            return True
        return False

    def _unreadable(self, gfid: Gfid, exc: OSError) -> None:
        parts = self._index.path_of(gfid) or []
        _log.warning("directory cannot be read, what is in it is not recorded", path=shown(b"/".join(parts)),
                     error=exc.strerror)

    def _met(self, gfid: Gfid, fd: int) -> None:
        """The directory exists and is readable."""

    def _listed(self, gfid: Gfid) -> None:
        """All names of the directory were found."""

    def _found(self, pargfid: Gfid, bname: bytes, seen: Seen, known: IndexEntry | None) -> None:
        """An inode was found at a name; known: the index's entry there."""
        raise NotImplementedError

    def _missing(self, entry: IndexEntry) -> None:
        """A name in the index was found empty."""
        raise NotImplementedError


class FirstScan(_Scan):
    """Makes the index match the tree. It commits page by page: the caller must have no transaction open."""

    def clear(self) -> None:
        """Discard an interrupted first scan, before anybody is told that the index is kept current."""
        self._db.execute("DELETE FROM entries")

    def run(self) -> None:
        self._uncommitted = 0
        self._of_listed: list[tuple[Gfid, int, int]] = []
        self._db.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT}")
        self._db.begin()
        self._run([(ROOT_GFID, self._tree.inodes.handles.root)])
        self._db.execute("COMMIT")
        self._db.execute("PRAGMA wal_autocheckpoint=1000")

    def _known(self, gfid: Gfid) -> dict[bytes, IndexEntry] | None:
        return {}

    def _after_page(self, names: int) -> None:
        self._uncommitted += names
        if self._uncommitted >= self._sizes.commit:
            self._uncommitted = 0
            self._write()
            self._db.execute("COMMIT")
            self._tick(names)
            self._db.begin()
        else:
            super()._after_page(names)

    def _found(self, pargfid: Gfid, bname: bytes, seen: Seen, known: IndexEntry | None) -> None:
        entry = entry_at(pargfid, bname, seen, self._clean_before)
        self._put.append(entry._replace(ctime=UNKNOWN_CTIME) if self._descend(seen) else entry)

    def _unsettled(self, entry: IndexEntry) -> None:
        if not stat.S_ISDIR(entry.kind):
            self._live.note_racy(entry.gfid)

    def _met(self, gfid: Gfid, fd: int) -> None:
        st = os.fstat(fd)
        self._at_first = stamp(st, self._clock() - GRANULARITY), st.st_size

    def _listed(self, gfid: Gfid) -> None:
        """From now on a worker need not read this directory itself."""
        self._of_listed.append((gfid, *self._at_first))
        if self._at_first[0] == UNKNOWN_CTIME:
            self._live.note_racy(gfid)

    def _write(self) -> None:
        super()._write()
        for gfid, ctime, size in self._of_listed:
            self._index.set_ctime(gfid, ctime, size)
        self._of_listed.clear()


class GapScan(_Scan):
    """Records differences, in the caller's transaction. Directories found nowhere are dropped with everything below."""

    def __init__(self, reading: Reading, slice_: Slice) -> None:
        super().__init__(reading)
        self._slice = slice_
        self._lost_any = False

    def run(self) -> None:
        db = self._db
        db.execute("DROP TABLE IF EXISTS temp.met")
        db.execute("DROP TABLE IF EXISTS temp.lost")
        db.execute("CREATE TEMP TABLE met (gfid BLOB PRIMARY KEY) WITHOUT ROWID")
        # Names in the index at which another inode, or none, was found.
        db.execute("CREATE TEMP TABLE lost (pargfid BLOB, bname BLOB, gfid BLOB, kind INTEGER, ctime INTEGER)")
        db.execute("CREATE INDEX temp.lost_gfid ON lost (gfid)")
        self._root_attributes()
        self._run([(ROOT_GFID, self._tree.inodes.handles.root)])
        for pargfid, bname, gfid, kind in db.execute("SELECT pargfid, bname, gfid, kind FROM lost"):
            if self._index.get(pargfid, bname) is None:
                self._slice.gone(gfid, (pargfid, bname), stat.S_ISDIR(kind))
        self._drop_unmet()
        db.execute("DROP TABLE temp.met")
        db.execute("DROP TABLE temp.lost")

    def _root_attributes(self) -> None:
        clean_before = self._clock() - GRANULARITY
        st = os.fstat(self._tree.root_fd)
        if st.st_ctime_ns != self._index.fact("root_ctime"):
            self._slice.meta(ROOT_GFID)
        self._index.set_fact("root_ctime", stamp(st, clean_before))

    def _met(self, gfid: Gfid, fd: int = -1) -> None:
        self._db.execute("INSERT OR IGNORE INTO met VALUES (?)", (gfid,))

    def _was_met(self, gfid: Gfid) -> bool:
        return self._db.execute("SELECT 1 FROM met WHERE gfid=?", (gfid,)).fetchone() is not None

    def _unreadable(self, gfid: Gfid, exc: OSError) -> None:
        """A directory that cannot be read is not gone: the index keeps it."""
        super()._unreadable(gfid, exc)
        todo = [gfid]
        while todo:
            at = todo.pop()
            self._met(at)
            todo += (row[0] for row in self._db.execute("SELECT gfid FROM entries WHERE pargfid=? AND kind=?",
                                                        (at, stat.S_IFDIR)))

    def _found(self, pargfid: Gfid, bname: bytes, seen: Seen, known: IndexEntry | None) -> None:
        gfid, name = seen.gfid, (pargfid, bname)
        if known is not None and known.gfid == gfid:
            self._compare(seen, known.ctime)
            if known.ctime != seen.st.st_ctime_ns or known.size != seen.st.st_size:
                self._put.append(entry_at(pargfid, bname, seen, self._clean_before))
            self._descend(seen)
            return
        if known is not None:
            self._missing(known)
        old = self._old_place(seen, name)
        self._keep(entry_at(pargfid, bname, seen, self._clean_before))
        if old is None:
            self._slice.appeared(name, seen, linked=False)
            self._slice.changed(seen)
            self._descend(seen)
            return
        was_at, moved = old
        self._compare(seen, was_at.ctime)
        if moved:
            self._slice.renamed(gfid, was_at.name, name)
        else:
            self._slice.appeared(name, seen, linked=True)
        if not self._was_met(gfid):
            self._descend(seen)

    def _compare(self, seen: Seen, ctime: int) -> None:
        if ctime != seen.st.st_ctime_ns:
            self._slice.changed(seen)

    def _old_place(self, seen: Seen, name: tuple[Gfid, bytes]) -> tuple[IndexEntry, bool] | None:
        """The index's name for an inode found at a new one, and whether it moved from there (otherwise the new name is
        a link).

        If the inode moved, the old name leaves the index.
        """
        if self._lost_any:
            row = self._db.execute("SELECT rowid, pargfid, bname, gfid, kind, ctime FROM lost WHERE gfid=? LIMIT 1",
                                   (seen.gfid,)).fetchone()
            if row:
                self._db.execute("DELETE FROM lost WHERE rowid=?", (row[0],))
                return IndexEntry(row[1], row[2], row[3], row[4], b"", row[5]), True
        still = None
        for entry in self._index.entries_of(seen.gfid):
            if entry.name == name:
                continue
            if stat.S_ISDIR(entry.kind) or not self._still_at(entry):
                self._index.remove(entry.pargfid, entry.bname)
                return entry, True
            still = entry
        return (still, False) if still else None

    def _still_at(self, entry: IndexEntry) -> bool:
        try:
            fd = self._tree.open_dir(entry.pargfid)
        except (Gone, Elsewhere, PermissionError):
            return False
        try:
            seen = self._tree.look(fd, entry.pargfid, entry.bname)
        finally:
            os.close(fd)
        return seen is not None and seen.gfid == entry.gfid

    def _missing(self, entry: IndexEntry) -> None:
        """It may be met under another name later; entries that remain at the end are gone."""
        now = self._index.get(*entry.name)
        if now is None or now.gfid != entry.gfid:
            return  # already met
        self._index.remove(entry.pargfid, entry.bname)
        self._db.execute("INSERT INTO lost VALUES (?,?,?,?,?)",
                         (entry.pargfid, entry.bname, entry.gfid, entry.kind, entry.ctime))
        self._lost_any = True

    def _drop_unmet(self) -> None:
        """Rows in directories that were not met: below a removed directory, or moved during the scan."""
        pargfid = b""
        while row := self._db.execute("SELECT pargfid FROM entries WHERE pargfid > ? ORDER BY pargfid LIMIT 1",
                                      (pargfid,)).fetchone():
            pargfid = row[0]
            if not self._was_met(pargfid):
                for entry in self._index.remove_below(pargfid):
                    self._detector.unwatch(entry.gfid)
                self._detector.unwatch(pargfid)


class FreshScan(_Scan):
    """Records everything below directories, in the caller's transaction. An inode that the recorder has known all the
    while needs no second look."""

    def __init__(self, reading: Reading, slice_: Slice) -> None:
        super().__init__(reading)
        self._slice = slice_

    def run(self, gfid: Gfid, handle: bytes) -> None:
        self._run([(gfid, handle)])

    def _found(self, pargfid: Gfid, bname: bytes, seen: Seen, known: IndexEntry | None) -> None:
        if known is not None and known.gfid != seen.gfid and stat.S_ISDIR(known.kind):
            self._live.displace(known)
        name = (pargfid, bname)
        is_dir = stat.S_ISDIR(seen.st.st_mode)
        old = self._live.tracked(seen.gfid)
        if old is None:
            self._slice.appeared(name, seen)
            self._slice.changed(seen)
            self._descend(seen)
        elif is_dir and old.name != name:
            self._slice.renamed(seen.gfid, old.name, name)
            for entry in self._index.entries_of(seen.gfid):
                self._index.remove(*entry.name)
        else:
            self._slice.appeared(name, seen, linked=True)
        self._keep(entry_at(pargfid, bname, seen, self._clean_before))

    def _missing(self, entry: IndexEntry) -> None:
        self._slice.gone(entry.gfid, entry.name, stat.S_ISDIR(entry.kind))
        self._index.remove(entry.pargfid, entry.bname)
        if stat.S_ISDIR(entry.kind):
            self._live.displace(entry)
