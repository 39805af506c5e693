"""Limbo, as a slave directory and a slave volume both have it: where inodes lie that are not (any more) in the tree.

limbo/new holds what is unfinished and goes with a commit, limbo/old what was detached and waits until nobody can want
it any more (rules 17, 23 and 25). Standard library only, Python 3.9.
"""

from __future__ import annotations

from typing import NamedTuple

from gsync.base.model import Gfid
from gsync.link.protocol import RESERVED

LIMBO_NEW: Gfid = RESERVED + b"limbo/new\0"
LIMBO_OLD: Gfid = RESERVED + b"limbo/old\0"
TEMPORARY = b"t."  # begins the names of links in limbo/new that are on their way to a name


class Waiting(NamedTuple):
    """An entry of limbo/old: its name there, since when (ns), its base name before."""

    bname: bytes
    since: int
    was: bytes


def name_in_limbo(gfid: Gfid) -> bytes:
    """The name of an inode in a folder of limbo."""
    return gfid.hex().encode()


def gfid_in_limbo(bname: bytes) -> Gfid | None:
    """The gfid that a name in limbo stands for; None: it stands for none."""
    try:
        return bytes.fromhex(bname.decode("ascii")) if len(bname) == 32 else None
    except ValueError:
        return None
