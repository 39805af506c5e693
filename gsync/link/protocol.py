"""The rows that worker and agent exchange, and their wire form: positional JSON lists, gfids as hex, names as latin-1.

Shared by both ends. The agent decodes its input with `from_json`, which refuses (ValueError) anything that is not a
gfid, not a base name or not a number in range: nothing else ever reaches a system call.

Methods of the agent (gsync/slave/agent.py lists them, the slave's Operations implement them):
  look survey hello fill remove meta list known digest expose unexpose landed complete leftovers commit forget_stime
  ping bye
The worker must keep these rules: a gfid in flight is not filled; a receiver's death means a new hello; fills and
removals of a batch begin only after the commit of the one before, since a commit with a stime forgets the touched
names. Standard library only, Python 3.9.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple

from gsync.base.errors import Faulty, Transient
from gsync.base.model import ROOT_GFID, STATE_DIR, Gfid, Name, check_bname

Xattrs = list[tuple[bytes, bytes]]


class FillCode(str, Enum):
    """The agent's answer to one row of a fill."""

    OK = "ok"
    MADE = "made"          # a new directory in limbo/new: enumerate it, then fill its name again to attach it
    NEW = "new"            # a file that the slave does not have: send it to limbo/new/<gfid>, then fill again
    DIRECT = "direct"      # the same, but send it straight to its name in an unattached directory; no second fill
    ADOPTED = "adopted"    # a foreign inode of the same kind was there and now has this gfid: compare, set attributes
    PARENT = "parent"      # the parent is not at the slave, or detached
    CYCLE = "cycle"        # the parent is below the directory that is to move
    ERROR = "error"        # see the answer's errors


OK, MADE, NEW, DIRECT, ADOPTED, PARENT, CYCLE, ERROR = FillCode  # short names for the agent
_CODES = {code.value: code for code in FillCode}

ANY_SIZE = -1          # in place of the size of a file that has landed: the source keeps changing
ABSENT = -1            # in place of an errno: the slave has no such inode

RESERVED = b"gsync:"    # prefix of the gfids that the agent has invented for its own folders

_MAX_ID = 0xFFFFFFFE   # the next number is -1 to chown(2): leave unchanged
_MAX_TIME = 1 << 70    # ns; more than any file system stores
_MAX_SIZE = 1 << 63


class Busy(Transient):
    """The worker of another stream of this session has the slave at the moment."""


class Fenced(Faulty):
    """Another worker with a younger epoch has taken over the slave: this one must stop, and none of its work counts."""


_TICKET = re.compile(r"[0-9a-f]{8,64}(?:-(\d{1,6}of\d{1,6}(?:x[0-9a-f]{8})?))?")


def stream_of(ticket: str) -> str:
    """The stream of changes that a connection with this ticket brings: "" for the only one, else <n>of<m>, followed by
    x<digest> if an earlier set had as many. ValueError if it is not a ticket."""
    match = _TICKET.fullmatch(ticket)
    if match is None:
        raise ValueError(f"not a ticket: {ticket!r}")
    return match[1] or ""


def gfid_of_json(text: Any) -> Gfid:
    """The 16 bytes of a gfid given in hex."""
    gfid = bytes.fromhex(text)
    if len(gfid) != 16 or gfid.startswith(RESERVED):
        raise ValueError(f"not a gfid: {text!r}")
    return gfid


# A page has few different parents: the same text comes again and again.
_parent_of_json = lru_cache(4096)(gfid_of_json)


def name_of_json(pargfid: Any, bname: Any) -> Name:
    """A name that the worker may use: not gsync's own folder."""
    parent, base = _parent_of_json(pargfid), check_bname(bname.encode("latin-1"))
    if base == STATE_DIR and parent == ROOT_GFID:
        raise ValueError("gsync's own folder is not replicated")
    return parent, base


def text_of(name: bytes) -> str:
    """The wire form of a name."""
    return name.decode("latin-1")


def _int(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"not a number between {low} and {high}: {value!r}")
    return value


def _xattrs_of_json(rows: Any) -> Xattrs | None:
    if rows is None:
        return None
    xattrs = [(str(name).encode("latin-1"), str(value).encode("latin-1")) for name, value in rows]
    for name, _ in xattrs:
        if not name or b"\0" in name:
            raise ValueError(f"not the name of an xattr: {name!r}")
    return xattrs


def _xattrs_json(xattrs: Xattrs | None) -> Any:
    return None if xattrs is None else [[text_of(name), text_of(value)] for name, value in xattrs]


class MetaRow(NamedTuple):
    """Attributes to set on the inode with this gfid. xattrs: exactly these; None: leave them alone."""

    gfid: Gfid
    mode: int
    uid: int
    gid: int
    mtime: int
    atime: int
    xattrs: Xattrs | None = None

    def to_json(self) -> list[Any]:
        return [self.gfid.hex(), *self[1:6], _xattrs_json(self.xattrs)]

    @classmethod
    def from_json(cls, row: Sequence[Any]) -> MetaRow:
        gfid, mode, uid, gid, mtime, atime, xattrs = row
        return cls(gfid_of_json(gfid), _int(mode, 0, 0xFFFF), _int(uid, 0, _MAX_ID), _int(gid, 0, _MAX_ID),
                   _int(mtime, -_MAX_TIME, _MAX_TIME), _int(atime, -_MAX_TIME, _MAX_TIME), _xattrs_of_json(xattrs))


class LandedRow(NamedTuple):
    """A new file that rsync has put into limbo/new, and its expected properties."""

    meta: MetaRow
    size: int

    def to_json(self) -> list[Any]:
        return [*self.meta.to_json(), self.size]

    @classmethod
    def from_json(cls, row: Sequence[Any]) -> LandedRow:
        return cls(MetaRow.from_json(row[:-1]), _int(row[-1], ANY_SIZE, _MAX_SIZE))


