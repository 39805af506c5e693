"""A GlusterFS volume as the agent sees it: inodes by gfid, names by the gfid of their directory.

The seam between what is done at the slave (apply, receive) and how the volume is reached (gfapi, auxmount); both are
held to one contract by tests/gluster. Nothing here follows a symlink, and no path leads anywhere but a gfid.
Errors are OSError with the errno that the volume gave. Standard library only, Python 3.9.
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

# What GlusterFS keeps on inodes for itself: the names that are never the master's.
_INTERNAL = (b"trusted.gfid", b"trusted.glusterfs.", b"trusted.afr.", b"trusted.ec.", b"trusted.dht.",
             b"trusted.pgfid.", b"trusted.bit-rot.", b"trusted.tier.", b"trusted.io-stats", b"trusted.SGI_",
             b"trusted.gsync.", b"trusted.overlay.", b"glusterfs.", b"security.selinux", b"security.ima",
             b"security.evm", b"security.SMACK")
ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
# In the root of a volume: GlusterFS's own. A replicated one has .glusterfs-anonymous-inode-<id>.
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
    """What is free: bytes, and inodes (None: no limit)."""

    free: int
    inodes: int | None


class File(Protocol):
    """An open regular file."""

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of it."""

    def pread(self, size: int, offset: int) -> bytes:
        """What is there, from the volume itself; less only at the end."""

    def truncate(self, size: int) -> None: ...

    def sync(self) -> None:
        """Have what was written on stable storage, on every brick of the file."""

    def close(self) -> None: ...


class GlusterVolume(Protocol):
    """Any thread but one at a time, the one that opened it.

    `write_through`: files have to be synced one by one, since `sync` cannot reach the disks of all bricks.
    `refuses_twins`: the volume itself makes no second inode with a gfid. A brick sees to that on its own, so this holds
    where all files are on the same ones.
    """

    name: str
    id: str
    write_through: bool
    refuses_twins: bool

    def node(self, gfid: Gfid) -> Node | None:
        """The inode, asked of the volume anew; None: the volume has none."""

    def at(self, pargfid: Gfid, bname: bytes) -> Node | None:
        """Who is at a name, asked anew; None: nobody, or there is no such directory."""

    def parent(self, gfid: Gfid) -> tuple[Gfid, bytes] | None:
        """The name of a directory; None for the root, or if there is no such directory."""

    def names(self, gfid: Gfid) -> Iterator[tuple[bytes, Node]]:
        """What is in a directory; GlusterFS's own names in the root left out. FileNotFoundError if there is none."""

    def make(self, pargfid: Gfid, bname: bytes, gfid: Gfid, mode: int, uid: int = 0, gid: int = 0, rdev: int = 0,
             target: bytes | None = None) -> None:
        """A new inode with this gfid. No other inode may have it: the caller has asked, unless the volume
        `refuses_twins`. FileExistsError says either: the name is taken, or the gfid."""

    def link(self, gfid: Gfid, pargfid: Gfid, bname: bytes) -> None: ...

    def rename(self, pargfid: Gfid, bname: bytes, to_pargfid: Gfid, to_bname: bytes) -> None: ...

    def unlink(self, pargfid: Gfid, bname: bytes) -> None: ...

    def rmdir(self, pargfid: Gfid, bname: bytes) -> None: ...

    def readlink(self, gfid: Gfid) -> bytes: ...

    def open(self, gfid: Gfid, write: bool = False) -> File: ...

    def open_short(self, gfid: Gfid) -> File:
        """To write a short file and read it back, in as few calls as there can be. One at a time, closed before
        another call."""

    def set_attrs(self, gfid: Gfid, mode: int | None, owner: tuple[int, int] | None, times: tuple[int, int] | None
                  ) -> None:
        """owner: uid, gid; times: mtime, atime. In one step; owner goes first. mode None: leave it (of a symlink)."""

    def xattrs(self, gfid: Gfid) -> dict[bytes, bytes]:
        """All that are not GlusterFS's own."""

    def set_xattr(self, gfid: Gfid, name: bytes, value: bytes) -> None: ...

    def remove_xattr(self, gfid: Gfid, name: bytes) -> None: ...

    def pathinfo(self, gfid: Gfid) -> bytes:
        """Where the bricks are that hold it, as GlusterFS words it."""

    def space(self) -> Space: ...

    def sync(self) -> None:
        """Have what was done on stable storage. Without effect where `write_through`."""

    def anew(self) -> AbstractContextManager[GlusterVolume]:
        """It, as it is now: a sharded one keeps the lengths of files that it has looked at, whoever changes them."""

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
    """Whether an xattr is GlusterFS's own, or the slave system's."""
    return name.startswith(_INTERNAL)


def raised(err: int, what: str) -> Exception:
    """What to raise for an errno of the volume: a lost volume is not a matter of one file."""
    if err in SLAVE_GLUSTER.away:
        return Transient(f"the volume does not answer: {os.strerror(err)} ({what})")
    return OSError(err, os.strerror(err), what)


def set_node_attrs(volume: GlusterVolume, node: Node, mode: int, uid: int, gid: int, mtime: int, atime: int,
                   xattrs: Xattrs | None, leave: frozenset[str]) -> None:
    """Make the attributes of an inode these, touching only what differs; owner, mode, ACLs and xattrs, then times.
    xattrs None: leave them; leave: "xattrs", "acls" of the slave's own."""
    gfid, is_link = node.gfid, stat.S_ISLNK(node.mode)
    wanted = stat.S_IMODE(mode)
    owner = None if (node.uid, node.gid) == (uid, gid) else (uid, gid)
    changed = False
    if xattrs is not None:
        if owner or wanted != stat.S_IMODE(node.mode):  # first: an ACL holds what the mode says of the group
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
                # The bricks' ext4 says so when the xattrs of an inode do not fit into its block, whatever is free.
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
