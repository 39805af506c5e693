"""A GlusterFS volume as the worker of one of its bricks sees it: through an aux-gfid mount, where every inode is
`.gfid/<gfid>` and every name `.gfid/<pargfid>/<bname>`, whatever it was renamed to.

Identity is the volume's own gfid. A directory's place is read from the brick's handles (.glusterfs/aa/bb/<gfid>, for a
directory a symlink to ../../xx/yy/<pargfid>/<bname>; every brick has every directory), and checked against the mount.
GlusterFS's own files are not part of the tree. An unreachable mount is Transient, never absent, and it is unreachable
as soon as any subvolume is (gclient).
"""

from __future__ import annotations

import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from gsync.base.errors import Transient
from gsync.base.fate import MASTER_GLUSTER
from gsync.base.fsid import open_beneath
from gsync.base.log import get_logger
from gsync.base.model import ROOT_GFID, STATE_DIR, Attrs, Gfid, Name, gfid_parse, gfid_str
from gsync.master.gluster.mount import VolumeMount
from gsync.master.gluster.ownbrick import OwnBrick
from gsync.master.tree import Filter, Resolved, Tree, Verdict, Xattrs, is_internal_xattr
from gsync.state.gluster import GlusterInfo

_log = get_logger(__name__)

_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OURS_AND_THEIRS = (STATE_DIR, b".glusterfs", b".trashcan", b".gfid", b".meta")  # at the root
_HANDLE = re.compile(rb"(?:\.\./){2}[0-9a-f]{2}/[0-9a-f]{2}/([0-9a-f-]{36})/(.+)", re.DOTALL)
_SHARDS = tuple(uuid.UUID(text).bytes for text in (    # .shard and .shard/.remove_me of any sharded volume
    "be318638-e8a0-4c6d-977d-7a937aa84806", "77dd5a45-dbf5-4592-b31b-b440382302e9"))
_PIECE = re.compile(rb"(?:be318638-e8a0-4c6d-977d-7a937aa84806|/\.shard)/([0-9a-f-]{36})\.\d+\0?")
_PAGE = 5000
_MANY = 500        # a batch that reads at least this many files is worth a mount for reading
_ONE_READ = 128 << 10  # bytes that one request of the kernel to the mount brings
_LOOKERS = 4
_MOVES = stat.S_ISGID | stat.S_ISVTX
_TRIES = 5          # attempts at finding a directory that is being renamed
_DEEPEST = 100_000


def is_internal(name: Name) -> bool:
    """Whether this name at the root is GlusterFS's own, or gsync's."""
    return name[0] == ROOT_GFID and (name[1] in _OURS_AND_THEIRS or name[1].startswith(b".glusterfs-"))


