"""The master's index while changes come in.

It knows, beyond what the rows say: which inodes lost a name just now and may turn up at another one; whom an event
that is still to come may mean; and whose ctime is too young to be kept. All that is written between two commits is
one transaction (rule 4: it is committed after the records that it made).
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
    """The ctime to keep: unknown, if another change could leave the same one."""
    return st.st_ctime_ns if st.st_ctime_ns < clean_before else UNKNOWN_CTIME


def entry_at(pargfid: Gfid, bname: bytes, seen: Seen, clean_before: int) -> IndexEntry:
    st = seen.st
    return IndexEntry(pargfid, bname, seen.gfid, kind_of(st.st_mode), seen.handle, stamp(st, clean_before), st.st_size)


class LiveIndex:
    """`rows` is the index itself. `complete`: a first scan has filled it. `tracking`: whatever happened to an inode
    since it came into the index was seen. `clean_before`: ctimes older than that (ns) can be kept."""

    def __init__(self, rows: Namespace, tree: RecordedTree) -> None:
        self.rows = rows
        self.complete = rows.fact("complete") == 1
        self.tracking = False
        self.clean_before = 0
        self._tree = tree
        self._displaced: dict[Gfid, IndexEntry] = {}
        self._was_at: dict[Name, Gfid] = {}    # whom an event that is still to come may mean,
        self._before: dict[Name, Gfid] = {}    # and whom it may have meant before the last look;
        self._former: dict[Name, Gfid] = {}    # for long, who may be open under a name and has others
        self._racy: set[Gfid] = set()          # inodes whose ctime was too young to be kept,
        self._settling: set[Gfid] = set()      # and those for which that is some time ago

    def begin(self) -> None:
        if not self.rows.db.in_transaction:
            self.rows.db.begin()

    def commit(self) -> None:
        if self.rows.db.in_transaction:
            self.rows.db.execute("COMMIT")

    # who is where

    def knows(self, gfid: Gfid) -> bool | None:
        """Whether the inode belongs to the tree, as far as was seen. During the first scan any may."""
        if gfid == ROOT_GFID or gfid in self._displaced:
            return True
        return self.rows.entry_of(gfid) is not None if self.complete else None

    def tracked(self, gfid: Gfid) -> IndexEntry | None:
        """The place that the index has, or just had, for an inode, if all that happened to it was seen."""
        if not self.tracking:
            return None
        return self.rows.entry_of(gfid) or self._displaced.get(gfid)

    def handle_of_displaced(self, gfid: Gfid) -> bytes | None:
        entry = self._displaced.get(gfid)
        return entry.handle if entry else None

    def begin_look(self) -> None:
        """From now on names empty anew; what emptied before the last look is forgotten."""
        self._before, self._was_at = self._was_at, {}

    def was_at(self, name: Name) -> Gfid | None:
        """Who was at the name before it was emptied in this look."""
        return self._was_at.get(name)

    def meant_by(self, name: Name) -> set[Gfid]:
        """The inodes that an event at this name may be about."""
        entry = self.rows.get(*name)
        found = (entry.gfid if entry else None, self._before.get(name), self._was_at.get(name), self._former.get(name))
        return {gfid for gfid in found if gfid is not None}

    # what changes

    def put(self, entry: IndexEntry) -> None:
        self.rows.put([entry])
        if entry.ctime == UNKNOWN_CTIME:
            self.note_racy(entry.gfid)

    def drop(self, entry: IndexEntry) -> None:
        """The entry's name is not its inode's any more; what lies below a directory stays for now."""
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
        """What lost its name and was found at no other has left the tree, with all below it."""
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
        """Events of a program that has a file open tell the name that it opened, be it gone or another's."""
        if self.rows.entry_of(entry.gfid) is not None:
            self._former[entry.name] = entry.gfid
            if len(self._former) > _MOST_FORMER:
                del self._former[next(iter(self._former))]

    # ctimes

    def keep_attributes(self, gfid: Gfid, st: os.stat_result | None) -> None:
        """Note an inode's ctime, if all that happened up to it is recorded in this slice or before."""
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
        """Note the ctime of inodes for which it was too young a while ago: else each would be sent after a stop."""
        settling, self._settling = self._settling, self._racy if len(self._racy) < _MOST_RACY else set()
        self._racy = set()
        for gfid in settling:
            self.begin()
            if gfid == ROOT_GFID:
                self.keep_attributes(gfid, os.fstat(self._tree.root_fd))
            elif (entry := self.rows.entry_of(gfid)) is not None and (st := self._tree.stat(entry)) is not None:
                self.keep_attributes(gfid, st)
