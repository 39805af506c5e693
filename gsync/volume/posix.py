"""A posix brick as the worker sees it: what is at a name now, what an inode holds now, its bytes.

Nothing is written here. Identity decides: a directory or file is opened by its handle where the process may, else
along the path that the recorder's index gives, and its handle is checked. *Unknown* (the index leads elsewhere:
the recorder has not caught up) is never taken for *absent*.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple

import xattr

from gsync.fsid import Inodes, is_mount_handle, open_beneath
from gsync.model import ROOT_GFID, STATE_DIR, Attrs, Gfid, Name, check_bname
from gsync.namespace import Entry, Namespace

Xattrs = list[tuple[bytes, bytes]]

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = (errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.ELOOP)
# Kept by GlusterFS and by gsync for themselves; everything else that the process may read goes along.
_INTERNAL_XATTRS = ("trusted.gfid", "trusted.glusterfs.", "trusted.afr.", "trusted.gsync.", "trusted.overlay.",
                    "glusterfs.")


class Verdict(Enum):
    PRESENT = "present"
    ABSENT = "absent"
    UNKNOWN = "unknown"      # cannot be told before the recorder has caught up; errno ENOENT: index has no such parent
    EXCLUDED = "excluded"    # a filter or gsync itself keeps it out: neither sent nor removed
    ERROR = "error"          # errno says why


class Resolved(NamedTuple):
    """What one name is on the master now. Fields after `since` hold for PRESENT only (errno: for ERROR)."""

    name: Name
    verdict: Verdict
    since: int               # ns: when it was looked at
    gfid: Gfid = b""
    handle: bytes = b""
    attrs: Attrs | None = None
    ctime: int = 0
    target: bytes | None = None
    xattrs: Xattrs | None = None
    errno: int = 0


class Filter:
    """gitignore-style patterns over paths from the root of the tree; the last match decides."""

    def __init__(self, patterns: Sequence[str]) -> None:
        import pathspec  # most sessions have no patterns, and do not wait for it

        self.patterns = tuple(patterns)
        self._spec = pathspec.GitIgnoreSpec.from_lines(patterns)

    def excludes(self, path: bytes, is_dir: bool) -> bool:
        return self._spec.match_file(os.fsdecode(path) + ("/" if is_dir else ""))


class DirReader:
    """The entries of one open directory, page by page; owns the descriptor."""

    def __init__(self, tree: PosixTree, gfid: Gfid, fd: int, path: bytes) -> None:
        self._tree, self.gfid, self._fd, self._path = tree, gfid, fd, path
        self._entries: Iterator[os.DirEntry[str]] = os.scandir(fd)

    def page(self, limit: int) -> list[Resolved]:
        """The next entries, at most `limit`; fewer at the end."""
        out: list[Resolved] = []
        while len(out) < limit:
            try:
                entry = next(self._entries)
            except StopIteration:
                break
            out.append(self._tree.look(self._fd, self._path, (self.gfid, os.fsencode(entry.name))))
        return out

    def close(self) -> None:
        self._entries.close()  # type: ignore[attr-defined]
        os.close(self._fd)


class IndexReader:
    """The same by the recorder's index, which is far cheaper: regular files come as the index knows them.

    What changed since the index was told has a record, or will have one. The index does not know of other names: who
    opens the file has to look at its count of links.
    """

    def __init__(self, tree: PosixTree, index: Namespace, gfid: Gfid, fd: int, path: bytes) -> None:
        self._tree, self._index, self.gfid, self._fd, self._path = tree, index, gfid, fd, path
        self._after = b""

    def page(self, limit: int) -> list[Resolved | Entry]:
        """The next names, at most `limit`; fewer at the end."""
        entries = self._index.children(self.gfid, self._after, limit)
        if entries:
            self._after = entries[-1].bname
        return [entry if self._tree.is_plain(entry, self._path) else
                self._tree.look(self._fd, self._path, entry.name) for entry in entries]

    def close(self) -> None:
        os.close(self._fd)


class PosixTree:
    """The tree at root_fd, which it takes over. `index` is the file of the recorder's index, read only; `ignored` are
    paths of inodes that are not part of the tree; without `xattrs` or `acls` these are not read. The syncer threads
    call `open` and `attrs`, those of a hybrid crawl `look`; all else is for one thread."""

    def __init__(self, root_fd: int, tag: bytes, index: str, filters: Filter | None = None,
                 ignored: Sequence[str] = (), xattrs: bool = True, acls: bool = True) -> None:
        self._root_fd = root_fd
        self._inodes = Inodes(root_fd, tag)
        self._index_path = index
        self._local = threading.local()
        self._filter = filters
        self._ignored = {self._identity(p) for p in ignored}
        # Places of inodes that were seen but need not be in the index yet; the batch fills and empties it.
        self.hints: dict[Gfid, tuple[bytes, Name]] = {}
        # Asked, in the batch's thread only, for what neither hints nor index know.
        self.handle_of: Callable[[Gfid], bytes | None] = lambda gfid: None
        self._thread = threading.get_ident()
        self._privileged = os.geteuid() == 0
        self._with_xattrs, self._with_acls = xattrs, acls
        # Told of the attributes of every inode that is sent.
        self.sends: Callable[[Attrs, Xattrs], None] = lambda attrs, xattrs: None

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

    def hint(self, gfid: Gfid) -> None:
        """Keep what is known of an inode's place for the syncer threads."""
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
        """What is at name, dirfd being its parent's descriptor and dirpath the parent's path from the root."""
        now = time.time_ns()
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

    def resolve(self, names: Sequence[Name]) -> list[Resolved]:
        """What each name is now, in the given order; parents are opened once each."""
        by_parent: dict[Gfid, list[int]] = {}
        for i, (pargfid, _) in enumerate(names):
            by_parent.setdefault(pargfid, []).append(i)
        out: list[Resolved | None] = [None] * len(names)
        for pargfid, places in by_parent.items():
            now = time.time_ns()
            opened = self._open_dir(pargfid)
            if isinstance(opened, Resolved):
                for i in places:
                    out[i] = opened._replace(name=names[i], since=now)
                continue
            fd, path = opened
            try:
                for i in places:
                    out[i] = self.look(fd, path, names[i])
            finally:
                os.close(fd)
        return [r for r in out if r is not None]

    def is_plain(self, entry: Entry, dirpath: bytes) -> bool:
        """Whether this entry of the index is a regular file that belongs to the tree."""
        return (entry.kind == stat.S_IFREG and not is_mount_handle(entry.handle)
                and not (self._filter and self._filter.excludes(dirpath + entry.bname, False)))

    def read_indexed(self, gfid: Gfid) -> IndexReader | None:
        """A reader of the directory by the index; None before that is complete, where it may lack what the recorder was
        not allowed to see, and without the directory."""
        if not self.by_handle or self._index.fact("complete") != 1:
            return None
        opened = self._open_dir(gfid)
        return None if isinstance(opened, Resolved) else IndexReader(self, self._index, gfid, *opened)

    def read_dir(self, gfid: Gfid) -> DirReader | Resolved:
        """A reader of the directory's entries, or why there is none (the name field is meaningless then)."""
        opened = self._open_dir(gfid)
        if isinstance(opened, Resolved):
            return opened
        try:
            return DirReader(self, gfid, *opened)
        except OSError as exc:
            os.close(opened[0])
            return self._no(Verdict.ERROR, exc.errno or errno.EIO)

    @staticmethod
    def _no(verdict: Verdict, err: int = 0) -> Resolved:
        return Resolved((b"", b""), verdict, time.time_ns(), errno=err)

    def _open_dir(self, gfid: Gfid) -> tuple[int, bytes] | Resolved:
        """A descriptor of the directory and its path from the root ("" or "a/b/"), or why not."""
        try:
            fd = self._open(gfid, _DIR)
        except FileNotFoundError:
            return self._no(Verdict.ABSENT)
        except LookupError:
            known = self._index.entry_of(gfid) is not None
            return self._no(Verdict.UNKNOWN, errno.ESTALE if known else errno.ENOENT)
        except OSError as exc:
            if exc.errno in _GONE:
                return self._no(Verdict.ABSENT)
            return self._no(Verdict.ERROR, exc.errno or errno.EIO)
        path = self._path_inside(fd)
        if path is None:
            gone = os.fstat(fd).st_nlink == 0
            os.close(fd)
            # Outside, as long as the recorder does not know that: it may come back with all that is in it, and a
            # recorder that never missed it would say no more than its new name.
            if not gone and self._index.entry_of(gfid) is not None:
                return self._no(Verdict.UNKNOWN, errno.ESTALE)
            return self._no(Verdict.ABSENT)
        return fd, path

    def _path_inside(self, fd: int) -> bytes | None:
        """Path of an open directory from the root, "" or ending in a slash; None if it is not in the tree (any more).

        Above PATH_MAX the kernel does not tell the path: then the climb tells whether it is inside, and the index
        gives the path for the filters.
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
        """A descriptor of the inode gfid, checked. FileNotFoundError: gone. LookupError: cannot be told yet."""
        if not flags & os.O_PATH:
            try:
                return self._open_as(gfid, flags | os.O_NOATIME)
            except PermissionError:  # reading without a trace is for the owner and for root
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
                if exc.errno in _GONE:
                    continue
                raise
            if self._inodes.handles.of_fd(fd) == handle:
                return fd
            os.close(fd)
        raise LookupError(gfid)

    def _dir_path(self, gfid: Gfid) -> list[bytes] | None:
        """Path of a directory by the hints first (they are newer), then the index."""
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

    # the data engines' source

    def open(self, gfid: Gfid) -> int:
        """A descriptor of the regular file to read from. FileNotFoundError if it is gone or no file."""
        try:
            fd = self._open(gfid, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except LookupError as exc:
            raise FileNotFoundError(errno.ENOENT, "not where it was") from exc
        except OSError as exc:
            if exc.errno in _GONE:
                raise FileNotFoundError(exc.errno, exc.strerror) from exc
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, "no regular file any more")
        return fd

    def digest(self, gfid: Gfid) -> tuple[int, str]:
        """Size and BLAKE2b of the file's content, as the agent computes it."""
        fd = self.open(gfid)
        with open(fd, "rb", buffering=0) as stream:
            digest = hashlib.file_digest(stream, hashlib.blake2b)
            return stream.tell(), digest.hexdigest()

    def attrs(self, fd: int, st: os.stat_result | None = None) -> tuple[Attrs, Xattrs]:
        """Attributes and xattrs of an open inode; st: what fstat just told of it."""
        attrs, xattrs = Attrs.of(st or os.fstat(fd)), self._xattrs(fd)
        self.sends(attrs, xattrs)
        return attrs, xattrs

    def attrs_of(self, gfid: Gfid) -> tuple[Attrs, Xattrs] | None:
        """Attributes of an inode of any kind; None if it is gone, or cannot be found before the recorder caught up."""
        fd = self._open_place(gfid)
        if fd is None:
            return None
        try:
            attrs, xattrs = Attrs.of(os.fstat(fd)), self._xattrs(b"/proc/self/fd/%d" % fd)
            self.sends(attrs, xattrs)
            return attrs, xattrs
        finally:
            os.close(fd)

    def stat(self, gfid: Gfid) -> os.stat_result | None:
        """What stat tells of an inode; None as with attrs_of."""
        fd = self._open_place(gfid)
        if fd is None:
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def _open_place(self, gfid: Gfid) -> int | None:
        try:
            return self._open(gfid, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, LookupError):
            return None
        except OSError as exc:
            if exc.errno in _GONE:
                return None
            raise

    def _xattrs(self, at: int | bytes, follow: bool = True) -> Xattrs:
        if not (self._with_xattrs or self._with_acls):
            return []
        try:
            names = os.listxattr(at, follow_symlinks=follow)
        except OSError as exc:
            if exc.errno in (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES):
                return []
            raise
        out: Xattrs = []
        for name in names:
            if name.startswith(_INTERNAL_XATTRS) or (not self._privileged and name.startswith(("trusted.",
                                                                                                 "security."))):
                continue
            if not (self._with_acls if name.startswith("system.posix_acl_") else self._with_xattrs):
                continue
            try:
                out.append((os.fsencode(name), xattr.getxattr(at, name, symlink=not follow)))
            except OSError as exc:
                if exc.errno not in (errno.ENODATA, errno.EACCES, errno.EPERM):
                    raise
        return out

    # where an inode is

    def names_of(self, gfid: Gfid) -> list[Name]:
        """The names that gfid has now as far as can be told; the caller resolves them anyway."""
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
        """The present names of a directory and of its ancestors, nearest first, as far as can be told."""
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
        """Name of a directory as the file system tells it; None if it is none, is gone, or may not be asked."""
        if gfid == ROOT_GFID or not self.by_handle:
            return None
        opened = self._open_dir(gfid)
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
        """A path for people: as good as index and hints know it."""
        parent = self._dir_path(name[0])
        return b"/".join([*parent, name[1]]) if parent is not None else b".../" + name[1]
