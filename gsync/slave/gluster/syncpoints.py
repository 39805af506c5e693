"""Stable storage in a volume. If all bricks are on this host, gsync syncs their file systems. Otherwise it writes and
syncs one file on each subvolume.

Syncing one file makes the file system's journal durable up to then (ext4, xfs). That covers everything done on the
brick before, except the content of other files: those are synced when they are written. GlusterFS itself has no call
that reaches all bricks. Standard library only, Python 3.9.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from typing import TYPE_CHECKING

from gsync.base.fsid import syncfs
from gsync.base.model import Gfid
from gsync.link.protocol import RESERVED

if TYPE_CHECKING:
    from gsync.slave.gluster.volfile import VolumeSite
    from gsync.slave.gluster.volume import GlusterVolume

FOLDER: Gfid = RESERVED + b"sync\0\0\0\0\0\0"
_BRICK = re.compile(rb"<POSIX\([^)]*\):[^:>]*")  # the folder and host of a brick, in a pathinfo
_TRIES = 40  # names tried per subvolume until one lands there


class Storage:
    """write_through: files must be synced one by one. The files are found or made when first needed."""

    def __init__(self, volume: GlusterVolume, site: VolumeSite) -> None:
        self._volume = volume
        self._subvolumes = site.subvolumes
        # A folder for this set of bricks: only one made while they existed reaches all of them.
        self._bname = _digest(repr(site.bricks).encode("utf-8", "surrogateescape")).hex().encode()
        self._gfids: list[Gfid] = []
        bricks = site.local_bricks()
        self.write_through = bricks is None
        self._brick_fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for path in bricks or ()]

    def close(self) -> None:
        for fd in self._brick_fds:
            os.close(fd)

    def sync(self) -> None:
        """Make everything done on every subvolume durable."""
        for fd in self._brick_fds:
            syncfs(fd)
        if self.write_through:
            self._sync_points()

    def _sync_points(self) -> None:
        if not self._gfids:
            self._gfids = self._find()
        for gfid in self._gfids:
            file = self._volume.open(gfid, write=True)
            try:
                file.pwrite(b"s", 0)
                file.sync()
            finally:
                file.close()

    def _find(self) -> list[Gfid]:
        places: dict[bytes, Gfid] = {}
        folder = RESERVED + _digest(b"sync folder" + self._bname)
        if self._volume.node(folder) is None:
            self._volume.make(FOLDER, self._bname, folder, stat.S_IFDIR | 0o700)
        for n in range(self._subvolumes * _TRIES):
            bname = b"%d" % n
            node = self._volume.at(folder, bname)
            if node is None:
                gfid = RESERVED + _digest(b"sync point" + self._bname + bname)
                self._volume.make(folder, bname, gfid, stat.S_IFREG | 0o600)
            else:
                gfid = node.gfid
            first = _BRICK.search(self._volume.pathinfo(gfid))
            places.setdefault(first.group() if first else b"", gfid)
            if len(places) == self._subvolumes:
                break
        return list(places.values())


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16 - len(RESERVED)).digest()
