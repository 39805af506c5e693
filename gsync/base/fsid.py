"""Who an inode is: file handles, gfids, and opening without leaving a tree.

A *handle* is what name_to_handle_at(2) gives (4 bytes of type, native order, then the handle), or, on a file
system without handles, a made-up one of inode number and birth time (type -1). An inode number that is used again
has another handle. A gfid is 4 bytes of volume tag and 12 bytes of BLAKE2b of the handle, so any process can
compute it from the inode alone. Where numbers of inodes are made up and forgotten (FAT), nothing tells an inode over
time: the handle is its kind alone (type -3), and there are no gfids. Linux only; standard library only (ctypes);
Python 3.9.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
import struct
import threading
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

from gsync.base.model import ROOT_GFID, Gfid

AT_EMPTY_PATH = 0x1000
_MAX_HANDLE = 128
_NO_HANDLES = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EOVERFLOW)

# PyDLL keeps the interpreter lock: these calls take a microsecond, handing the lock over takes more.
_libc = ctypes.PyDLL(None, use_errno=True)
# No argtypes: converting by them takes longer than the call. So: ints that fit an int, bytes, references made before.
_name_to_handle_at = _libc.name_to_handle_at
_open_by_handle_at = _libc.open_by_handle_at
_fstatfs = _libc.fstatfs
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

_SYS_OPENAT2 = 437  # the same on every architecture: it came after the numbers were unified
_SYS_STATX = {"x86_64": 332, "aarch64": 291, "riscv64": 291, "ppc64le": 383, "s390x": 379}.get(platform.machine(), 0)
_RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x04, 0x08
_BIRTH_TYPE, _KIND_TYPE = -1, -3
_STATX_BTIME = 0x800
_STATX_ATTR_MOUNT_ROOT = 0x2000
# Numbers that last as long as the inode is cached, whatever is said of handles and birth times (linux/magic.h): FAT,
# exFAT, and FUSE, where some programs number as they go and begin again with each mount (libfuse does).
_MAKES_UP_NUMBERS = (0x4D44, 0x2011BAB0, 0x65735546)
# The kernel may find no memory, or not find an inode, while directories around it are renamed: tries after the first.
_OPEN_TRIES = {errno.ESTALE: 1, errno.ENOMEM: 1000}
_MOUNT_PREFIX = struct.pack("=i", -2)


class _Buffers(threading.local):
    """struct file_handle {u32 bytes; int type; u8 handle[]} and a mount id, one pair per thread; and where there are no
    handles, whether what statx saw is the root of a mount."""

    def __init__(self) -> None:
        self.raw = bytearray(8 + _MAX_HANDLE)
        self.handle = ctypes.byref((ctypes.c_char * len(self.raw)).from_buffer(self.raw))
        self.mount_id = ctypes.c_int()
        self.mount = ctypes.byref(self.mount_id)
        self.mount_root = False


_buffers = _Buffers()
_SIZE = struct.pack("=I", _MAX_HANDLE)


def _error(name: bytes | None = None) -> OSError:
    """Why the call just made failed, on what."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), name)


def _handle_at(dirfd: int, name: bytes, flags: int) -> bytes:
    raw = _buffers.raw
    raw[0:4] = _SIZE
    if _name_to_handle_at(dirfd, name, _buffers.handle, _buffers.mount, flags):
        raise _error(name)
    return bytes(raw[4:8 + raw[0]])


def _statx(dirfd: int, name: bytes, flags: int) -> bytes:
    """struct statx (linux/stat.h) with inode number and birth time."""
    out = ctypes.create_string_buffer(256)
    if _syscall(_SYS_STATX, dirfd, name, 0x100 | flags, 0x100 | _STATX_BTIME, out) != 0:  # AT_SYMLINK_NOFOLLOW; INO
        raise _error(name)
    return out.raw


def _birth_handle_at(dirfd: int, name: bytes, flags: int) -> bytes:
    """For file systems without handles: inode number and birth time."""
    found = _statx(dirfd, name, flags)
    _buffers.mount_root = bool(struct.unpack_from("=Q", found, 8)[0] & _STATX_ATTR_MOUNT_ROOT)
    ino = struct.unpack_from("=Q", found, 32)[0]
    sec, nsec = struct.unpack_from("=qI", found, 80)
    return struct.pack("=iQqI", _BIRTH_TYPE, ino, sec, nsec)


