"""The master's tree as the worker sees it, whatever it is stored on: what is at a name now, what an inode holds, its
bytes.

Writes nothing. *Unknown* (the source of the answer knows that it is not up to date) is never taken for *absent*; a tree
that is unreachable as a whole is Transient, never absent either. Not here: how an inode is found by its gfid, and where
it is now (posix, gluster/tree).
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from itertools import islice
from typing import NamedTuple, Protocol

import xattr

from gsync.base.fate import MASTER
from gsync.base.model import Attrs, Gfid, Name
from gsync.base.namespace import IndexEntry

Xattrs = list[tuple[bytes, bytes]]

# GlusterFS and gsync keep these for themselves; everything else that the process may read is replicated.
_INTERNAL_XATTRS = ("trusted.gfid", "trusted.glusterfs.", "trusted.afr.", "trusted.ec.", "trusted.pgfid.",
                    "trusted.bit-rot.", "trusted.SGFS.", "trusted.gsync.", "trusted.overlay.", "glusterfs.")


def is_internal_xattr(name: str) -> bool:
    return name.startswith(_INTERNAL_XATTRS)


class Verdict(Enum):
    PRESENT = "present"
    ABSENT = "absent"
    UNKNOWN = "unknown"      # unknown until the recorder has caught up; errno ENOENT: the index has no such parent
    EXCLUDED = "excluded"    # a filter or gsync itself excludes it: neither sent nor removed
    ERROR = "error"          # errno tells why


class Resolved(NamedTuple):
    """The state of one name on the master now. Fields after `since` hold for PRESENT only (errno: for ERROR)."""

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
        import pathspec  # most sessions have no patterns, and should not wait for the import

        self.patterns = tuple(patterns)
        self._spec = pathspec.GitIgnoreSpec.from_lines(patterns)

    def excludes(self, path: bytes, is_dir: bool) -> bool:
        return self._spec.match_file(os.fsdecode(path) + ("/" if is_dir else ""))


class Reader(Protocol):
    """The entries of one directory, page by page."""

    gfid: Gfid
    failed: int  # the errno that ended reading early, else 0

    def page(self, limit: int) -> Sequence[Resolved | IndexEntry]:
        """The next entries, at most `limit`; fewer at the end."""

    def close(self) -> None: ...


class DirReader:
    """The entries of one open directory, page by page; owns the descriptor."""

    def __init__(self, tree: Tree, gfid: Gfid, fd: int, path: bytes) -> None:
        self._tree, self.gfid, self._fd, self._path = tree, gfid, fd, path
        self._entries: Iterator[os.DirEntry[str]] = os.scandir(fd)
        self.failed = 0

    def page(self, limit: int) -> list[Resolved]:
        """The next entries, at most `limit`; fewer at the end."""
        page: list[os.DirEntry[str]] = []
        try:
            page.extend(islice(self._entries, limit))
        except OSError as exc:
            self.failed = exc.errno or errno.EIO
        page.sort(key=os.DirEntry.inode)  # the order that suits a disk best, and in which the recorder asks
        return self._tree.look_all(self._fd, self._path, [(self.gfid, os.fsencode(entry.name)) for entry in page])

    def close(self) -> None:
        self._entries.close()  # type: ignore[attr-defined]
        os.close(self._fd)


class Tree(ABC):
    """The tree at root_fd, which it takes over. Without `xattrs` or `acls` these are not read. The syncer threads call
    `open` and `xattrs`, those of a hybrid crawl `look`; everything else is for one thread."""

    def __init__(self, root_fd: int, filters: Filter | None, xattrs: bool, acls: bool,
                 clock: Callable[[], int] = time.time_ns) -> None:
        self._root_fd = root_fd
        self._filter = filters
        self._clock = clock
        # Places of inodes that were seen, but are not yet known otherwise; the batch fills and empties this.
        self.hints: dict[Gfid, tuple[bytes, Name]] = {}
        # Asked, only in the batch's thread, for handles that nothing else knows.
        self.handle_of: Callable[[Gfid], bytes | None] = lambda gfid: None
        self._thread = threading.get_ident()
        self._privileged = os.geteuid() == 0
        self._with_xattrs, self._with_acls = xattrs, acls
        # Told the attributes of every inode that is sent.
        self.sends: Callable[[os.stat_result, Xattrs], None] = lambda st, xattrs: None

    @abstractmethod
    def close(self) -> None: ...

    # what each kind of tree implements

    @abstractmethod
    def look(self, dirfd: int, dirpath: bytes, name: Name) -> Resolved:
        """The state of a name; dirfd: its parent's descriptor, dirpath: the parent's path from the root."""

    def look_all(self, dirfd: int, dirpath: bytes, names: Sequence[Name]) -> list[Resolved]:
        """The same for many names of one directory."""
        return [self.look(dirfd, dirpath, name) for name in names]

    @abstractmethod
    def _open_dir(self, gfid: Gfid, to_list: bool) -> tuple[int, bytes] | Resolved:
        """A descriptor of the directory and its path from the root ("" or "a/b/"), or why there is none. Its entries
        must be readable only with `to_list`."""

    @abstractmethod
    def _open(self, gfid: Gfid, flags: int) -> int:
        """A descriptor of the inode gfid, checked. FileNotFoundError: it is gone. LookupError: it cannot be told
        yet."""

    def read_indexed(self, gfid: Gfid) -> Reader | None:
        """A reader of the directory from an index that is cheaper than the directory itself; None if there is none."""
        return None

    @abstractmethod
    def hint(self, gfid: Gfid) -> None:
        """Keep the known place of an inode for the syncer threads."""

    @abstractmethod
    def will_read(self, files: int) -> None:
        """Announce that this many more files are about to be opened for reading."""

    def wholes(self, gfids: Sequence[Gfid]) -> Sequence[Gfid]:
        """The inodes whose content changed when these were written to: for shards, their files."""
        return gfids

    @abstractmethod
    def names_of(self, gfid: Gfid) -> list[Name]:
        """The names that gfid has now, as far as can be told; the caller resolves them anyway."""

    @abstractmethod
    def all_dirs(self) -> Iterator[list[Gfid]]:
        """Every known directory below the root, in pages."""

    @abstractmethod
    def parent_chain(self, gfid: Gfid) -> list[Name]:
        """The present names of a directory and its ancestors, nearest first, as far as can be told."""

    @abstractmethod
    def path_text(self, name: Name) -> bytes:
        """A path for people, as good as it is known."""

    def is_away(self, err: int) -> bool:
        """Whether this errno means that the tree as a whole, or a part of it, is unreachable now."""
        return False

    def check_whole(self) -> None:
        """Before findings are committed: raise Transient if a part of the tree is unreachable."""
        return

    # looking

    def resolve(self, names: Sequence[Name]) -> list[Resolved]:
        """The state of each name now, in the given order; each parent is opened once."""
        by_parent: dict[Gfid, list[int]] = {}
        for i, (pargfid, _) in enumerate(names):
            by_parent.setdefault(pargfid, []).append(i)
        out: list[Resolved | None] = [None] * len(names)
        for pargfid, places in by_parent.items():
            now = self._clock()
            opened = self._open_dir(pargfid, to_list=False)
            if isinstance(opened, Resolved):
                for i in places:
                    out[i] = opened._replace(name=names[i], since=now)
                continue
            fd, path = opened
            try:
                for i, found in zip(places, self.look_all(fd, path, [names[i] for i in places]), strict=True):
                    out[i] = found
            finally:
                os.close(fd)
        return [r for r in out if r is not None]

    def read_dir(self, gfid: Gfid) -> DirReader | Resolved:
        """A reader of the directory's entries, or why there is none (its name field is then meaningless)."""
        opened = self._open_dir(gfid, to_list=True)
        if isinstance(opened, Resolved):
            return opened
        try:
            return DirReader(self, gfid, *opened)
        except OSError as exc:
            os.close(opened[0])
            return self._no(Verdict.ERROR, exc.errno or errno.EIO)

    def _no(self, verdict: Verdict, err: int = 0) -> Resolved:
        return Resolved((b"", b""), verdict, self._clock(), errno=err)

    # the data engines' source

    def open(self, gfid: Gfid) -> tuple[int, os.stat_result]:
        """A descriptor of the regular file for reading, and its attributes. FileNotFoundError if it is gone or not a
        regular file."""
        try:
            fd = self._open(gfid, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except LookupError as exc:
            raise FileNotFoundError(errno.ENOENT, "not where it was") from exc
        except OSError as exc:
            if exc.errno in MASTER.gone:
                raise FileNotFoundError(exc.errno, exc.strerror) from exc
            raise
        st = self.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, "no regular file any more")
        return fd, st

    def fstat(self, fd: int) -> os.stat_result:
        """An open inode's attributes, as everybody is to see them."""
        return os.fstat(fd)

    def digest(self, gfid: Gfid) -> tuple[int, str]:
        """Size and BLAKE2b of the file's content, computed as the agent does."""
        fd, _ = self.open(gfid)
        with open(fd, "rb", buffering=0) as stream:
            digest = hashlib.file_digest(stream, hashlib.blake2b)
            return stream.tell(), digest.hexdigest()

    def xattrs(self, gfid: Gfid, fd: int, st: os.stat_result) -> Xattrs:
        """The xattrs of an open file that is sent with the attributes st."""
        xattrs = self._xattrs_of_open(gfid, fd)
        self.sends(st, xattrs)
        return xattrs

    def _xattrs_of_open(self, gfid: Gfid, fd: int) -> Xattrs:
        return self._xattrs(fd)

    def changed(self, fd: int, st: os.stat_result) -> bool:
        """Whether the data read from an open file since st may come from different moments."""
        return os.fstat(fd).st_ctime_ns != st.st_ctime_ns

    def attrs_of(self, gfid: Gfid) -> tuple[Attrs, Xattrs] | None:
        """The attributes of an inode of any kind; None if it is gone, or cannot be found before the recorder has caught
        up."""
        fd = self._open_place(gfid)
        if fd is None:
            return None
        try:
            st, xattrs = self.fstat(fd), self._xattrs(b"/proc/self/fd/%d" % fd)
            self.sends(st, xattrs)
            return Attrs.of(st), xattrs
        finally:
            os.close(fd)

    def stat(self, gfid: Gfid) -> os.stat_result | None:
        """The stat of an inode; None as with attrs_of."""
        fd = self._open_place(gfid)
        if fd is None:
            return None
        try:
            return self.fstat(fd)
        finally:
            os.close(fd)

    def _open_place(self, gfid: Gfid) -> int | None:
        try:
            return self._open(gfid, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, LookupError):
            return None
        except OSError as exc:
            if exc.errno in MASTER.gone:
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
            if is_internal_xattr(name) or (not self._privileged and name.startswith(("trusted.", "security."))):
                continue
            if not (self._with_acls if name.startswith("system.posix_acl_") else self._with_xattrs):
                continue
            try:
                out.append((os.fsencode(name), xattr.getxattr(at, name, symlink=not follow)))
            except OSError as exc:
                if exc.errno not in (errno.ENODATA, errno.EACCES, errno.EPERM):
                    raise
        return out
