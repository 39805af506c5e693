"""Makes the index true again after an agent has ended, for whatever reason (rule 27).

Everything that may have changed since the last commit is known: touched names, limbo/old, limbo/new. Recovery reads it
from the file system; identity comes from the handles that `touched` keeps. Where handles do not last, nobody can tell
which inode is at a touched name. Then recovery drops its row with all rows below it, and the worker must compare the
content there (as when adopting). Killed at any point, recovery starts again from scratch. Standard library only, Python
3.9.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from gsync.base.model import Gfid, Name
from gsync.base.namespace import IndexEntry
from gsync.slave.directory.limbo import Limbo
from gsync.slave.directory.tree import Inode, SlaveTree
from gsync.slave.limbo import LIMBO_OLD, Waiting, gfid_in_limbo
from gsync.slave.outcome import Step

_PAGE = 1000


def recover(tree: SlaveTree, limbo: Limbo, step: Step) -> None:
    """Put index, limbo and modes in order. Call it before anything else is done with the tree."""
    tree.turn()
    recovery = _Recovery(tree)
    if not tree.handles.lasting:
        recovery.distrust()
    tree.settle_after_crash()
    limbo.empty_links()
    recovery.rows()
    step("rows follow the disk")
    tree.settle()
    limbo.drop_doomed()
    limbo.empty_new()
    with tree.index.transaction():
        tree.index.forget_incomplete()
    limbo.drop_doomed()
    tree.settle()
    step("recovered")


class _Recovery:
    def __init__(self, tree: SlaveTree) -> None:
        self._tree = tree
        self._index = tree.index
        self._homeless: set[Gfid] = set()  # directories that lost a row

    def distrust(self) -> None:
        """Drop the row of every touched name, and all rows below it."""
        with self._index.transaction():
            for name in self._touched():
                row = self._index.get(*name)
                if row is not None:
                    self._index.drop_name(row)

    def rows(self) -> None:
        """First limbo/old: its entries are known by their names. Then the touched names, from the top down, until
        nothing changes: finding a directory gives access to the names in it."""
        leftovers: list[bytes] = []
        with self._index.transaction():
            self._forget_gone()
            for item in self._listed():
                self._reread_waiting(item, leftovers)
            changed = True
            while changed:
                changed = False
                self._tree.turn()
                for name in self._touched():
                    changed = self._reread(name) or changed
            for name in self._touched():
                self._forget_unreachable(name)
            for gfid in (*self._homeless, *self._index.lost_dirs()):
                if self._index.entry_of(gfid) is None:
                    self._index.doom(gfid)
        for bname in leftovers:  # left by a removal that a crash has undone or cut short
            self._tree.discard(self._tree.old_fd, bname)

    def _listed(self) -> Iterator[bytes]:
        with os.scandir(self._tree.old_fd) as items:
            for item in items:
                yield os.fsencode(item.name)

    def _touched(self) -> Iterator[Name]:
        after: Name | None = None
        while True:
            page = self._index.touched_names(after, _PAGE)
            if not page:
                return
            after = page[-1]
            yield from page

    def _look(self, dirfd: int, bname: bytes) -> Inode | None:
        try:
            return self._tree.look(dirfd, bname)
        except OSError as exc:
            if exc.errno in (errno.EBUSY, errno.EPERM):  # a mount point, or gsync's own folder: not one of ours
                return None
            raise

    def _forget(self, entry: IndexEntry) -> None:
        self._index.remove(entry.pargfid, entry.bname)
        if stat.S_ISDIR(entry.kind):
            self._homeless.add(entry.gfid)

    def _put(self, entry: IndexEntry) -> None:
        if stat.S_ISDIR(entry.kind):
            for other in self._index.entries_of(entry.gfid):
                self._index.remove(other.pargfid, other.bname)
        before = self._index.get(entry.pargfid, entry.bname)
        if before is not None:
            self._forget(before)
        self._index.put([entry])

    # limbo/old

    def _forget_gone(self) -> None:
        """Drop rows about limbo/old that do not match the disk."""
        after = b""
        while True:
            entries = self._index.children(LIMBO_OLD, after, _PAGE)
            if not entries:
                break
            after = entries[-1].bname
            for entry in entries:
                if not self._tree.is_at(entry):
                    self._forget(entry)
        after = b""
        while True:
            waiting = self._index.waiting(after, _PAGE)
            if not waiting:
                return
            after = waiting[-1].bname
            for bname, _, _ in waiting:
                if self._look(self._tree.old_fd, bname) is None:
                    self._index.leave_limbo(bname)

    def _reread_waiting(self, bname: bytes, leftovers: list[bytes]) -> None:
        """Put the row of one entry of limbo/old in order."""
        found = self._look(self._tree.old_fd, bname)
        if found is None:
            return
        gfid = gfid_in_limbo(bname)
        since, was = 0, bname
        if gfid is not None:
            touched = self._index.touched_gfid(gfid)
            if touched is not None:
                since, was = touched.since, touched.bname
            if self._index.get(LIMBO_OLD, bname) is None:
                if touched is None:
                    leftovers.append(bname)
                    return
                self._put(IndexEntry(LIMBO_OLD, bname, gfid, found.kind, found.handle))
                if found.is_dir and not self._tree.handles.lasting:  # its rows were dropped with its name's row
                    self._index.add_incomplete(gfid)
        if self._index.waits(bname) is None:
            self._index.wait_in_limbo(Waiting(bname, since, was))

    # touched names

    def _reread(self, name: Name) -> bool:
        """Make the row of a name true; return whether anything changed."""
        pargfid, bname = name
        try:
            dirfd = self._tree.dir(pargfid)
        except FileNotFoundError:
            return False  # it may be found later
        found = self._look(dirfd, bname)
        row = self._index.get(pargfid, bname)
        if row is not None and found is not None and row.handle == found.handle:
            return False
        who = self._index.touched_inode(found.handle) if found is not None and self._tree.handles.lasting else None
        if found is None or who is None:
            if row is not None:
                self._forget(row)
            return row is not None
        self._put(IndexEntry(pargfid, bname, who[0], who[1], found.handle))
        return True

    def _forget_unreachable(self, name: Name) -> None:
        try:
            self._tree.dir(name[0])
        except FileNotFoundError:
            row = self._index.get(*name)
            if row is not None:
                self._forget(row)
