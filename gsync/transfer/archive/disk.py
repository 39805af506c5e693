"""The disk side of an archive: a tree, accessed by descriptors below its root; follows no symlink.

A tree is *frozen* by the immutable flag (chattr +i) on every file and directory, which needs root and a file system
that has the flag. The root's mtime belongs to the user: gsync restores it after each write there. Safe for several
threads.
Not here: reading a tree into a manifest (inventory), restoring files (restore), gsync's own files at the root
(statefiles), which entries in which order (put, purge, get).
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, BinaryIO, NamedTuple

from gsync.base.errors import GsyncError
from gsync.base.fsid import open_beneath, syncfs
from gsync.base.model import shown
from gsync.link.protocol import Caps, MetaRow
from gsync.slave.directory.attrs import set_attrs
from gsync.transfer.archive.eosfile import RESERVED
from gsync.transfer.archive.flags import IMMUTABLE, flags_of, set_immutable
from gsync.transfer.archive.manifest import ManifestEntry, Xattrs

DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BLOCK = 1 << 20

# Errors that concern one entry: this user or this file system cannot recreate it.
_OF_ONE_ENTRY = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.ENAMETOOLONG, errno.EILSEQ,
                 errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EMLINK, errno.EFBIG)

_ROOTS = (b"trusted.", b"security.")  # xattrs that only root reads and sets
# The system sets these for each inode; a restored inode gets its own.
_NOT_KEPT = (b"trusted.gfid", b"trusted.glusterfs.", b"trusted.afr.", b"trusted.overlay.", b"security.ima",
             b"security.evm", b"glusterfs.")


class TreeError(GsyncError):
    """An entry of the tree is not in the state that the operation needs; the text names it."""

    exit_code = 1

    def __init__(self, path: bytes, why: str) -> None:
        super().__init__(f"{shown(path) or '.'}: {why}")
        self.path = path
        self.why = why

    @property
    def of_the_entry(self) -> bool:
        """Whether the error concerns this entry alone, not the disk."""
        return not isinstance(self.__cause__, OSError) or self.__cause__.errno in _OF_ONE_ENTRY


class WalkedEntry(NamedTuple):
    """An entry met on a walk. dirfd is its directory's descriptor, open until the walk moves on."""

    path: bytes
    dirfd: int
    name: bytes
    st: os.stat_result


@contextmanager
def about(path: bytes) -> Iterator[None]:
    """Turn an OSError into a TreeError that names the entry."""
    try:
        yield
    except OSError as exc:
        raise TreeError(path, exc.strerror or str(exc)) from exc


