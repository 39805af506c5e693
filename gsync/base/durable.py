"""Replaces small files whole and creates directories, so that both survive a crash.

A reader sees the old contents or the new ones, never a mixture. The temporary file has an unpredictable name, is
created by this call (O_EXCL) and follows no symlink. A crash may leave one as `.NAME.….new`; nothing reads it.
Standard library only, Python 3.9.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Optional, Union

Path = Union[str, bytes]


def fsync_dir(path: Path, *, dir_fd: Optional[int] = None) -> None:  # noqa: UP045 - Python 3.9
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    """Make the contents of a file durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_dirs(path: Path, mode: int = 0o700) -> None:
    """Create a directory and its missing parents, durably; fine if it exists."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(os.path.abspath(path))
    make_dirs(parent, mode)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if os.path.isdir(path):  # somebody else was faster
            return
        raise
    fsync_dir(parent)


def replace_file(path: Path, data: bytes, mode: int = 0o600, *, durable: bool = True,
                 dir_fd: Optional[int] = None) -> None:  # noqa: UP045 - Python 3.9
    """Replace a file's contents in one step, with exactly this mode; creates a missing file.

    durable=False: after a crash of the host the file may be old or empty. For status that is soon replaced anyway.
    dir_fd: the path is relative to this directory.
    """
    path = os.fsencode(path)
    folder, name = os.path.split(path)
    new = os.path.join(folder, b".%s.%s.new" % (name, os.urandom(8).hex().encode()))
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=dir_fd)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            if mode != 0o600:
                os.fchmod(fd, mode)  # whatever the umask
            if durable:
                file.flush()
                os.fsync(fd)
        os.rename(new, path, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        with suppress(OSError):
            os.unlink(new, dir_fd=dir_fd)
        raise
    if durable:
        fsync_dir(folder or b".", dir_fd=dir_fd)
