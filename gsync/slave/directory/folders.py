"""gsync's own folders in a slave directory: ROOT/.gsync, its limbo, trash and passes; and how directories are opened.

Standard library only, Python 3.9.
"""

from __future__ import annotations

import os
from contextlib import suppress

from gsync.base.model import STATE_DIR

OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
LIMBO_FOLDERS = (b"new", b"old", b"link", b"del")


def place_of(fd: int) -> bytes:
    """A path to a descriptor's inode, O_PATH descriptors included, for calls that need a path."""
    return b"/proc/self/fd/%d" % fd


def make_state(root_fd: int) -> int:
    """Make ROOT/.gsync and its folders where they are missing; return a descriptor of .gsync.

    They are private and inherit nothing: no default ACL or setgid bit of ROOT reaches files made in limbo.
    """
    with suppress(FileExistsError):
        os.mkdir(STATE_DIR, 0o700, dir_fd=root_fd)
    state = os.open(STATE_DIR, OPEN_DIR, dir_fd=root_fd)
    _make_private(state)
    for folder in (b"limbo", b"trash", b"passes"):
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700, dir_fd=state)
    limbo = os.open(b"limbo", OPEN_DIR, dir_fd=state)
    _make_private(limbo)
    for folder in LIMBO_FOLDERS:
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700, dir_fd=limbo)
    os.close(limbo)
    return state


def open_state(root: bytes) -> int:
    """A descriptor of ROOT/.gsync."""
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return os.open(STATE_DIR, OPEN_DIR, dir_fd=root_fd)
    finally:
        os.close(root_fd)


def _make_private(fd: int) -> None:
    for acl in ("system.posix_acl_default", "system.posix_acl_access"):
        with suppress(OSError):
            os.removexattr(fd, acl)
    os.chmod(fd, 0o700)
