"""Limbo, which slave directories and slave volumes share: it holds inodes that are not in the tree yet, or no longer.

limbo/new holds unfinished inodes and is emptied by a commit. limbo/old holds detached inodes until no batch can want
them any more (rules 17, 23 and 25). Standard library only, Python 3.9.
"""

from __future__ import annotations

from typing import NamedTuple

from gsync.base.model import Gfid
from gsync.link.protocol import RESERVED

LIMBO_NEW: Gfid = RESERVED + b"limbo/new\0"
LIMBO_OLD: Gfid = RESERVED + b"limbo/old\0"
TEMPORARY = b"t."  # prefix of links in limbo/new that are about to be renamed to a name


class Waiting(NamedTuple):
    """An entry of limbo/old: its name there, its waiting time's start (ns), its former base name."""

    bname: bytes
    since: int
    was: bytes


def name_in_limbo(gfid: Gfid) -> bytes:
    """An inode's name in a folder of limbo."""
    return gfid.hex().encode()


def gfid_in_limbo(bname: bytes) -> Gfid | None:
    """The gfid that a name in limbo stands for, or None."""
    try:
        return bytes.fromhex(bname.decode("ascii")) if len(bname) == 32 else None
    except ValueError:
        return None
