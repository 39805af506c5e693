"""A store in a directory of this host, accessed by descriptors below its root; follows no symlink.

A file is written without a name (O_TMPFILE; on file systems without it, as `.gsync-part.<random>` beside its place),
gets its attributes, becomes durable and only then gets its name: after a kill or a power cut it is whole or absent. A
batch makes many files durable together, with one syncfs, and names them then; its own thread sees them at once. A
killed process may leave a part file; once that is a day old, a later put into the same directory removes it.
Runs on the hosts of ssh stores too: standard library only, Python 3.9.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.errors import UsageError
from gsync.base.fate import STORE
from gsync.base.fsid import open_beneath, syncfs
from gsync.base.model import NS, ROOT_GFID, shown
from gsync.link.protocol import Caps, MetaRow
from gsync.slave.directory.attrs import set_attrs
from gsync.transfer.stores.store import (
    BLOCK,
    Category,
    Content,
    Digest,
    Item,
    StoreError,
    new_digest,
    parts_of,
    store_io,
)

PART = b".gsync-part."
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD_PART = 86400 * NS
_PENDING_MOST = 200  # files of a batch without a name yet; each holds two descriptors
_FSYNC_MOST = 8      # up to so many files are made durable one by one; more, with one syncfs of the whole file system
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
_OWN_XATTRS = (b"trusted.gfid", b"trusted.glusterfs.", b"trusted.afr.", b"trusted.ec.", b"trusted.overlay.")


class DirStore:
    """The directory `root`, which must exist. flush: makes a whole file system durable."""

    kind = "dir"

    def __init__(self, root: bytes, name: str = "", url: str = "", clock: Clock = SYSTEM_CLOCK,
                 flush: Callable[[int], None] = syncfs) -> None:
        self.name = name or shown(root)
        self.url = url or os.fsdecode(root)
        self._root = root
        self._clock, self._flush = clock, flush
        self._caps = Caps(root=os.geteuid() == 0, chown=os.geteuid() == 0, trusted=os.geteuid() == 0)
        self._local = threading.local()
        self._swept: set[tuple[int, int]] = set()
        self._unnamed = True  # until the file system refuses O_TMPFILE
        try:
            self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            # Perhaps it is not mounted: do not mistake that for an empty store.
            raise StoreError(f"store {self.name}: no such directory: {shown(root)} (not mounted?); create it to use "
                             "it as a store", Category.STORE_DOWN, errno.ENOENT) from None
        except NotADirectoryError:
            raise UsageError(f"store {self.name}: {shown(root)} is not a directory") from None
        except OSError as exc:
            raise StoreError(f"store {self.name}: {shown(root)}: {exc.strerror}", Category.STORE_DOWN,
                             exc.errno) from exc

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # reading

    def probe(self) -> None:
        """Check that the opened directory is still the one at its path."""
        try:
            same = os.path.samestat(os.stat(self._root), os.fstat(self._fd))
        except OSError as exc:
            raise StoreError(f"store {self.name}: {shown(self._root)}: {exc.strerror}", Category.STORE_DOWN,
                             exc.errno) from exc
        if not same:
            raise StoreError(f"store {self.name}: {shown(self._root)} was replaced by another directory",
                             Category.STORE_DOWN)

    def stat(self, path: bytes) -> Item | None:
        self._show(path)
        with store_io(self.name, "look at", path):
            try:
                fd = self._open(path, _PLACE)
            except OSError as exc:
                if exc.errno in STORE.gone:
                    return None
                raise
            with _closing(fd):
                return _item(path, fd, True)

    def list(self, path: bytes) -> Iterator[Item]:
        self._show_all()
        with store_io(self.name, "list", path), _closing(self._open(path, _DIR)) as folder:
            names = sorted(name for name in map(os.fsencode, os.listdir(folder)) if not name.startswith(PART))
            prefix = path + b"/" if path else b""
            for name in names:
                try:
                    fd = os.open(name, _PLACE, dir_fd=folder)
                except FileNotFoundError:
                    continue
                with _closing(fd):
                    yield _item(prefix + name, fd, False)

    def checksum(self, path: bytes, algorithm: str = "sha256") -> str:
        self._show(path)
        with store_io(self.name, "read", path), self._open_file(path) as file:
            return _copy(file, None, new_digest(algorithm))[1]

    def content(self, path: bytes) -> Content | None:
        return None

    def durable(self, path: bytes) -> bool:
        return self.stat(path) is not None

    def free(self) -> int | None:
        with store_io(self.name, "look at", b""):
            found = os.fstatvfs(self._fd)
            return found.f_bavail * found.f_frsize

    # files

    def get(self, path: bytes, into: BinaryIO) -> Content:
        self._show(path)
        with store_io(self.name, "read", path):
            source = self._open_file(path)
        return self._copied(path, source, into)

    def _copied(self, path: bytes, source: BinaryIO, into: BinaryIO) -> Content:
        """Copy the content. The reader's errors become StoreErrors; the writer's errors pass unchanged."""
        digest, size = hashlib.sha256(), 0
        with source:
            while True:
                with store_io(self.name, "read", path):
                    block = source.read(BLOCK)
                if not block:
                    return Content(size, digest.hexdigest())
                digest.update(block)
                size += len(block)
                into.write(block)

    def put(self, path: bytes, source: BinaryIO, item: Item | None = None, replace: bool = False) -> Content:
        self._show(path)
        with self._parent(path, "write", make=True) as (folder, bname):
            self._refuse_occupied(path, folder, bname, replace)
            new = self._begin(folder, bname, path, replace)
            kept = False
            try:
                size, digest = _copy(source, new.file, hashlib.sha256())
                if item is not None:
                    self._attrs(new.fd, os.fstat(new.fd), item)
                else:
                    os.fchmod(new.fd, 0o644 & ~_umask())
                if self._batched():
                    self._pending()[path] = new
                    kept = True
                else:
                    os.fsync(new.fd)
                    new.give_name()
                    os.fsync(folder)
            finally:
                if not kept:
                    new.drop()
            if len(self._pending()) >= _PENDING_MOST:
                self._name_all()
            return Content(size, digest)

    def _begin(self, folder: int, bname: bytes, path: bytes, replace: bool) -> _Unfinished:
        if replace or not self._unnamed:
            self._remove_old_parts(folder)
        if self._unnamed:
            try:
                fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=folder)
                return _Unfinished(fd, os.dup(folder), bname, path, replace, None)
            except OSError as exc:
                if exc.errno not in _NO_TMPFILE:
                    raise
                self._unnamed = False
                self._remove_old_parts(folder)
        part = _part_name()
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        return _Unfinished(fd, os.dup(folder), bname, path, replace, part)

    def _refuse_occupied(self, path: bytes, folder: int, bname: bytes, replace: bool) -> None:
        try:
            st = os.stat(bname, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not replace or not stat.S_ISREG(st.st_mode):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)

    def _remove_old_parts(self, folder: int) -> None:
        """Remove old part files, once for each directory and store object."""
        st = os.fstat(folder)
        if (st.st_dev, st.st_ino) in self._swept:
            return
        self._swept.add((st.st_dev, st.st_ino))
        for name in map(os.fsencode, os.listdir(folder)):
            if name.startswith(PART):
                with contextlib.suppress(FileNotFoundError):
                    old = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if max(old.st_mtime_ns, old.st_ctime_ns) < self._clock.now() - _OLD_PART:
                        os.unlink(name, dir_fd=folder)

    # other entries

    def symlink(self, path: bytes, item: Item) -> None:
        assert item.target is not None
        self._show(path)
        with self._parent(path, "make", make=True) as (folder, bname):
            try:
                os.symlink(item.target, bname, dir_fd=folder)
            except FileExistsError:
                with contextlib.suppress(OSError):
                    if os.readlink(bname, dir_fd=folder) == item.target:
                        return
                raise
            with _closing(os.open(bname, _PLACE, dir_fd=folder)) as fd:
                self._attrs(b"/proc/self/fd/%d" % fd, os.fstat(fd), item)
            self._settle(folder)

    def link(self, path: bytes, first: bytes) -> None:
        self._show_all()
        with self._parent(first, "link", make=False) as (there, old), \
                self._parent(path, "link", make=True) as (folder, bname):
            try:
                os.link(old, bname, src_dir_fd=there, dst_dir_fd=folder, follow_symlinks=False)
            except FileExistsError:
                if os.path.samestat(os.stat(old, dir_fd=there, follow_symlinks=False),
                                    os.stat(bname, dir_fd=folder, follow_symlinks=False)):
                    return
                raise
            self._settle(folder)

    def mkdir(self, path: bytes, item: Item | None = None) -> None:
        self._show(path)
        with store_io(self.name, "make", path), _closing(self._make_dirs(_parts(self.name, path))) as fd:
            if item is not None:
                self._attrs(fd, os.fstat(fd), item)
            self._settle(fd)

    def set_attrs(self, path: bytes, item: Item) -> None:
        self._show_all()
        with store_io(self.name, "set the attributes of", path), _closing(self._open(path, _PLACE)) as fd:
            self._attrs(b"/proc/self/fd/%d" % fd, os.fstat(fd), item)

    def delete(self, path: bytes) -> None:
        self._show_all()
        try:
            with self._parent(path, "remove", make=False) as (folder, bname):
                try:
                    os.unlink(bname, dir_fd=folder)
                except IsADirectoryError:
                    os.rmdir(bname, dir_fd=folder)
                self._settle(folder)
        except StoreError as exc:
            if exc.errno not in STORE.gone:
                raise

    def move(self, old: bytes, new: bytes) -> None:
        self._show_all()
        with self._parent(old, "move", make=False) as (there, bname), \
                self._parent(new, "move", make=True) as (folder, target):
            with contextlib.suppress(FileNotFoundError):
                os.stat(target, dir_fd=folder, follow_symlinks=False)
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
            os.rename(bname, target, src_dir_fd=there, dst_dir_fd=folder)
            self._settle(folder)
            self._settle(there)

    # durability

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """The batch of the calling thread. An exception drops its files that have no name yet."""
        if self._batched():
            yield
            return
        self._local.batched, self._local.loose = True, 0
        try:
            yield
            with store_io(self.name, "make durable", b""):
                if self._local.loose == 0 and len(self._pending()) <= _FSYNC_MOST:
                    self._name_all(folders_too=True)
                else:
                    self._name_all()
                    self._flush(self._fd)
        finally:
            self._local.batched = False
            for new in self._pending().values():
                new.drop()
            self._pending().clear()

    def _batched(self) -> bool:
        return getattr(self._local, "batched", False)

    def _pending(self) -> dict[bytes, _Unfinished]:
        """The files of this thread's batch that have no name yet."""
        if not hasattr(self._local, "pending"):
            self._local.pending = {}
        found: dict[bytes, _Unfinished] = self._local.pending
        return found

    def _show(self, path: bytes) -> None:
        """Name the batch's files before an operation on one of their paths."""
        if path in self._pending():
            self._show_all()

    def _show_all(self) -> None:
        with store_io(self.name, "make durable", b""):
            self._name_all()

    def _name_all(self, folders_too: bool = False) -> None:
        """Make the pending files durable, then name them. Tries all of them before it raises an OSError."""
        pending = self._pending()
        if not pending:
            return
        if len(pending) <= _FSYNC_MOST:
            for new in pending.values():
                os.fsync(new.fd)
        else:
            self._flush(self._fd)
        first: OSError | None = None
        while pending:
            _, new = pending.popitem()
            try:
                new.give_name()
                if folders_too:
                    os.fsync(new.folder)
            except OSError as exc:
                first = first or exc
            finally:
                new.drop()
        if not folders_too:
            self._local.loose += 1
        if first is not None:
            raise first

    def _settle(self, folder: int) -> None:
        """Make a change of a directory durable; in a batch, leave that to its end."""
        if self._batched():
            self._local.loose += 1
        else:
            os.fsync(folder)

    # descriptors

    def _open(self, path: bytes, flags: int) -> int:
        _parts(self.name, path)
        return open_beneath(self._fd, path or b".", flags)

    def _open_file(self, path: bytes) -> BinaryIO:
        fd = self._open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", path)
        return open(fd, "rb", buffering=0)

    @contextlib.contextmanager
    def _parent(self, path: bytes, op: str, make: bool) -> Iterator[tuple[int, bytes]]:
        """Open the directory of a path, for operations on its last part. Every OSError in the block becomes a
        StoreError."""
        with store_io(self.name, op, path):
            parts = _parts(self.name, path)
            if not parts:
                raise OSError(errno.EBUSY, "the root of the store", path)
            fd = self._make_dirs(parts[:-1]) if make else open_beneath(self._fd, b"/".join(parts[:-1]) or b".", _DIR)
            with _closing(fd):
                yield fd, parts[-1]

    def _make_dirs(self, parts: Sequence[bytes]) -> int:
        """Open the directory; creates it and its parents where they are missing."""
        with contextlib.suppress(FileNotFoundError):
            return open_beneath(self._fd, b"/".join(parts) or b".", _DIR)
        above = self._make_dirs(parts[:-1])
        with _closing(above):
            with contextlib.suppress(FileExistsError):
                os.mkdir(parts[-1], 0o755, dir_fd=above)
                self._settle(above)
            return os.open(parts[-1], _DIR, dir_fd=above)

    def _attrs(self, place: int | bytes, st: os.stat_result, item: Item) -> None:
        xattrs = None if item.xattrs is None else list(item.xattrs)
        set_attrs(place, st, MetaRow(ROOT_GFID, item.kind | item.mode, item.uid, item.gid, item.mtime, st.st_atime_ns,
                                     xattrs), self._caps)


