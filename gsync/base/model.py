"""The values that every part of gsync speaks in: gfids, attributes, names.

Runs in the agent too: standard library only, Python 3.9. Imports nothing of gsync.
A *name* is (pargfid, bname): the parent directory's gfid and the base name, both bytes.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

Gfid = bytes
Name = tuple[bytes, bytes]

ROOT_GFID: Gfid = bytes(15) + b"\x01"
STATE_DIR = b".gsync"  # gsync's own folder at the root of a slave tree: never recorded, never replicated

NS = 1_000_000_000


def gfid_str(gfid: Gfid) -> str:
    """A gfid as people and GlusterFS write it: a UUID with dashes."""
    h = gfid.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def gfid_parse(text: str) -> Gfid:
    """The gfid of a UUID text, with or without dashes; ValueError if it is none."""
    gfid = bytes.fromhex(text.replace("-", ""))
    if len(gfid) != 16:
        raise ValueError(f"not a gfid: {text!r}")
    return gfid


def check_bname(bname: bytes) -> bytes:
    """bname itself if it can be the last part of a path, else ValueError."""
    if not bname or bname in (b".", b"..") or b"/" in bname or b"\0" in bname:
        raise ValueError(f"not a base name: {bname!r}")
    return bname


def shown(name: bytes) -> str:
    """A file name for logs and messages: one line, and no byte lost."""
    text = name.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Attrs(NamedTuple):
    """What stat(2) tells of an inode and gsync carries over; times in ns since the epoch.

    mode holds the type bits. On the wire it is the list of these fields in this order.
    """

    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    atime: int
    rdev: int
    nlink: int

    @classmethod
    def of(cls, st: os.stat_result) -> Attrs:
        return cls(st.st_mode, st.st_uid, st.st_gid, st.st_size, st.st_mtime_ns, st.st_atime_ns, st.st_rdev,
                   st.st_nlink)

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


def kind_of(mode: int) -> int:
    """The type bits of a mode (S_IFREG, S_IFDIR, ...): how gsync writes an inode's kind."""
    return stat.S_IFMT(mode)
