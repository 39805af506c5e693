"""The tree as the recorder sees it: directories opened by identity, names looked at."""

from __future__ import annotations

import os
from collections.abc import Iterable

from gsync.base.fate import MASTER
from gsync.base.fsid import Inodes, Seen, is_mount_handle, open_beneath
from gsync.base.model import ROOT_GFID, STATE_DIR, Gfid
from gsync.base.namespace import IndexEntry, Namespace

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OUTSIDE = Seen(b"", b"", os.stat_result([0] * 10))  # an answer of look(): it exists, but is not part of the tree


class Gone(Exception):
    """The inode no longer exists."""


class Elsewhere(Exception):
    """The index's path does not lead to the directory: it was moved, and the hint is still to come."""


class RecordedTree:
    """Owns the descriptor of the root. `ignored`: paths of directories that are not part of the tree."""

    def __init__(self, root_fd: int, tag: bytes, index: Namespace, ignored: Iterable[str] = ()) -> None:
        self.root_fd = root_fd
        self.inodes = Inodes(root_fd, tag)
        self._index = index
        self._noatime = os.O_NOATIME
        self._ignored = {gfid for path in ignored if (gfid := self._identity(path)) is not None}

    def close(self) -> None:
        os.close(self.root_fd)

    def is_at(self, path: str) -> bool:
        """Whether the path (still) leads to the root."""
        try:
            st = os.stat(path)
        except OSError:
            return False
        ours = os.fstat(self.root_fd)
        return (st.st_dev, st.st_ino) == (ours.st_dev, ours.st_ino) and ours.st_nlink > 0

    def open_dir(self, gfid: Gfid, handle: bytes | None = None) -> int:
        """A descriptor of the directory, checked. Raises Gone, Elsewhere (only where handles cannot be opened),
        OSError."""
        try:
            return self._open_dir(gfid, handle, _DIR | self._noatime)
        except PermissionError:
            if not self._noatime:
                raise
            return self._open_dir(gfid, handle, _DIR)  # only the owner and root may read without updating the atime

    def _open_dir(self, gfid: Gfid, handle: bytes | None, flags: int) -> int:
        if gfid == ROOT_GFID:
            return os.open(b".", flags, dir_fd=self.root_fd)
        if handle is None:
            entry = self._index.entry_of(gfid)
            if entry is None:
                raise Gone
            handle = entry.handle
        if is_mount_handle(handle):
            raise Gone
        try:
            if self.inodes.handles.by_handle:
                return self.inodes.handles.open(handle, flags)
            parts = self._index.path_of(gfid)
            if parts is None:
                raise Gone
            fd = open_beneath(self.root_fd, b"/".join(parts), flags)
        except OSError as exc:
            if exc.errno not in MASTER.gone:
                raise
            raise (Gone if self.inodes.handles.by_handle else Elsewhere) from None
        if self.inodes.handles.of_fd(fd) != handle:
            os.close(fd)
            raise Elsewhere
        return fd

    def look(self, dirfd: int, pargfid: Gfid, bname: bytes) -> Seen | None:
        """The inode at the name, None if there is none, OUTSIDE if gsync excludes it from the tree. OSError."""
        if pargfid == ROOT_GFID and bname == STATE_DIR:
            return OUTSIDE
        seen = self.inodes.look(dirfd, pargfid, bname)
        return OUTSIDE if seen is not None and seen.gfid in self._ignored else seen

    def stat(self, entry: IndexEntry) -> os.stat_result | None:
        """The stat of an index entry's inode now; None if it is no longer there."""
        try:
            if self.inodes.handles.by_handle and not is_mount_handle(entry.handle):
                fd = self.inodes.handles.open(entry.handle, os.O_PATH | os.O_CLOEXEC)
                try:
                    return os.fstat(fd)
                finally:
                    os.close(fd)
            dirfd = self.open_dir(entry.pargfid)
            try:
                seen = self.inodes.look(dirfd, entry.pargfid, entry.bname)
            finally:
                os.close(dirfd)
        except (Gone, Elsewhere):
            return None
        except OSError as exc:
            if exc.errno not in MASTER.gone:
                raise
            return None
        return seen.st if seen is not None and seen.gfid == entry.gfid else None

    def _identity(self, path: str) -> Gfid | None:
        """The gfid of an inode of this file system."""
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if os.fstat(fd).st_dev != self.inodes.dev:
                return None
            return self.inodes.gfid(self.inodes.handles.of_fd(fd))
        finally:
            os.close(fd)
