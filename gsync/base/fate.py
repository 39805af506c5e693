"""What an errno means, per side: one table of fates for each of the places that errors come from.

The same number means different things:

- ESTALE: on a master's or slave's file system the handle's inode is GONE, somebody removed it. A store, or a disk that
  data is delivered to, is asked by path, so there it says that the NFS server has lost the whole export: AWAY.
- ENOTDIR, ELOOP: something on the way to a name is no directory any more, so on a tree that others change the name is
  GONE. A GlusterFS slave is asked by gfid: ELOOP says nothing about the name there. In what has been sent, both are
  trouble of one file.
- ENOSPC, EDQUOT: a slave that is FULL takes nothing, so replication waits. A store may have room again, so it is tried.
- EROFS: a slave whose file system has become read-only is as good as full. A store that is read-only stays so: BROKEN.
- EIO: of one file on most sides. On a disk that data is delivered to it is trouble of the disk; at a store it may pass.
- ENOTCONN and its like: the client of a GlusterFS volume has lost bricks: AWAY, on both sides alike.

That a file system lacks a call (EOPNOTSUPP, ENOSYS) is no fate: whoever makes the call knows what to do then.
Standard library only, Python 3.9.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum
from typing import Optional


class Fate(Enum):
    """What has become of what was asked for."""

    GONE = "gone"         # it is not there any more, which is normal
    AWAY = "away"         # the server, the disk or the mount as a whole cannot be reached
    FULL = "full"         # nothing more can be written there
    PASSING = "passing"   # the same call may work in a while
    DENIED = "denied"     # not for this user
    BROKEN = "broken"     # anything else: trying again changes nothing


_GONE = frozenset({errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.ELOOP})
_CLIENT_AWAY = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNRESET, errno.ESHUTDOWN, errno.ETIMEDOUT,
                          errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPIPE})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
_PASSING = frozenset({errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.ETXTBSY, errno.ENOMEM})


@dataclass(frozen=True)
class Side:
    """The table of one side: the errnos of each fate. A number that stands in several counts as the first of them."""

    gone: frozenset[int] = _GONE
    away: frozenset[int] = frozenset()
    full: frozenset[int] = _FULL
    passing: frozenset[int] = _PASSING
    denied: frozenset[int] = frozenset({errno.EACCES, errno.EPERM})

    def fate(self, number: Optional[int]) -> Fate:  # noqa: UP045 - Python 3.9
        """The fate that an errno tells of; BROKEN for one that stands nowhere, and for none."""
        for fate in Fate:
            if fate is not Fate.BROKEN and number in getattr(self, fate.value):
                return fate
        return Fate.BROKEN


# A tree that is replicated, read: a directory, or a GlusterFS volume through a client.
MASTER = Side()
MASTER_GLUSTER = Side(away=_CLIENT_AWAY)

# A tree that is written: a directory, or a GlusterFS volume, where everything is asked by gfid.
SLAVE = Side()
SLAVE_GLUSTER = Side(gone=_GONE - {errno.ELOOP}, away=_CLIENT_AWAY)

# A file on its way: what the sender says of reading it and the slave of writing it.
SENDING = Side(gone=frozenset({errno.ENOENT, errno.ESTALE}))

# A store of bounded transfers, asked by path, mostly over a network.
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

# Where gsync keeps its own state.
STATE = Side()