class GlusterTree(Tree):
    """The volume at root_fd, an aux-gfid mount, which the tree takes over. brick: the worker's. bulk: a mount with
    contents, made when many files are read, and closed with the tree."""

    def __init__(self, root_fd: int, info: GlusterInfo, brick: OwnBrick, bulk: VolumeMount,
                 filters: Filter | None = None, xattrs: bool = True, acls: bool = True) -> None:
        super().__init__(root_fd, filters, xattrs, acls)
        self._info = info
        self._brick = brick
        self._by_gfid = os.open(b".gfid", _PLACE | os.O_DIRECTORY, dir_fd=root_fd)
        self._bulk = bulk
        self._read_by = self._by_gfid           # the same folder, on the mount that files are read by
        self._reads = 0
        self._pool = ThreadPoolExecutor(_LOOKERS, "lookup")  # a lookup mostly waits for the bricks

    def close(self) -> None:
        self._pool.shutdown()
        if self._read_by != self._by_gfid:
            os.close(self._read_by)
            self._bulk.close()
        os.close(self._by_gfid)
        os.close(self._root_fd)

    def is_away(self, err: int) -> bool:
        return err in MASTER_GLUSTER.away

    def check_whole(self) -> None:
        """The mount exits when a subvolume becomes unreachable, but still answers for some moments."""
        for by_gfid in {self._by_gfid, self._read_by}:
            away = self._info.away(self._connected(f"/proc/self/fd/{by_gfid}/../.meta/graphs/active"))
            if away:
                raise Transient(f"master: a part of the volume is unreachable: {', '.join(map(str, away))}")

    @staticmethod
    def _connected(graph: str) -> set[str]:
        """The bricks (host:path) that a mount is connected to, as GlusterFS's meta translator shows its protocol/client
        translators."""
        def told(name: str, what: str) -> str:
            with open(f"{graph}/{name}/{what}", encoding="utf-8", errors="surrogateescape") as file:
                return file.read().strip()

        try:
            return {f"{told(name, 'options/remote-host')}:{told(name, 'options/remote-subvolume')}"
                    for name in os.listdir(graph)
                    if re.fullmatch(r".*-client-\d+", name) and "connected = 1" in told(name, "private")}
        except OSError as exc:
            raise Transient(f"master: the volume is unreachable through its mount: {exc.strerror}") from exc

    def _check(self, exc: OSError) -> None:
        if exc.errno in MASTER_GLUSTER.away:
            raise Transient(f"master: the volume is unreachable through its mount: {exc.strerror}") from exc

    # looking

    def look(self, dirfd: int, dirpath: bytes, name: Name) -> Resolved:
        for _ in range(_TRIES):
            found = self._look(dirfd, dirpath, name)
            if found is not None:
                return found
        return Resolved(name, Verdict.ERROR, self._clock(), errno=errno.ESTALE)

    def _look(self, dirfd: int, dirpath: bytes, name: Name) -> Resolved | None:
        """None: it went between two looks, or GlusterFS contradicts itself about it."""
        now = self._clock()
        if is_internal(name) or (name == (ROOT_GFID, b".shard") and self._info.sharded):
            return Resolved(name, Verdict.EXCLUDED, now)
        fd = -1
        try:
            fd = os.open(name[1], _PLACE, dir_fd=dirfd)
            st = self.fstat(fd)  # of this very lookup
            place = b"/proc/self/fd/%d" % fd
            gfid = self._gfid(place)
            if self._filter and self._filter.excludes(dirpath + name[1], stat.S_ISDIR(st.st_mode)):
                return Resolved(name, Verdict.EXCLUDED, now)
            target = xattrs = None
            if not stat.S_ISREG(st.st_mode) and not stat.S_ISDIR(st.st_mode):
                if stat.S_ISLNK(st.st_mode):
                    target = os.readlink(b"", dir_fd=fd)
                xattrs = self._xattrs(place)
            return Resolved(name, Verdict.PRESENT, now, gfid, gfid, Attrs.of(st), st.st_ctime_ns, target, xattrs)
        except OSError as exc:
            self._check(exc)
            if exc.errno in MASTER_GLUSTER.gone:
                if fd >= 0 or (exc.errno == errno.ESTALE and self._is_there(dirfd)):
                    return None
                return Resolved(name, Verdict.ABSENT, now)
            return Resolved(name, Verdict.ERROR, now, errno=exc.errno or errno.EIO)
        finally:
            if fd >= 0:
                os.close(fd)

    @staticmethod
    def _is_there(dirfd: int) -> bool:
        try:
            os.stat(b".", dir_fd=dirfd)
        except OSError:
            return False
        return True

    def look_all(self, dirfd: int, dirpath: bytes, names: Sequence[Name]) -> list[Resolved]:
        at_brick = self._brick.open_dir(names[0][0]) if names and self._brick.believed(len(names)) else None
        if at_brick is None:
            return self._look_by_mount(dirfd, dirpath, names)
        try:
            found = [self._look_at_brick(at_brick, dirpath, name) for name in names]
        finally:
            os.close(at_brick)
        rest = iter(self._look_by_mount(dirfd, dirpath, [name for name, each in zip(names, found, strict=True)
                                                         if each is None]))
        return [next(rest) if each is None else each for each in found]

    def _look_by_mount(self, dirfd: int, dirpath: bytes, names: Sequence[Name]) -> list[Resolved]:
        if len(names) < _LOOKERS:
            return super().look_all(dirfd, dirpath, names)
        return list(self._pool.map(lambda name: self.look(dirfd, dirpath, name), names))

    def _look_at_brick(self, at_brick: int, dirpath: bytes, name: Name) -> Resolved | None:
        """None: the brick cannot tell."""
        if is_internal(name):
            return None
        now = self._clock()
        try:
            found = self._brick.file_at(at_brick, name[1])
        except FileNotFoundError:
            return Resolved(name, Verdict.ABSENT, now) if self._brick.alone else None
        if found is None:
            return None
        gfid, st = found
        if self._filter and self._filter.excludes(dirpath + name[1], False):
            return Resolved(name, Verdict.EXCLUDED, now)
        return Resolved(name, Verdict.PRESENT, now, gfid, gfid, Attrs.of(st)._replace(nlink=st.st_nlink - 1),
                        st.st_ctime_ns)

    @staticmethod
    def _gfid(place: bytes) -> Gfid:
        return gfid_parse(os.getxattr(place, "glusterfs.gfid.string").decode("ascii"))

    def _open_dir(self, gfid: Gfid, to_list: bool) -> tuple[int, bytes] | Resolved:
        try:
            for _ in range(_TRIES):
                found = self._try_open_dir(gfid, to_list)
                if found is not None:
                    return found
            return self._no(Verdict.ERROR, errno.EBUSY)
        except OSError as exc:
            self._check(exc)
            if exc.errno in MASTER_GLUSTER.gone:
                return self._no(Verdict.ABSENT)
            return self._no(Verdict.ERROR, exc.errno or errno.EIO)

    def _try_open_dir(self, gfid: Gfid, to_list: bool) -> tuple[int, bytes] | Resolved | None:
        """None: it moved in the meantime."""
        if gfid == ROOT_GFID:
            return os.open(b".", _DIR, dir_fd=self._root_fd), b""
        if gfid in _SHARDS and self._info.sharded:
            return self._no(Verdict.EXCLUDED)
        fd = os.open(_aux(gfid), _PLACE | os.O_DIRECTORY, dir_fd=self._by_gfid)
        keep = False
        try:
            parts = self._dir_path(gfid)
            if parts is None:
                return None
            if is_internal((ROOT_GFID, parts[0])):
                return self._no(Verdict.EXCLUDED)
            path = b"/".join(parts)
            if not to_list:
                keep = True
                return fd, path + b"/"
        finally:
            if not keep:
                os.close(fd)
        try:
            fd = open_beneath(self._root_fd, path, _DIR)  # directories opened below .gfid cannot be listed
        except OSError as exc:
            if exc.errno in MASTER_GLUSTER.gone:
                return None
            raise
        if self._gfid(b"/proc/self/fd/%d" % fd) != gfid:
            os.close(fd)
            return None
        return fd, path + b"/"

    # opening by identity

    def _open(self, gfid: Gfid, flags: int) -> int:
        if gfid == ROOT_GFID:
            return os.open(b".", flags, dir_fd=self._root_fd)
        if flags & os.O_PATH:
            return os.open(_aux(gfid), flags, dir_fd=self._by_gfid)
        return os.open(_aux(gfid), flags | os.O_NOATIME, dir_fd=self._read_by)

    def will_read(self, files: int) -> None:
        before, self._reads = self._reads, self._reads + files
        if before < _MANY <= self._reads:
            try:
                root = self._bulk.open()
                self._read_by = os.open(b".gfid", _PLACE | os.O_DIRECTORY, dir_fd=root)
                os.close(root)
            except Transient as exc:
                _log.info("files are read one by one", error=exc)

    def fstat(self, fd: int) -> os.stat_result:
        """Without the mark that a file carries while it moves to another brick: mounts hide it, but not always."""
        st = os.fstat(fd)
        if stat.S_ISREG(st.st_mode) and st.st_mode & _MOVES == _MOVES and self._info.subvolumes > 1:
            return os.stat_result((st.st_mode & ~_MOVES, *st[1:]),
                                  {name: getattr(st, name) for name in dir(st) if name.startswith("st_")})
        return st

    def hint(self, gfid: Gfid) -> None:
        pass  # a gfid is all that is needed

    def wholes(self, gfids: Sequence[Gfid]) -> Sequence[Gfid]:
        return [self._whole(gfid) for gfid in gfids] if self._info.sharded else gfids

    def _whole(self, gfid: Gfid) -> Gfid:
        """The file that a shard belongs to. gfid itself if it is not a shard, or has gone: its removal changed the
        file's length, which is recorded as well."""
        places = self._gfid2paths(gfid)
        if not places:
            try:
                places = [os.getxattr(b"/proc/self/fd/%d/%s" % (self._by_gfid, _aux(gfid)), "glusterfs.gfid2path")]
            except OSError as exc:
                self._check(exc)
        found = next((match for place in places if (match := _PIECE.fullmatch(place))), None)
        return gfid_parse(found[1].decode("ascii")) if found else gfid

    def _xattrs_of_open(self, gfid: Gfid, fd: int) -> Xattrs:
        if self._brick.believed(0):
            names = self._brick.xattrs_of(gfid)
            if names is not None and all(map(is_internal_xattr, names)):
                return []
        return self._xattrs(fd)

    def changed(self, fd: int, st: os.stat_result) -> bool:
        # Data from one read is of one moment. If that is later than st, the change has a record of its own.
        return st.st_size > _ONE_READ and super().changed(fd, st)

    # locating an inode

    def _place_of_dir(self, gfid: Gfid) -> Name | None:
        """A directory's name, from the brick, else from the mount; None if it is not a directory, or gone."""
        handle = self._brick.handle(gfid)
        try:
            match = _HANDLE.fullmatch(os.readlink(handle))
            if match and b"/" not in match[2] and not _has_gfid(handle):
                return gfid_parse(match[1].decode("ascii")), match[2]
            return None
        except OSError as exc:
            if exc.errno not in (*MASTER_GLUSTER.gone, errno.EINVAL):
                raise
        try:  # a brick that was just added may lack it
            paths = self._paths_by_mount(gfid)
        except OSError as exc:
            self._check(exc)
            return None
        return paths[0] if paths else None

    def _paths_by_mount(self, gfid: Gfid) -> list[Name]:
        """The names of an inode of any kind, as far as the volume tells its paths."""
        aux = b"/proc/self/fd/%d/%s" % (self._by_gfid, _aux(gfid))
        found = []
        path = os.getxattr(aux, "glusterfs.gfid2path").rstrip(b"\0")
        for each in (path, *([] if path.count(b":") == 0 else path.split(b":"))):
            parent, _, bname = each.rpartition(b"/")
            try:
                fd = open_beneath(self._root_fd, parent.strip(b"/") or b".", _PLACE | os.O_DIRECTORY)
            except OSError:
                continue
            try:
                found.append((self._gfid(b"/proc/self/fd/%d" % fd), bname))
            finally:
                os.close(fd)
        return [name for name in found if name[1]]

    def _dir_path(self, gfid: Gfid) -> list[bytes] | None:
        """The components of a directory's path from the root; None if no path leads to it from the root just now."""
        parts: list[bytes] = []
        while gfid != ROOT_GFID:
            name = self._place_of_dir(gfid)
            if name is None or len(parts) > _DEEPEST:
                return None
            gfid = name[0]
            parts.append(name[1])
        return parts[::-1]

    def names_of(self, gfid: Gfid) -> list[Name]:
        if gfid == ROOT_GFID:
            return []
        place = self._place_of_dir(gfid)
        if place is not None:
            return [place]
        names: set[Name] = set()
        for found in self._gfid2paths(gfid):
            parent, _, bname = found.partition(b"/")
            names.add((gfid_parse(parent.decode("ascii")), bname))
        if not names:
            try:
                names.update(self._paths_by_mount(gfid))
            except OSError as exc:
                self._check(exc)
        return sorted(names)

    def _gfid2paths(self, gfid: Gfid) -> list[bytes]:
        """The <pargfid>/<bname> names of an inode that is not a directory, from the brick; empty if another brick has
        it."""
        handle = self._brick.handle(gfid)
        try:
            return [os.getxattr(handle, xattr, follow_symlinks=False)
                    for xattr in os.listxattr(handle, follow_symlinks=False) if xattr.startswith("trusted.gfid2path.")]
        except OSError:
            return []

    def all_dirs(self) -> Iterator[list[Gfid]]:
        page: list[Gfid] = []
        for first in _folders(self._brick.handles):
            for second in _folders(first):
                with os.scandir(second) as items:
                    page += [gfid_parse(os.fsdecode(item.name)) for item in items
                             if item.is_symlink() and len(item.name) == 36 and not _has_gfid(item.path)]
                if len(page) >= _PAGE:
                    yield page
                    page = []
        if page:
            yield page

    def parent_chain(self, gfid: Gfid) -> list[Name]:
        chain: list[Name] = []
        while gfid != ROOT_GFID and len(chain) < _DEEPEST:
            place = self._place_of_dir(gfid)
            if place is None:
                break
            chain.append(place)
            gfid = place[0]
        return chain

    def path_text(self, name: Name) -> bytes:
        parts = self._dir_path(name[0])
        return b"/".join([*parts, name[1]]) if parts is not None else b".../" + name[1]


def _aux(gfid: Gfid) -> bytes:
    return gfid_str(gfid).encode()


def _has_gfid(handle: bytes) -> bool:
    """Whether a symlink among the handles is an inode of the volume itself (otherwise it stands for a directory)."""
    try:
        os.getxattr(handle, "trusted.gfid", follow_symlinks=False)
    except OSError:
        return False
    return True


def _folders(path: bytes) -> list[bytes]:
    """The folders of handles in one: those named by two hexadecimal digits."""
    try:
        return [os.path.join(path, name) for name in sorted(os.listdir(path)) if re.fullmatch(rb"[0-9a-f]{2}", name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
