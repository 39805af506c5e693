"""A posix brick as the worker sees it: the inode at a name now, an inode's present attributes, its bytes.

Writes nothing. Identity decides: a directory or file is opened by its handle if the process may, else along the path in
the recorder's index, and then its handle is checked. *Unknown* (the index leads elsewhere: the recorder has not caught
up) is never taken for *absent*.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from gsync.base.fate import MASTER
from gsync.base.fsid import Inodes, is_mount_handle, open_beneath
from gsync.base.model import ROOT_GFID, STATE_DIR, Attrs, Gfid, Name, check_bname
from gsync.base.namespace import UNKNOWN_CTIME, IndexEntry, Namespace
from gsync.master.tree import Filter, Resolved, Tree, Verdict

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class IndexReader:
    """Reads a directory from the recorder's index, which is far cheaper: regular files come as the index knows them.

    A change since the index was updated has a record, or will have one. The index does not know an inode's other names:
    whoever opens the file must check its link count.
    """

    def __init__(self, tree: PosixTree, index: Namespace, gfid: Gfid, fd: int, path: bytes) -> None:
        self._tree, self._index, self.gfid, self._fd, self._path = tree, index, gfid, fd, path
        self._after = b""
        self.failed = 0

    def page(self, limit: int) -> list[Resolved | IndexEntry]:
        """The next names, at most `limit`; fewer at the end."""
        entries = self._index.children(self.gfid, self._after, limit)
        if entries:
            self._after = entries[-1].bname
        return [entry if self._tree.is_plain(entry, self._path) else
                self._tree.look(self._fd, self._path, entry.name) for entry in entries]

    def close(self) -> None:
        os.close(self._fd)


class PosixTree(Tree):
    """The tree at root_fd. `index`: the file of the recorder's index, read only. `ignored`: paths of inodes that are
    not part of the tree."""

    def __init__(self, root_fd: int, tag: bytes, index: str, filters: Filter | None = None,
                 ignored: Sequence[str] = (), xattrs: bool = True, acls: bool = True,
                 clock: Callable[[], int] = time.time_ns) -> None:
        super().__init__(root_fd, filters, xattrs, acls, clock)
        self._inodes = Inodes(root_fd, tag)
        self._index_path = index
        self._local = threading.local()
        self._ignored = {self._identity(p) for p in ignored}

    def close(self) -> None:
        self._index.close()
        os.close(self._root_fd)

    @property
    def _index(self) -> Namespace:
        """This thread's connection to the index."""
        index: Namespace | None = getattr(self._local, "index", None)
        if index is None:
            index = self._local.index = Namespace(self._index_path, readonly=True)
        return index

    def will_read(self, files: int) -> None:
        pass  # nothing to prepare

    def hint(self, gfid: Gfid) -> None:
        handle = self._handle(gfid)
        if handle is not None and gfid not in self.hints:
            entry = self._index.entry_of(gfid)
            self.hints[gfid] = (handle, entry.name if entry else (b"", b""))

    @property
    def by_handle(self) -> bool:
        return self._inodes.handles.by_handle

    @staticmethod
    def _identity(path: str) -> tuple[int, int]:
        try:
            st = os.stat(path)
        except OSError:
            return -1, -1
        return st.st_dev, st.st_ino

    # looking

    def look(self, dirfd: int, dirpath: bytes, name: Name) -> Resolved:
        now = self._clock()
        pargfid, bname = name
        if (pargfid == ROOT_GFID and bname == STATE_DIR) or dirpath.startswith(STATE_DIR + b"/"):
            return Resolved(name, Verdict.EXCLUDED, now)
        try:
            seen = self._inodes.look(dirfd, pargfid, bname)
            if seen is None:
                return Resolved(name, Verdict.ABSENT, now)
            st = seen.st
            if self._ignored and (st.st_dev, st.st_ino) in self._ignored:
                return Resolved(name, Verdict.EXCLUDED, now)
            kind = stat.S_IFMT(st.st_mode)
            if self._filter and self._filter.excludes(dirpath + bname, kind == stat.S_IFDIR):
                return Resolved(name, Verdict.EXCLUDED, now)
            target = xattrs = None
            if kind != stat.S_IFREG and kind != stat.S_IFDIR:
                if kind == stat.S_IFLNK:
                    target = os.readlink(bname, dir_fd=dirfd)
                xattrs = self._xattrs(b"/proc/self/fd/%d/%s" % (dirfd, bname), follow=False)
            return Resolved(name, Verdict.PRESENT, now, seen.gfid, seen.handle, Attrs.of(st), st.st_ctime_ns,
                            target, xattrs)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.EINVAL):  # replaced between two looks: look again
                return self.look(dirfd, dirpath, name)
            return Resolved(name, Verdict.ERROR, now, errno=exc.errno or errno.EIO)

    def is_plain(self, entry: IndexEntry, dirpath: bytes) -> bool:
        """Whether this entry of the index is a regular file that belongs to the tree."""
        return (entry.kind == stat.S_IFREG and not is_mount_handle(entry.handle)
                and not (self._filter and self._filter.excludes(dirpath + entry.bname, False)))

    def read_indexed(self, gfid: Gfid) -> IndexReader | None:
        """A reader of the directory from the index. None if the recorder was not allowed to see all of it, or if the
        directory cannot be opened. None, too, if the index may lack some of its names: they are all there once the
        directory has a ctime in the index, and as long as that is its ctime."""
        if not self.by_handle:
            return None
        entry = self._index.entry_of(gfid)
        if entry is None or entry.ctime == UNKNOWN_CTIME:
            return None
        opened = self._open_dir(gfid, to_list=True)
        if isinstance(opened, Resolved):
            return None
        if os.fstat(opened[0]).st_ctime_ns != entry.ctime:  # a rename may wait to be recorded
            os.close(opened[0])
            return None
        return IndexReader(self, self._index, gfid, *opened)

    def _open_dir(self, gfid: Gfid, to_list: bool) -> tuple[int, bytes] | Resolved:
        try:
            fd = self._open(gfid, _DIR)
        except FileNotFoundError:
            return self._no(Verdict.ABSENT)
        except LookupError:
            known = self._index.entry_of(gfid) is not None
            return self._no(Verdict.UNKNOWN, errno.ESTALE if known else errno.ENOENT)
        except OSError as exc:
            if exc.errno in MASTER.gone:
                return self._no(Verdict.ABSENT)
            return self._no(Verdict.ERROR, exc.errno or errno.EIO)
        path = self._path_inside(fd)
        if path is None:
            gone = os.fstat(fd).st_nlink == 0
            os.close(fd)
            # Outside, as long as the recorder does not know that: the directory may come back with all its content, and
            # a recorder that never missed it would only report its new name.
            if not gone and self._index.entry_of(gfid) is not None:
                return self._no(Verdict.UNKNOWN, errno.ESTALE)
            return self._no(Verdict.ABSENT)
        return fd, path

    def _path_inside(self, fd: int) -> bytes | None:
        """The path of an open directory from the root, "" or ending in a slash; None if it is not in the tree (any
        more).

        Beyond PATH_MAX the kernel does not tell the path. Then climbing tells whether it is inside, and the index gives
        the path for the filters.
        """
        try:
            root = os.readlink(b"/proc/self/fd/%d" % self._root_fd)
            path = os.readlink(b"/proc/self/fd/%d" % fd)
        except OSError as exc:
            if exc.errno != errno.ENAMETOOLONG:
                raise
            return self._climb(fd)
        if os.fstat(fd).st_nlink == 0:
            return None
        if path == root:
            return b""
        prefix = root if root.endswith(b"/") else root + b"/"
        return path[len(prefix):] + b"/" if path.startswith(prefix) else None

    def _climb(self, fd: int) -> bytes | None:
        parts: list[bytes] = []
        fd = os.dup(fd)
        try:
            while (handle := self._inodes.handles.of_fd(fd)) != self._inodes.handles.root:
                up = os.open(b"..", _DIR, dir_fd=fd)
                try:
                    up_handle = self._inodes.handles.of_fd(up)
                    if up_handle == handle or os.fstat(fd).st_nlink == 0:
                        return None
                    entry = self._index.entry_of(self._inodes.gfid(handle))
                finally:
                    os.close(fd)
                    fd = up
                parts.append(entry.bname if entry else b"?")
            return b"/".join(reversed(parts)) + b"/"
        finally:
            os.close(fd)

    # opening by identity

    def _handle(self, gfid: Gfid) -> bytes | None:
        if gfid == ROOT_GFID:
            return self._inodes.handles.root
        if gfid in self.hints:
            return self.hints[gfid][0]
        if entry := self._index.entry_of(gfid):
            return entry.handle
        return self.handle_of(gfid) if threading.get_ident() == self._thread else None

    def _open(self, gfid: Gfid, flags: int) -> int:
        if not flags & os.O_PATH:
            try:
                return self._open_as(gfid, flags | os.O_NOATIME)
            except PermissionError:  # only the owner and root may read without updating the atime
                pass
        return self._open_as(gfid, flags)

    def _open_as(self, gfid: Gfid, flags: int) -> int:
        if gfid == ROOT_GFID:
            return os.open(b".", flags, dir_fd=self._root_fd)
        handle = self._handle(gfid)
        if handle is None:
            raise LookupError(gfid)
        if is_mount_handle(handle):
            raise FileNotFoundError(errno.ENOENT, "a mount point is not crossed")
        if self.by_handle:
            return self._inodes.handles.open(handle, flags)
        return self._open_by_path(gfid, handle, flags)

    def _open_by_path(self, gfid: Gfid, handle: bytes, flags: int) -> int:
        places = [e.name for e in self._index.entries_of(gfid)]
        if gfid in self.hints and self.hints[gfid][1][1]:
            places.insert(0, self.hints[gfid][1])
        for pargfid, bname in places:
            parent = self._dir_path(pargfid)
            if parent is None:
                continue
            try:
                fd = open_beneath(self._root_fd, b"/".join([*parent, bname]), flags)
            except OSError as exc:
                if exc.errno in MASTER.gone:
                    continue
                raise
            if self._inodes.handles.of_fd(fd) == handle:
                return fd
            os.close(fd)
        raise LookupError(gfid)

    def _dir_path(self, gfid: Gfid) -> list[bytes] | None:
        """A directory's path, from the hints first (they are newer), then the index."""
        parts: list[bytes] = []
        for _ in range(100_000):
            if gfid == ROOT_GFID:
                return parts[::-1]
            if gfid in self.hints:
                gfid, bname = self.hints[gfid][1]
                parts.append(bname)
                continue
            if entry := self._index.entry_of(gfid):
                gfid = entry.pargfid
                parts.append(entry.bname)
                continue
            return None
        return None

    # locating an inode

    def names_of(self, gfid: Gfid) -> list[Name]:
        names = {e.name for e in self._index.entries_of(gfid)}
        if gfid in self.hints and self.hints[gfid][1][1]:
            names.add(self.hints[gfid][1])
        if (place := self._place_of_dir(gfid)) is not None:
            names.add(place)
        return sorted(names)

    def all_dirs(self) -> Iterator[list[Gfid]]:
        """Every directory below the root that the index knows, in pages."""
        after = b""
        while (page := self._index.dirs(after, 5000)):
            after = page[-1]
            yield page

    def parent_chain(self, gfid: Gfid) -> list[Name]:
        chain: list[Name] = []
        while gfid != ROOT_GFID and len(chain) < 100_000:
            place = self._place_of_dir(gfid)
            if place is None:
                entry = self._index.entry_of(gfid)
                if entry is None:
                    break
                place = entry.name
            chain.append(place)
            gfid = place[0]
        return chain

    def _place_of_dir(self, gfid: Gfid) -> Name | None:
        """A directory's name according to the file system; None if it is not a directory, is gone, or may not be
        asked."""
        if gfid == ROOT_GFID or not self.by_handle:
            return None
        opened = self._open_dir(gfid, to_list=True)
        if isinstance(opened, Resolved):
            return None
        fd, path = opened
        try:
            bname = path.rstrip(b"/").rsplit(b"/", 1)[-1]
            if not path or bname == b"?":
                return None
            up = os.open(b"..", _DIR, dir_fd=fd)
            try:
                return self._inodes.gfid(self._inodes.handles.of_fd(up)), check_bname(bname)
            finally:
                os.close(up)
        finally:
            os.close(fd)

    def path_text(self, name: Name) -> bytes:
        """A path for people, as good as index and hints know it."""
        parent = self._dir_path(name[0])
        return b"/".join([*parent, name[1]]) if parent is not None else b".../" + name[1]