def _kind_handle_at(dirfd: int, name: bytes, flags: int) -> bytes:
    """For file systems on which an inode is known by its name alone."""
    st = os.stat(name, dir_fd=dirfd, follow_symlinks=False) if name else os.fstat(dirfd)
    return struct.pack("=iI", _KIND_TYPE, stat.S_IFMT(st.st_mode))


def _makes_up_numbers(fd: int) -> bool:
    out = ctypes.create_string_buffer(256)
    if _fstatfs(fd, out) != 0:
        raise _error()
    return struct.unpack_from("=I", out, 0)[0] in _MAKES_UP_NUMBERS


def gfid_of(tag: bytes, handle: bytes) -> Gfid:
    """The gfid of the inode with this handle in the volume with this 4-byte tag."""
    return tag + blake2b(handle, digest_size=12).digest()


def _way(root_fd: int) -> Callable[[int, bytes, int], bytes]:
    """How handles come about on the file system of root_fd."""
    if _makes_up_numbers(root_fd):
        return _kind_handle_at
    try:
        _handle_at(root_fd, b"", AT_EMPTY_PATH)
        return _handle_at
    except OSError as exc:
        if exc.errno not in _NO_HANDLES:
            raise
    has_birth_times = struct.unpack_from("=I", _statx(root_fd, b"", AT_EMPTY_PATH))[0] & _STATX_BTIME
    return _birth_handle_at if has_birth_times else _kind_handle_at


class Handles:
    """Handles of the inodes of one file system, the one that root_fd lies on.

    `lasting` tells whether a handle tells its inode from all others, at any time; else equal handles say no more than
    that the kind is the same. `real`: the file system has handles; `by_handle`: `open` works here too
    (CAP_DAC_READ_SEARCH).
    """

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self.dev = os.fstat(root_fd).st_dev
        self._at = _way(root_fd)
        self.root = self._at(root_fd, b"", AT_EMPTY_PATH)
        self.lasting = self._at is not _kind_handle_at
        self.real = self._at is _handle_at
        self._mount = _buffers.mount_id.value
        self.by_handle = False
        if self.real:
            try:
                os.close(self.open(self.root, os.O_RDONLY | os.O_DIRECTORY))
                self.by_handle = True
            except OSError:
                pass

    def at(self, dirfd: int, name: bytes) -> bytes:
        """Handle of the inode at a name; a symlink's own. OSError like lstat(2)."""
        return self._at(dirfd, name, 0)

    def of_fd(self, fd: int) -> bytes:
        """Handle of the open inode (O_PATH descriptors too)."""
        return self._at(fd, b"", AT_EMPTY_PATH)

    def is_mounted(self) -> bool:
        """Whether something is mounted at the name that this thread has just asked for with `at` (rule 46); st_dev does
        not tell of another part of the same file system."""
        return _buffers.mount_id.value != self._mount if self.real else _buffers.mount_root

    def open(self, handle: bytes, flags: int) -> int:
        """A new descriptor of the inode; OSError: ESTALE if it is gone, EPERM without the privilege."""
        raw = struct.pack("=I", len(handle) - 4) + handle
        tries: dict[int, int] = {}
        while (fd := _open_by_handle_at(self._root_fd, raw, flags | os.O_CLOEXEC)) < 0:
            err = ctypes.get_errno()
            tries[err] = tries.get(err, 0) + 1
            if tries[err] > _OPEN_TRIES.get(err, 0):
                raise OSError(err, os.strerror(err), handle.hex())
            if err == errno.ENOMEM:
                time.sleep(0.001)
        return int(fd)


class Seen(NamedTuple):
    """What is at a name now."""

    gfid: Gfid
    handle: bytes
    st: os.stat_result


