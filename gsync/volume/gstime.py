"""The times that GlusterFS's own geo-replication keeps on the root of each brick of its master: what its slave holds.

trusted.glusterfs.<master id>.<slave id>.stime (and .entry_stime): two unsigned 32-bit numbers, big endian, seconds and
microseconds since the epoch. Read where gsync takes over from it, and written so that it could go on from gsync.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass

from gsync.model import NS

_NAME = re.compile(r"trusted\.glusterfs\.([0-9a-f-]{36})\.([0-9a-f-]{36})\.stime")
_TIME = struct.Struct(">II")


@dataclass(frozen=True)
class Standing:
    """Times in ns; entry_stime None: none is noted. stime 0: gsyncd was told to forget it."""

    slave: str
    stime: int
    entry_stime: int | None


def standings(brick: str, master: str) -> list[Standing]:
    """What is noted on this brick of the volume `master` (its id), for each slave."""
    found = []
    for name in sorted(os.listxattr(brick)):
        match = _NAME.fullmatch(name)
        if match and match[1] == master and (stime := _read(brick, name)) is not None:
            found.append(Standing(match[2], stime, _read(brick, name[:-len("stime")] + "entry_stime")))
    return found


def note(brick: str, master: str, slave: str, stime: int) -> None:
    """The slave (its id) holds all that this brick has recorded up to then (ns). Rounded down: never too much."""
    value = _TIME.pack(stime // NS, stime % NS // 1000)
    for kind in ("stime", "entry_stime"):
        os.setxattr(brick, f"trusted.glusterfs.{master}.{slave}.{kind}", value)


def _read(brick: str, name: str) -> int | None:
    try:
        value = os.getxattr(brick, name)
    except OSError:
        return None
    if len(value) != _TIME.size:
        return None
    seconds, micros = _TIME.unpack(value)
    return int(seconds) * NS + int(micros) * 1000