class FillRow(NamedTuple):
    """A name and the inode that it must lead to. since: when the master was asked, ns. The attributes are for inodes
    that the agent makes itself: all kinds but regular files."""

    pargfid: Gfid
    bname: bytes
    gfid: Gfid
    mode: int
    since: int
    nlink: int
    uid: int
    gid: int
    mtime: int
    atime: int
    rdev: int
    target: bytes | None = None
    xattrs: Xattrs | None = None

    @property
    def meta(self) -> MetaRow:
        return MetaRow(self.gfid, self.mode, self.uid, self.gid, self.mtime, self.atime, self.xattrs)

    def to_json(self) -> list[Any]:
        target = None if self.target is None else text_of(self.target)
        return [self.pargfid.hex(), text_of(self.bname), self.gfid.hex(), *self[3:11], target,
                _xattrs_json(self.xattrs)]

    @classmethod
    def from_json(cls, row: Sequence[Any]) -> FillRow:
        pargfid, bname, gfid, mode, since, nlink, uid, gid, mtime, atime, rdev, target, xattrs = row
        # All range checks in one expression: this runs for every name.
        if not (type(mode) is type(since) is type(nlink) is type(uid) is type(gid) is type(mtime) is type(atime)
                is type(rdev) is int and 0 <= mode <= 0xFFFF and 0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID
                and 0 <= since < _MAX_SIZE and -_MAX_TIME <= mtime <= _MAX_TIME
                and -_MAX_TIME <= atime <= _MAX_TIME and 0 <= rdev < _MAX_SIZE):
            raise ValueError(f"not the attributes of an inode: {row!r}")
        inode = gfid_of_json(gfid)
        if inode == ROOT_GFID:
            raise ValueError("the root has no name")
        return cls(*name_of_json(pargfid, bname), inode, mode, since, nlink, uid, gid, mtime, atime, rdev,
                   None if target is None else target.encode("latin-1"), _xattrs_of_json(xattrs))


class RemoveRow(NamedTuple):
    """A name to take away."""

    pargfid: Gfid
    bname: bytes
    since: int

    def to_json(self) -> list[Any]:
        return [self.pargfid.hex(), text_of(self.bname), self.since]

    @classmethod
    def from_json(cls, row: Sequence[Any]) -> RemoveRow:
        pargfid, bname, since = row
        return cls(*name_of_json(pargfid, bname), _int(since, 0, _MAX_SIZE - 1))


class RowProblem(NamedTuple):
    """The problem of one row of a request. The row's number counts from 0."""

    row: int
    errno: int
    message: str


class FillAnswer(NamedTuple):
    """answers: one for each row. vacated: names that an inode was moved away from. displaced: gfids in limbo/old."""

    answers: list[FillCode]
    vacated: list[Name]
    displaced: list[Gfid]
    errors: list[RowProblem]

    def to_json(self) -> dict[str, Any]:
        return {"answers": self.answers, "vacated": [[p.hex(), text_of(b)] for p, b in self.vacated],
                "displaced": [g.hex() for g in self.displaced], "errors": self.errors}

    @classmethod
    def from_json(cls, answer: dict[str, Any]) -> FillAnswer:
        return cls([_CODES[code] for code in answer["answers"]],
                   [name_of_json(p, b) for p, b in answer["vacated"]],
                   [gfid_of_json(g) for g in answer["displaced"]], [RowProblem(*row) for row in answer["errors"]])


class RemoveAnswer(NamedTuple):
    displaced: list[Gfid]
    errors: list[RowProblem]

    def to_json(self) -> dict[str, Any]:
        return {"displaced": [g.hex() for g in self.displaced], "errors": self.errors}

    @classmethod
    def from_json(cls, answer: dict[str, Any]) -> RemoveAnswer:
        return cls([gfid_of_json(g) for g in answer["displaced"]], [RowProblem(*row) for row in answer["errors"]])


class CommitAnswer(NamedTuple):
    """removed: entries that left limbo/old; left: entries that must wait for a later stime."""

    stime: int | None
    removed: int
    left: int

    def to_json(self) -> dict[str, Any]:
        return self._asdict()

    @classmethod
    def from_json(cls, answer: dict[str, Any]) -> CommitAnswer:
        return cls(answer["stime"], answer["removed"], answer["left"])


class Caps(NamedTuple):
    """The abilities of the slave's file system and user; each was tried. handles: an inode can be told from all others
    at any time. dots: names may end in a dot."""

    root: bool = True
    chown: bool = True
    xattr: bool = True
    trusted: bool = True
    acl: bool = True
    hardlink: bool = True
    symlink: bool = True
    mknod: bool = True
    handles: bool = True
    utime_ns: bool = True
    case_sensitive: bool = True
    dots: bool = True


class Hello(NamedTuple):
    """The agent's report on itself and its tree. stime None: nothing was ever committed. unclean: the last agent was
    killed. empty: the tree was empty. free: bytes. uid: whose rights the agent has. mark: the text given with the
    commit of the stime. volume_id: the id of a slave that is a GlusterFS volume."""

    protocol: int
    version: str
    pid: int
    boot_id: str
    stime: int | None
    entry_stime: int | None
    epoch: int
    unclean: bool
    empty: bool
    free: int
    caps: Caps
    python: str
    uid: int
    mark: str | None
    volume_id: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**self._asdict(), "caps": self.caps._asdict()}

    @classmethod
    def from_json(cls, answer: dict[str, Any]) -> Hello:
        return cls(**{**answer, "caps": Caps(**answer["caps"])})

    @property
    def fresh(self) -> bool:
        """Whether everything at the slave is still to come."""
        return self.empty
