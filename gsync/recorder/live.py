"""The master's index while changes come in.

Beyond its rows, it knows: inodes that have just lost a name and may turn up at another one; inodes that an event still
to come may mean; and inodes whose ctime is too young to be kept. All changes between two commits are one transaction
(rule 4: it is committed after the records that it made).
"""

from __future__ import annotations

import os
import stat

from gsync.base.fsid import Seen
from gsync.base.model import ROOT_GFID, Gfid, Name, kind_of
from gsync.base.namespace import UNKNOWN_CTIME, IndexEntry, Namespace
from gsync.recorder.detector import Detector, RenameHint
from gsync.recorder.tree import RecordedTree

GRANULARITY = 20_000_000  # ns: two changes so close together may leave the same ctime (coarse kernel clock, margin)
_MOST_RACY = 100_000      # inodes whose ctime is looked at again
_MOST_FORMER = 10_000     # former names that are remembered


def stamp(st: os.stat_result, clean_before: int) -> int:
    """The ctime to keep: unknown if another change could leave the same one."""
    return st.st_ctime_ns if st.st_ctime_ns < clean_before else UNKNOWN_CTIME


def entry_at(pargfid: Gfid, bname: bytes, seen: Seen, clean_before: int) -> IndexEntry:
    st = seen.st
    return IndexEntry(pargfid, bname, seen.gfid, kind_of(st.st_mode), seen.handle, stamp(st, clean_before), st.st_size)


class LiveIndex:
    """`rows` is the index itself. `complete`: a first scan has filled it. `tracking`: every event of an inode since it
    entered the index was seen. `clean_before`: ctimes older than this (ns) can be kept."""

    def __init__(self, rows: Namespace, tree: RecordedTree) -> None:
        self.rows = rows
        self.complete = rows.fact("complete") == 1
        self.tracking = False
        self.clean_before = 0
        self._tree = tree
        self._displaced: dict[Gfid, IndexEntry] = {}
        self._was_at: dict[Name, Gfid] = {}    # inodes that an event still to come may mean,
        self._before: dict[Name, Gfid] = {}    # inodes that it may have meant before the last look,
        self._former: dict[Name, Gfid] = {}    # long-term: files with other names that may be open under this one
        self._racy: set[Gfid] = set()          # inodes whose ctime was too young to be kept,
        self._settling: set[Gfid] = set()      # and those for which that was some time ago

    def begin(self) -> None:
        if not self.rows.db.in_transaction:
            self.rows.db.begin()

    def commit(self) -> None:
        if self.rows.db.in_transaction:
            self.rows.db.execute("COMMIT")

    # which inode is where

    def knows(self, gfid: Gfid) -> bool | None:
        """Whether the inode belongs to the tree, as far as was seen. During the first scan any inode may."""
        if gfid == ROOT_GFID or gfid in self._displaced:
            return True
        return self.rows.entry_of(gfid) is not None if self.complete else None

    def tracked(self, gfid: Gfid) -> IndexEntry | None:
        """The place that the index has, or just had, for an inode, if every event of the inode was seen."""
        if not self.tracking:
            return None
        return self.rows.entry_of(gfid) or self._displaced.get(gfid)

    def handle_of_displaced(self, gfid: Gfid) -> bytes | None:
        entry = self._displaced.get(gfid)
        return entry.handle if entry else None

    def begin_look(self) -> None:
        """Start a new look: names that become empty are collected again; those from before the last look are
        forgotten."""
        self._before, self._was_at = self._was_at, {}

    def was_at(self, name: Name) -> Gfid | None:
        """The inode that was at the name before it became empty in this look."""
        return self._was_at.get(name)

    def meant_by(self, name: Name) -> set[Gfid]:
        """The inodes that an event at this name may mean."""
        entry = self.rows.get(*name)
        found = (entry.gfid if entry else None, self._before.get(name), self._was_at.get(name), self._former.get(name))
        return {gfid for gfid in found if gfid is not None}

    # changes

    def put(self, entry: IndexEntry) -> None:
        self.rows.put([entry])
        if entry.ctime == UNKNOWN_CTIME:
            self.note_racy(entry.gfid)

    def drop(self, entry: IndexEntry) -> None:
        """The entry's name no longer leads to its inode; rows below a directory stay for now."""
        self.rows.remove(*entry.name)
        self._was_at[entry.name] = entry.gfid
        self.displace(entry)

    def displace(self, entry: IndexEntry) -> None:
        self._displaced[entry.gfid] = entry

    def move(self, hint: RenameHint) -> bool:
        """Follow a rename; False if the index has nothing at the old name."""
        moved, victim = self.rows.get(*hint.old), self.rows.get(*hint.new)
        if moved is None:
            return False
        if victim is not None and victim.gfid != moved.gfid:
            self.drop(victim)
        self.rows.remove(*hint.old)
        self._was_at[hint.old] = moved.gfid
        self.rows.put([moved._replace(pargfid=hint.new[0], bname=hint.new[1])])
        return True

    def drop_displaced(self, detector: Detector) -> None:
        """Inodes that lost their name and were found at no other have left the tree, with everything below them."""
        displaced, self._displaced = self._displaced, {}
        for gfid, entry in displaced.items():
            if not stat.S_ISDIR(entry.kind):
                if not detector.sees_all:
                    self._remember(entry)
            elif self.rows.entry_of(gfid) is None:
                for below in self.rows.remove_below(gfid):
                    detector.unwatch(below.gfid)
                detector.unwatch(gfid)

    def _remember(self, entry: IndexEntry) -> None:
        """Events of a program that has a file open carry the name that it opened, even if that is gone or another
        file's."""
        if self.rows.entry_of(entry.gfid) is not None:
            self._former[entry.name] = entry.gfid
            if len(self._former) > _MOST_FORMER:
                del self._former[next(iter(self._former))]

    # ctimes

    def keep_attributes(self, gfid: Gfid, st: os.stat_result | None) -> None:
        """Note an inode's ctime, if every change up to it is recorded in this slice or before."""
        ctime = stamp(st, self.clean_before) if st else UNKNOWN_CTIME
        if gfid == ROOT_GFID:
            self.rows.set_fact("root_ctime", ctime)
        else:
            self.rows.set_ctime(gfid, ctime, st.st_size if st else 0)
        if ctime == UNKNOWN_CTIME:
            self.note_racy(gfid)

    def note_racy(self, gfid: Gfid) -> None:
        if len(self._racy) < _MOST_RACY:
            self._racy.add(gfid)

    def settle(self) -> None:
        """Note the ctime of inodes for which it was too young a while ago: otherwise each would be sent again after a
        stop."""
        settling, self._settling = self._settling, self._racy if len(self._racy) < _MOST_RACY else set()
        self._racy = set()
        for gfid in settling:
            self.begin()
            if gfid == ROOT_GFID:
                self.keep_attributes(gfid, os.fstat(self._tree.root_fd))
            elif (entry := self.rows.entry_of(gfid)) is not None and (st := self._tree.stat(entry)) is not None:
                self.keep_attributes(gfid, st)
