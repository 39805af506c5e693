"""Commits at the slave: nothing is committed by a worker that has lost its lease.

The order around a commit is what keeps promises over a crash: the doubt of a batch (rule 20) and its failures are
durable before it, and what the batch knew is forgotten only after it (rule 28). Not here: making sure that an older
worker changes nothing any more, which is the agent's (it refuses an older epoch).
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
        """LeaseLost if another worker holds the lease now."""
        if not self._lease.held():
            raise LeaseLost

    def commit(self, connection: Connection, epoch: int, standing: Standing, upto: int | None, *,
               walked: bool = False) -> Standing:
        """Durable at the slave, then the stime (rule 25), which never goes back; where the worker stands then. walked:
        all of the master was looked at, not only what this worker's brick has recorded."""
        self.check()
        stime = max(upto or 0, standing.stime or 0) or None
        answer = connection.client.commit(stime, stime, epoch, clear=True, mark=str(standing.mine), walked=walked)
        return standing.committed(stime, answer.left)

    def interim(self, connection: Connection, epoch: int) -> None:
        """In a long walk: what is done is made durable and need not be walked again."""
        self.check()
        self._db.flush()
        connection.client.commit(None, None, epoch, clear=False)
        self._db.forget_done()
