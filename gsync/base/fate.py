"""What an errno means on each side: one table per place where errors come from.

The same number means different things:

- ESTALE: master and slave open inodes by handle, so the inode was removed: GONE. Stores and delivery disks are used by
  path, so the NFS server has lost the whole export: AWAY.
- ENOTDIR, ELOOP: somebody replaced a directory on the way to the name, so in a tree that others change it is GONE. A
  GlusterFS slave looks up by gfid, where ELOOP says nothing about the name. For a file being sent, both concern that
  file alone.
- ENOSPC, EDQUOT: a FULL slave takes nothing, so replication waits. A store may have room again, so the queue retries.
- EROFS: a slave whose file system has become read-only is as good as full. A read-only store stays so: BROKEN.
- EIO: concerns one file on most sides; on a delivery disk, the whole disk; at a store it may pass.
- ENOTCONN and the like: a GlusterFS client has lost bricks: AWAY, on both sides.

A call that the file system lacks (EOPNOTSUPP, ENOSYS) has no fate: the caller knows what to do instead.
Standard library only, Python 3.9.
"""

from __future__ import annotations

import errno
from enum import Enum
from typing import NamedTuple, Optional


class Fate(Enum):
    """What an error says about the thing asked for."""

    GONE = "gone"         # it no longer exists, which is normal
    AWAY = "away"         # the whole server, disk or mount is unreachable
    FULL = "full"         # nothing more can be written
    PASSING = "passing"   # the same call may work later
    DENIED = "denied"     # this user may not
    BROKEN = "broken"     # anything else: a retry changes nothing


_GONE = frozenset({errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.ELOOP})
_CLIENT_AWAY = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNRESET, errno.ESHUTDOWN, errno.ETIMEDOUT,
                          errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPIPE})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
_PASSING = frozenset({errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.ETXTBSY, errno.ENOMEM})


class Side(NamedTuple):
    """The table of one side: the errnos of each fate. The first fate that lists a number wins."""

    gone: frozenset[int] = _GONE
    away: frozenset[int] = frozenset()
    full: frozenset[int] = _FULL
    passing: frozenset[int] = _PASSING
    denied: frozenset[int] = frozenset({errno.EACCES, errno.EPERM})

    def fate(self, number: Optional[int]) -> Fate:  # noqa: UP045 - Python 3.9
        """The fate of an errno; BROKEN if no table lists it, and for None."""
        for fate in Fate:
            if fate is not Fate.BROKEN and number in getattr(self, fate.value):
                return fate
        return Fate.BROKEN


# The replicated tree: a directory, or a GlusterFS volume through a client.
MASTER = Side()
MASTER_GLUSTER = Side(away=_CLIENT_AWAY)

# The tree at the slave: a directory, or a GlusterFS volume, which is used by gfid.
SLAVE = Side()
SLAVE_GLUSTER = Side(gone=_GONE - {errno.ELOOP}, away=_CLIENT_AWAY)

# A file being sent: read by the sender, written by the slave.
SENDING = Side(gone=frozenset({errno.ENOENT, errno.ESTALE}))

# A store of bounded transfers, used by path, mostly over a network.
STORE = Side(
    gone=frozenset({errno.ENOENT, errno.ENOTDIR}),
    away=frozenset({errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNREFUSED,
                    errno.ECONNRESET, errno.EPIPE, errno.ESTALE}),
    full=frozenset({errno.ENOSPC, errno.EDQUOT}),
    passing=_PASSING | {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ECONNABORTED})

# A disk of this host that data sets are delivered to and quarantined on.
DISK = Side(
    gone=frozenset({errno.ENOENT, errno.ENOTDIR}),
    away=frozenset({errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.EIO}),
    passing=frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM}))

# The state directory.
STATE = Side()
