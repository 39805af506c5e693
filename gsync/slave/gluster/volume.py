"""A GlusterFS volume as the agent sees it: inodes by gfid, names by the gfid of their directory.

This is the seam between the changes at the slave (apply, receive) and the access to the volume (gfapi, auxmount).
tests/gluster holds both kinds of access to one contract. Nothing here follows a symlink, and every path leads to a
gfid. Errors are OSError with the volume's errno. Standard library only, Python 3.9.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from gsync.base.errors import Transient
from gsync.base.fate import SLAVE_GLUSTER
from gsync.base.model import ROOT_GFID, Gfid, gfid_str
from gsync.link.protocol import Xattrs

NEWFILE = "glusterfs.gfid.newfile"
GFID2PATH = "glusterfs.gfid2path"

# xattrs that GlusterFS keeps on inodes for itself: these are never the master's.
_INTERNAL = (b"trusted.gfid", b"trusted.glusterfs.", b"trusted.afr.", b"trusted.ec.", b"trusted.dht.",
             b"trusted.pgfid.", b"trusted.bit-rot.", b"trusted.tier.", b"trusted.io-stats", b"trusted.SGI_",
             b"trusted.gsync.", b"trusted.overlay.", b"glusterfs.", b"security.selinux", b"security.ima",
             b"security.evm", b"security.SMACK")
ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
# GlusterFS's own names in the root of a volume. A replicated one also has .glusterfs-anonymous-inode-<id>.
_ITS_NAMES = (b".trashcan", b".shard", b".gfid", b"lost+found")


class Node(NamedTuple):
    """An inode; times in ns."""

    gfid: Gfid
    mode: int
    uid: int
    gid: int
    size: int
    nlink: int
    rdev: int
    mtime: int
    atime: int

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def kind(self) -> int:
        return stat.S_IFMT(self.mode)


class Space(NamedTuple):
    """Free bytes and inodes (None: no limit)."""

    free: int
    inodes: int | None


class File(Protocol):
    """An open regular file."""

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of the data."""

    def pread(self, size: int, offset: int) -> bytes:
        """Read from the volume itself; short only at the end of the file."""

    def truncate(self, size: int) -> None: ...

    def sync(self) -> None:
        """Make written data stable on every brick of the file."""

    def close(self) -> None: ...


class GlusterVolume(Protocol):
    """Usable by one thread, the one that opened it.

    `write_through`: files must be synced one by one, since `sync` cannot reach the disks of all bricks.
    `refuses_twins`: the volume itself refuses a second inode with a gfid. Each brick enforces that only for itself, so
    this holds where all files are on the same bricks.
    """

    name: str
    id: str
    write_through: bool
    refuses_twins: bool

    def node(self, gfid: Gfid) -> Node | None:
        """The inode, looked up afresh; None if the volume has none."""

    def at(self, pargfid: Gfid, bname: bytes) -> Node | None:
        """The inode at a name, looked up afresh; None if there is none, or no such directory."""

    def parent(self, gfid: Gfid) -> tuple[Gfid, bytes] | None:
        """The name of a directory; None for the root, or if there is no such directory."""

    def names(self, gfid: Gfid) -> Iterator[tuple[bytes, Node]]:
        """The entries of a directory, without GlusterFS's own names in the root. FileNotFoundError if it does not
        exist."""

    def make(self, pargfid: Gfid, bname: bytes, gfid: Gfid, mode: int, uid: int = 0, gid: int = 0, rdev: int = 0,
             target: bytes | None = None) -> None:
        """Make an inode with this gfid. No other inode may have it: the caller has asked, unless the volume
        `refuses_twins`. FileExistsError means that either the name or the gfid is taken."""

    def link(self, gfid: Gfid, pargfid: Gfid, bname: bytes) -> None: ...

    def rename(self, pargfid: Gfid, bname: bytes, to_pargfid: Gfid, to_bname: bytes) -> None: ...

    def unlink(self, pargfid: Gfid, bname: bytes) -> None: ...

    def rmdir(self, pargfid: Gfid, bname: bytes) -> None: ...

    def readlink(self, gfid: Gfid) -> bytes: ...

    def open(self, gfid: Gfid, write: bool = False) -> File: ...

    def open_short(self, gfid: Gfid) -> File:
        """Open a short file for writing and reading back, in as few calls as possible. One at a time; close it before
        any other call."""

    def set_attrs(self, gfid: Gfid, mode: int | None, owner: tuple[int, int] | None, times: tuple[int, int] | None
                  ) -> None:
        """owner: uid, gid; times: mtime, atime. In one step, the owner first. mode None: leave it (for a symlink)."""

    def xattrs(self, gfid: Gfid) -> dict[bytes, bytes]:
        """All xattrs except GlusterFS's own."""

    def set_xattr(self, gfid: Gfid, name: bytes, value: bytes) -> None: ...

    def remove_xattr(self, gfid: Gfid, name: bytes) -> None: ...

    def pathinfo(self, gfid: Gfid) -> bytes:
        """The bricks that hold the inode, in GlusterFS's format."""

    def space(self) -> Space: ...

    def sync(self) -> None:
        """Make everything done so far stable. No effect where `write_through`."""

    def anew(self) -> AbstractContextManager[GlusterVolume]:
        """The volume as it is now: a sharded one caches the lengths of files that it has looked at, whoever changes
        them."""

    def close(self) -> None: ...


