"""Restores the entries of a purged tree: completes each in a scratch folder, then renames it into place.

The folder is `.archive.tmp` at the root, private. A failed entry leaves the tree as it was. Safe for several threads.
Not here: which entries, in which order (get); other access to the tree (disk).
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from gsync.transfer.archive.disk import DIR, FILE, PLACE, DiskTree, about
from gsync.transfer.archive.eosfile import SCRATCH
from gsync.transfer.archive.flags import IMMUTABLE, flags_of, set_immutable
from gsync.transfer.archive.manifest import ManifestEntry

_CHUNK, _HOLE = 64 << 10, 4 << 10  # chunks of a sparse file; an aligned block of zeros is a hole


class _Holes:
    """Writes to a file, leaving holes for runs of zeros."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._rest = file, b""

    def write(self, data: bytes) -> int:
        count = len(data)
        data = self._rest + data
        whole = len(data) - len(data) % _CHUNK
        for at in range(0, whole, _CHUNK):
            self._put(data[at:at + _CHUNK], _HOLE)
        self._rest = data[whole:]
        return count

    def _put(self, block: bytes, parts: int) -> None:
        if block.count(0) == len(block):
            self._file.seek(len(block), os.SEEK_CUR)
        elif parts and block.count(bytes(parts)):
            for at in range(0, len(block), parts):
                self._put(block[at:at + parts], 0)
        else:
            self._file.write(block)

    def finish(self) -> None:
        self._put(self._rest, _HOLE)
        self._rest = b""
        self._file.truncate(self._file.tell())


class Restore:
    """Restores entries into one tree."""

    def __init__(self, tree: DiskTree) -> None:
        self._tree = tree
        self._number = itertools.count()

    def begin(self) -> None:
        """Make the scratch folder, empty and private."""
        self.end()
        with about(SCRATCH), self._tree.undisturbed():
            os.mkdir(SCRATCH, 0o700, dir_fd=self._tree.root_fd)
            fd = os.open(SCRATCH, DIR, dir_fd=self._tree.root_fd)
            try:
                for acl in ("system.posix_acl_default", "system.posix_acl_access"):
                    with suppress(OSError):
                        os.removexattr(fd, acl)
                os.fchmod(fd, 0o700)
            finally:
                os.close(fd)

    def end(self) -> None:
        """Remove the scratch folder and anything a killed process left in it."""
        with about(SCRATCH), self._tree.undisturbed():
            try:
                fd = os.open(SCRATCH, DIR, dir_fd=self._tree.root_fd)
            except FileNotFoundError:
                return
            try:
                for name in os.listdir(fd):
                    os.unlink(name, dir_fd=fd)
            finally:
                os.close(fd)
            os.rmdir(SCRATCH, dir_fd=self._tree.root_fd)

    def directory(self, entry: ManifestEntry) -> None:
        """Make the directory, or make it usable; `set_attributes` sets its attributes last."""
        with about(entry.path):
            if entry.path:
                with self._tree.parent(entry.path) as (dirfd, name), suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=dirfd)
            self._tree.open_up(entry.path)

    def file(self, entry: ManifestEntry, fetch: Callable[[BinaryIO], None], freeze: bool) -> None:
        """Restore a regular file, which fetch writes; if fetch raises, the tree stays as it was."""
        with self._scratch() as (folder, temporary), about(entry.path):
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
            with open(fd, "wb") as file:
                if entry.sparse:
                    holes = _Holes(file)
                    fetch(holes)  # type: ignore[arg-type]
                    holes.finish()
                else:
                    fetch(file)
                file.flush()
                self._tree.apply(fd, entry)
            self._into_place(folder, temporary, entry, freeze)

    def other(self, entry: ManifestEntry, freeze: bool) -> None:
        """Restore an entry without content: a further hard link, a symlink, FIFO, socket or device."""
        with self._scratch() as (folder, temporary), about(entry.path):
            if entry.link is not None:
                with self._tree.parent(entry.link) as (dirfd, name):
                    fd = os.open(name, PLACE if entry.kind != stat.S_IFREG else FILE, dir_fd=dirfd)
                    try:
                        thawed = entry.kind == stat.S_IFREG and bool(flags_of(fd) & IMMUTABLE)
                        if thawed:
                            set_immutable(fd, False)
                        os.link(name, temporary, src_dir_fd=dirfd, dst_dir_fd=folder, follow_symlinks=False)
                    finally:
                        os.close(fd)
            elif entry.kind == stat.S_IFLNK:
                os.symlink(entry.target or b"", temporary, dir_fd=folder)
            else:
                os.mknod(temporary, entry.kind | 0o600, entry.rdev, dir_fd=folder)
            if entry.link is None:
                fd = os.open(temporary, PLACE, dir_fd=folder)
                try:
                    self._tree.apply(b"/proc/self/fd/%d" % fd, entry)
                finally:
                    os.close(fd)
            self._into_place(folder, temporary, entry, freeze)

    @contextmanager
    def _scratch(self) -> Iterator[tuple[int, bytes]]:
        """Open the scratch folder; yields it with a new name, which is removed afterwards."""
        folder = os.open(SCRATCH, DIR, dir_fd=self._tree.root_fd)
        name = b"%d" % next(self._number)
        try:
            yield folder, name
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            os.close(folder)

    def _into_place(self, folder: int, temporary: bytes, entry: ManifestEntry, freeze: bool) -> None:
        with self._tree.parent(entry.path) as (dirfd, name):
            with suppress(FileNotFoundError):
                there = os.open(name, FILE, dir_fd=dirfd) if self._is_file(dirfd, name) else -1
                if there >= 0:  # a damaged file that is frozen cannot be renamed over
                    try:
                        self._tree.thaw_fd(entry.path, there)
                    finally:
                        os.close(there)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=dirfd)
            if freeze and entry.kind == stat.S_IFREG:
                fd = os.open(name, FILE, dir_fd=dirfd)
                try:
                    set_immutable(fd, True)
                finally:
                    os.close(fd)

    @staticmethod
    def _is_file(dirfd: int, name: bytes) -> bool:
        return stat.S_ISREG(os.stat(name, dir_fd=dirfd, follow_symlinks=False).st_mode)