class Inodes:
    """Looks at the names of one tree and says who is there: the one rule that recorder and worker share. Only where
    handles are lasting."""

    def __init__(self, root_fd: int, tag: bytes) -> None:
        self.handles = Handles(root_fd)
        assert self.handles.lasting
        self._tag = tag
        self.dev = self.handles.dev

    def gfid(self, handle: bytes) -> Gfid:
        return ROOT_GFID if handle == self.handles.root else gfid_of(self._tag, handle)

    def look(self, dirfd: int, pargfid: Gfid, bname: bytes) -> Seen | None:
        """The inode at (pargfid, bname), dirfd being pargfid's descriptor; None if there is none.

        A mount point is not crossed: it is a directory of its own identity, made of its name.
        OSError other than ENOENT and ENOTDIR is the caller's.
        """
        while True:
            try:
                handle = self.handles.at(dirfd, bname)
                mounted = self.handles.is_mounted()
                st = os.stat(bname, dir_fd=dirfd, follow_symlinks=False)
                if mounted or st.st_dev != self.dev:
                    handle = _MOUNT_PREFIX + pargfid + bname
                elif not stat.S_ISREG(st.st_mode) and self.handles.at(dirfd, bname) != handle:
                    continue  # replaced between the two looks; for a regular file its descriptor tells later
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as exc:
                # A name on another file system may have no handle there (/proc, some FUSE): a mount point.
                if exc.errno not in _NO_HANDLES:
                    raise
                st = os.stat(bname, dir_fd=dirfd, follow_symlinks=False)
                if st.st_dev == self.dev:
                    raise
                handle = _MOUNT_PREFIX + pargfid + bname
            return Seen(self.gfid(handle), handle, st)


def is_mount_handle(handle: bytes) -> bool:
    """Whether Inodes.look made this handle for a mount point: there is nothing of ours below it."""
    return handle[:4] == _MOUNT_PREFIX and len(handle) > 20


_openat2_missing = False


def open_beneath(dirfd: int, path: bytes, flags: int, mode: int = 0) -> int:
    """Open a relative path below dirfd without following any symlink or leaving dirfd.

    One openat2(2) where the kernel has it, else one openat per part. Paths of any length: parts are taken
    in pieces shorter than PATH_MAX. OSError: ELOOP for a symlink, EXDEV for an escape, else as open(2).
    """
    global _openat2_missing
    parts = path.split(b"/")
    if b".." in parts:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    if not _openat2_missing:
        fd = dirfd
        try:
            while len(path) > 4000:
                cut = path.rindex(b"/", 0, 4000)
                nxt = _openat2(fd, path[:cut], os.O_PATH | os.O_DIRECTORY, 0)
                if fd != dirfd:
                    os.close(fd)
                fd, path = nxt, path[cut + 1:]
            return _openat2(fd, path, flags, mode)
        except OSError as exc:
            if exc.errno not in (errno.ENOSYS, errno.EPERM):
                raise
            if exc.errno == errno.EPERM and flags & (os.O_NOATIME | os.O_WRONLY | os.O_RDWR):
                raise
            _openat2_missing = True
        finally:
            if fd != dirfd:
                os.close(fd)
    fd = dirfd
    try:
        for part in parts[:-1]:
            nxt = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            if fd != dirfd:
                os.close(fd)
            fd = nxt
        return os.open(parts[-1], flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=fd)
    finally:
        if fd != dirfd:
            os.close(fd)


def _openat2(dirfd: int, path: bytes, flags: int, mode: int) -> int:
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS)
    for _ in range(100):  # EAGAIN: a rename elsewhere on the host made the walk uncertain
        fd = _syscall(_SYS_OPENAT2, dirfd, path, how, len(how))
        if fd >= 0:
            return int(fd)
        err = ctypes.get_errno()
        if err != errno.EAGAIN:
            break
    raise OSError(err, os.strerror(err), path)


def whereabouts(path: bytes) -> tuple[str, list[tuple[int, int]]]:
    """Tells a directory from all others on this running kernel, by whichever way it was reached: the boot id ("" if it
    is not told), and (st_dev, st_ino) of the directory and of those above it, as far as they may be seen."""
    above: list[tuple[int, int]] = []
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot_id = file.read().strip()
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return "", above
    try:
        while True:
            st = os.fstat(fd)
            if (st.st_dev, st.st_ino) in above:  # the root is above itself
                break
            above.append((st.st_dev, st.st_ino))
            parent = os.open(b"..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = parent
    except OSError:
        pass
    finally:
        os.close(fd)
    return boot_id, above


def birth_time(fd: int) -> tuple[int, int] | None:
    """When the inode came to be, in seconds and ns since the epoch; None where the file system does not tell."""
    found = _statx(fd, b"", AT_EMPTY_PATH)
    if not struct.unpack_from("=I", found)[0] & _STATX_BTIME:
        return None
    sec, nsec = struct.unpack_from("=qI", found, 80)
    return sec, nsec


def syncfs(fd: int) -> None:
    """Make everything written to the file system of fd durable (syncfs(2)); OSError if a write-back failed."""
    lib = ctypes.CDLL(None, use_errno=True)  # may take seconds: other threads go on
    if lib.syncfs(fd) != 0:
        raise _error()
