"""Commits at the slave. A worker that has lost its lease commits nothing.

The order around a commit keeps the promises across a crash: a batch's doubt (rule 20) and its failures are durable
before the commit, and the worker forgets the batch only after it (rule 28). Not here: stopping an older worker that
does not know yet; the agent refuses its epoch.
"""

from __future__ import annotations

from gsync.engine.connection import Connection
from gsync.engine.lease import Lease, LeaseLost
from gsync.engine.position import Standing
from gsync.engine.worklist import ChangelogDB


class Committer:
    """Commits under one worker's lease."""

    def __init__(self, lease: Lease, db: ChangelogDB) -> None:
        self._lease, self._db = lease, db

    def check(self) -> None:
        """Raise LeaseLost if another worker holds the lease now."""
        if not self._lease.held():
            raise LeaseLost

    def commit(self, connection: Connection, epoch: int, standing: Standing, upto: int | None, *,
               walked: bool = False) -> Standing:
        """Make everything durable at the slave, then move the stime (rule 25), which never goes back. Return the new
        standing. walked: this batch looked at the whole master, not only at the changes that this worker's brick has
        recorded."""
        self.check()
        stime = max(upto or 0, standing.stime or 0) or None
        answer = connection.client.commit(stime, stime, epoch, clear=True, mark=str(standing.mine), walked=walked)
        return standing.committed(stime, answer.left)

    def interim(self, connection: Connection, epoch: int) -> None:
        """In a long walk, make finished work durable, so that a resumed walk skips it."""
        self.check()
        self._db.flush()
        connection.client.commit(None, None, epoch, clear=False)
        self._db.forget_done()
