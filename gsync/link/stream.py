"""The binary stream that carries whole files to a receiver: its format in both directions.

    stream   hello line (JSON), then boxes
    box      items, then an END header whose size field is the box's number
    item     header, bname, xattrs, data, trailer byte
    data     flag INLINE: `size` bytes; else extents (offset, length, bytes), closed by one of length 0; a range that
             no extent covers is a hole
    answers  rpc frames: {"ready": PROTOCOL} once, then per box {"box": n, "failed": [[index, errno, message], ...]}

Little-endian. Runs in the agent: standard library only, Python 3.9. Not here: reading files, writing files.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import NamedTuple

from gsync.base import rpc
from gsync.base.model import NS

PROTOCOL = rpc.PROTOCOL

FILE, END = 1, 2  # kind of a header

# The destination of an item's bytes.
NEW = 0  # limbo/new/<gfid>, complete with its attributes; the agent names it later
DIRECT = 1  # (dirgfid, bname), dirgfid being an unattached directory in limbo/new; complete with its attributes
IN_PLACE = 2  # into the inode that has this gfid, bytes and length only

INLINE = 1  # flag: the data is `size` bytes without extents

WHOLE, TORN = 0, 1  # trailer: the data is the source's, or must not count

INLINE_MAX = 1 << 20  # larger files go in extents
EXTENT_MAX = 8 << 20  # the longest extent that a sender makes: the padding that a shrinking source can cost
NAME_MAX = 4096
XATTRS_MAX = 16 << 20
SIZE_MAX = (1 << 63) - 1

HEADER = struct.Struct("<BBHHI16s16sIIIqIqIQ")  # ItemHeader
EXTENT = struct.Struct("<QQ")
_XATTR = struct.Struct("<HI")

Xattrs = list[tuple[bytes, bytes]]


class BadStream(Exception):
    """The sender does not use this format."""


class ItemHeader(NamedTuple):
    """The fields of HEADER. mode to atime_ns mean nothing for IN_PLACE items."""

    kind: int
    place: int
    flags: int
    bname_size: int
    xattrs_size: int
    gfid: bytes
    dirgfid: bytes
    mode: int
    uid: int
    gid: int
    mtime_s: int
    mtime_ns: int
    atime_s: int
    atime_ns: int
    size: int

    @property
    def mtime(self) -> int:
        return self.mtime_s * NS + self.mtime_ns

    @property
    def atime(self) -> int:
        return self.atime_s * NS + self.atime_ns


class SenderHello(NamedTuple):
    """A sender's first line: the worker's epoch and its connection's ticket (gsync/slave/fence.py), so that a worker
    that lost its lock is refused."""

    protocol: int
    epoch: int
    ticket: str


def encode_hello(epoch: int, ticket: str) -> bytes:
    return json.dumps({"gsync-stream": PROTOCOL, "epoch": epoch, "ticket": ticket}).encode() + b"\n"


def decode_hello(line: bytes) -> SenderHello:
    """The hello in a line; BadStream if it is not one."""
    try:
        said = json.loads(line)
        return SenderHello(int(said["gsync-stream"]), int(said["epoch"]), str(said["ticket"]))
    except (ValueError, KeyError, TypeError) as exc:
        raise BadStream(f"not a hello: {line[:200]!r}") from exc


def encode_end(box: int) -> bytes:
    return HEADER.pack(END, 0, 0, 0, 0, b"", b"", 0, 0, 0, 0, 0, 0, 0, box)


def encode_xattrs(xattrs: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([_XATTR.pack(len(name), len(value)) + name + value for name, value in xattrs])


def decode_xattrs(blob: bytes) -> Xattrs:
    found: Xattrs = []
    at = 0
    while at < len(blob):
        if at + _XATTR.size > len(blob):
            raise BadStream("torn list of xattrs")
        nlen, vlen = _XATTR.unpack_from(blob, at)
        at += _XATTR.size
        if at + nlen + vlen > len(blob):
            raise BadStream("torn list of xattrs")
        found.append((blob[at:at + nlen], blob[at + nlen:at + nlen + vlen]))
        at += nlen + vlen
    return found
