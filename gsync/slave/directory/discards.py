"""limbo/del: entries wait there for deletion, which runs while the agent is idle.

Any depth, in little memory: the subdirectories of a directory are moved up into limbo/del before it is removed.
Standard library only, Python 3.9.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from gsync.slave.directory.folders import OPEN_DIR, place_of
from gsync.slave.directory.opendirs import OPEN_PLACE


class Discards:
    """fd: of limbo/del. privileged: with root's rights, so no mode has to be changed first."""

    def __init__(self, fd: int, *, privileged: bool) -> None:
        self._fd = fd
        self._privileged = privileged

    def discard(self, dirfd: int, bname: bytes) -> None:
        """Move the entry at a name into limbo/del, from where `sweep` deletes it."""
        inode = os.stat(bname, dir_fd=dirfd, follow_symlinks=False).st_ino
        n = 0
        while True:
            name = b"%d.%d" % (inode, n)
            try:
                os.stat(name, dir_fd=self._fd, follow_symlinks=False)
                n += 1
            except FileNotFoundError:
                break
        try:
            os.rename(bname, name, src_dir_fd=dirfd, dst_dir_fd=self._fd)
        except PermissionError:  # a directory that its owner may not write cannot be moved either
            if self._privileged or not make_usable(dirfd, bname):
                raise
            os.rename(bname, name, src_dir_fd=dirfd, dst_dir_fd=self._fd)

    def sweep(self, goes_on: Callable[[], bool] = lambda: True) -> bool:
        """Delete the entries while goes_on; True if nothing deletable is left."""
        stuck: set[bytes] = set()
        while True:
            moved = False
            with os.scandir(self._fd) as entries:
                for item in entries:
                    name = os.fsencode(item.name)
                    if name in stuck:
                        continue
                    if not goes_on():
                        return False
                    try:
                        if not self._delete(name, goes_on):
                            return False
                        moved = True
                    except OSError:
                        stuck.add(name)
            if not moved:
                return True

    def _delete(self, name: bytes, goes_on: Callable[[], bool]) -> bool:
        """Delete one entry of limbo/del; False if interrupted. OSError if it cannot be deleted."""
        try:
            os.unlink(name, dir_fd=self._fd)
            return True
        except FileNotFoundError:
            return True
        except (IsADirectoryError, PermissionError) as exc:  # EISDIR on Linux, EPERM in POSIX
            if not stat.S_ISDIR(os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mode):
                raise exc
        if not self._privileged:
            make_usable(self._fd, name)
        fd = os.open(name, OPEN_DIR, dir_fd=self._fd)
        try:
            emptied, problem = self._empty(fd, goes_on)
        finally:
            os.close(fd)
        if not emptied:
            return False
        try:
            os.rmdir(name, dir_fd=self._fd)
        except OSError as exc:
            raise problem or exc from exc
        return True

    def _empty(self, fd: int, goes_on: Callable[[], bool]) -> tuple[bool, OSError | None]:
        """Empty a directory as far as possible: False if interrupted, and the last error."""
        problem: OSError | None = None
        while True:
            found = False
            with os.scandir(fd) as entries:
                for item in entries:
                    inner = os.fsencode(item.name)
                    if not goes_on():
                        return False, problem
                    try:
                        if item.is_dir(follow_symlinks=False):
                            self.discard(fd, inner)
                        else:
                            os.unlink(inner, dir_fd=fd)
                        found = True
                    except FileNotFoundError:
                        pass
                    except OSError as exc:
                        problem = exc
            if not found:
                return True, problem


def make_usable(dirfd: int, bname: bytes) -> bool:
    """Give the owner of the directory at this name all rights; False if it is not a directory, or not ours."""
    fd = os.open(bname, OPEN_PLACE, dir_fd=dirfd)
    try:
        st = os.fstat(fd)
        if not stat.S_ISDIR(st.st_mode) or st.st_uid != os.geteuid() or st.st_mode & 0o700 == 0o700:
            return False
        os.chmod(place_of(fd), stat.S_IMODE(st.st_mode) | 0o700)
        return True
    finally:
        os.close(fd)
