"""Files that survive a crash: directories made durable, small files replaced whole."""

from __future__ import annotations

import os


def fsync_dir(path: bytes) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_dirs(path: bytes, mode: int = 0o700) -> None:
    """Make a directory and those above it that are missing, durably; fine if it is there."""
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


def replace_file(path: bytes, data: bytes, mode: int = 0o600) -> None:
    """Give a file new contents, durably and in one step: a reader sees the old or the new, also after a crash."""
    new = path + b".new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    os.rename(new, path)
    fsync_dir(os.path.dirname(os.path.abspath(path)))