def newfile_blob(bname: bytes, gfid: Gfid, mode: int, uid: int, gid: int, rdev: int, target: bytes | None) -> bytes:
    """The value of the virtual xattr that makes an inode with a given gfid (GlusterFS's features/gfid-access)."""
    head = struct.pack(">II", uid, gid) + gfid_str(gfid).encode() + b"\0" + struct.pack(">I", mode) + bname + b"\0"
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFLNK:
        if target is None:
            raise ValueError("a symlink without a target")
        return head + target + b"\0"
    if kind == stat.S_IFDIR:
        return head + struct.pack(">II", stat.S_IMODE(mode), 0)
    return head + struct.pack(">III", stat.S_IMODE(mode), rdev, 0)


def is_its_name(pargfid: Gfid, bname: bytes) -> bool:
    """Whether a name is GlusterFS's own."""
    return pargfid == ROOT_GFID and (bname in _ITS_NAMES or bname.startswith(b".glusterfs"))


def is_internal(name: bytes) -> bool:
    """Whether an xattr belongs to GlusterFS or to the slave's system."""
    return name.startswith(_INTERNAL)


def raised(err: int, what: str) -> Exception:
    """The exception for an errno of the volume: losing the volume is not one file's failure."""
    if err in SLAVE_GLUSTER.away:
        return Transient(f"the volume does not answer: {os.strerror(err)} ({what})")
    return OSError(err, os.strerror(err), what)


def set_node_attrs(volume: GlusterVolume, node: Node, mode: int, uid: int, gid: int, mtime: int, atime: int,
                   xattrs: Xattrs | None, leave: frozenset[str]) -> None:
    """Set the attributes of an inode, changing only those that differ: owner, mode, ACLs and xattrs, then times. xattrs
    None: leave them. leave: "xattrs", "acls" that the slave keeps as its own."""
    gfid, is_link = node.gfid, stat.S_ISLNK(node.mode)
    wanted = stat.S_IMODE(mode)
    owner = None if (node.uid, node.gid) == (uid, gid) else (uid, gid)
    changed = False
    if xattrs is not None:
        if owner or wanted != stat.S_IMODE(node.mode):  # first: an ACL carries the group bits of the mode
            volume.set_attrs(gfid, None if is_link else wanted, owner, None)
            owner = None
        changed = _set_xattrs(volume, gfid, xattrs, leave)
    new_mode = None if is_link or (wanted == stat.S_IMODE(node.mode) and owner is None and not changed) else wanted
    times = None if (node.mtime, node.atime) == (mtime, atime) and not changed else (mtime, atime)
    if new_mode is not None or owner is not None or times is not None:
        volume.set_attrs(gfid, new_mode, owner, times)


def _set_xattrs(volume: GlusterVolume, gfid: Gfid, wanted: Xattrs, leave: frozenset[str]) -> bool:
    def ours(name: bytes) -> bool:
        if is_internal(name):
            return False
        return "acls" not in leave if name in ACLS else "xattrs" not in leave

    present = volume.xattrs(gfid)
    changed = False
    for name, value in wanted:
        if ours(name) and present.get(name) != value:
            try:
                volume.set_xattr(gfid, name, value)
            except OSError as exc:
                # The bricks' ext4 reports ENOSPC when an inode's xattrs exceed its block, however much is free.
                if exc.errno == errno.ENOSPC and volume.space().free:
                    raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), name) from exc
                raise
            changed = True
    for name in present.keys() - {name for name, _ in wanted}:
        if ours(name):
            try:
                volume.remove_xattr(gfid, name)
            except OSError as exc:
                if exc.errno != errno.ENODATA:
                    raise
            changed = True
    return changed
