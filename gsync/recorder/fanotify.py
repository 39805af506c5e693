"""Hints from fanotify(7): one mark for the whole file system, no watch per directory. Root only, Linux 5.17.

Events identify inodes by their file handles, so a gfid is computed without asking the file system. Events of
directories outside the tree are dropped early.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import struct
import termios
from collections.abc import Iterator

from gsync.base.fsid import Inodes
from gsync.base.model import Gfid, Name
from gsync.recorder.detector import ChangeHint, Hint, Knows, NameHint, Overflow, RenameHint, Unavailable

_CLOEXEC, _NONBLOCK, _UNLIMITED_QUEUE = 0x1, 0x2, 0x10
_REPORT_DFID_NAME_TARGET = 0x200 | 0x400 | 0x800 | 0x1000
_MARK_ADD, _MARK_FILESYSTEM = 0x1, 0x100
_MODIFY, _ATTRIB, _CLOSE_WRITE, _CREATE, _DELETE = 0x2, 0x4, 0x8, 0x100, 0x200
_Q_OVERFLOW, _RENAME, _ONDIR = 0x4000, 0x10000000, 0x40000000
_MASK = _MODIFY | _ATTRIB | _CLOSE_WRITE | _CREATE | _DELETE | _RENAME | _ONDIR
_FID, _DFID_NAME, _DFID, _OLD_DFID_NAME, _NEW_DFID_NAME = 1, 2, 3, 10, 12

_EVENT = struct.Struct("=IBBHQii")     # event_len, vers, reserved, metadata_len, mask, fd, pid
_INFO = struct.Struct("=BBH8xI")       # info_type, pad, len, fsid, handle_bytes; then handle_type, the handle, a name
_READ = 1 << 18
_REMEMBERED = 100_000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]


class Fanotify:
    """Hints at everything that happens on the tree's file system, except this process's own events."""

    name = "fanotify"
    sees_all = True

    def __init__(self, root_fd: int, inodes: Inodes, knows: Knows, ignore_pid: int | None = None) -> None:
        if struct.unpack_from("=i", inodes.handles.root)[0] < 0:  # invented by fsid
            raise Unavailable("the file system has no file handles")
        self._inodes = inodes
        self._knows = knows
        self._ignore_pid = ignore_pid
        self._fd = _init()
        if _libc.fanotify_mark(self._fd, _MARK_ADD | _MARK_FILESYSTEM, _MASK, root_fd, None) != 0:
            err = ctypes.get_errno()
            os.close(self._fd)
            raise Unavailable(f"fanotify_mark: {os.strerror(err)}")
        self._gfids: dict[bytes, Gfid] = {}       # directories of the tree, by handle
        self._foreign: set[bytes] = set()         # directories outside the tree
        self._linked: set[bytes] | None = set()   # inodes of the tree that gained or lost a name; None: too many

    def fileno(self) -> int:
        return self._fd

    def watch(self, gfid: Gfid, handle: bytes, fd: int) -> None:
        self._foreign.discard(handle)

    def unwatch(self, gfid: Gfid) -> None:
        self._gfids.clear()

    def close(self) -> None:
        os.close(self._fd)

    def read(self) -> Iterator[Hint]:
        queued = array.array("i", [0])
        fcntl.ioctl(self._fd, termios.FIONREAD, queued)
        left = queued[0] // _EVENT.size
        while left > 0:
            hints: list[Hint] = []
            try:
                left -= self._parse(os.read(self._fd, _READ), hints)
            except BlockingIOError:
                break
            yield from hints

    def _parse(self, buf: bytes, hints: list[Hint]) -> int:
        """Add the hints of the events in buf; return the number of events."""
        at = count = 0
        end = len(buf)
        while at < end:
            size, _, _, head, mask, _, pid = _EVENT.unpack_from(buf, at)
            count += 1
            if mask & _Q_OVERFLOW:
                hints.append(Overflow())
            elif pid != self._ignore_pid:
                infos: dict[int, tuple[bytes, bytes]] = {}
                info, stop = at + head, at + size
                while info < stop:
                    kind, _, length, handle_size = _INFO.unpack_from(buf, info)
                    name_at = info + 20 + handle_size
                    infos[kind] = (buf[info + 16:name_at], buf[name_at:info + length])
                    info += length
                self._hint(mask, infos, hints)
            at += size
        return count

    def _hint(self, mask: int, infos: dict[int, tuple[bytes, bytes]], hints: list[Hint]) -> None:
        is_dir = bool(mask & _ONDIR)
        target = infos[_FID][0] if _FID in infos else None
        if mask & _RENAME:
            old, new = self._name(infos[_OLD_DFID_NAME]), self._name(infos[_NEW_DFID_NAME])
            if old and new:
                hints.append(RenameHint(old, new, self._inodes.gfid(target) if target else None, is_dir))
            elif old:
                hints.append(NameHint(old, False, is_dir))
            elif new:
                hints.append(NameHint(new, True, is_dir))
            return
        place = infos.get(_DFID_NAME) or infos.get(_DFID)
        parent = self._directory(place[0]) if place else None
        if mask & (_CREATE | _DELETE) and place and parent:
            hints.append(NameHint((parent, _bname(place[1])), bool(mask & _CREATE), is_dir))
        if mask & (_MODIFY | _CLOSE_WRITE | _ATTRIB):
            handle = target or (place[0] if place else None)
            if handle and (parent or self._is_ours(handle, place is None, bool(mask & _CREATE))):
                gfid = self._inodes.gfid(handle)
                if mask & (_MODIFY | _CLOSE_WRITE):
                    hints.append(ChangeHint(gfid, None, True))
                if mask & _ATTRIB:
                    hints.append(ChangeHint(gfid, None, False))

    def _name(self, place: tuple[bytes, bytes]) -> Name | None:
        parent = self._directory(place[0])
        return (parent, _bname(place[1])) if parent else None

    def _directory(self, handle: bytes) -> Gfid | None:
        """The gfid of a directory of the tree; None for other directories."""
        gfid = self._gfids.get(handle)
        if gfid is None and handle not in self._foreign:
            gfid = self._inodes.gfid(handle)
            known = self._knows(gfid)
            if known is None:
                return gfid
            if known:
                if len(self._gfids) >= _REMEMBERED:
                    self._gfids.clear()
                self._gfids[handle] = gfid
                return gfid
            if len(self._foreign) >= _REMEMBERED:
                self._foreign.clear()
            self._foreign.add(handle)
            return None
        return gfid

    def _is_ours(self, handle: bytes, homeless: bool, created: bool) -> bool:
        """Whether an inode of the tree changed in a foreign directory, or (homeless) at an unknown place: it has a link
        there, or was opened there before it came.

        Many inodes are created in foreign directories. Of those, only inodes that were seen to gain a name, which the
        kernel reports without a place, are looked up.
        """
        if created and not homeless and self._linked is not None:
            return handle in self._linked
        known = self._knows(self._inodes.gfid(handle)) is not False
        if known and homeless and self._linked is not None:
            self._linked.add(handle)
            if len(self._linked) > _REMEMBERED:
                self._linked = None
        return known


def _bname(name: bytes) -> bytes:
    return name.split(b"\0", 1)[0]


def _init() -> int:
    flags = _CLOEXEC | _NONBLOCK | _REPORT_DFID_NAME_TARGET
    for more in (_UNLIMITED_QUEUE, 0):
        fd = _libc.fanotify_init(flags | more, os.O_RDONLY | os.O_CLOEXEC)
        if fd >= 0:
            return int(fd)
        if ctypes.get_errno() != errno.EPERM:
            break
    raise Unavailable(f"fanotify_init: {os.strerror(ctypes.get_errno())}")
