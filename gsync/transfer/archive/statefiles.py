"""gsync's own files at the root of an archived tree: the state file that users' scripts look for, and the log.

They only show the database's state. Writing them leaves the root's times as they were (DiskTree.undisturbed).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from gsync.transfer.archive.disk import DiskTree, about
from gsync.transfer.archive.eosfile import LOG, MARKERS, NEW


class StateFiles:
    """The state file and log of one tree."""

    def __init__(self, tree: DiskTree) -> None:
        self._tree = tree

    def present(self) -> bytes | None:
        """The name of the state file at the root, if there is one."""
        return next((name for name in MARKERS if self._tree.look(name) is not None), None)

    def set(self, name: bytes | None, content: Iterator[bytes] | None = None) -> None:
        """Leave exactly this state file at the root, durably (None: neither a state file nor a log). Without `content`,
        an existing file's content is kept."""
        with about(name or b""), self._tree.undisturbed():
            there = [other for other in MARKERS if self._tree.look(other) is not None]
            if name is not None and name not in there:
                if there and content is None:
                    os.rename(there.pop(), name, src_dir_fd=self._tree.root_fd, dst_dir_fd=self._tree.root_fd)
                else:
                    self._write(name, content or iter(()))
            for other in there:
                if other != name:
                    os.unlink(other, dir_fd=self._tree.root_fd)
            for other in (LOG, NEW) if name is None else ():
                with suppress(FileNotFoundError):
                    os.unlink(other, dir_fd=self._tree.root_fd)
            os.fsync(self._tree.root_fd)

    def _write(self, name: bytes, content: Iterator[bytes]) -> None:
        fd = os.open(NEW, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644,
                     dir_fd=self._tree.root_fd)
        with open(fd, "wb") as file:
            for line in content:
                file.write(line)
            file.flush()
            os.fsync(fd)
        os.rename(NEW, name, src_dir_fd=self._tree.root_fd, dst_dir_fd=self._tree.root_fd)

    def append_log(self, line: str) -> None:
        """Append a line to the log beside the state file."""
        with about(LOG), self._tree.undisturbed():
            fd = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644,
                         dir_fd=self._tree.root_fd)
            try:
                if self._tree.privileged:  # the log belongs to the user, as the tree does
                    root = os.fstat(self._tree.root_fd)
                    os.fchown(fd, root.st_uid, root.st_gid)
                os.write(fd, line.encode("utf-8", "backslashreplace") + b"\n")
            finally:
                os.close(fd)
