"""Sets an inode's attributes: owner, mode, ACLs and xattrs, times, in this order.

It silently omits what the slave's user or file system cannot store by its nature (`Caps`): the worker knows that from
the hello. Standard library only, Python 3.9.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import Union

from gsync.link.protocol import Caps, MetaRow, Xattrs

_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
_PRIVILEGED = (b"trusted.", b"security.")
# The slave's own system keeps these: they are not removed where the master has none.
_ITS_OWN = (b"trusted.gfid", b"trusted.glusterfs.", b"trusted.afr.", b"trusted.gsync.", b"trusted.overlay.",
            b"security.selinux", b"security.ima", b"security.evm", b"security.SMACK")

Place = Union[int, bytes]  # a descriptor, or /proc/self/fd/<n> of one opened with O_PATH


def set_attrs(place: Place, st: os.stat_result, meta: MetaRow, caps: Caps) -> None:
    """Set the inode's attributes to those of meta, changing only what differs from st."""
    mode = stat.S_IMODE(meta.mode)
    uid, gid = st.st_uid, st.st_gid
    if caps.chown:
        if (uid, gid) != (meta.uid, meta.gid):
            os.chown(place, meta.uid, meta.gid)
            uid, gid = meta.uid, meta.gid
    elif gid != meta.gid:
        with suppress(PermissionError):  # allowed for groups that the user is in
            os.chown(place, -1, meta.gid)
            gid = meta.gid
    if uid != meta.uid:
        mode &= ~stat.S_ISUID  # never lend out another account's rights
    if gid != meta.gid and not stat.S_ISDIR(st.st_mode):
        mode &= ~stat.S_ISGID
    is_link = stat.S_ISLNK(st.st_mode)
    owner_changed = (uid, gid) != (st.st_uid, st.st_gid)
    if not is_link and (mode != stat.S_IMODE(st.st_mode) or (owner_changed and mode & 0o6000)):
        os.chmod(place, mode)
    if meta.xattrs is not None and (caps.xattr or caps.trusted or caps.acl):
        # An unprivileged owner needs read and write permission to set xattrs on his own file.
        lift = not caps.root and not is_link and mode & 0o600 != 0o600
        if lift:
            os.chmod(place, mode | 0o600)
        changed = _set_xattrs(place, meta.xattrs, caps)
        if lift or (changed and mode & stat.S_ISGID):  # setting an ACL may clear the bit
            os.chmod(place, mode)
    if (st.st_mtime_ns, st.st_atime_ns) != (meta.mtime, meta.atime):
        os.utime(place, ns=(meta.atime, meta.mtime))


def _may_touch(name: bytes, caps: Caps) -> bool:
    if name.startswith(b"user."):
        return caps.xattr
    if name in _ACLS:
        return caps.acl
    return name.startswith(_PRIVILEGED) and caps.trusted


def _set_xattrs(place: Place, wanted: Xattrs, caps: Caps) -> bool:
    """Make the xattrs exactly these; return whether anything changed."""
    try:
        present = {os.fsencode(name) for name in os.listxattr(place)}
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:
            raise
        present = set()
    changed = False
    for name, value in wanted:
        if not _may_touch(name, caps):
            continue
        if name not in present or os.getxattr(place, name) != value:
            _set_xattr(place, name, value)
            changed = True
    for name in present.difference(name for name, _ in wanted):
        if _may_touch(name, caps) and not name.startswith(_ITS_OWN):
            try:
                os.removexattr(place, name)
            except OSError as exc:
                if exc.errno != errno.ENODATA:
                    raise
            changed = True
    return changed


def _set_xattr(place: Place, name: bytes, value: bytes) -> None:
    try:
        os.setxattr(place, name, value)
    except OSError as exc:
        # ext4 reports ENOSPC when an inode's xattrs exceed its block, however much space the disk has.
        if exc.errno == errno.ENOSPC:
            free = os.statvfs(place)
            if free.f_bavail and (free.f_favail or not free.f_files):
                raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), name) from exc
        raise
