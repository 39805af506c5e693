"""The slave tree: inodes by gfid and names, confined to ROOT, never following a symlink.

Every access goes through a directory's descriptor (opendirs), and an inode is changed only if its handle is the one in
the index. Entries that are removed for good go to limbo/del (discards). Standard library only, Python 3.9.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from gsync.base.fate import SLAVE
from gsync.base.fsid import Handles
from gsync.base.model import ROOT_GFID, STATE_DIR, Gfid
from gsync.base.namespace import IndexEntry
from gsync.link.protocol import Caps, MetaRow
from gsync.slave.directory.attrs import set_attrs
from gsync.slave.directory.discards import Discards, make_usable
from gsync.slave.directory.folders import LIMBO_FOLDERS, OPEN_DIR, place_of
from gsync.slave.directory.index import SlaveIndex
from gsync.slave.directory.opendirs import OpenDirs, held
from gsync.slave.fence import RECEIVERS_LOCK, open_lock
from gsync.slave.limbo import LIMBO_NEW, LIMBO_OLD


class Inode(NamedTuple):
    """The inode at a name."""

    handle: bytes
    st: os.stat_result

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.st.st_mode)

    @property
    def kind(self) -> int:
        return stat.S_IFMT(self.st.st_mode)


class SlaveTree:
    """The tree at `root`, whose state folders.make_state has made. Others may read index and the descriptors. dir,
    turn, settle, settle_after_crash, forget: see OpenDirs; discard, sweep: see Discards.

    OSError: ENOENT where the slave has no such inode or name (any more), otherwise as the system call says.
    """

    def __init__(self, root: bytes) -> None:
        self.root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.handles = Handles(self.root_fd)
        privileged = self._privileged = os.geteuid() == 0
        self.state_fd = os.open(STATE_DIR, OPEN_DIR, dir_fd=self.root_fd)
        self._state_ino = os.fstat(self.state_fd).st_ino  # its own for as long as it is open
        limbo = os.open(b"limbo", OPEN_DIR, dir_fd=self.state_fd)
        self.new_fd, self.old_fd, self.link_fd, self.del_fd = (
            os.open(name, OPEN_DIR, dir_fd=limbo) for name in LIMBO_FOLDERS)
        os.close(limbo)
        self.index = SlaveIndex(os.fsdecode(place_of(self.state_fd) + b"/index.db"))
        caps = self.index.fact("caps")
        self.caps = Caps(**json.loads(str(caps))) if caps else Caps(root=privileged, chown=privileged,
                                                                    trusted=privileged)
        fixed = {ROOT_GFID: self.root_fd, LIMBO_NEW: self.new_fd, LIMBO_OLD: self.old_fd}
        self._dirs = OpenDirs(self.handles, self.index, fixed, privileged=privileged)
        self.dir, self.turn, self.forget = self._dirs.dir, self._dirs.turn, self._dirs.forget
        self.settle, self.settle_after_crash = self._dirs.settle, self._dirs.settle_after_crash
        discards = Discards(self.del_fd, privileged=privileged)
        self.discard, self.sweep = discards.discard, discards.sweep
        self._receivers_fd: int | None = None

    def close(self) -> None:
        self._dirs.close()
        self.index.close()
        for fd in (self.new_fd, self.old_fd, self.link_fd, self.del_fd, self.state_fd, self.root_fd):
            os.close(fd)
        if self._receivers_fd is not None:
            os.close(self._receivers_fd)

    # the receivers' lock

    @property
    def receivers_fd(self) -> int:
        """The lock file of receivers and rsync servers."""
        if self._receivers_fd is None:
            self._receivers_fd = open_lock(self.state_fd, RECEIVERS_LOCK)
        return self._receivers_fd

    def lock_receivers(self, alone: bool) -> None:
        """Take the lock as a receiver, or (alone) keep receivers out: BlockingIOError while the other side holds it."""
        fcntl.flock(self.receivers_fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)

    def unlock_receivers(self) -> None:
        fcntl.flock(self.receivers_fd, fcntl.LOCK_UN)

    # inodes at names

    def look(self, dirfd: int, bname: bytes) -> Inode | None:
        """The inode at a name of this directory; None if there is none. PermissionError for gsync's own folder."""
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
        """The names at which an inode really is."""
        return (e for e in self.index.entries_of(gfid) if self.is_at(e))

    # files

    def open_file(self, gfid: Gfid, flags: int = os.O_WRONLY) -> int:
        """A new descriptor of the regular file, even if its owner may not open it."""
        for entry in self.names(gfid):
            if not stat.S_ISREG(entry.kind):
                raise OSError(errno.EINVAL, "not a regular file", gfid.hex())
            dirfd = self.dir(entry.pargfid)
            with held(self.handles, dirfd, entry) as fd:
                st = os.fstat(fd)
                if not stat.S_ISREG(st.st_mode):
                    continue
                lift = not self._privileged and st.st_mode & 0o600 != 0o600 and st.st_uid == os.geteuid()
                mode = stat.S_IMODE(st.st_mode)
                if lift:
                    os.chmod(place_of(fd), mode | 0o600)
                try:
                    return os.open(place_of(fd), flags | os.O_CLOEXEC)
                finally:
                    if lift:
                        os.chmod(place_of(fd), mode)
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
        with held(self.handles, dirfd, entry) as fd:
            self._set_attrs(fd, entry.gfid, meta)

    def _set_attrs(self, fd: int, gfid: Gfid, meta: MetaRow) -> None:
        st = os.fstat(fd)
        if self._dirs.will_have(gfid, stat.S_IMODE(meta.mode)):
            meta = meta._replace(mode=meta.mode | 0o700)
        set_attrs(place_of(fd), st, meta, self.caps)

    def set_attrs_of(self, meta: MetaRow) -> bool:
        """Set the attributes of the inode with this gfid; False if it has no name."""
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
        """Let an unprivileged owner read and write the file; META restores its mode."""
        if not self._privileged:
            with held(self.handles, dirfd, entry) as fd:
                st = os.fstat(fd)
                if st.st_mode & 0o600 != 0o600:
                    os.chmod(place_of(fd), stat.S_IMODE(st.st_mode) | 0o600)

    # moving

    def rename(self, src: int, sname: bytes, entry: IndexEntry | None, dst: int, dname: bytes) -> None:
        """rename(2) of a known inode (entry, whose name may be another) or a foreign one.

        A directory that its owner may not write cannot be moved either: a known one is opened up until `settle`.
        """
        try:
            os.rename(sname, dname, src_dir_fd=src, dst_dir_fd=dst)
        except PermissionError:
            if self._privileged:
                raise
            if entry is None:
                if not make_usable(src, sname):
                    raise
            else:
                with held(self.handles, src, entry._replace(bname=sname)) as fd:
                    self._dirs.open_up(entry.gfid, fd, os.fstat(fd))
            os.rename(sname, dname, src_dir_fd=src, dst_dir_fd=dst)
