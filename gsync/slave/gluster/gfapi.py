"""A volume through libgfapi: GlusterFS's client inside this process, by handles (glusterfs/api/glfs-handles.h).

The client identifies itself so that it may write to a volume that is read-only to others (gclient). Python's ctypes
releases the interpreter lock during a call, so other threads keep running. Standard library only, Python 3.9. Not here:
the client graph (volfile).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import platform
import stat
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gsync.base.errors import Transient
from gsync.base.fate import SLAVE_GLUSTER
from gsync.base.glusterfs import CLIENT_PID
from gsync.base.model import NS, ROOT_GFID, Gfid
from gsync.slave.gluster.syncpoints import Storage
from gsync.slave.gluster.volfile import VolumeSite
from gsync.slave.gluster.volume import (
    GFID2PATH,
    NEWFILE,
    File,
    Node,
    Space,
    is_internal,
    is_its_name,
    newfile_blob,
    raised,
)

_LOG = "/var/log/glusterfs"
_LOG_WARNINGS = 5         # GF_LOG_WARNING
_OBJECTS = 1000           # cached handles
_XATTR = 64 << 10
_NAMES = 256 << 10
_MODE, _UID, _GID, _ATIME, _MTIME = 0x1, 0x2, 0x4, 0x10, 0x20  # GFAPI_SET_ATTR_*
_XREADDIRP_STAT, _XREADDIRP_HANDLE = 0x1, 0x2


class _Time(ctypes.Structure):
    _fields_ = [("s", ctypes.c_int64), ("ns", ctypes.c_int64)]


class _Stat64(ctypes.Structure):
    """struct stat of x86_64."""

    _fields_ = [("dev", ctypes.c_uint64), ("ino", ctypes.c_uint64), ("nlink", ctypes.c_uint64),
                ("mode", ctypes.c_uint32), ("uid", ctypes.c_uint32), ("gid", ctypes.c_uint32),
                ("pad", ctypes.c_uint32), ("rdev", ctypes.c_uint64), ("size", ctypes.c_int64),
                ("blksize", ctypes.c_int64), ("blocks", ctypes.c_int64), ("atime", _Time), ("mtime", _Time),
                ("ctime", _Time), ("more", ctypes.c_int64 * 3)]


class _StatGeneric(ctypes.Structure):
    """struct stat of aarch64 and riscv64."""

    _fields_ = [("dev", ctypes.c_uint64), ("ino", ctypes.c_uint64), ("mode", ctypes.c_uint32),
                ("nlink", ctypes.c_uint32), ("uid", ctypes.c_uint32), ("gid", ctypes.c_uint32),
                ("rdev", ctypes.c_uint64), ("pad", ctypes.c_uint64), ("size", ctypes.c_int64),
                ("blksize", ctypes.c_int32), ("pad2", ctypes.c_int32), ("blocks", ctypes.c_int64), ("atime", _Time),
                ("mtime", _Time), ("ctime", _Time), ("more", ctypes.c_uint32 * 2)]


_STATS: dict[str, Any] = {"x86_64": _Stat64, "aarch64": _StatGeneric, "riscv64": _StatGeneric}


class _Statvfs(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulong) for name in (
        "bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "fsid", "flag", "namemax")]
    _fields_ += [("spare", ctypes.c_int * 6)]


_P, _I, _S, _T, _Z, _O = (ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_ssize_t, ctypes.c_size_t,
                          ctypes.c_int64)
_CALLS: dict[str, tuple[Any, ...]] = {  # result, then arguments; later versions of a call only append arguments
    "new": (_P, _S), "set_volfile": (_I, _P, _S), "set_logging": (_I, _P, _S, _I), "init": (_I, _P), "fini": (_I, _P),
    "setfspid": (_I, _P, _I), "free": (None, _P),
    "h_create_from_handle": (_P, _P, _S, _I, _P), "h_lookupat": (_P, _P, _P, _S, _P, _I), "h_close": (_I, _P),
    "h_extract_handle": (_T, _P, _P, _I), "h_setxattrs": (_I, _P, _P, _S, _S, _Z, _I),
    "h_getxattrs": (_I, _P, _P, _S, _P, _Z), "h_removexattrs": (_I, _P, _P, _S), "h_setattrs": (_I, _P, _P, _P, _I),
    "h_rename": (_I, _P, _P, _S, _P, _S), "h_link": (_I, _P, _P, _P, _S), "h_unlink": (_I, _P, _P, _S),
    "h_readlink": (_I, _P, _P, _P, _Z), "h_open": (_P, _P, _P, _I), "h_opendir": (_P, _P, _P),
    "h_statfs": (_I, _P, _P, _P), "close": (_I, _P), "closedir": (_I, _P), "fsync": (_I, _P, _P, _P),
    "h_anonymous_read": (_T, _P, _P, _P, _Z, _O), "h_anonymous_write": (_T, _P, _P, _P, _Z, _O),
    "ftruncate": (_I, _P, _O, _P, _P), "pwrite": (_T, _P, _P, _Z, _O, _I, _P, _P),
    "pread": (_T, _P, _P, _Z, _O, _I, _P),
    "xreaddirplus_r": (_I, _P, ctypes.c_uint32, _P, _P, _P), "xreaddirplus_get_stat": (_P, _P),
    "xreaddirplus_get_object": (_P, _P),
}


class _Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("reclen", ctypes.c_uint16),
                ("type", ctypes.c_uint8), ("name", ctypes.c_char * 256)]


class _Library:
    """The functions of libgfapi."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, (result, *arguments) in _CALLS.items():
            function = getattr(library, f"glfs_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def library() -> _Library | None:
    """libgfapi, if this host has a usable one."""
    if platform.machine() not in _STATS or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    try:
        return _Library(ctypes.CDLL(ctypes.util.find_library("gfapi") or "libgfapi.so.0", use_errno=True))
    except (OSError, AttributeError):
        return None


def _fail(what: str) -> Exception:
    return raised(ctypes.get_errno() or errno.EIO, what)


class GfapiVolume:
    """A GlusterVolume. Only the thread that made it may use it."""

    def __init__(self, site: VolumeSite, lib: _Library, lasting: bool = True) -> None:
        self.name, self.id = site.name, site.id
        self._lib = lib
        self._storage = Storage(self, site)
        self.write_through = self._storage.write_through
        self.refuses_twins = site.subvolumes == 1
        self._stat = _STATS[platform.machine()]()
        self._at_stat = ctypes.byref(self._stat)
        self._buffer = ctypes.create_string_buffer(_NAMES)
        self._objects: OrderedDict[Gfid, int] = OrderedDict()
        self._fs = lib.new(site.name.encode())
        if not self._fs:
            raise _fail("glfs_new")
        self._connect(site, site.text(lasting))
        self._site = site
        lib.setfspid(self._fs, CLIENT_PID)  # of this thread

    def _connect(self, site: VolumeSite, volfile: str) -> None:
        lib = self._lib
        log = f"{_LOG}/gsync-{site.name}.log" if os.access(_LOG, os.W_OK) else os.devnull
        lib.set_logging(self._fs, log.encode(), _LOG_WARNINGS)
        with tempfile.NamedTemporaryFile("w", prefix="gsync-", suffix=".vol", encoding="utf-8",
                                         errors="surrogateescape") as file:  # 0600: it contains the pool's key
            file.write(volfile)
            file.flush()
            if lib.set_volfile(self._fs, file.name.encode()) or lib.init(self._fs):
                err = ctypes.get_errno()
                raise Transient(f"the GlusterFS volume {site.name} cannot be opened: {os.strerror(err or errno.EIO)}; "
                                f"see gluster volume status {site.name}")

    def close(self) -> None:
        for gfid in list(self._objects):
            self._lib.h_close(self._objects.pop(gfid))
        self._storage.close()
        # No glfs_fini: it would wait for unreachable bricks, and this process is about to exit.

    @contextmanager
    def anew(self) -> Iterator[GfapiVolume]:
        if not self._site.sharded:
            yield self
            return
        fresh = GfapiVolume(self._site, self._lib, lasting=False)
        try:
            yield fresh
        finally:
            fresh.close()
            self._lib.fini(fresh._fs)

    # handles

    def _object(self, gfid: Gfid) -> int:
        """A handle, from the cache if it is there. The next call tells whether the inode still exists."""
        found = self._objects.get(gfid)
        if found is not None:
            self._objects.move_to_end(gfid)
            return found
        made: int | None = self._lib.h_create_from_handle(self._fs, gfid, 16, None)
        if not made:
            raise _fail(gfid.hex())
        self._keep(gfid, made)
        return made

    def _keep(self, gfid: Gfid, handle: int) -> None:
        old = self._objects.pop(gfid, None)
        if old is not None:
            self._lib.h_close(old)
        self._objects[gfid] = handle
        if len(self._objects) > _OBJECTS:
            self._lib.h_close(self._objects.popitem(last=False)[1])

    def _forget(self, gfid: Gfid) -> None:
        handle = self._objects.pop(gfid, None)
        if handle is not None:
            self._lib.h_close(handle)

    @contextmanager
    def _checked(self, *gfids: Gfid) -> Iterator[None]:
        """Forget handles that a call reports as stale."""
        try:
            yield
        except OSError as exc:
            if exc.errno in SLAVE_GLUSTER.gone:
                for gfid in gfids:
                    self._forget(gfid)
                if exc.errno == errno.ESTALE:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), exc.filename) from exc
            raise

    def _ok(self, result: int, what: object) -> int:
        if result < 0:
            raise _fail(what.hex() if isinstance(what, bytes) else str(what))
        return result

    def _node(self, gfid: Gfid) -> Node:
        s = self._stat
        return Node(gfid, s.mode, s.uid, s.gid, s.size, s.nlink, s.rdev, s.mtime.s * NS + s.mtime.ns,
                    s.atime.s * NS + s.atime.ns)

    def _gfid(self, handle: int) -> Gfid:
        self._ok(self._lib.h_extract_handle(handle, self._buffer, 16), "handle")
        return ctypes.string_at(self._buffer, 16)

    # looking

    def node(self, gfid: Gfid) -> Node | None:
        handle = self._lib.h_create_from_handle(self._fs, gfid, 16, self._at_stat)
        if not handle:
            err = ctypes.get_errno()
            if err in SLAVE_GLUSTER.gone:
                self._forget(gfid)
                return None
            raise raised(err, gfid.hex())
        self._keep(gfid, handle)
        return self._node(gfid)

    def at(self, pargfid: Gfid, bname: bytes) -> Node | None:
        try:
            parent = self._object(pargfid)
        except OSError as exc:
            if exc.errno in SLAVE_GLUSTER.gone:
                return None
            raise
        handle = self._lib.h_lookupat(self._fs, parent, bname, self._at_stat, 0)
        if not handle:
            err = ctypes.get_errno()
            if err in SLAVE_GLUSTER.gone:
                return None
            raise raised(err, os.fsdecode(bname))
        gfid = self._gfid(handle)
        self._keep(gfid, handle)
        return self._node(gfid)

    def parent(self, gfid: Gfid) -> tuple[Gfid, bytes] | None:
        if gfid == ROOT_GFID:
            return None
        above = self.at(gfid, b"..")
        if above is None:
            return None
        with suppress(OSError):
            path = self._getxattr(gfid, GFID2PATH.encode()).rstrip(b"\0")
            bname = path.rpartition(b"/")[2]
            there = self.at(above.gfid, bname) if bname else None
            if there is not None and there.gfid == gfid:
                return above.gfid, bname
        for bname, node in self.names(above.gfid):  # the path is too long for GlusterFS
            if node.gfid == gfid:
                return above.gfid, bname
        return None

    def names(self, gfid: Gfid) -> Iterator[tuple[bytes, Node]]:
        lib = self._lib
        with self._checked(gfid):
            folder = lib.h_opendir(self._fs, self._object(gfid))
            if not folder:
                raise _fail(gfid.hex())
        try:
            entry, result, more = _Dirent(), ctypes.c_void_p(), ctypes.c_void_p()
            while True:
                self._ok(lib.xreaddirplus_r(folder, _XREADDIRP_STAT | _XREADDIRP_HANDLE, ctypes.byref(more),
                                            ctypes.byref(entry), ctypes.byref(result)), gfid)
                try:
                    if not result.value:
                        return
                    bname = entry.name
                    if bname in (b".", b"..") or is_its_name(gfid, bname):
                        continue
                    node = self._of_entry(more)
                finally:
                    if more.value:
                        lib.free(more)
                        more = ctypes.c_void_p()
                if node is None:
                    node = self.at(gfid, bname)
                if node is not None:
                    yield bname, node
        finally:
            lib.closedir(folder)

    def _of_entry(self, more: ctypes.c_void_p) -> Node | None:
        if not more.value:
            return None
        handle, st = self._lib.xreaddirplus_get_object(more), self._lib.xreaddirplus_get_stat(more)
        if not handle or not st:
            return None
        gfid = self._gfid(handle)
        ctypes.memmove(self._at_stat, st, ctypes.sizeof(self._stat))
        return self._node(gfid)

    def readlink(self, gfid: Gfid) -> bytes:
        with self._checked(gfid):
            size = self._ok(self._lib.h_readlink(self._fs, self._object(gfid), self._buffer, _XATTR), gfid)
        return ctypes.string_at(self._buffer, size)

    def space(self) -> Space:
        free = _Statvfs()
        self._ok(self._lib.h_statfs(self._fs, self._object(ROOT_GFID), ctypes.byref(free)), "statfs")
        return Space(free.bavail * (free.frsize or free.bsize), free.favail if free.files else None)

    # names

    def make(self, pargfid: Gfid, bname: bytes, gfid: Gfid, mode: int, uid: int = 0, gid: int = 0, rdev: int = 0,
             target: bytes | None = None) -> None:
        blob = newfile_blob(bname, gfid, mode, uid, gid, rdev, target)
        with self._checked(pargfid):
            if self._lib.h_setxattrs(self._fs, self._object(pargfid), NEWFILE.encode(), blob, len(blob), 0) < 0:
                err = ctypes.get_errno()
                # A brick that already has an inode with this gfid answers so.
                raise raised(errno.EEXIST if err == errno.ENODATA else err, os.fsdecode(bname))

    def link(self, gfid: Gfid, pargfid: Gfid, bname: bytes) -> None:
        with self._checked(gfid, pargfid):
            self._ok(self._lib.h_link(self._fs, self._object(gfid), self._object(pargfid), bname), os.fsdecode(bname))

    def rename(self, pargfid: Gfid, bname: bytes, to_pargfid: Gfid, to_bname: bytes) -> None:
        with self._checked(pargfid, to_pargfid):
            self._ok(self._lib.h_rename(self._fs, self._object(pargfid), bname, self._object(to_pargfid), to_bname),
                     os.fsdecode(bname))

    def unlink(self, pargfid: Gfid, bname: bytes) -> None:
        with self._checked(pargfid):
            self._ok(self._lib.h_unlink(self._fs, self._object(pargfid), bname), os.fsdecode(bname))

    rmdir = unlink  # glfs_h_unlink checks the type itself

    # the content of inodes

    def open(self, gfid: Gfid, write: bool = False) -> _File:
        with self._checked(gfid):
            fd = self._lib.h_open(self._fs, self._object(gfid), os.O_RDWR if write else os.O_RDONLY)
            if not fd:
                raise _fail(gfid.hex())
        return _File(self._lib, fd, gfid)

    def open_short(self, gfid: Gfid) -> File:
        if self.write_through:
            return self.open(gfid, write=True)
        with self._checked(gfid):
            return _Short(self._lib, self._fs, self._object(gfid), gfid, self)

    def set_attrs(self, gfid: Gfid, mode: int | None, owner: tuple[int, int] | None, times: tuple[int, int] | None
                  ) -> None:
        s, valid = self._stat, 0
        if mode is not None:
            s.mode = stat.S_IMODE(mode)
            valid |= _MODE
        if owner is not None:
            s.uid, s.gid = owner
            valid |= _UID | _GID
        if times is not None:
            s.mtime.s, s.mtime.ns = divmod(times[0], NS)
            s.atime.s, s.atime.ns = divmod(times[1], NS)
            valid |= _MTIME | _ATIME
        with self._checked(gfid):
            self._ok(self._lib.h_setattrs(self._fs, self._object(gfid), self._at_stat, valid), gfid)

    def _getxattr(self, gfid: Gfid, name: bytes | None) -> bytes:
        with self._checked(gfid):
            size = self._ok(self._lib.h_getxattrs(self._fs, self._object(gfid), name, self._buffer, _NAMES), gfid)
        return ctypes.string_at(self._buffer, size)

    def xattrs(self, gfid: Gfid) -> dict[bytes, bytes]:
        found = {}
        for name in self._getxattr(gfid, None).split(b"\0"):
            if name and not is_internal(name):
                try:
                    found[name] = self._getxattr(gfid, name)
                except OSError as exc:
                    if exc.errno != errno.ENODATA:
                        raise
        return found

    def set_xattr(self, gfid: Gfid, name: bytes, value: bytes) -> None:
        with self._checked(gfid):
            self._ok(self._lib.h_setxattrs(self._fs, self._object(gfid), name, value, len(value), 0),
                     os.fsdecode(name))

    def remove_xattr(self, gfid: Gfid, name: bytes) -> None:
        with self._checked(gfid):
            self._ok(self._lib.h_removexattrs(self._fs, self._object(gfid), name), os.fsdecode(name))

    def pathinfo(self, gfid: Gfid) -> bytes:
        return self._getxattr(gfid, b"trusted.glusterfs.pathinfo")

    def sync(self) -> None:
        self._storage.sync()


