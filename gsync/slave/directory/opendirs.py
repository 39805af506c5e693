"""Directories of a slave by gfid: descriptors, looked at again in every request, and modes lifted for a moment.

Every access goes through directory descriptors, one path component at a time. An opened inode must have the handle that
the index has for it; no symlink is followed. A descriptor from `dir` stays valid until the next turn (or eight further
calls of `dir`). In each turn (one request) a directory is looked at again before it is used, so that gsync does not
follow a directory that others have moved away. Without root's privileges, a directory that its owner may not use is
opened up for a moment: `settle` restores its mode, even after a crash (the index remembers). Standard library only,
Python 3.9.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from gsync.base.fate import SLAVE
from gsync.base.fsid import Handles
from gsync.base.model import ROOT_GFID, Gfid
from gsync.base.namespace import IndexEntry
from gsync.slave.directory.folders import OPEN_DIR, place_of
from gsync.slave.directory.index import SlaveIndex

OPEN_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FDS_KEPT = 384
_CHAIN_KEPT = 32  # of one long path: enough that eight calls of `dir` never evict the first one's result


class _Slot:
    """An open directory: its handle, and the turn in which it was last seen at its name."""

    __slots__ = ("fd", "handle", "turn")

    def __init__(self, fd: int, handle: bytes, turn: int) -> None:
        self.fd, self.handle, self.turn = fd, handle, turn


def missing(gfid: Gfid) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "no such directory at the slave", gfid.hex())


@contextmanager
def held(handles: Handles, dirfd: int, entry: IndexEntry) -> Iterator[int]:
    """An O_PATH descriptor of the entry's inode; ENOENT if another inode is there."""
    fd = os.open(entry.bname, OPEN_PLACE, dir_fd=dirfd)
    try:
        if handles.of_fd(fd) != entry.handle or os.fstat(fd).st_dev != handles.dev:
            raise missing(entry.gfid)
        yield fd
    finally:
        os.close(fd)


class OpenDirs:
    """The directories below the `fixed` ones, which stay open: the root, limbo/new and limbo/old. privileged: with
    root's rights, so no mode has to be lifted."""

    def __init__(self, handles: Handles, index: SlaveIndex, fixed: Mapping[Gfid, int], *, privileged: bool) -> None:
        self._handles = handles
        self._index = index
        self._fixed = fixed
        self._privileged = privileged
        self._slots: OrderedDict[Gfid, _Slot] = OrderedDict()
        self._turn = 1
        self._root_turn = 0
        self._opened: dict[Gfid, int] = {}  # the index's opened_up table

    def close(self) -> None:
        for slot in self._slots.values():
            os.close(slot.fd)
        self._slots.clear()

    def turn(self) -> None:
        """From now on, look at every directory again before it is used."""
        self._turn += 1

    def dir(self, gfid: Gfid) -> int:
        """A descriptor of the directory, owned by the tree; FileNotFoundError if the slave does not have it at its
        name."""
        slot = self._slots.get(gfid)
        if slot is not None and slot.turn == self._turn:
            self._slots.move_to_end(gfid)
            return slot.fd
        fd = self._fixed.get(gfid)
        if fd is not None:
            if not self._privileged and gfid == ROOT_GFID and self._root_turn != self._turn:
                self.open_up(ROOT_GFID, fd, os.fstat(fd))
                self._root_turn = self._turn
            return fd
        return self._walk(gfid)

    def _walk(self, gfid: Gfid) -> int:
        """Open the missing directories on the way down to this one, and check that each is at its name."""
        chain: list[IndexEntry] = []
        seen = set()
        at = gfid
        while at not in self._fixed:
            slot = self._slots.get(at)
            if slot is not None and slot.turn == self._turn:
                break
            entry = self._index.entry_of(at)
            if entry is None or not stat.S_ISDIR(entry.kind) or at in seen:
                raise missing(gfid)
            seen.add(at)
            chain.append(entry)
            at = entry.pargfid
        fd = self.dir(at)
        passing = -1  # a descriptor on a long path, not kept
        try:
            while chain:
                entry = chain.pop()
                if len(chain) < _CHAIN_KEPT:
                    fd = self._enter(fd, entry)
                    below = -1
                else:
                    fd = below = self._open(fd, entry)
                if passing >= 0:
                    os.close(passing)
                passing = below
        except OSError as exc:
            if exc.errno in SLAVE.gone:
                raise missing(gfid) from exc
            raise
        finally:
            if passing >= 0:
                os.close(passing)
        return fd

    def _enter(self, parent: int, entry: IndexEntry) -> int:
        slot = self._slots.get(entry.gfid)
        if slot is not None:
            if self._handles.lasting and slot.handle == entry.handle == self._handles.at(parent, entry.bname):
                if not self._privileged:
                    self.open_up(entry.gfid, slot.fd, os.fstat(slot.fd))
                slot.turn = self._turn
                self._slots.move_to_end(entry.gfid)
                return slot.fd
            self.forget(entry.gfid)
        fd = self._open(parent, entry)
        while len(self._slots) >= _FDS_KEPT:
            os.close(self._slots.popitem(last=False)[1].fd)
        self._slots[entry.gfid] = _Slot(fd, entry.handle, self._turn)
        return fd

    def _open(self, parent: int, entry: IndexEntry) -> int:
        try:
            fd = os.open(entry.bname, OPEN_DIR, dir_fd=parent)
        except PermissionError:
            if self._privileged:
                raise
            with held(self._handles, parent, entry) as place:
                self.open_up(entry.gfid, place, os.fstat(place))
                fd = os.open(entry.bname, OPEN_DIR, dir_fd=parent)
        try:
            st = os.fstat(fd)
            if st.st_dev != self._handles.dev or self._handles.of_fd(fd) != entry.handle:
                raise missing(entry.gfid)
            if not self._privileged:
                self.open_up(entry.gfid, fd, st)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def forget(self, gfid: Gfid) -> None:
        """Close the descriptors of a directory that is gone, or is now another one."""
        slot = self._slots.pop(gfid, None)
        if slot is not None:
            os.close(slot.fd)

    # modes

    def open_up(self, gfid: Gfid, fd: int, st: os.stat_result) -> None:
        """Give the owner of a directory all rights, until `settle`."""
        if st.st_mode & 0o700 == 0o700 or st.st_uid != os.geteuid():
            return
        mode = stat.S_IMODE(st.st_mode)
        if gfid not in self._opened:
            self._index.open_up(gfid, mode)
            self._opened[gfid] = mode
        os.chmod(place_of(fd), mode | 0o700)

    def settle(self) -> None:
        """Restore the modes of all directories that were opened up. Called at the end of each request."""
        while self._opened:
            gfid, mode = self._opened.popitem()  # deepest first: the path to it is still open
            with suppress(FileNotFoundError):
                fd = self.dir(gfid)
                self._opened.pop(gfid, None)  # closed already: a crash came between the two steps below
                os.fchmod(fd, mode)
            self._index.closed_again(gfid)
            if gfid in self._slots:
                self._slots[gfid].turn = 0
            self._root_turn = 0

    def settle_after_crash(self) -> None:
        self._opened = dict(self._index.opened_up())
        self.settle()

    def will_have(self, gfid: Gfid, mode: int) -> bool:
        """Whether the directory is opened up: then it gets this mode once nobody needs it open any more."""
        if gfid not in self._opened:
            return False
        self._opened[gfid] = mode
        self._index.closed_again(gfid)
        self._index.open_up(gfid, mode)
        return True
