"""The errors that gsync shows to people, each with the exit code of the command.

An error message is one line: what failed, on what, why, what to do. Runs in the agent too: standard library only.
"""

from __future__ import annotations


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
