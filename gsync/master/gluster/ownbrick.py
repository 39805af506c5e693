"""Asks a worker's own brick about names, at the brick's file system: that takes microseconds a name. The mount takes a
round trip to every brick of the set for each look.

A brick does not know what it has missed: that is marked on the other bricks of its set. So gsync believes it only while
GlusterFS has just reported that nothing waits to be healed in the set, and then only where its word is the volume's:

- a regular file under a name, with its gfid. Not a directory (every subvolume has a copy of it), and no file with the
  sticky bit, which marks files that only point to another subvolume, or are on their way to one.
- that a name does not exist, if the set is the whole volume.
- that a file has no extended attributes set by users.

Everything else is for the mount. Sizes and times of fragments and arbiters mean nothing: they are only hints.
"""

from __future__ import annotations

import errno
import os
import stat
import threading

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.errors import UsageError
from gsync.base.log import get_logger
from gsync.base.model import Gfid, gfid_str
from gsync.master.gluster.info import nothing_to_heal
from gsync.state.gluster import GlusterInfo

_log = get_logger(__name__)

ENOUGH = 100           # this many looks cost more than asking GlusterFS whether the brick may be believed
_BELIEVED = 20.0       # seconds for which it is believed before GlusterFS is asked again
_DISAPPOINTED = 10.0   # seconds after a no before GlusterFS is asked again
_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class OwnBrick:
    """root: of the brick; number: its position in the volume. Any thread may call."""

    def __init__(self, root: bytes, info: GlusterInfo, number: int, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self.handles = os.path.join(root, b".glusterfs")
        self._info, self._subvolume = info, info.bricks[number].subvolume
        self.alone = info.subvolumes == 1   # a name missing on it is missing in the volume
        self._lock = threading.Lock()
        self._looks = 0
        self._believed = False
        self._asked = -_BELIEVED            # monotonic

    def handle(self, gfid: Gfid) -> bytes:
        """The brick's own link to an inode."""
        text = gfid_str(gfid).encode()
        return b"%s/%s/%s/%s" % (self.handles, text[:2], text[2:4], text)

    def believed(self, looks: int) -> bool:
        """Whether the brick may be asked now, with this many looks at hand; 0: as of the last check."""
        with self._lock:
            self._looks += looks
            age = self._clock.monotonic() - self._asked
            if not looks or age < (_BELIEVED if self._believed else _DISAPPOINTED):
                return self._believed and age < _BELIEVED
            if self._looks < ENOUGH:
                return False
            self._looks = 0
            self._believed = not self._info.redundant or self._healed()
            self._asked = self._clock.monotonic()
            return self._believed

    def _healed(self) -> bool:
        try:
            return nothing_to_heal(self._info, self._subvolume)
        except UsageError as exc:
            _log.info("whether bricks have to be healed cannot be told now, all is looked up through the mount",
                      error=exc)
            return False

    def open_dir(self, gfid: Gfid) -> int | None:
        """A descriptor of a directory on the brick."""
        try:  # a directory's handle is a symlink that leads to it
            fd = os.open(self.handle(gfid) + b"/.", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        if gfid_of(b"/proc/self/fd/%d" % fd) == gfid:
            return fd
        os.close(fd)
        return None

    def file_at(self, dirfd: int, bname: bytes) -> tuple[Gfid, os.stat_result] | None:
        """The regular file under this name, if the brick can tell. FileNotFoundError: the name is free."""
        try:
            fd = os.open(bname, _PLACE, dir_fd=dirfd)
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                raise
            return None
        try:
            st = os.fstat(fd)
            if not _speaks_for_itself(st):
                return None
            gfid = gfid_of(b"/proc/self/fd/%d" % fd)
            return (gfid, st) if gfid else None
        finally:
            os.close(fd)

    def xattrs_of(self, gfid: Gfid) -> list[str] | None:
        """The names of all extended attributes of a regular file, GlusterFS's own included; None if the brick cannot
        tell."""
        handle = self.handle(gfid)
        try:
            if not _speaks_for_itself(os.lstat(handle)):
                return None
            return os.listxattr(handle, follow_symlinks=False)
        except OSError:
            return None


def _speaks_for_itself(st: os.stat_result) -> bool:
    return stat.S_ISREG(st.st_mode) and not st.st_mode & stat.S_ISVTX and st.st_nlink > 1  # one link is the handle


def gfid_of(place: bytes) -> Gfid:
    """The gfid of a brick's inode; b"" if it has none."""
    try:
        return os.getxattr(place, "trusted.gfid")
    except OSError:
        return b""
