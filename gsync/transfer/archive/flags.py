"""The inode flags of chattr(1) that freeze a tree."""

from __future__ import annotations

import errno
import fcntl
import struct

_GETFLAGS, SETFLAGS = 0x80086601, 0x40086602  # FS_IOC_*FLAGS, linux/fs.h
IMMUTABLE, APPEND = 0x10, 0x20
_NO_FLAGS = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS, errno.EINVAL)


def flags_of(fd: int) -> int:
    """The inode's flags (chattr); 0 where the file system has none."""
    out = bytearray(8)
    try:
        fcntl.ioctl(fd, _GETFLAGS, out)
    except OSError as exc:
        if exc.errno in _NO_FLAGS:
            return 0
        raise
    return int(struct.unpack_from("=I", out)[0])


def set_immutable(fd: int, wanted: bool) -> bool:
    """Set or clear the immutable flag; return whether it is now as wanted."""
    flags = flags_of(fd)
    if bool(flags & IMMUTABLE) == wanted:
        return True
    try:
        fcntl.ioctl(fd, SETFLAGS, struct.pack("=q", flags ^ IMMUTABLE))
    except OSError as exc:
        if exc.errno in _NO_FLAGS:
            return False
        raise
    return True
