"""Keeps copies of old changelogs, one tar file a month, within a limit of bytes.

New copies are appended to archive_<YYYYMM>.tar (the month of the ts, in UTC). Once that is larger than a quarter of the
limit, it is renamed to archive_<YYYYMM>.<n>.tar. The oldest files are deleted while all together exceed the limit. The
next append cuts off a member that a crash left half written.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import groupby
from typing import BinaryIO

from gsync.base import durable
from gsync.changelog.layout import Changelog

_NAME = re.compile(rb"archive_(\d{6})(?:\.(\d+))?\.tar")
_OPEN = 1 << 62  # sorts as the number of the file that is being appended to
_END = bytes(2 * tarfile.BLOCKSIZE)  # zeros that end a tar file


class ChangelogArchive:
    """The archive in one folder, created when needed; one object per folder. keep_bytes=0 keeps nothing."""

    def __init__(self, folder: bytes, keep_bytes: int) -> None:
        self.folder = folder
        self._keep_bytes = keep_bytes
        self._ends: dict[bytes, int] = {}  # of the tar files written to: where the next member goes

    def add(self, changelogs: Iterable[Changelog]) -> None:
        """Copy changelogs, durably. Skips one that is gone or larger than a quarter of the limit."""
        if not self._keep_bytes:
            return
        durable.make_dirs(self.folder)
        for month, group in groupby(changelogs, key=_month):
            path = os.path.join(self.folder, b"archive_%s.tar" % month)
            self._append(path, group)
            if self._ends[path] > self._keep_bytes // 4:
                self._set_aside(path, month)
        self._drop_oldest()

    def _append(self, path: bytes, changelogs: Iterable[Changelog]) -> None:
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as tar:
            end = self._ends.get(path, 0)
            if os.fstat(tar.fileno()).st_size != end + len(_END):
                end = _sound_end(tar.fileno())
            tar.seek(end)
            for changelog in changelogs:
                with suppress(FileNotFoundError), open(changelog.path, "rb") as file:
                    if os.fstat(file.fileno()).st_size <= self._keep_bytes // 4:
                        end += _write_member(tar, changelog, file)
            tar.write(_END)
            tar.truncate()
            tar.flush()
            os.fsync(tar.fileno())
        durable.fsync_dir(self.folder)
        self._ends[path] = end

    def _set_aside(self, path: bytes, month: bytes) -> None:
        """Close a tar file that has grown enough: it becomes the last of its month."""
        last = max((n for m, n, _ in self._files() if m == month and n != _OPEN), default=0)
        os.rename(path, os.path.join(self.folder, b"archive_%s.%d.tar" % (month, last + 1)))
        durable.fsync_dir(self.folder)
        del self._ends[path]

    def _drop_oldest(self) -> None:
        files = self._files()
        sizes = [os.stat(path).st_size for _, _, path in files]
        over = sum(sizes) - self._keep_bytes
        for (_, _, path), size in zip(files, sizes, strict=True):
            if over <= 0:
                break
            os.unlink(path)
            over -= size

    def _files(self) -> list[tuple[bytes, int, bytes]]:
        """(month, number, path) of the tar files, oldest first."""
        matches = filter(None, map(_NAME.fullmatch, os.listdir(self.folder)))
        return sorted((m[1], int(m[2]) if m[2] else _OPEN, os.path.join(self.folder, m[0])) for m in matches)


def _month(changelog: Changelog) -> bytes:
    return time.strftime("%Y%m", time.gmtime(changelog.ts)).encode()


def _write_member(tar: BinaryIO, changelog: Changelog, file: BinaryIO) -> int:
    """Write one member; gives the bytes written."""
    info = tarfile.TarInfo(os.path.basename(changelog.path).decode())
    info.size, info.mtime, info.mode = os.fstat(file.fileno()).st_size, changelog.ts, 0o600
    padding = bytes(-info.size % tarfile.BLOCKSIZE)
    tar.write(info.tobuf(tarfile.GNU_FORMAT))
    shutil.copyfileobj(file, tar)
    tar.write(padding)
    return tarfile.BLOCKSIZE + info.size + len(padding)


def _sound_end(fd: int) -> int:
    """Where the last whole member of a tar file ends."""
    end, size = 0, os.fstat(fd).st_size
    while True:
        try:
            info = tarfile.TarInfo.frombuf(os.pread(fd, tarfile.BLOCKSIZE, end), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return end
        after = end + tarfile.BLOCKSIZE + info.size + -info.size % tarfile.BLOCKSIZE
        if after > size:
            return end
        end = after
