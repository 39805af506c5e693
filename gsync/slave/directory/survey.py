"""How suitable a directory is as a slave, found out without changing anything there (gsync create asks).

Standard library only, Python 3.9.
"""

from __future__ import annotations

import os
import platform
import stat
import sys
from collections.abc import Callable
from contextlib import suppress

import gsync
from gsync.base import rpc
from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.errors import SlaveError
from gsync.base.fsid import Handles
from gsync.base.model import NS, STATE_DIR, shown
from gsync.link.survey import NUMBERS, Survey
from gsync.slave import fence
from gsync.slave.directory.folders import OPEN_DIR, place_of
from gsync.slave.directory.identity import ACL_OF_A_PROBE, inspect, open_root

_SOME_ID = 54321
# Missing abilities of file systems that cannot be tried without making names. Kinds are named as in session.loss.
_WITHOUT = {
    "vfat": ("hard links", "symlinks", "device nodes", "names that differ only in case", "names that end in a dot",
             "owner", "xattrs", "acls"),
    "exfat": ("hard links", "symlinks", "device nodes", "names that differ only in case", "owner", "xattrs", "acls"),
    "ntfs3": ("device nodes", "names that differ only in case"),
    "cifs": ("device nodes", "names that differ only in case", "owner"),
    "smb3": ("device nodes", "names that differ only in case", "owner"),
}


def survey(root: bytes, volume: str, adopt: bool, clock: Clock = SYSTEM_CLOCK) -> Survey:
    """Examine ROOT as the slave of this volume. SlaveError if it cannot be examined at all."""
    state, problems, busy = "missing", [], ""
    if os.path.lexists(root) or not os.path.isdir(os.path.dirname(root)):
        fd = open_root(root)
        state = "refused"
        try:
            known, empty = inspect(fd, volume, adopt)
            state = "ours" if known is not None else "empty" if empty else "foreign"
        except SlaveError as exc:
            problems.append(str(exc))
        busy = _busy(fd)
    else:
        fd = os.open(os.path.dirname(root), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        wrong = _unwritable(fd, root, state)
        if wrong:
            problems.append(wrong)
        space = os.fstatvfs(fd)
        file_system = _file_system(fd)
        lacks = set(_WITHOUT.get(file_system, ())) | set(_tried(fd))
        if not Handles(fd).lasting:
            lacks.add(NUMBERS)
    finally:
        os.close(fd)
    return Survey(rpc.PROTOCOL, gsync.__version__, platform.python_version(), os.geteuid(), clock.now(), state,
                  problems, busy, space.f_bavail * space.f_frsize if space.f_blocks else sys.maxsize,
                  space.f_favail if space.f_files else None,
                  file_system, sorted(lacks))


def _unwritable(fd: int, root: bytes, state: str) -> str:
    """Why nothing can be made in the directory; "" if it can."""
    what = f"the folder above {shown(root)}" if state == "missing" else shown(root)
    if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
        return f"{what} is on a file system that is mounted read-only: mount it writable"
    st = os.fstat(fd)
    owned = st.st_uid == os.geteuid() and state != "missing"  # then the agent may give itself the right
    if not owned and not os.access(b"/proc/self/fd/%d" % fd, os.W_OK | os.X_OK, effective_ids=True):
        return (f"{what} cannot be written to by uid {os.geteuid()} (it belongs to uid {st.st_uid}, mode "
                f"{stat.S_IMODE(st.st_mode):04o}): chown it, or log in there as another user")
    return ""


def _busy(root_fd: int) -> str:
    """The session whose agent works there now, "" if none does. Takes no lock."""
    with suppress(OSError):
        state_fd = os.open(STATE_DIR, OPEN_DIR, dir_fd=root_fd)
        try:
            return fence.at_work(state_fd)
        finally:
            os.close(state_fd)
    return ""


def _file_system(fd: int) -> str:
    """The file system's type as the kernel names it; "" if it does not tell."""
    device = os.fstat(fd).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            if before.split(" ")[2] == name:
                return after.split(" ")[0]
    return ""


def _tried(fd: int) -> list[str]:
    """The attributes that an unnamed inode (O_TMPFILE) cannot hold there; empty where there are no such inodes."""
    try:
        file = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=fd)
    except (OSError, AttributeError):
        return []
    place = place_of(file)

    def keeps_ns() -> bool:
        os.utime(file, ns=(NS + 123456789, NS + 987654321))
        return os.fstat(file).st_mtime_ns == NS + 987654321

    attempts: list[tuple[str, Callable[[], object]]] = [
        ("times", keeps_ns),
        ("xattrs", lambda: os.setxattr(place, b"user.gsync", b"1")),
        ("acls", lambda: os.setxattr(place, b"system.posix_acl_access", ACL_OF_A_PROBE)),
        ("privileged xattrs", lambda: os.setxattr(place, b"trusted.gsync.probe", b"1")),
        ("owner", lambda: os.fchown(file, _SOME_ID, _SOME_ID)),
    ]
    lacks = [] if os.geteuid() == 0 else ["device nodes"]
    try:
        for kind, attempt in attempts:
            try:
                if attempt() is False:
                    lacks.append(kind)
            except OSError:
                lacks.append(kind)
    finally:
        os.close(file)
    return lacks
