"""What a purged tree is brought back with: each entry is completed in a scratch folder, then renamed into place.

The folder is `.archive.tmp` at the root, private; what fails leaves the tree as it was. Safe for several threads.
Not here: which entries, in which order (get); the tree otherwise (disk).
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

_CHUNK, _HOLE = 64 << 10, 4 << 10  # a sparse file is written in chunks; zeros of a hole's length, aligned, are left out


class _Holes:
    """Writes to a file, leaving holes where there is nothing but zeros."""

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
    """Into one tree."""

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
        """Remove the scratch folder with what a process that was killed left in it."""
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
        """Make the directory, or make it usable; its attributes come last, by `set_attributes`."""
        with about(entry.path):
            if entry.path:
                with self._tree.parent(entry.path) as (dirfd, name), suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=dirfd)
            self._tree.open_up(entry.path)

    def file(self, entry: ManifestEntry, fetch: Callable[[BinaryIO], None], freeze: bool) -> None:
        """Bring a regular file back: fetch writes it; what fetch raises leaves the tree as it was."""
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
        """Bring back what has no content to fetch: a further hard link, a symlink, FIFO, socket or device."""
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
        """The scratch folder and a new name in it, which is gone afterwards."""
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
                if there >= 0:  # a damaged one that is frozen cannot be renamed over
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
