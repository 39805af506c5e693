"""The disk side of an archive: the tree that is frozen, checked, removed and brought back.

Everything goes by directory descriptors below the root and follows no symlink; a file that is brought back is completed
in a scratch folder at the root (`.archive.tmp`) and then renamed into place. A tree is *frozen* with the immutable flag
(chattr +i) on every file and directory, which needs root and a file system that has the flag. The root's own mtime is
the user's: what gsync writes there leaves it as it was. Safe for several threads.
Not here: what the entries should be (manifest), in which order (archive).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import IO, BinaryIO, NamedTuple

from gsync.base.database import Database
from gsync.base.errors import GsyncError
from gsync.base.fsid import open_beneath, syncfs
from gsync.base.model import shown
from gsync.link.protocol import Caps, MetaRow
from gsync.slave.directory.attrs import set_attrs
from gsync.transfer.archive.eosfile import LOG, MANIFEST, MARKERS, MORE, NEW, RESERVED
from gsync.transfer.archive.manifest import ManifestEntry, Xattrs

DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BLOCK = 1 << 20

_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602  # FS_IOC_*FLAGS, linux/fs.h
IMMUTABLE, _APPEND = 0x10, 0x20
_NO_FLAGS = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS, errno.EINVAL)

# An entry that cannot be made as it was, by this user or on this file system.
_OF_ONE_ENTRY = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.ENAMETOOLONG, errno.EILSEQ,
                 errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EMLINK, errno.EFBIG)

_ROOTS = (b"trusted.", b"security.")  # xattrs that only root reads and sets
# The system's own for this one inode: another inode gets others.
_NOT_KEPT = (b"trusted.gfid", b"trusted.glusterfs.", b"trusted.afr.", b"trusted.overlay.", b"security.ima",
             b"security.evm", b"glusterfs.")


class TreeError(GsyncError):
    """An entry of the tree that is not as it must be for what is to be done; the text names it."""

    exit_code = 1

    def __init__(self, path: bytes, why: str) -> None:
        super().__init__(f"{shown(path) or '.'}: {why}")
        self.path = path
        self.why = why

    @property
    def of_the_entry(self) -> bool:
        """Whether it is about this entry alone, not about the disk."""
        return not isinstance(self.__cause__, OSError) or self.__cause__.errno in _OF_ONE_ENTRY


class WalkedEntry(NamedTuple):
    """An entry that a walk met: its path, name and directory (an open descriptor, until the next one is met)."""

    path: bytes
    dirfd: int
    name: bytes
    st: os.stat_result


@contextmanager
def about(path: bytes) -> Iterator[None]:
    """Around what is done with one entry: an OSError becomes a TreeError that names it."""
    try:
        yield
    except OSError as exc:
        raise TreeError(path, exc.strerror or str(exc)) from exc


def flags_of(fd: int) -> int:
    """The inode's flags (chattr), 0 where the file system has none."""
    out = bytearray(8)
    try:
        fcntl.ioctl(fd, _GETFLAGS, out)
    except OSError as exc:
        if exc.errno in _NO_FLAGS:
            return 0
        raise
    return int(struct.unpack_from("=I", out)[0])


def set_immutable(fd: int, wanted: bool) -> bool:
    """Whether the inode is immutable, or not, as wanted now; False where that cannot be set."""
    flags = flags_of(fd)
    if bool(flags & IMMUTABLE) == wanted:
        return True
    try:
        fcntl.ioctl(fd, _SETFLAGS, struct.pack("=q", flags ^ IMMUTABLE))
    except OSError as exc:
        if exc.errno in _NO_FLAGS:
            return False
        raise
    return True


