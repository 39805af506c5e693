"""The slave tree: directories and files by gfid, confined to ROOT, never following a symlink.

Every access goes by directory descriptors, one part of a path at a time, and what is opened must have the handle
that the index has for it. A descriptor from `dir` stays good until the next turn (or eight further calls of `dir`);
in each turn (`turn`: one request) a directory is looked at anew before it is used, so that what somebody else moved
away is not followed. Without root's privileges a directory that its owner may not use is opened up for a moment:
`settle` gives it its mode back, also after a crash (the index remembers).
Standard library only, Python 3.9.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from gsync.base.fate import SLAVE
from gsync.base.fsid import Handles
from gsync.base.model import ROOT_GFID, STATE_DIR, Gfid
from gsync.base.namespace import IndexEntry
from gsync.link.protocol import Caps, MetaRow
from gsync.slave.directory.attrs import set_attrs
from gsync.slave.directory.index import SlaveIndex
from gsync.slave.fence import RECEIVERS_LOCK, open_lock
from gsync.slave.limbo import LIMBO_NEW, LIMBO_OLD

OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FDS_KEPT = 384
_CHAIN_KEPT = 32  # of one long path: so that eight calls of `dir` never push out what the first one gave

# The folders of ROOT/.gsync, all made by `make_state`.
LIMBO_FOLDERS = (b"new", b"old", b"link", b"del")


class Inode(NamedTuple):
    """Who is at a name."""

    handle: bytes
    st: os.stat_result

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.st.st_mode)

    @property
    def kind(self) -> int:
        return stat.S_IFMT(self.st.st_mode)


class _Slot:
    """An open directory: its handle, and the turn in which it was last seen in its place."""

    __slots__ = ("fd", "handle", "turn")

    def __init__(self, fd: int, handle: bytes, turn: int) -> None:
        self.fd, self.handle, self.turn = fd, handle, turn


def missing(gfid: Gfid) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "no such directory at the slave", gfid.hex())


def place_of(fd: int) -> bytes:
    """A path to the very inode of a descriptor, O_PATH ones included, for calls that need a path."""
    return b"/proc/self/fd/%d" % fd


def make_state(root_fd: int) -> int:
    """Make ROOT/.gsync and its folders where they are missing; a descriptor of .gsync.

    Private and with nothing inherited: no default ACL or setgid bit of ROOT reaches what is made in limbo.
    """
    with suppress(FileExistsError):
        os.mkdir(STATE_DIR, 0o700, dir_fd=root_fd)
    state = os.open(STATE_DIR, OPEN_DIR, dir_fd=root_fd)
    _make_private(state)
    for folder in (b"limbo", b"trash", b"passes"):
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700, dir_fd=state)
    limbo = os.open(b"limbo", OPEN_DIR, dir_fd=state)
    _make_private(limbo)
    for folder in LIMBO_FOLDERS:
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700, dir_fd=limbo)
    os.close(limbo)
    return state


def open_state(root: bytes) -> int:
    """A descriptor of ROOT/.gsync."""
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return os.open(STATE_DIR, OPEN_DIR, dir_fd=root_fd)
    finally:
        os.close(root_fd)


def _make_private(fd: int) -> None:
    for acl in ("system.posix_acl_default", "system.posix_acl_access"):
        with suppress(OSError):
            os.removexattr(fd, acl)
    os.chmod(fd, 0o700)


class SlaveTree:
    """The tree at `root`, whose state `make_state` has made. index and the descriptors are for reading by others.

    OSError: ENOENT where the slave has no such thing (any more), else as the system call says.
    """

    def __init__(self, root: bytes) -> None:
        self.root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.handles = Handles(self.root_fd)
        self.privileged = os.geteuid() == 0
        self.state_fd = os.open(STATE_DIR, OPEN_DIR, dir_fd=self.root_fd)
        self._state_ino = os.fstat(self.state_fd).st_ino  # which is its own for as long as it is open
        limbo = os.open(b"limbo", OPEN_DIR, dir_fd=self.state_fd)
        self.new_fd, self.old_fd, self.link_fd, self.del_fd = (
            os.open(name, OPEN_DIR, dir_fd=limbo) for name in LIMBO_FOLDERS)
        os.close(limbo)
        self.index = SlaveIndex(os.fsdecode(place_of(self.state_fd) + b"/index.db"))
        caps = self.index.fact("caps")
        self.caps = Caps(**json.loads(str(caps))) if caps else Caps(root=self.privileged, chown=self.privileged,
                                                                    trusted=self.privileged)
        self._fixed = {ROOT_GFID: self.root_fd, LIMBO_NEW: self.new_fd, LIMBO_OLD: self.old_fd}
        self._slots: OrderedDict[Gfid, _Slot] = OrderedDict()
        self._turn = 1
        self._root_turn = 0
        self._opened: dict[Gfid, int] = {}  # what the index has in opened_up
        self._receivers_fd: int | None = None

    def close(self) -> None:
        for slot in self._slots.values():
            os.close(slot.fd)
        self._slots.clear()
        self.index.close()
        for fd in (self.new_fd, self.old_fd, self.link_fd, self.del_fd, self.state_fd, self.root_fd):
            os.close(fd)
        if self._receivers_fd is not None:
            os.close(self._receivers_fd)

    @property
    def receivers_fd(self) -> int:
        """The lock file of receivers and rsync servers."""
        if self._receivers_fd is None:
            self._receivers_fd = open_lock(self.state_fd, RECEIVERS_LOCK)
        return self._receivers_fd

    def lock_receivers(self, alone: bool) -> None:
        """Say that a receiver works here, or (alone) that none may: BlockingIOError while the other holds."""
        fcntl.flock(self.receivers_fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)

    def unlock_receivers(self) -> None:
        fcntl.flock(self.receivers_fd, fcntl.LOCK_UN)

    # directories

    def turn(self) -> None:
        """From now on every directory is looked at again before it is used."""
        self._turn += 1

    def dir(self, gfid: Gfid) -> int:
        """A descriptor of the directory, the tree's own; FileNotFoundError if the slave has it not in its place."""
        slot = self._slots.get(gfid)
        if slot is not None and slot.turn == self._turn:
            self._slots.move_to_end(gfid)
            return slot.fd
        fd = self._fixed.get(gfid)
        if fd is not None:
            if not self.privileged and gfid == ROOT_GFID and self._root_turn != self._turn:
                self._open_up_fd(ROOT_GFID, self.root_fd, os.fstat(self.root_fd))
                self._root_turn = self._turn
            return fd
        return self._walk(gfid)

    def _walk(self, gfid: Gfid) -> int:
        """Open what is not open on the way down to a directory, and see that all of it is in its place."""
        chain: list[IndexEntry] = []
        seen = set()
        at = gfid
        while at not in self._fixed:
            slot = self._slots.get(at)
            if slot is not None and slot.turn == self._turn:
                break
            entry = self.index.entry_of(at)
            if entry is None or not stat.S_ISDIR(entry.kind) or at in seen:
                raise missing(gfid)
            seen.add(at)
            chain.append(entry)
            at = entry.pargfid
        fd = self.dir(at)
        passing = -1  # a descriptor on a long way, not kept
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
            if self.handles.lasting and slot.handle == entry.handle == self.handles.at(parent, entry.bname):
                if not self.privileged:
                    self._open_up_fd(entry.gfid, slot.fd, os.fstat(slot.fd))
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
            if self.privileged:
                raise
            with self._held(parent, entry) as held:
                self._open_up_fd(entry.gfid, held, os.fstat(held))
                fd = os.open(entry.bname, OPEN_DIR, dir_fd=parent)
        try:
            st = os.fstat(fd)
            if st.st_dev != self.handles.dev or self.handles.of_fd(fd) != entry.handle:
                raise missing(entry.gfid)
            if not self.privileged:
                self._open_up_fd(entry.gfid, fd, st)
        except BaseException:
            os.close(fd)
            raise
        return fd

    @contextmanager
    def _held(self, dirfd: int, entry: IndexEntry) -> Iterator[int]:
        """An O_PATH descriptor of the entry's inode; ENOENT if another one is there."""
        fd = os.open(entry.bname, _OPEN_PLACE, dir_fd=dirfd)
        try:
            if self.handles.of_fd(fd) != entry.handle or os.fstat(fd).st_dev != self.handles.dev:
                raise missing(entry.gfid)
            yield fd
        finally:
            os.close(fd)

    def forget(self, gfid: Gfid) -> None:
        """Close what is open of a directory that is another one now, or gone."""
        slot = self._slots.pop(gfid, None)
        if slot is not None:
            os.close(slot.fd)

    # directories that their owner may not use

    def _open_up_fd(self, gfid: Gfid, fd: int, st: os.stat_result) -> None:
        if st.st_mode & 0o700 == 0o700 or st.st_uid != os.geteuid():
            return
        mode = stat.S_IMODE(st.st_mode)
        if gfid not in self._opened:
            self.index.open_up(gfid, mode)
            self._opened[gfid] = mode
        os.chmod(place_of(fd), mode | 0o700)

    def settle(self) -> None:
        """Give all directories that were opened up their modes back: at the end of each request."""
        while self._opened:
            gfid, mode = self._opened.popitem()  # the deepest first: the way to it is open still
            with suppress(FileNotFoundError):
                fd = self.dir(gfid)
                self._opened.pop(gfid, None)  # closed already: a crash came between the two steps below
                os.fchmod(fd, mode)
            self.index.closed_again(gfid)
            if gfid in self._slots:
                self._slots[gfid].turn = 0
            self._root_turn = 0

    def settle_after_crash(self) -> None:
        self._opened = dict(self.index.opened_up())
        self.settle()

    # who is at a name

    def look(self, dirfd: int, bname: bytes) -> Inode | None:
        """Who is at a name of this directory; None if nobody. PermissionError for gsync's own folder."""
        try:
            handle = self.handles.at(dirfd, bname)
            st = os.stat(bname, dir_fd=dirfd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if st.st_dev != self.handles.dev:
            raise OSError(errno.EBUSY, "a mount point", bname)
        if st.st_ino == self._state_ino:
            raise PermissionError(errno.EPERM, "gsync's own folder", bname)
        return Inode(handle, st)

    def is_at(self, entry: IndexEntry) -> bool:
        """Whether the entry's inode is at the entry's name."""
        try:
            return self.handles.at(self.dir(entry.pargfid), entry.bname) == entry.handle
        except OSError as exc:
            if exc.errno in SLAVE.gone:
                return False
            raise

    def names(self, gfid: Gfid) -> Iterator[IndexEntry]:
        """The names of an inode at which it really is."""
        return (e for e in self.index.entries_of(gfid) if self.is_at(e))

    # files

    def open_file(self, gfid: Gfid, flags: int = os.O_WRONLY) -> int:
        """A new descriptor of the regular file; a file that its owner may not open is opened all the same."""
        for entry in self.names(gfid):
            if not stat.S_ISREG(entry.kind):
                raise OSError(errno.EINVAL, "not a regular file", gfid.hex())
            dirfd = self.dir(entry.pargfid)
            with self._held(dirfd, entry) as held:
                st = os.fstat(held)
                if not stat.S_ISREG(st.st_mode):
                    continue
                lift = not self.privileged and st.st_mode & 0o600 != 0o600 and st.st_uid == os.geteuid()
                mode = stat.S_IMODE(st.st_mode)
                if lift:
                    os.chmod(place_of(held), mode | 0o600)
                try:
                    return os.open(place_of(held), flags | os.O_CLOEXEC)
                finally:
                    if lift:
                        os.chmod(place_of(held), mode)
        raise FileNotFoundError(errno.ENOENT, "no such file at the slave", gfid.hex())

    def open_limbo_dir(self, gfid: Gfid) -> int:
        """A new descriptor of the unattached directory limbo/new/<gfid>."""
        return os.open(gfid.hex().encode(), OPEN_DIR, dir_fd=self.new_fd)

    # attributes

    def set_attrs(self, fd: int, meta: MetaRow) -> None:
        """Set the attributes of an open file or directory."""
        set_attrs(fd, os.fstat(fd), meta, self.caps)

    def set_attrs_at(self, dirfd: int, entry: IndexEntry, meta: MetaRow) -> None:
        """Set the attributes of the entry's inode, of any kind, at its name in dirfd; ENOENT if it is not there."""
        with self._held(dirfd, entry) as fd:
            self._set_attrs(fd, entry.gfid, meta)

    def _set_attrs(self, fd: int, gfid: Gfid, meta: MetaRow) -> None:
        st = os.fstat(fd)
        if gfid in self._opened:  # it is to have the new mode once nobody needs it open any more
            mode = stat.S_IMODE(meta.mode)
            self._opened[gfid] = mode
            self.index.closed_again(gfid)
            self.index.open_up(gfid, mode)
            meta = meta._replace(mode=meta.mode | 0o700)
        set_attrs(place_of(fd), st, meta, self.caps)

    def set_attrs_of(self, meta: MetaRow) -> bool:
        """Set the attributes of the inode with this gfid; False if it is nowhere."""
        if meta.gfid == ROOT_GFID:
            self._set_attrs(self.dir(ROOT_GFID), ROOT_GFID, meta)
            return True
        for entry in self.index.entries_of(meta.gfid):
            try:
                self.set_attrs_at(self.dir(entry.pargfid), entry, meta)
                return True
            except OSError as exc:
                if exc.errno not in SLAVE.gone:
                    raise
        return False

    def make_writable(self, dirfd: int, entry: IndexEntry) -> None:
        """Let the owner without privileges read and write the file; META gives it its mode back."""
        if not self.privileged:
            with self._held(dirfd, entry) as fd:
                st = os.fstat(fd)
                if st.st_mode & 0o600 != 0o600:
                    os.chmod(place_of(fd), stat.S_IMODE(st.st_mode) | 0o600)

    # moving, and taking things away for good

    def rename(self, src: int, sname: bytes, entry: IndexEntry | None, dst: int, dname: bytes) -> None:
        """rename(2) of a known inode (entry, whose name may be another) or a foreign one.

        A directory that its owner may not write cannot be moved either: a known one is opened up until `settle`.
        """
        try:
            os.rename(sname, dname, src_dir_fd=src, dst_dir_fd=dst)
        except PermissionError:
            if self.privileged:
                raise
            if entry is None:
                if not self._usable(src, sname):
                    raise
            else:
                with self._held(src, entry._replace(bname=sname)) as fd:
                    self._open_up_fd(entry.gfid, fd, os.fstat(fd))
            os.rename(sname, dname, src_dir_fd=src, dst_dir_fd=dst)

    def discard(self, dirfd: int, bname: bytes) -> None:
        """Move whatever is at a name into limbo/del, from where `sweep` deletes it."""
        inode = os.stat(bname, dir_fd=dirfd, follow_symlinks=False).st_ino
        n = 0
        while True:
            name = b"%d.%d" % (inode, n)
            try:
                os.stat(name, dir_fd=self.del_fd, follow_symlinks=False)
                n += 1
            except FileNotFoundError:
                break
        self.rename(dirfd, bname, None, self.del_fd, name)

    def _usable(self, dirfd: int, bname: bytes) -> bool:
        """Give the owner of the directory at this name all rights; False if it is none or not ours."""
        fd = os.open(bname, _OPEN_PLACE, dir_fd=dirfd)
        try:
            st = os.fstat(fd)
            if not stat.S_ISDIR(st.st_mode) or st.st_uid != os.geteuid() or st.st_mode & 0o700 == 0o700:
                return False
            os.chmod(place_of(fd), stat.S_IMODE(st.st_mode) | 0o700)
            return True
        finally:
            os.close(fd)

    def sweep(self, goes_on: Callable[[], bool] = lambda: True) -> bool:
        """Delete what lies in limbo/del, for as long as goes_on; True if nothing deletable is left.

        Any depth, in little memory: the directories in a directory are moved up into limbo/del before it goes.
        """
        stuck: set[bytes] = set()
        while True:
            moved = False
            with os.scandir(self.del_fd) as entries:
                for item in entries:
                    name = os.fsencode(item.name)
                    if name in stuck:
                        continue
                    if not goes_on():
                        return False
                    try:
                        if not self._sweep_one(name, goes_on):
                            return False
                        moved = True
                    except OSError:
                        stuck.add(name)
            if not moved:
                return True

    def _sweep_one(self, name: bytes, goes_on: Callable[[], bool]) -> bool:
        """Delete one entry of limbo/del; False if it was interrupted. OSError if it cannot be deleted."""
        try:
            os.unlink(name, dir_fd=self.del_fd)
            return True
        except FileNotFoundError:
            return True
        except (IsADirectoryError, PermissionError) as exc:  # EISDIR on Linux, EPERM in POSIX
            if not stat.S_ISDIR(os.stat(name, dir_fd=self.del_fd, follow_symlinks=False).st_mode):
                raise exc
        if not self.privileged:
            self._usable(self.del_fd, name)
        fd = os.open(name, OPEN_DIR, dir_fd=self.del_fd)
        try:
            last: OSError | None = None
            while True:
                found = False
                with os.scandir(fd) as entries:
                    for item in entries:
                        inner = os.fsencode(item.name)
                        if not goes_on():
                            return False
                        try:
                            if item.is_dir(follow_symlinks=False):
                                self.discard(fd, inner)
                            else:
                                os.unlink(inner, dir_fd=fd)
                            found = True
                        except FileNotFoundError:
                            pass
                        except OSError as exc:
                            last = exc
                if not found:
                    break
        finally:
            os.close(fd)
        try:
            os.rmdir(name, dir_fd=self.del_fd)
        except OSError as exc:
            raise last or exc from exc
        return True

