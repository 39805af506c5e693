"""The times that GlusterFS's own geo-replication keeps on the root of each brick of its master: how far its slave is.

trusted.glusterfs.<master id>.<slave id>.stime (and .entry_stime): two unsigned 32-bit numbers, big endian, seconds and
microseconds since the epoch. gsync reads them when it takes over from geo-replication, and writes them so that
geo-replication could resume from gsync.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from gsync.base.model import NS

_TIME = struct.Struct(">II")


@dataclass(frozen=True)
class GsyncdTimes:
    """Times in ns; entry_stime None: there is none."""

    stime: int
    entry_stime: int | None


def standing(brick: str, master: str, slave: str) -> GsyncdTimes | None:
    """The times noted on this brick of the volume `master` for the volume `slave` (their ids); None if there are none,
    or gsyncd was told to forget them."""
    stime = _read(brick, _name(master, slave, "stime"))
    return GsyncdTimes(stime, _read(brick, _name(master, slave, "entry_stime"))) if stime else None


def note(brick: str, master: str, slave: str, stime: int) -> None:
    """Note that the slave (its id) holds everything that this brick recorded up to then (ns). Rounded down: never too
    much."""
    value = _TIME.pack(stime // NS, stime % NS // 1000)
    for kind in ("stime", "entry_stime"):
        os.setxattr(brick, _name(master, slave, kind), value)


def _name(master: str, slave: str, kind: str) -> str:
    return f"trusted.glusterfs.{master}.{slave}.{kind}"


def _read(brick: str, name: str) -> int | None:
    try:
        value = os.getxattr(brick, name)
    except OSError:
        return None
    if len(value) != _TIME.size:
        return None
    seconds, micros = _TIME.unpack(value)
    return int(seconds) * NS + int(micros) * 1000