class DiskTree:
    """The tree at `root`, which must be a directory."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.dev = os.fstat(self.root_fd).st_dev
        self.privileged = os.geteuid() == 0
        self.caps = Caps(root=self.privileged, chown=self.privileged, trusted=self.privileged)
        self.root_mtime: int | None = None  # what the root's is to be, where that is known better than from the root

    def close(self) -> None:
        os.close(self.root_fd)

    # by path

    @contextmanager
    def directory(self, path: bytes) -> Iterator[int]:
        """A descriptor of a directory of the tree."""
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
        """The directory of an entry, and its name there; the root is "." in itself."""
        above, _, name = path.rpartition(b"/")
        with self.directory(above) as fd:
            yield fd, name or b"."

    @contextmanager
    def place(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """An O_PATH descriptor of the entry's own inode, and a path to it for calls that take none."""
        with self.parent(path) as (dirfd, name):
            fd = os.open(name, PLACE, dir_fd=dirfd)
        try:
            yield fd, b"/proc/self/fd/%d" % fd
        finally:
            os.close(fd)

    def look(self, path: bytes) -> os.stat_result | None:
        """lstat; None if there is nothing. NotADirectoryError and the like count as nothing too."""
        try:
            with self.parent(path) as (dirfd, name):
                return os.stat(name, dir_fd=dirfd, follow_symlinks=False)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise

    @contextmanager
    def open_file(self, path: bytes) -> Iterator[BinaryIO]:
        """A regular file, to read; TreeError if it is something else."""
        with about(path):
            with self.parent(path) as (dirfd, name):
                fd = _open_quietly(dirfd, name)
            with open(fd, "rb", buffering=0) as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise TreeError(path, "is no longer a regular file")
                yield file

    # walking

    def walk(self) -> Iterator[WalkedEntry]:
        """Every entry below the root, a directory before what is in it; gsync's own at the root are left out.

        What is met is decided when its directory is listed. Mount points are met, but not entered.
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

    def survey(self, told: Callable[[int, int], None]) -> tuple[int, int]:
        """Look whether all of it can be archived, changing nothing: how many entries there are, and bytes.

        TreeError for a nested archive, another file system, what cannot be read, and what is immutable already (it
        could not be told later from what gsync has frozen)."""
        count = size = 0
        with about(b""):
            self._refuse_flags(b"", self.root_fd)
        for found in self.walk():
            if found.name in MARKERS:
                raise TreeError(found.path, "belongs to an archive inside this one: archives cannot be nested")
            if found.path in (MANIFEST, MORE):
                raise TreeError(found.path, "has a name that gsync uses in the vault: rename it")
            if found.st.st_dev != self.dev:
                raise TreeError(found.path, "is on another file system: unmount it, or archive it separately")
            with about(found.path):
                if stat.S_ISDIR(found.st.st_mode):
                    fd = os.open(found.name, DIR, dir_fd=found.dirfd)
                elif stat.S_ISREG(found.st.st_mode):
                    fd = _open_quietly(found.dirfd, found.name)
                    size += found.st.st_size
                else:
                    fd = -1
                if fd >= 0:
                    try:
                        self._refuse_flags(found.path, fd)
                    finally:
                        os.close(fd)
            count += 1
            told(count, size)
        return count, size

    def _refuse_flags(self, path: bytes, fd: int) -> None:
        if self.privileged and flags_of(fd) & (IMMUTABLE | _APPEND):
            raise TreeError(path, "is immutable or append-only (see lsattr); run chattr -i -a first")

    def entries(self, freeze: bool, told: Callable[[int, int], None], excluded_xattrs: frozenset[bytes] = frozenset(),
                wanted: Callable[[WalkedEntry], bool] = lambda found: True,
                failed: Callable[[TreeError], None] | None = None, hashed: bool = True) -> Iterator[ManifestEntry]:
        """Everything that is in the tree, the root first, each frozen (if so asked) before it is read.

        Further hard links come with the path of the first one. What `wanted` refuses is left out (directories never
        are). With `failed`, an entry that cannot be read is told there and left out, else it is a TreeError.
        hashed False: files come without a checksum, to be read later.
        """
        links = Database.temporary(
            "CREATE TABLE links (ino INTEGER PRIMARY KEY, path BLOB, sha256 TEXT, ctime INTEGER)")
        try:
            with about(b""):
                if freeze:
                    set_immutable(self.root_fd, True)
                yield self._entry(b"", os.fstat(self.root_fd), b"/proc/self/fd/%d" % self.root_fd, excluded_xattrs)
            count = size = 0
            for found in self.walk():
                try:
                    if found.st.st_dev != self.dev:
                        raise TreeError(found.path, "is on another file system")
                    if not stat.S_ISDIR(found.st.st_mode) and not wanted(found):
                        continue
                    with about(found.path):
                        entry = self._met(found, freeze, excluded_xattrs, links, hashed)
                except TreeError as exc:
                    if failed is None:
                        raise
                    failed(exc)
                    continue
                count += 1
                size += entry.size if entry.has_content else 0
                told(count, size)
                yield entry
        finally:
            links.close()

    def _met(self, found: WalkedEntry, freeze: bool, excluded: frozenset[bytes], links: Database,
             hashed: bool) -> ManifestEntry:
        st = found.st
        first = None
        if st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode):
            first = links.execute("SELECT path, sha256, ctime FROM links WHERE ino = ?",
                                  (_signed(st.st_ino),)).fetchone()
        sha256 = first[1] if first else ""
        if stat.S_ISDIR(st.st_mode) or stat.S_ISREG(st.st_mode):
            flags = DIR if stat.S_ISDIR(st.st_mode) else 0
            fd = os.open(found.name, flags, dir_fd=found.dirfd) if flags else _open_quietly(found.dirfd, found.name)
            try:
                if freeze:
                    set_immutable(fd, True)
                now = os.fstat(fd)
                if (now.st_ino, stat.S_IFMT(now.st_mode)) != (st.st_ino, stat.S_IFMT(st.st_mode)):
                    raise TreeError(found.path, "was replaced while it was read")
                if not flags and not first and hashed:
                    sha256 = hash_of(fd)[1]
                    if not _same(os.fstat(fd), now):
                        raise TreeError(found.path, "is being written to")
                entry = replace(self._entry(found.path, now, b"/proc/self/fd/%d" % fd, excluded, sha256=sha256),
                                ctime=st.st_ctime_ns)  # freezing it has changed that
            finally:
                os.close(fd)
        else:
            target = os.readlink(found.name, dir_fd=found.dirfd) if stat.S_ISLNK(st.st_mode) else None
            entry = self._entry(found.path, st, b"/proc/self/fd/%d/%s" % (found.dirfd, found.name), excluded,
                                target=target)
        if first:
            return replace(entry, link=first[0], ctime=first[2])
        if st.st_nlink > 1 and not entry.is_dir:
            links.execute("INSERT INTO links VALUES (?, ?, ?, ?)",
                          (_signed(st.st_ino), found.path, sha256, entry.ctime))
        return entry

    def _entry(self, path: bytes, st: os.stat_result, place: bytes, excluded: frozenset[bytes], sha256: str = "",
               target: bytes | None = None) -> ManifestEntry:
        regular = stat.S_ISREG(st.st_mode)
        return ManifestEntry(
            path, stat.S_IFMT(st.st_mode), st.st_size if regular else 0, st.st_mtime_ns, st.st_ctime_ns, st.st_uid,
            st.st_gid, stat.S_IMODE(st.st_mode), sha256, target, None,
            st.st_rdev if stat.S_ISBLK(st.st_mode) or stat.S_ISCHR(st.st_mode) else 0,
            regular and st.st_blocks * 512 < st.st_size, self.xattrs(place, stat.S_ISLNK(st.st_mode), excluded))

    def xattrs(self, place: bytes, is_link: bool, excluded: frozenset[bytes] = frozenset()) -> Xattrs:
        """The xattrs and ACLs of an inode that an archive keeps, by name."""
        # what /proc/self/fd/N leads to is the inode itself; below it a symlink is not to be followed
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
            with suppress(OSError):  # removed just now
                kept.append((name, os.getxattr(place, name, follow_symlinks=follow)))
        return tuple(kept)

    # comparing

    def content_of(self, path: bytes) -> tuple[int, str]:
        """Size and SHA-256 of a regular file, read now."""
        with self.open_file(path) as file, about(path):
            return hash_of(file.fileno())

    def is_frozen(self, path: bytes) -> bool:
        """Whether an entry is immutable, a regular file or a directory."""
        with self.parent(path) as (dirfd, name):
            fd = os.open(name, FILE, dir_fd=dirfd)
        try:
            return bool(flags_of(fd) & IMMUTABLE)
        finally:
            os.close(fd)

    def content_differs(self, entry: ManifestEntry, read: bool) -> str:
        """The transfer check: why what is at the entry's path is not the entry (its kind, size, target; its content,
        read anew if so asked, else by size alone); "" if it is. A file that is not there: "is missing"."""
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
        """The metadata check: which attributes of what is there are not the entry's; "" if none. Owners count only
        where this process may give files away, trusted and security xattrs only for root. opened: what comes and goes
        in a directory may have changed its mtime, and its owner may have given himself access."""
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
        """The entry's mode without the bits that set_attrs leaves out for another owner."""
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
        """Make the attributes of what is at the path those of the entry (owner, mode, ACLs and xattrs, times)."""
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
        """Remove an entry; fine if it is gone. TreeError: a directory that holds something that is not archived."""
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
        """Take the immutable flag off."""
        if not set_immutable(fd, False):
            raise TreeError(path, "is immutable; only root can change that")

    def open_up(self, path: bytes) -> None:
        """Let a directory be written to."""
        with about(path), self.directory(path) as fd:
            self.thaw_fd(path, fd)
            mode = stat.S_IMODE(os.fstat(fd).st_mode)
            if not self.privileged and mode & 0o700 != 0o700:
                os.fchmod(fd, mode | 0o700)

    def thaw_all(self) -> int:
        """Take the immutable flag off everything; how many entries had it. What vanishes meanwhile is fine."""
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
        """Whether entries can be made immutable here: tried on the root, which is left as it was."""
        if not self.privileged:
            return False
        frozen = bool(flags_of(self.root_fd) & IMMUTABLE)
        return frozen or (set_immutable(self.root_fd, True) and set_immutable(self.root_fd, False))

    # gsync's own files at the root

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Around a change of gsync's own at the root: it is allowed though the root is frozen, and the root's times
        are afterwards what they were."""
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

    def marker(self) -> bytes | None:
        """The name of the state file at the root, if there is one."""
        return next((name for name in MARKERS if self.look(name) is not None), None)

    def set_marker(self, name: bytes | None, content: Iterator[bytes] | None = None) -> None:
        """Have exactly this state file at the root, durably (None: none, and no log); its content is kept if there
        is one, else `content` is written."""
        with about(name or b""), self.undisturbed():
            present = [other for other in MARKERS if self.look(other) is not None]
            if name is not None and name not in present:
                if present and content is None:
                    os.rename(present.pop(), name, src_dir_fd=self.root_fd, dst_dir_fd=self.root_fd)
                else:
                    self._write(name, content or iter(()))
            for other in present:
                if other != name:
                    os.unlink(other, dir_fd=self.root_fd)
            for other in (LOG, NEW) if name is None else ():
                with suppress(FileNotFoundError):
                    os.unlink(other, dir_fd=self.root_fd)
            os.fsync(self.root_fd)

    def _write(self, name: bytes, content: Iterator[bytes]) -> None:
        fd = os.open(NEW, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644,
                     dir_fd=self.root_fd)
        with open(fd, "wb") as file:
            for line in content:
                file.write(line)
            file.flush()
            os.fsync(fd)
        os.rename(NEW, name, src_dir_fd=self.root_fd, dst_dir_fd=self.root_fd)

    def append_log(self, line: str) -> None:
        """A line for the log beside the state file."""
        with about(LOG), self.undisturbed():
            fd = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644,
                         dir_fd=self.root_fd)
            try:
                if self.privileged:  # it is the user's as the tree is
                    root = os.fstat(self.root_fd)
                    os.fchown(fd, root.st_uid, root.st_gid)
                os.write(fd, line.encode("utf-8", "backslashreplace") + b"\n")
            finally:
                os.close(fd)

    def sync(self) -> None:
        """Everything written to the file system of the tree is on its disk afterwards."""
        with about(b""):
            syncfs(self.root_fd)


def hash_of(fd: int) -> tuple[int, str]:
    """Size and SHA-256 of an open file, read from its beginning."""
    digest, at = hashlib.sha256(), 0
    while block := os.pread(fd, _BLOCK, at):
        digest.update(block)
        at += len(block)
    return at, digest.hexdigest()


def _open_quietly(dirfd: int, name: bytes) -> int:
    """Open to read, leaving the atime alone where that is allowed."""
    try:
        return os.open(name, FILE | os.O_NOATIME, dir_fd=dirfd)
    except PermissionError:
        return os.open(name, FILE, dir_fd=dirfd)


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_size, one.st_mtime_ns, one.st_ino) == (other.st_size, other.st_mtime_ns, other.st_ino)


def _signed(ino: int) -> int:
    """An inode number as SQLite can hold it."""
    return ino - (1 << 64) if ino >= 1 << 63 else ino
