"""A volume through a private FUSE mount with access by gfid, for hosts without libgfapi.

The mount lives in a mount namespace that only this process and its client have. Nobody else sees it, and it goes away
with them: the client is a child that the kernel kills with its parent. Paths are `.gfid/<gfid>` and
`.gfid/<gfid>/name`; the kernel caches nothing. Standard library only, Python 3.9.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from gsync.base.errors import SlaveError, Transient
from gsync.base.fate import SLAVE_GLUSTER
from gsync.base.glusterfs import CLIENT_PID, truthful
from gsync.base.model import ROOT_GFID, Gfid, gfid_parse, gfid_str
from gsync.slave.gluster.syncpoints import Storage
from gsync.slave.gluster.volfile import VolumeSite, program
from gsync.slave.gluster.volume import (
    GFID2PATH,
    NEWFILE,
    Node,
    Space,
    is_internal,
    is_its_name,
    newfile_blob,
    raised,
)

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_PR_SET_PDEATHSIG = 1
_PATIENCE = 60.0  # seconds to wait for the mount
_libc = ctypes.CDLL(None, use_errno=True)


def _with_parent() -> None:
    """In the child: exit when the parent does, for whatever reason."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class AuxMount:
    """A GlusterVolume."""

    def __init__(self, site: VolumeSite) -> None:
        self.name, self.id = site.name, site.id
        client = program("glusterfs")
        if client is None:
            raise SlaveError("there is neither libgfapi nor GlusterFS's client on that host: install glusterfs-client")
        self._storage = Storage(self, site)
        self.write_through = self._storage.write_through
        self.refuses_twins = site.subvolumes == 1
        self._folder = tempfile.mkdtemp(prefix="gsync-mount-")
        try:
            self._root = self._mount(client, site)
        except BaseException:
            with suppress(OSError):
                os.rmdir(self._folder)
            raise
        self._above: dict[Gfid, Gfid] = {}

    def _mount(self, client: str, site: VolumeSite) -> int:
        """Mount in a private namespace; return a descriptor of the root."""
        if _libc.unshare(_CLONE_NEWNS) or _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None):
            raise SlaveError(f"no mount namespace of its own: {os.strerror(ctypes.get_errno())}; install libgfapi "
                             f"there, or let the agent run as root outside of a container")
        place = os.path.join(self._folder, "mnt")
        os.mkdir(place)
        device = os.stat(place).st_dev
        log = f"/var/log/glusterfs/gsync-{site.name}-mount.log"
        if not os.access(os.path.dirname(log), os.W_OK):
            log = os.devnull
        self._client = subprocess.Popen(
            [client, "--no-daemon", "--volfile-server=localhost", f"--volfile-id={site.name}", "--aux-gfid-mount",
             "--acl", f"--client-pid={CLIENT_PID}", "--attribute-timeout=0",
             "--entry-timeout=0", "--negative-timeout=0", *truthful(site.name),
             "--log-level=WARNING", f"--log-file={log}", place],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=_with_parent)
        until = time.monotonic() + _PATIENCE
        while True:
            with suppress(OSError):
                if os.stat(place).st_dev != device:
                    return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if self._client.poll() is not None or time.monotonic() > until:
                self._client.kill()
                self._client.wait()
                raise Transient(f"the GlusterFS volume {site.name} cannot be mounted: see {log} and gluster volume "
                                f"status {site.name}")
            time.sleep(0.02)

    def close(self) -> None:
        os.close(self._root)
        place = os.fsencode(os.path.join(self._folder, "mnt"))
        _libc.umount2(place, 2)  # MNT_DETACH
        self._client.kill()
        self._client.wait()
        for folder in (place, self._folder):
            with suppress(OSError):
                os.rmdir(folder)
        self._storage.close()

    @contextmanager
    def anew(self) -> Iterator[AuxMount]:
        yield self

    # paths

    @contextmanager
    def _io(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if exc.errno in SLAVE_GLUSTER.away or self._client.poll() is not None:
                raise Transient(f"the mount of the volume is lost: {exc.strerror}") from exc
            if exc.errno == errno.ESTALE:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), exc.filename) from exc
            raise

    def _path(self, gfid: Gfid, bname: bytes | None = None) -> bytes:
        return b"/proc/self/fd/%d/%s" % (self._root, self._relative(gfid, bname))

    @staticmethod
    def _relative(gfid: Gfid, bname: bytes | None = None) -> bytes:
        path = b"." if gfid == ROOT_GFID else b".gfid/" + gfid_str(gfid).encode()
        return path if bname is None else path + b"/" + bname

    def _lstat(self, path: bytes) -> os.stat_result | None:
        with self._io():
            try:
                return os.stat(path, dir_fd=self._root, follow_symlinks=False)
            except OSError as exc:
                if exc.errno in SLAVE_GLUSTER.gone:
                    return None
                raise

    @staticmethod
    def _node(gfid: Gfid, st: os.stat_result) -> Node:
        return Node(gfid, st.st_mode, st.st_uid, st.st_gid, st.st_size, st.st_nlink, st.st_rdev, st.st_mtime_ns,
                    st.st_atime_ns)

    # looking

    def node(self, gfid: Gfid) -> Node | None:
        st = self._lstat(self._relative(gfid))
        return None if st is None else self._node(gfid, st)

    def at(self, pargfid: Gfid, bname: bytes) -> Node | None:
        if bname == b"..":
            name = self.parent(pargfid)
            return None if name is None else self.node(name[0])
        path = self._relative(pargfid, bname)
        st = self._lstat(path)
        if st is None:
            return None
        with self._io():
            try:
                gfid = gfid_parse(os.getxattr(self._path(pargfid, bname), "glusterfs.gfid.string",
                                              follow_symlinks=False).decode())
            except OSError as exc:
                if exc.errno in SLAVE_GLUSTER.gone:
                    return None
                raise
        return self._node(gfid, st)

    def parent(self, gfid: Gfid) -> tuple[Gfid, bytes] | None:
        if gfid == ROOT_GFID:
            return None
        with self._io():
            try:
                path = self._path_of_dir(gfid)
                above, _, bname = path.rpartition(b"/")
                if not above:
                    return ROOT_GFID, bname
                place = b"/proc/self/fd/%d%s" % (self._root, above)
                found = os.getxattr(place, "glusterfs.gfid.string", follow_symlinks=False)
            except OSError as exc:
                if exc.errno in SLAVE_GLUSTER.gone:
                    return None
                raise
        return gfid_parse(found.decode()), bname

    def _path_of_dir(self, gfid: Gfid) -> bytes:
        path = os.getxattr(self._path(gfid), GFID2PATH).rstrip(b"\0")
        if path.startswith(b"<gfid:"):  # a brick that has just started answers so
            raise Transient(f"the volume {self.name} does not say yet where its directory {gfid_str(gfid)} is")
        return path

    def names(self, gfid: Gfid) -> Iterator[tuple[bytes, Node]]:
        with self._io():  # directories reached through .gfid cannot be listed
            path = b"." if gfid == ROOT_GFID else self._path_of_dir(gfid).lstrip(b"/")
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root)
            if gfid != ROOT_GFID and gfid_parse(os.getxattr(fd, "glusterfs.gfid.string").decode()) != gfid:
                os.close(fd)
                raise raised(errno.ENOENT, gfid.hex())
        try:
            with self._io(), os.scandir(fd) as entries:
                for entry in entries:
                    bname = os.fsencode(entry.name)
                    if is_its_name(gfid, bname):
                        continue
                    node = self.at(gfid, bname)
                    if node is not None:
                        yield bname, node
        finally:
            os.close(fd)

    def readlink(self, gfid: Gfid) -> bytes:
        with self._io():
            return os.readlink(self._relative(gfid), dir_fd=self._root)

    def space(self) -> Space:
        with self._io():
            free = os.fstatvfs(self._root)
        return Space(free.f_bavail * free.f_frsize, free.f_favail if free.f_files else None)

    # names

    def make(self, pargfid: Gfid, bname: bytes, gfid: Gfid, mode: int, uid: int = 0, gid: int = 0, rdev: int = 0,
             target: bytes | None = None) -> None:
        blob = newfile_blob(bname, gfid, mode, uid, gid, rdev, target)
        with self._io():
            try:
                os.setxattr(b"/proc/self/fd/%d/.gfid/%s" % (self._root, gfid_str(pargfid).encode()), NEWFILE, blob)
            except OSError as exc:
                if exc.errno == errno.ENODATA:  # a brick that already has an inode with this gfid answers so
                    raise raised(errno.EEXIST, os.fsdecode(bname)) from exc
                raise

    def link(self, gfid: Gfid, pargfid: Gfid, bname: bytes) -> None:
        with self._io():
            os.link(self._relative(gfid), self._relative(pargfid, bname), src_dir_fd=self._root,
                    dst_dir_fd=self._root, follow_symlinks=False)

    def rename(self, pargfid: Gfid, bname: bytes, to_pargfid: Gfid, to_bname: bytes) -> None:
        source, target = self._relative(pargfid, bname), self._relative(to_pargfid, to_bname)
        with self._io():
            try:
                os.rename(source, target, src_dir_fd=self._root, dst_dir_fd=self._root)
            except OSError as exc:
                if exc.errno != errno.ESTALE:
                    raise
                # The kernel keeps one path for a directory. If it differs from the one that `parent` or `names` used,
                # the kernel cannot change it in the middle of a rename, so look the directory up here first.
                self._lstat(source)
                os.rename(source, target, src_dir_fd=self._root, dst_dir_fd=self._root)

    def unlink(self, pargfid: Gfid, bname: bytes) -> None:
        with self._io():
            os.unlink(self._relative(pargfid, bname), dir_fd=self._root)

    def rmdir(self, pargfid: Gfid, bname: bytes) -> None:
        with self._io():
            os.rmdir(self._relative(pargfid, bname), dir_fd=self._root)

    # the content of inodes

    def open(self, gfid: Gfid, write: bool = False) -> _File:
        with self._io():
            flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC
            return _File(self._io, os.open(self._relative(gfid), flags, dir_fd=self._root))

    def open_short(self, gfid: Gfid) -> _File:
        return self.open(gfid, write=True)

    def set_attrs(self, gfid: Gfid, mode: int | None, owner: tuple[int, int] | None, times: tuple[int, int] | None
                  ) -> None:
        path = self._relative(gfid)
        with self._io():
            if owner is not None:
                os.chown(path, *owner, dir_fd=self._root, follow_symlinks=False)
            if mode is not None:
                os.chmod(path, stat.S_IMODE(mode), dir_fd=self._root)
            if times is not None:
                os.utime(path, ns=(times[1], times[0]), dir_fd=self._root, follow_symlinks=False)

    def xattrs(self, gfid: Gfid) -> dict[bytes, bytes]:
        path, found = self._path(gfid), {}
        with self._io():
            for name in map(os.fsencode, os.listxattr(path, follow_symlinks=False)):
                if not is_internal(name):
                    try:
                        found[name] = os.getxattr(path, name, follow_symlinks=False)
                    except OSError as exc:
                        if exc.errno != errno.ENODATA:
                            raise
        return found

    def set_xattr(self, gfid: Gfid, name: bytes, value: bytes) -> None:
        with self._io():
            os.setxattr(self._path(gfid), name, value, follow_symlinks=False)

    def remove_xattr(self, gfid: Gfid, name: bytes) -> None:
        with self._io():
            os.removexattr(self._path(gfid), name, follow_symlinks=False)

    def pathinfo(self, gfid: Gfid) -> bytes:
        with self._io():
            return os.getxattr(self._path(gfid), "trusted.glusterfs.pathinfo", follow_symlinks=False)

    def sync(self) -> None:
        self._storage.sync()


class _File:
    """A File."""

    def __init__(self, io: Callable[[], AbstractContextManager[None]], fd: int) -> None:
        self._io, self._fd = io, fd

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        with self._io():
            done = 0
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], offset + done)

    def pread(self, size: int, offset: int) -> bytes:
        with self._io():
            # Flush written data to the bricks and drop the kernel's copy: otherwise reads would come from that copy.
            os.fdatasync(self._fd)
            os.posix_fadvise(self._fd, offset, size, os.POSIX_FADV_DONTNEED)
            return os.pread(self._fd, size, offset)

    def truncate(self, size: int) -> None:
        with self._io():
            os.ftruncate(self._fd, size)

    def sync(self) -> None:
        with self._io():
            os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with self._io():
                os.close(fd)