class _Unfinished:
    """A file being written. Owns a descriptor of it and one of its directory. part: its name so far, if any."""

    def __init__(self, fd: int, folder: int, bname: bytes, path: bytes, replace: bool, part: bytes | None) -> None:
        self.fd, self.folder = fd, folder
        self.file: BinaryIO = open(fd, "wb", buffering=0, closefd=False)  # noqa: SIM115
        self._bname, self._path, self._replace, self._part = bname, path, replace, part

    def give_name(self) -> None:
        """Give the file its name. Without replace, EEXIST if the name is taken: link(2) never replaces a file, so a
        concurrent writer's is safe."""
        if self._part is None:
            place = b"/proc/self/fd/%d" % self.fd
            if not self._replace:
                os.link(place, self._bname, dst_dir_fd=self.folder, follow_symlinks=True)
                return
            part = _part_name()
            os.link(place, part, dst_dir_fd=self.folder, follow_symlinks=True)
            self._part = part
        if not self._replace:
            try:
                os.link(self._part, self._bname, src_dir_fd=self.folder, dst_dir_fd=self.folder)
                return  # `drop` removes the other name
            except OSError as exc:
                if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
                    raise
        os.rename(self._part, self._bname, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        self._part = None

    def drop(self) -> None:
        """Close the file; if it has no name, it is gone."""
        if self._part is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._part, dir_fd=self.folder)
        self.file.close()
        os.close(self.fd)
        os.close(self.folder)


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _part_name() -> bytes:
    return PART + secrets.token_hex(8).encode()


