"""The last steps of a unit on this host's disks: permissions, the move in one step, the exchange, removal.

Promise: at its place a unit is whole or absent, also after a kill or a power cut: all of it is on the disk before the
one rename that shows it. Only `exchange` replaces anything that exists. Modes are set, never toggled: a repetition
changes nothing.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from gsync.base.durable import fsync_dir, make_dirs
from gsync.base.model import shown
from gsync.transfer.delivery.checksums import PIECE, walk
from gsync.transfer.delivery.units import OURS

INCOMING = OURS + b"incoming"  # in a destination: new units are made here, out of its users' way
DIR_MODE, FILE_MODE, SEALED_DIR_MODE = 0o2750, 0o440, 0o2550
_AT_FDCWD = -100
NOREPLACE, EXCHANGE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


def lock(folder: bytes) -> None:
    """Set the modes of a delivered unit: files 0440, directories 2750."""
    _set_modes(folder, DIR_MODE, FILE_MODE)


def seal(folder: bytes) -> None:
    """Set the modes of a backed-up unit: directories 2550."""
    _set_modes(folder, SEALED_DIR_MODE, FILE_MODE)


def _set_modes(folder: bytes, dirs: int, files: int) -> None:
    _chmod(folder, dirs)
    for name, mode in walk(folder):
        _chmod(os.path.join(folder, name), dirs if stat.S_ISDIR(mode) else files)


def _chmod(path: bytes, mode: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
            os.fchmod(fd, mode)
    finally:
        os.close(fd)


def open_up(folder: bytes) -> None:
    """Make the directories writable for their owner, before something in them is changed or removed."""
    with suppress(FileNotFoundError):
        os.chmod(folder, 0o700)
        for name, mode in walk(folder):
            if stat.S_ISDIR(mode) and mode & 0o700 != 0o700:
                os.chmod(os.path.join(folder, name), 0o700)


def sync(folder: bytes) -> None:
    """Flush everything in the folder to the disk: contents, attributes, names."""
    for name, mode in walk(folder):
        path = os.path.join(folder, name)
        if stat.S_ISREG(mode):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        elif stat.S_ISDIR(mode):
            fsync_dir(path)
    fsync_dir(folder)


def mark_of(folder: bytes) -> str:
    """Identify a directory across renames: "device:inode"; "" if there is none."""
    try:
        st = os.lstat(folder)
    except FileNotFoundError:
        return ""
    return f"{st.st_dev:x}:{st.st_ino:x}" if stat.S_ISDIR(st.st_mode) else ""


def exists(path: bytes) -> bool:
    """Whether anything is at the path. OSError if that cannot be told."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def incoming(root: bytes, path: bytes) -> bytes:
    """Where a unit is made in a destination before it is shown."""
    return os.path.join(root, INCOMING, hashlib.sha256(path).hexdigest()[:32].encode())


def move(source: bytes, root: bytes, path: bytes, about_to: Callable[[str], None],
         digests: Mapping[bytes, str] | None = None) -> None:
    """Move a directory to root/path by one rename. FileExistsError if something is there.

    Right before the rename, about_to gets the mark that the directory will have there, so that after a kill in between
    one can tell whether the rename happened. Across file systems the directory is first copied and flushed to the disk;
    digests: expected of the copied files. Afterwards the source is gone.
    """
    target = os.path.join(root, path)
    make_dirs(os.path.dirname(target), 0o755)
    if exists(target):
        raise FileExistsError(errno.EEXIST, "already exists", target)
    sync(source)
    try:
        about_to(mark_of(source))
        rename_new(source, target)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
    else:
        fsync_dir(os.path.dirname(target))
        fsync_dir(os.path.dirname(source))
        return
    made = incoming(root, path)
    remove(made)
    make_dirs(os.path.dirname(made))
    copy(source, made, digests)
    sync(made)
    about_to(mark_of(made))
    rename_new(made, target)
    fsync_dir(os.path.dirname(target))
    remove(source)
    tidy(root)


def copy(source: bytes, target: bytes, digests: Mapping[bytes, str] | None = None) -> None:
    """Copy a directory of files and directories, with modes and times. OSError EBADMSG if a copied file has another
    digest."""
    os.mkdir(target, 0o700)
    dirs = [b""]
    for name, mode in walk(source):
        if stat.S_ISDIR(mode):
            os.mkdir(os.path.join(target, name), 0o700)
            dirs.append(name)
        else:
            copy_file(os.path.join(source, name), os.path.join(target, name), (digests or {}).get(name))
    for name in reversed(dirs):
        st = os.stat(os.path.join(source, name))
        os.chmod(os.path.join(target, name), stat.S_IMODE(st.st_mode))
        os.utime(os.path.join(target, name), ns=(st.st_atime_ns, st.st_mtime_ns))


def copy_file(source: bytes, target: bytes, digest: str | None = None) -> None:
    """Copy one file to a new name, with mode and time."""
    computed = hashlib.sha256()
    with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0) as old, \
            open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as new:
        while piece := old.read(PIECE):
            computed.update(piece)
            new.write(piece)
        new.flush()
        st = os.fstat(old.fileno())
        os.fchmod(new.fileno(), stat.S_IMODE(st.st_mode))
        os.utime(new.fileno(), ns=(st.st_atime_ns, st.st_mtime_ns))
        os.fsync(new.fileno())
    if digest is not None and computed.hexdigest() != digest:
        raise OSError(errno.EBADMSG, f"the copy differs from the verified file {shown(source)}", target)


def exchange(new: bytes, old: bytes) -> None:
    """Swap `new` and `old`, in one step where the file system can; elsewhere by renames, with `old` aside for a moment
    (see `mend`). Both must be on one file system."""
    sync(new)
    if renameat2(new, old, EXCHANGE) != 0:
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(number, os.strerror(number), new)
        aside = new + b".old"
        remove(aside)
        os.rename(old, aside)
        os.rename(new, old)
        os.rename(aside, new)
    fsync_dir(os.path.dirname(old))
    fsync_dir(os.path.dirname(new))


def mend(new: bytes, old: bytes) -> None:
    """Restore `old` after a kill in the middle of an exchange by renames."""
    aside = new + b".old"
    if exists(aside) and not exists(old):
        os.rename(aside, old)
    remove(aside)


def remove(folder: bytes) -> None:
    """Remove a directory tree, whatever its permissions; fine if it is missing."""
    open_up(folder)
    if exists(folder):
        shutil.rmtree(folder)


def tidy(root: bytes) -> None:
    """Remove the folder for incoming units, if it is empty."""
    with suppress(OSError):
        os.rmdir(os.path.join(root, INCOMING))


def prune(root: bytes, path: bytes) -> None:
    """Remove the empty directories above root/path, below root."""
    for above in _above(path):
        try:
            os.rmdir(os.path.join(root, above))
        except OSError:
            return


def _above(path: bytes) -> Iterator[bytes]:
    while path := os.path.dirname(path):
        yield path


def rename_new(old: bytes, new: bytes) -> None:
    """Rename a directory to a free name. FileExistsError if something is there."""
    if renameat2(old, new, NOREPLACE) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # the file system lacks it: check first
        if exists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
        os.rename(old, new)
        return
    raise OSError(number, os.strerror(number), old, None, new)


def renameat2(old: bytes, new: bytes, flags: int) -> int:
    """renameat2(2): -1 on an error, also where the file system lacks it; ctypes keeps the errno."""
    return int(_libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, flags))
