"""What an errno means, per side."""

from __future__ import annotations

import errno

import pytest

from gsync.base.fate import DISK, MASTER, MASTER_GLUSTER, SENDING, SLAVE, SLAVE_GLUSTER, STATE, STORE, Fate, Side


@pytest.mark.parametrize("side", [MASTER, MASTER_GLUSTER, SLAVE, SLAVE_GLUSTER, SENDING, STORE, DISK, STATE])
@pytest.mark.parametrize(
    ("number", "fate"),
    [(errno.ENOENT, Fate.GONE), (errno.ENOSPC, Fate.FULL), (errno.EDQUOT, Fate.FULL), (errno.EACCES, Fate.DENIED),
     (errno.EPERM, Fate.DENIED), (errno.ENOMEM, Fate.PASSING), (errno.EINVAL, Fate.BROKEN), (None, Fate.BROKEN)])
def test_the_same_on_every_side(side: Side, number: int | None, fate: Fate) -> None:
    assert side.fate(number) is fate


@pytest.mark.parametrize(
    ("side", "number", "fate"),
    [
        (MASTER, errno.ESTALE, Fate.GONE), (SLAVE, errno.ESTALE, Fate.GONE), (SLAVE_GLUSTER, errno.ESTALE, Fate.GONE),
        (SENDING, errno.ESTALE, Fate.GONE), (STORE, errno.ESTALE, Fate.AWAY), (DISK, errno.ESTALE, Fate.AWAY),
        (MASTER, errno.ELOOP, Fate.GONE), (SLAVE, errno.ELOOP, Fate.GONE), (SLAVE_GLUSTER, errno.ELOOP, Fate.BROKEN),
        (SENDING, errno.ENOTDIR, Fate.BROKEN), (SENDING, errno.ELOOP, Fate.BROKEN),
        (SLAVE, errno.EROFS, Fate.FULL), (STORE, errno.EROFS, Fate.BROKEN), (DISK, errno.EROFS, Fate.FULL),
        (MASTER, errno.EIO, Fate.BROKEN), (STORE, errno.EIO, Fate.PASSING), (DISK, errno.EIO, Fate.AWAY),
        (MASTER, errno.ETIMEDOUT, Fate.PASSING), (MASTER_GLUSTER, errno.ETIMEDOUT, Fate.AWAY),
        (STORE, errno.ETIMEDOUT, Fate.PASSING), (SLAVE, errno.ENOTCONN, Fate.BROKEN),
        (SLAVE_GLUSTER, errno.ENOTCONN, Fate.AWAY), (STORE, errno.ENOTCONN, Fate.AWAY),
    ])
def test_where_the_sides_differ(side: Side, number: int, fate: Fate) -> None:
    assert side.fate(number) is fate
