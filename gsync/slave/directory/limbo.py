"""limbo/old, where detached inodes wait until nobody can want them any more; limbo/new, which is emptied; the trash.

`step` is told of every point at which a crash may follow, so that tests can end there. In `detach` the rows belong to
the caller's transaction; all other methods open their own. Standard library only, Python 3.9.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from datetime import date, timedelta
from hashlib import blake2b

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.model import NS, Gfid
from gsync.base.namespace import IndexEntry
from gsync.slave.directory.folders import OPEN_DIR
from gsync.slave.directory.tree import Inode, SlaveTree
from gsync.slave.limbo import LIMBO_NEW, LIMBO_OLD, Waiting, gfid_in_limbo, name_in_limbo
from gsync.slave.outcome import Step

_PAGE = 1000
_LONGEST = 255
_FOREIGN = b"x."  # prefix of the names of inodes in limbo/old whose gfid is unknown



class Limbo:
    """delete_retention: seconds that deleted entries stay in the trash; 0: there is no trash."""

    def __init__(self, tree: SlaveTree, delete_retention: int, step: Step, clock: Clock = SYSTEM_CLOCK) -> None:
        self._tree = tree
        self._index = tree.index
        self._retention = delete_retention
        self._step = step
        self._clock = clock
        self.exposed: set[Gfid] = set()  # files that have an extra link in limbo/link

    def is_last_link(self, found: Inode, gfid: Gfid | None) -> bool:
        """Whether removing the name at which the inode was found removes the inode."""
        return found.is_dir or found.st.st_nlink - (gfid in self.exposed) <= 1

    def detach(self, dirfd: int, bname: bytes, found: Inode, entry: IndexEntry | None, since: int,
               keep_name: bool) -> None:
        """Move the inode at this name into limbo/old; entry: its row, None if it is foreign.

        keep_name: give it a second link there if possible, so that a rename can replace the name in one step.
        """
        tree = self._tree
        if entry is not None:
            name = name_in_limbo(entry.gfid)
        else:
            own = found.handle if tree.handles.lasting else os.urandom(16)
            name = _FOREIGN + blake2b(own, digest_size=16).hexdigest().encode()
        self._make_room(name, found.handle)
        if keep_name and not found.is_dir:
            try:
                os.link(bname, name, src_dir_fd=dirfd, dst_dir_fd=tree.old_fd, follow_symlinks=False)
            except FileExistsError:
                pass  # the very same inode: `_make_room` has made sure of that
            except OSError:
                os.rename(bname, name, src_dir_fd=dirfd, dst_dir_fd=tree.old_fd)
                keep_name = False
        else:
            keep_name = False
            tree.rename(dirfd, bname, entry, tree.old_fd, name)
        self._step("detached")
        if entry is not None:
            if not keep_name:
                self._index.remove(entry.pargfid, entry.bname)
            self._index.put([entry._replace(pargfid=LIMBO_OLD, bname=name)])
        self._index.wait_in_limbo(Waiting(name, since, bname))

    def _make_room(self, name: bytes, handle: bytes) -> None:
        """Discard another inode that waits under this name: nothing refers to it any more."""
        tree = self._tree
        found = tree.look(tree.old_fd, name)
        if found is None or (tree.handles.lasting and found.handle == handle):
            return
        tree.discard(tree.old_fd, name)
        entry = self._index.get(LIMBO_OLD, name)
        if entry is not None:
            self._index.drop_name(entry)
        self._index.leave_limbo(name)

    # emptying limbo/new

    def empty_new(self) -> None:
        """Discard unfinished inodes; inodes that were only moved into limbo/new go to limbo/old first."""
        self._rescue_guests()
        with self._index.transaction():
            while True:
                page = self._index.children(LIMBO_NEW, limit=_PAGE)
                if not page:
                    break
                for entry in page:
                    self._index.drop_name(entry)
                    self._tree.forget(entry.gfid)
        self._step("limbo/new forgotten")
        self._discard_all(self._tree.new_fd)

    def empty_links(self) -> None:
        """Remove the links for rsync."""
        self.exposed.clear()
        self._discard_all(self._tree.link_fd)

    def _discard_all(self, dirfd: int) -> None:
        while True:
            with os.scandir(dirfd) as items:
                names = [os.fsencode(item.name) for item, _ in zip(items, range(_PAGE))]
            if not names:
                return
            for name in names:
                self._tree.discard(dirfd, name)
                self._step("discarded")

    def _rescue_guests(self) -> None:
        """Move inodes that had a name before, and are now in a directory that is not attached, to limbo/old."""
        if not self._index.children(LIMBO_NEW, limit=1):
            return
        after = None
        while True:
            names = self._index.touched_names(after, _PAGE)
            if not names:
                return
            after = names[-1]
            with self._index.transaction():
                for pargfid, bname in names:
                    if not self._index.is_below(pargfid, LIMBO_NEW) or self._in_guest(pargfid):
                        continue
                    entry = self._index.get(pargfid, bname)
                    if entry is None or not self._tree.is_at(entry):
                        continue
                    dirfd = self._tree.dir(pargfid)
                    found = self._tree.look(dirfd, bname)
                    touched = self._index.touched_gfid(entry.gfid)
                    if found is not None and touched is not None:
                        self.detach(dirfd, bname, found, entry, touched.since, keep_name=False)

    def _in_guest(self, gfid: Gfid) -> bool:
        """Whether this directory below limbo/new is, or is inside, one that is rescued. A rescue includes the whole
        content, since nobody asks again for the content of a directory that the slave has."""
        while (name := self._index.parent_of(gfid)) is not None and name[0] != LIMBO_NEW:
            if self._index.is_touched(name) and self._index.touched_gfid(gfid) is not None:
                return True
            gfid = name[0]
        return False

    # emptying limbo/old

    def clear(self, stime: int | None) -> int:
        """Let go of entries that no later batch can want (rule 25); return how many."""
        tree, index = self._tree, self._index
        after, gone = b"", 0
        while True:
            page = index.waiting(after, _PAGE)
            if not page:
                break
            after = page[-1].bname
            dead: list[Waiting] = []
            linked: list[Waiting] = []
            for waiting in page:
                found = tree.look(tree.old_fd, waiting.bname)
                gfid = gfid_in_limbo(waiting.bname)
                if found is None or not self.is_last_link(found, gfid):
                    linked.append(waiting)
                elif stime is not None and waiting.since <= stime:
                    dead.append(waiting)
            if self._retention:  # first into the trash: an entry without a row counts as deleted
                for waiting in dead:
                    self._to_trash(waiting)
            with index.transaction():
                for waiting in dead + linked:
                    index.leave_limbo(waiting.bname)
                    entry = index.get(LIMBO_OLD, waiting.bname)
                    if entry is not None:
                        index.remove(LIMBO_OLD, waiting.bname)
                        if stat.S_ISDIR(entry.kind):
                            index.doom(entry.gfid)
                            tree.forget(entry.gfid)
            self._step("rows of the dead dropped")
            for waiting in linked:
                with suppress(FileNotFoundError):
                    os.unlink(waiting.bname, dir_fd=tree.old_fd)
                self._step("spare link removed")
            if not self._retention:
                for waiting in dead:
                    tree.discard(tree.old_fd, waiting.bname)
                    self._step("deleted")
            gone += len(dead) + len(linked)
        self.drop_doomed()
        self._prune_trash()
        return gone

    def drop_doomed(self) -> None:
        """Drop the rows of what is gone, in portions."""
        more = True
        while more:
            with self._index.transaction():
                more = self._index.drop_doomed()
            if more:
                self._step("rows of the doomed dropped")

    # the trash

    def _open_trash(self) -> int:
        return os.open(b"trash", OPEN_DIR, dir_fd=self._tree.state_fd)

    def _to_trash(self, waiting: Waiting) -> None:
        tree = self._tree
        trash = self._open_trash()
        try:
            day = date.today().isoformat().encode()
            with suppress(FileExistsError):
                os.mkdir(day, 0o700, dir_fd=trash)
            folder = os.open(day, OPEN_DIR, dir_fd=trash)
        finally:
            os.close(trash)
        try:
            n = 0
            while True:
                tail = b"." + waiting.bname.replace(_FOREIGN, b"")[:8] + (b".%d" % n if n else b"")
                name = waiting.was[:_LONGEST - len(tail)] + tail
                if tree.look(folder, name) is None:
                    break
                n += 1
            entry = self._index.get(LIMBO_OLD, waiting.bname)
            tree.rename(tree.old_fd, waiting.bname, entry, folder, name)
        finally:
            os.close(folder)
        self._step("put into the trash")

    def _prune_trash(self) -> None:
        """Delete the days that are older than the retention."""
        trash = self._open_trash()
        try:
            for name in os.listdir(trash):
                try:
                    day = date.fromisoformat(name)
                except ValueError:
                    continue
                end = time.mktime((day + timedelta(days=1)).timetuple())
                if end + self._retention < self._clock.now() / NS:
                    self._tree.discard(trash, os.fsencode(name))
        finally:
            os.close(trash)