class _Data:
    """Reading and writing through calls that take (buffer or address, bytes, offset) and return the number of bytes."""

    def __init__(self, gfid: Gfid, read: Callable[[Any, int, int], int], write: Callable[[int, int, int], int]) -> None:
        self._gfid, self._read, self._write = gfid, read, write

    def _ok(self, result: int) -> int:
        if result < 0:
            raise _fail(self._gfid.hex())
        return result

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        at, keep = _address(data)
        done = 0
        while done < len(data):
            done += self._ok(self._write(at + done, len(data) - done, offset + done))
        del keep

    def pread(self, size: int, offset: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        return ctypes.string_at(buffer, self._ok(self._read(buffer, size, offset)))


class _File(_Data):
    """A File."""

    def __init__(self, lib: _Library, fd: int, gfid: Gfid) -> None:
        super().__init__(gfid, lambda buffer, size, offset: lib.pread(fd, buffer, size, offset, 0, None),
                         lambda at, size, offset: lib.pwrite(fd, at, size, offset, 0, None, None))
        self._lib, self._fd = lib, fd

    def truncate(self, size: int) -> None:
        self._ok(self._lib.ftruncate(self._fd, size, None, None))

    def sync(self) -> None:
        self._ok(self._lib.fsync(self._fd, None, None))

    def close(self) -> None:
        if self._fd:
            fd, self._fd = self._fd, None  # type: ignore[assignment]
            self._ok(self._lib.close(fd))


class _Short(_Data):
    """A File by its handle, never opened: GlusterFS's anonymous descriptors. This saves two calls to the bricks."""

    def __init__(self, lib: _Library, fs: int, handle: int, gfid: Gfid, volume: GfapiVolume) -> None:
        super().__init__(gfid, lambda buffer, size, offset: lib.h_anonymous_read(fs, handle, buffer, size, offset),
                         lambda at, size, offset: lib.h_anonymous_write(fs, handle, at, size, offset))
        self._volume = volume

    def _opened(self, do: Callable[[File], None]) -> None:
        file = self._volume.open(self._gfid, write=True)
        try:
            do(file)
        finally:
            file.close()

    def truncate(self, size: int) -> None:
        self._opened(lambda file: file.truncate(size))

    def sync(self) -> None:
        self._opened(lambda file: file.sync())

    def close(self) -> None:
        """There is nothing to close."""


def _address(data: bytes | memoryview) -> tuple[int, object]:
    """The address of the bytes, and an object to keep alive while it is used."""
    if isinstance(data, memoryview) and not data.readonly and len(data):
        return ctypes.addressof(ctypes.c_char.from_buffer(data)), data
    keep = bytes(data)
    return ctypes.cast(ctypes.c_char_p(keep), ctypes.c_void_p).value or 0, keep