class DiskTree:
    """The tree at `root`, which must be a directory."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.dev = os.fstat(self.root_fd).st_dev
        self.privileged = os.geteuid() == 0
        self.caps = Caps(root=self.privileged, chown=self.privileged, trusted=self.privileged)
        self.root_mtime: int | None = None  # the root's wanted mtime, if better known than from the root itself

    def close(self) -> None:
        os.close(self.root_fd)

    # by path

    @contextmanager
    def directory(self, path: bytes) -> Iterator[int]:
        """Open a directory of the tree; yields its descriptor."""
        if not path:
            yield self.root_fd
            return
        fd = open_beneath(self.root_fd, path, DIR)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def parent(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """Open the directory of an entry; yields its descriptor and the entry's name. The root is "." in itself."""
        above, _, name = path.rpartition(b"/")
        with self.directory(above) as fd:
            yield fd, name or b"."

    @contextmanager
    def place(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """Open the entry's own inode with O_PATH; yields the descriptor, and a path to it for calls that need a
        path."""
        with self.parent(path) as (dirfd, name):
            fd = os.open(name, PLACE, dir_fd=dirfd)
        try:
            yield fd, b"/proc/self/fd/%d" % fd
        finally:
            os.close(fd)

    def look(self, path: bytes) -> os.stat_result | None:
        """lstat; None if the entry is missing. ENOTDIR and ELOOP count as missing too."""
        try:
            with self.parent(path) as (dirfd, name):
                return os.stat(name, dir_fd=dirfd, follow_symlinks=False)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise

    @contextmanager
    def open_file(self, path: bytes) -> Iterator[BinaryIO]:
        """Open a regular file for reading; TreeError if it is something else."""
        with about(path):
            with self.parent(path) as (dirfd, name):
                fd = open_quietly(dirfd, name)
            with open(fd, "rb", buffering=0) as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise TreeError(path, "is no longer a regular file")
                yield file

    # walking

    def walk(self) -> Iterator[WalkedEntry]:
        """Yield every entry below the root, a directory before its content; skips gsync's own files at the root.

        Listing a directory fixes which of its entries the walk yields. The walk yields mount points, but does not enter
        them.
        """
        level: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        level.write(b"\n")
        while level.tell():
            level.seek(0)
            below: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
            try:
                for line in level:
                    above = bytes.fromhex(line.decode("ascii"))
                    with about(above), self.directory(above) as fd:
                        yield from self._entries(above, fd, below)
            except BaseException:
                below.close()
                raise
            finally:
                level.close()
            level = below
        level.close()

    def _entries(self, above: bytes, fd: int, below: IO[bytes]) -> Iterator[WalkedEntry]:
        with os.scandir(fd) as names:
            for item in names:
                name = os.fsencode(item.name)
                if not above and name in RESERVED:
                    continue
                path = above + b"/" + name if above else name
                with about(path):
                    st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                yield WalkedEntry(path, fd, name, st)
                if stat.S_ISDIR(st.st_mode) and st.st_dev == self.dev:
                    below.write(path.hex().encode("ascii") + b"\n")

    def xattrs(self, place: bytes, is_link: bool, excluded: frozenset[bytes] = frozenset()) -> Xattrs:
        """The xattrs and ACLs of an inode that an archive keeps, sorted by name."""
        # /proc/self/fd/N resolves to the inode itself; a symlink below it must not be followed
        follow = not (is_link and place.count(b"/") > 4)
        kinds = (b"user.", b"system.posix_acl_", *(_ROOTS if self.privileged else ()))
        try:
            names = os.listxattr(place, follow_symlinks=follow)
        except OSError as exc:
            if exc.errno in (errno.EOPNOTSUPP, errno.EPERM):
                return ()
            raise
        kept = []
        for name in sorted(os.fsencode(name) for name in names):
            if name.startswith(_NOT_KEPT) or name in excluded or not name.startswith(kinds):
                continue
            with suppress(OSError):  # it was removed just now
                kept.append((name, os.getxattr(place, name, follow_symlinks=follow)))
        return tuple(kept)

    # comparing

    def content_of(self, path: bytes) -> tuple[int, str]:
        """Read a regular file; return its size and SHA-256."""
        with self.open_file(path) as file, about(path):
            return hash_of(file.fileno())

    def is_frozen(self, path: bytes) -> bool:
        """Whether a regular file or a directory is immutable."""
        with self.parent(path) as (dirfd, name):
            fd = os.open(name, FILE, dir_fd=dirfd)
        try:
            return bool(flags_of(fd) & IMMUTABLE)
        finally:
            os.close(fd)

    def content_differs(self, entry: ManifestEntry, read: bool) -> str:
        """The transfer check: why the disk does not hold the entry at its path; "" if it does. Compares kind, size and
        target, and with `read` the content. A missing file "is missing"."""
        with about(entry.path):
            st = self.look(entry.path)
            if st is None:
                return "is missing"
            if stat.S_IFMT(st.st_mode) != entry.kind:
                return f"is not a {entry.word}"
            if entry.link is not None:
                first = self.look(entry.link)
                if first is None or (first.st_ino, first.st_dev) != (st.st_ino, st.st_dev):
                    return f"is not a hard link to {shown(entry.link)}"
            if entry.kind == stat.S_IFLNK:
                with self.parent(entry.path) as (dirfd, name):
                    if os.readlink(name, dir_fd=dirfd) != entry.target:
                        return "has another target"
            if entry.rdev and st.st_rdev != entry.rdev:
                return "is another device"
            if entry.kind == stat.S_IFREG:
                if st.st_size != entry.size:
                    return f"has {st.st_size} bytes instead of {entry.size}"
                if read and entry.link is None and self.content_of(entry.path) != (entry.size, entry.sha256):
                    return "has another checksum"
        return ""

    def attributes_differ(self, entry: ManifestEntry, opened: bool = False) -> str:
        """The metadata check: which attributes on the disk differ from the entry's; "" if none. Owners count only where
        this process may chown, trusted and security xattrs only for root. opened: ignore a directory's mtime, which
        changes with its names, and access that its owner has given himself."""
        with about(entry.path), self.place(entry.path) as (fd, place):
            st = os.fstat(fd)
            wrong = []
            if self.caps.chown and (st.st_uid, st.st_gid) != (entry.uid, entry.gid):
                wrong.append("owner")
            mode = self._mode(entry, st)
            if entry.kind != stat.S_IFLNK and stat.S_IMODE(st.st_mode) not in (mode, mode | 0o700 if opened else mode):
                wrong.append("mode")
            if not opened and st.st_mtime_ns != entry.mtime:
                wrong.append("mtime")
            if self.xattrs(place, stat.S_ISLNK(st.st_mode)) != self._may(entry.xattrs):
                wrong.append("xattrs")
        return ", ".join(wrong)

    def _mode(self, entry: ManifestEntry, st: os.stat_result) -> int:
        """The entry's mode, without the bits that set_attrs drops for another owner."""
        mode = entry.mode
        if st.st_uid != entry.uid:
            mode &= ~stat.S_ISUID
        if st.st_gid != entry.gid and not entry.is_dir:
            mode &= ~stat.S_ISGID
        return mode

    def _may(self, xattrs: Xattrs) -> Xattrs:
        if self.privileged:
            return xattrs
        return tuple((name, value) for name, value in xattrs if not name.startswith(_ROOTS))

    # attributes

    def set_attributes(self, entry: ManifestEntry, freeze: bool = False) -> None:
        """Give the inode at the path the attributes of the entry (owner, mode, ACLs and xattrs, times)."""
        with about(entry.path):
            if entry.is_dir or entry.kind == stat.S_IFREG:
                with self.parent(entry.path) as (dirfd, name):
                    fd = os.open(name, DIR if entry.is_dir else FILE, dir_fd=dirfd)
                try:
                    self.thaw_fd(entry.path, fd)
                    self.apply(fd, entry)
                    if freeze:
                        set_immutable(fd, True)
                finally:
                    os.close(fd)
            else:
                with self.place(entry.path) as (_, place):
                    self.apply(place, entry)

    def apply(self, place: int | bytes, entry: ManifestEntry) -> None:
        """Give an inode (a descriptor, or a path to it) the attributes of the entry."""
        st = os.stat(place)
        set_attrs(place, st, MetaRow(b"", entry.kind | entry.mode, entry.uid, entry.gid, entry.mtime, st.st_atime_ns,
                                     list(entry.xattrs)), self.caps)

    # removing

    def remove(self, entry: ManifestEntry) -> None:
        """Remove an entry; a missing one is fine. TreeError if a directory holds entries that are not archived."""
        try:
            with about(entry.path), self.parent(entry.path) as (dirfd, name):
                if entry.is_dir:
                    with self.directory(entry.path) as fd:
                        self.thaw_fd(entry.path, fd)
                    os.rmdir(name, dir_fd=dirfd)
                else:
                    if entry.kind == stat.S_IFREG:
                        fd = os.open(name, FILE, dir_fd=dirfd)
                        try:
                            self.thaw_fd(entry.path, fd)
                        finally:
                            os.close(fd)
                    os.unlink(name, dir_fd=dirfd)
        except TreeError as exc:
            cause = exc.__cause__
            if isinstance(cause, OSError) and cause.errno == errno.ENOENT:
                return
            if isinstance(cause, OSError) and cause.errno == errno.ENOTEMPTY:
                raise TreeError(entry.path, "holds entries that are not in the archive") from None
            raise

    # frozen or not

    def thaw_fd(self, path: bytes, fd: int) -> None:
        """Clear the immutable flag."""
        if not set_immutable(fd, False):
            raise TreeError(path, "is immutable; only root can change that")

    def open_up(self, path: bytes) -> None:
        """Make a directory writable."""
        with about(path), self.directory(path) as fd:
            self.thaw_fd(path, fd)
            mode = stat.S_IMODE(os.fstat(fd).st_mode)
            if not self.privileged and mode & 0o700 != 0o700:
                os.fchmod(fd, mode | 0o700)

    def thaw_all(self) -> int:
        """Clear the immutable flag everywhere; return how many entries had it. An entry that vanishes meanwhile is
        fine."""
        count = 0
        if not self.privileged:
            return 0
        if flags_of(self.root_fd) & IMMUTABLE:
            self.thaw_fd(b"", self.root_fd)
            count += 1
        for found in self.walk():
            if found.st.st_dev != self.dev or not (stat.S_ISDIR(found.st.st_mode) or stat.S_ISREG(found.st.st_mode)):
                continue
            with about(found.path):
                fd = os.open(found.name, DIR if stat.S_ISDIR(found.st.st_mode) else FILE, dir_fd=found.dirfd)
                try:
                    if flags_of(fd) & IMMUTABLE:
                        self.thaw_fd(found.path, fd)
                        count += 1
                finally:
                    os.close(fd)
        return count

    def can_freeze(self) -> bool:
        """Whether entries can be made immutable here. Tries it on the root, and restores the root."""
        if not self.privileged:
            return False
        frozen = bool(flags_of(self.root_fd) & IMMUTABLE)
        return frozen or (set_immutable(self.root_fd, True) and set_immutable(self.root_fd, False))

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Allow gsync a change at the root, even if it is frozen; afterwards restore the flag and the root's times."""
        frozen = bool(flags_of(self.root_fd) & IMMUTABLE)
        if frozen:
            self.thaw_fd(b"", self.root_fd)
        before = os.fstat(self.root_fd)
        try:
            yield
        finally:
            mtime = before.st_mtime_ns if self.root_mtime is None else self.root_mtime
            if os.fstat(self.root_fd).st_mtime_ns != mtime:
                os.utime(self.root_fd, ns=(before.st_atime_ns, mtime))
            if frozen:
                set_immutable(self.root_fd, True)

    def sync(self) -> None:
        """Flush everything written to the tree's file system to its disk."""
        with about(b""):
            syncfs(self.root_fd)


def hash_of(fd: int) -> tuple[int, str]:
    """Read an open file from its beginning; return its size and SHA-256."""
    digest, at = hashlib.sha256(), 0
    while block := os.pread(fd, _BLOCK, at):
        digest.update(block)
        at += len(block)
    return at, digest.hexdigest()


def open_quietly(dirfd: int, name: bytes) -> int:
    """Open for reading, leaving the atime alone where that is allowed."""
    try:
        return os.open(name, FILE | os.O_NOATIME, dir_fd=dirfd)
    except PermissionError:
        return os.open(name, FILE, dir_fd=dirfd)
