"""The errors that gsync tells people, each with the exit code that it ends a command with (design/cli.md).

An error message is one line: what failed, on what, why, what to do. Runs in the agent too: standard library only.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class GsyncError(Exception):
    """Anything that ends a command with one clear line."""

    exit_code = 5


class UsageError(GsyncError):
    """The command line, a setting or a path that the user gave is wrong."""

    exit_code = 2


class LockedError(GsyncError):
    """Another gsync process holds what this one needs."""

    exit_code = 3


class SlaveError(GsyncError):
    """The slave is not reachable, or refused: a person has to act."""

    exit_code = 4


class Transient(GsyncError):
    """It may go away by itself: pause, connect again, apply the batch again."""

    exit_code = 4


class Stopped(Exception):
    """Told to end: by an order, a signal or a stop signal. Not a failure, so no GsyncError: nobody reports it."""


class Faulty(GsyncError):
    """The worker or recorder cannot go on until a person has acted; the text is the reason that status shows."""

    exit_code = 5


# What makes a slave unusable as a whole, in contrast to one file that cannot be written.
SLAVE_WIDE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
# What may pass without anybody doing anything.
PASSING = {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.ETXTBSY, errno.ENOMEM}


@contextmanager
def brick_io(op: str, path: object) -> Iterator[None]:
    """Around single file operations on the master: an OSError becomes Faulty, or Transient where it may pass."""
    try:
        yield
    except OSError as exc:
        fate = Transient if exc.errno in PASSING else Faulty
        raise fate(f"{op} {path!s}: {exc.strerror or exc}") from exc
