"""A worker's side of a slave of any kind, without a worker: fills and removes names, sends files.

tests/slave_contract.py states its claims about names in these terms: for a directory and a volume in memory here, for
real volumes through lab/gluster/slavehost.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from gsync.base.model import ROOT_GFID, Gfid, Name
from gsync.link.protocol import FillAnswer, FillCode, FillRow, RemoveAnswer, RemoveRow
from gsync.slave.limbo import LIMBO_NEW, name_in_limbo
from gsync.slave.target import Operations
from lab.slave_model import Slave, open_new
from lab.slave_volume import MemoryVolume, VolumeSlave

LATE = 1 << 60  # a stime later than everything


class NamesSide(ABC):
    """vacated, displaced: of the last fill."""

    vacated: Sequence[Name] = ()
    displaced: Sequence[Gfid] = ()
    _gfids = itertools.count(1)

    @staticmethod
    def row(name: bytes, gfid: Gfid, pargfid: Gfid = ROOT_GFID, mode: int = stat.S_IFREG | 0o644, *, since: int = 1,
            nlink: int = 1, uid: int = 0, gid: int = 0, mtime: int = 10**18, rdev: int = 0, target: bytes | None = None,
            xattrs: list[tuple[bytes, bytes]] | None = None) -> FillRow:
        return FillRow(pargfid, name, gfid, mode, since, nlink, uid, gid, mtime, 10**18, rdev, target, xattrs)

    def new_gfid(self) -> Gfid:
        return b"side" + os.getpid().to_bytes(4, "big") + next(self._gfids).to_bytes(8, "big")

    def fill(self, *rows: FillRow) -> Sequence[FillCode]:
        answer = self.filled(rows)
        assert not answer.errors, answer.errors
        return answer.answers

    def filled(self, rows: Sequence[FillRow]) -> FillAnswer:
        """The same; the answer may contain errors."""
        answer = self._fill(rows)
        self.vacated, self.displaced = answer.vacated, answer.displaced
        return answer

    def remove(self, *names: Name, since: int = 1, keep_last: bool = False) -> list[Gfid]:
        """Remove names; return the displaced gfids."""
        answer = self._remove([RemoveRow(*name, since) for name in names], keep_last)
        assert not answer.errors, answer.errors
        return answer.displaced

    def folder(self, name: bytes, pargfid: Gfid = ROOT_GFID, *, mode: int = 0o755) -> Gfid:
        """Make a directory at the slave, as a new one of the master's."""
        gfid = self.new_gfid()
        row = self.row(name, gfid, pargfid, stat.S_IFDIR | mode)
        assert self.fill(row) == ["made"]
        assert self.fill(row) == ["ok"]
        return gfid

    def file(self, name: bytes, data: bytes, pargfid: Gfid = ROOT_GFID, nlink: int = 1) -> Gfid:
        """Make a file at the slave, as a new one of the master's."""
        gfid = self.new_file(data)
        row = self.row(name, gfid, pargfid, nlink=nlink)
        assert self.fill(row) == ["new"]
        self.send(row)
        assert self.fill(row) == ["ok"]
        return gfid

    @abstractmethod
    def new_file(self, data: bytes) -> Gfid:
        """Make a file of the master's."""

    @abstractmethod
    def send(self, row: FillRow) -> None:
        """Send its content to limbo/new, with its attributes."""

    @abstractmethod
    def _fill(self, rows: Sequence[FillRow]) -> FillAnswer: ...

    @abstractmethod
    def _remove(self, rows: Sequence[RemoveRow], keep_last: bool) -> RemoveAnswer: ...

    @abstractmethod
    def listed(self, gfid: Gfid) -> dict[bytes, Gfid | None]:
        """The names in a directory."""

    @abstractmethod
    def knows(self, gfid: Gfid) -> bool:
        """Whether the slave has the inode."""

    @abstractmethod
    def holds(self, gfid: Gfid, data: bytes) -> bool:
        """Whether this is the file's content."""

    @abstractmethod
    def commit(self, stime: int = LATE) -> None: ...

    @abstractmethod
    def wait_gone(self, *gfids: Gfid) -> None:
        """Wait until everything that a commit has let go is deleted."""


class OperationsSide(NamesSide):
    """The side of a slave in this process."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._data: dict[Gfid, bytes] = {}

    def new_file(self, data: bytes) -> Gfid:
        gfid = self.new_gfid()
        self._data[gfid] = data
        return gfid

    def _fill(self, rows: Sequence[FillRow]) -> FillAnswer:
        return self._operations.fill([row._replace(uid=os.geteuid(), gid=os.getegid()) for row in rows])

    def _remove(self, rows: Sequence[RemoveRow], keep_last: bool) -> RemoveAnswer:
        return self._operations.remove(rows, keep_last)

    def listed(self, gfid: Gfid) -> dict[bytes, Gfid | None]:
        return dict(self._operations.names_in(gfid, None, 10**6)[0])

    def knows(self, gfid: Gfid) -> bool:
        return self._operations.known([gfid]) == [1]

    def holds(self, gfid: Gfid, data: bytes) -> bool:
        return self._operations.digest([gfid]) == [(0, len(data), hashlib.blake2b(data).hexdigest())]

    def commit(self, stime: int = LATE) -> None:
        self._operations.commit(stime, stime, 0, clear=True)


class DirectorySide(OperationsSide):
    def __init__(self, root: Path) -> None:
        self._slave = Slave(root)
        super().__init__(self._slave.apply)

    def send(self, row: FillRow) -> None:
        with open(open_new(self._slave.tree, row.gfid), "wb") as file:
            file.write(self._data[row.gfid])

    def wait_gone(self, *gfids: Gfid) -> None:
        assert self._slave.tree.sweep()
        assert not any(map(self.knows, gfids))

    def close(self) -> None:
        self._slave.close()


class MemoryVolumeSide(OperationsSide):
    def __init__(self, volume: MemoryVolume) -> None:
        self._volume = volume
        self._slave = VolumeSlave(volume)
        super().__init__(self._slave.apply)

    def send(self, row: FillRow) -> None:
        self._volume.make(LIMBO_NEW, name_in_limbo(row.gfid), row.gfid, row.mode)
        self._volume.open(row.gfid, write=True).pwrite(self._data[row.gfid], 0)

    def wait_gone(self, *gfids: Gfid) -> None:
        assert self._slave.apply.sweep()
        assert not any(map(self.knows, gfids))
