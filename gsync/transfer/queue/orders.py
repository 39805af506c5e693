"""Orders of users: kill, retry, and forget old requests.

Promise: a killed transfer stays killed until it is retried; an ended one stays as it is. Not here: how a worker lets go
of a killed transfer (worker).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gsync.base.model import NS
from gsync.transfer.queue.requests import AGAIN, ENDED, TAKEN, TransferState
from gsync.transfer.queue.transfers import Transfers, selection, states_sql

_WAITING = (TransferState.QUEUED, TransferState.NEW, TransferState.RETRY)


class Orders:
    """Each order selects transfers by request, owner, link (source and destination store, either may be empty), ids, or
    several of these together."""

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers

    def kill(self, *, request: str | None = None, owner: str | None = None, link: tuple[str, str] | None = None,
             ids: Sequence[int] = (), reason: str = "killed") -> int:
        """Kill waiting transfers at once. One that a worker holds becomes KILL until the worker lets go. Returns their
        number."""
        wheres, values = selection(request, owner, link, ids)
        if not wheres:
            raise ValueError("kill: nothing is selected")
        where = " AND ".join(wheres)
        transfers = self._transfers
        with transfers.atomic() as db:
            waiting, taken = ([row[0] for row in db.execute(
                f"SELECT id FROM transfers WHERE {where} AND state IN {states_sql(states)}", values)]
                for states in (_WAITING, TAKEN))
            transfers.advance(waiting, _WAITING, TransferState.KILLED, reason=reason)
            transfers.advance(taken, TAKEN, TransferState.KILL, reason=reason)
            return len(waiting) + len(taken)

    def retry(self, *, request: str | None = None, owner: str | None = None, link: tuple[str, str] | None = None,
              ids: Sequence[int] = ()) -> int:
        """Start FAILED and KILLED transfers over with no tries counted, and end the pause of those in RETRY; return
        their number."""
        wheres, values = selection(request, owner, link, ids)
        if not wheres:
            raise ValueError("retry: nothing is selected")
        transfers = self._transfers
        with transfers.atomic() as db:
            found = db.execute(f"SELECT id, operation FROM transfers WHERE {' AND '.join(wheres)} AND state IN "
                               f"{states_sql(AGAIN)} ORDER BY id", values).fetchall()
            for ident, operation in found:
                request_id, position = db.execute("SELECT request, position FROM operations WHERE id=?",
                                                  (operation,)).fetchone()
                before = db.execute("SELECT 1 FROM operations WHERE request=? AND position<? AND state<>'DONE'",
                                    (request_id, position)).fetchone()
                transfers.advance([ident], AGAIN, TransferState.QUEUED if before else TransferState.NEW,
                                  tries=0, not_before=0, worker=None, lease=0, reason="", category=None)
            return len(found)

    def count_killable(self, **of: Any) -> int:
        """The number of transfers that `kill` would affect."""
        return self._count(f"state NOT IN {states_sql(ENDED)}", **of)

    def count_retryable(self, **of: Any) -> int:
        """The number of transfers that `retry` would affect."""
        return self._count(f"state IN {states_sql(AGAIN)}", **of)

    def _count(self, where: str, *, request: str | None = None, owner: str | None = None,
               link: tuple[str, str] | None = None, ids: Sequence[int] = ()) -> int:
        wheres, values = selection(request, owner, link, ids)
        return int(self._transfers.read(f"SELECT count(*) FROM transfers WHERE {' AND '.join([*wheres, where])}",
                                        values)[0][0])

    def prune(self, older_than: float) -> int:
        """Delete requests that have been DONE or KILLED for so many seconds; return their number. Failed requests,
        those still to be published, and killed sends (the only record of their replicas) stay until a person handles
        them."""
        before = self._transfers.clock.now() - int(older_than * NS)
        with self._transfers.atomic() as db:
            old = [row[0] for row in db.execute(
                "SELECT id FROM requests r WHERE changed<? AND state IN ('DONE', 'KILLED') AND NOT EXISTS ("
                "SELECT 1 FROM transfers t WHERE t.request=r.id AND (t.state NOT IN ('DONE', 'KILLED') "
                "OR (t.state='DONE' AND (t.publication IN ('NEW', 'ACQUIRED', 'RETRY') "
                "OR (r.kind='send' AND r.state='KILLED')))))", (before,))]
            for ident in old:
                for table, column in (("transfers", "request"), ("operations", "request"), ("requests", "id")):
                    db.execute(f"DELETE FROM {table} WHERE {column}=?", (ident,))
            db.execute("DELETE FROM owners WHERE lease<? AND owner NOT IN (SELECT owner FROM transfers)", (before,))
        return len(old)