def _parts(store: str, path: bytes) -> list[bytes]:
    try:
        return parts_of(path)
    except ValueError:
        raise StoreError(f"store {store}: {shown(path)} not a path in a store", Category.PERMANENT,
                         errno.EINVAL) from None


def _umask() -> int:
    """The umask, read without changing it: other threads create files meanwhile."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1], 8) for line in file if line.startswith("Umask:"))


def _copy(source: BinaryIO, into: BinaryIO | None, digest: Digest) -> tuple[int, str]:
    """Copy everything from source to into, if given; return the number of bytes, and the digest."""
    size = 0
    while block := source.read(BLOCK):
        digest.update(block)
        size += len(block)
        while into is not None and block:
            block = block[into.write(block):]
    return size, digest.hexdigest()


def _item(path: bytes, fd: int, whole: bool) -> Item:
    st = os.fstat(fd)
    kind = stat.S_IFMT(st.st_mode)
    target = os.readlink(b"", dir_fd=fd) if kind == stat.S_IFLNK else None
    xattrs: tuple[tuple[bytes, bytes], ...] | None = None
    if whole and kind in (stat.S_IFREG, stat.S_IFDIR):
        place = b"/proc/self/fd/%d" % fd
        try:
            names = [os.fsencode(name) for name in os.listxattr(place)]
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            names = []
        xattrs = tuple((name, os.getxattr(place, name)) for name in sorted(names) if not name.startswith(_OWN_XATTRS))
    return Item(path, kind, st.st_size, st.st_mtime_ns, st.st_ctime_ns, stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid,
                target, xattrs)
