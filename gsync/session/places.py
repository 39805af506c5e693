"""Finds the MASTER and SLAVE of a command line, and whether one may be replicated to the other."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

from gsync.base.errors import Faulty, UsageError
from gsync.base.model import shown
from gsync.link.link import Slave, parse_slave
from gsync.session.session import auto_volume_name
from gsync.session.sharedvolumes import keep_volume, new_volume
from gsync.state.home import Home, Volume


def master_volume(home: Home, master: str) -> Volume:
    """The volume that MASTER names, or whose tree it is; made on the fly for another directory."""
    volume, is_new = find_master(home, master)
    return keep_volume(home, volume) if is_new else volume


def find_master(home: Home, master: str) -> tuple[Volume, bool]:
    """The volume that MASTER names, or whose tree it is, and whether it is still to be made (keep_volume)."""
    if "/" not in master and master not in (".", ".."):
        named = next((volume for volume in home.list() if volume.name == master), None)
        if named is not None:
            return _checked(named), False
    volume = home.at_path(master)
    if volume is not None:
        return _checked(volume), False
    real = os.path.realpath(master)
    try:
        os.close(os.open(real, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except FileNotFoundError:
        raise UsageError(f"master {_shown(master)}: no such directory" + ("" if "/" in master else
                         " or volume; register a GlusterFS volume with gsync volume add --gluster")) \
            from None
    except OSError as exc:
        raise UsageError(f"master {_shown(master)}: {exc.strerror}") from None
    return new_volume(home, auto_volume_name(real), real), True


def _checked(volume: Volume) -> Volume:
    if volume.gluster is not None:
        if not volume.bricks_here():
            raise UsageError(f"master {volume.name}: this node has no brick of it; create the session on a node "
                             "that has one")
        return volume
    try:
        os.close(volume.open_root())
    except Faulty as exc:
        raise UsageError(f"master {_shown(volume.path)}: {exc}") from None
    return volume


def slave_at(text: str) -> Slave:
    """The slave that SLAVE names; a path without a host may be relative."""
    head = text.partition("/")[0]
    return parse_slave(text if ":" in head else os.path.abspath(text))


def slave_text(slave: Slave) -> str:
    """The slave as a session keeps it: the same for every spelling, without loss of a byte."""
    if slave.is_volume:
        return str(slave)
    prefix = str(dataclasses.replace(slave, path=b"/"))[:-1]
    return prefix + os.fsdecode(slave.path)


def check_apart(volume: Volume, slave: Slave, home: Home) -> None:
    """UsageError if one tree is inside the other, or the state directory inside the slave. Looks at this host only."""
    if slave.host is not None or slave.is_volume:
        return
    path = os.fsdecode(slave.path)
    if _is_within(path, volume.path):
        raise UsageError(f"slave {_shown(path)} lies inside the master {_shown(volume.path)}")
    if _is_within(volume.path, path):
        raise UsageError(f"master {_shown(volume.path)} lies inside the slave {_shown(path)}")
    for brick in volume.bricks_here():
        if _is_within(path, brick.path) or _is_within(brick.path, path):
            raise UsageError(f"slave {_shown(path)} and brick {_shown(brick.path)} of the master lie in each other")
    if _is_within(home.path, path):
        raise UsageError(f"state directory {_shown(home.path)} lies inside the slave {_shown(path)}; "
                         "choose another one with --state")


def _is_within(path: str, folder: str) -> bool:
    """Whether a path (whose end may not exist yet) is `folder` or below it, under whatever names.

    By the inodes of its parents, and by the kernel's list of bind mounts, above which the parents are others.
    """
    try:
        st = os.stat(folder)
    except OSError:
        return False
    within = _origin(os.path.realpath(folder))
    return (any((st.st_dev, st.st_ino) == place for place in _ancestors(path))
            or _origin(os.path.realpath(path))[:len(within)] == within)


def _ancestors(path: str) -> Iterator[tuple[int, int]]:
    here = os.path.realpath(path)
    while True:
        try:
            st = os.stat(here)
            yield st.st_dev, st.st_ino
        except OSError:
            pass  # not made yet, or not ours to see: what is above it counts
        if here == "/":
            return
        here = os.path.dirname(here)


def _origin(real: str) -> list[str]:
    """A path with bind mounts resolved: the device, then the names from the root of its file system."""
    best, longest = real.split("/"), -1
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()
    except OSError:
        return best
    for line in lines:
        device, root, at = (_unescaped(field) for field in line.split(" ")[2:5])
        at = at.rstrip("/")
        if len(at) >= longest and (real == at or real.startswith(at + "/")):
            longest = len(at)
            best = [device, *(part for part in (root + real[len(at):]).split("/") if part)]
    return best


def _unescaped(field: str) -> str:
    for char in " \t\n\\":
        field = field.replace(f"\\{ord(char):03o}", char)
    return field


def _shown(path: str) -> str:
    return shown(os.fsencode(path))
