"""Who works on which transfer: what a worker acquires, for how long, and who takes over from a dead worker.

Promise: each transfer belongs to at most one worker, and at most one worker serves an owner. Owners get equal shares,
doubled with each step of priority. Not here: the results of a transfer (worker, retry).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from gsync.base.model import NS
from gsync.transfer.queue.requests import COLUMNS, HELD, Transfer, TransferState, transfer_of
from gsync.transfer.queue.transfers import PAGE, Transfers, states_sql

_HELD = states_sql(HELD)


class Leases:
    """The leases of one worker, named `worker`."""

    def __init__(self, transfers: Transfers, worker: str) -> None:
        self._transfers = transfers
        self._worker = worker

    def _until(self, lease: float) -> int:
        return self._transfers.clock.now() + int(lease * NS)

    # acquiring

    def acquire(self, limit: int, lease: float, max_bytes: int | None = None, request: str | None = None,
                kinds: Sequence[str] | None = None) -> list[Transfer]:
        """Take up to `limit` transfers of one owner and lease the owner for `lease` seconds: no other worker gets its
        transfers meanwhile. The owner served least comes first; within an owner priority counts, then age. Transfers of
        banned stores are left out. request, kinds: only transfers of that request, of operations of these kinds."""
        now = self._transfers.clock.now()
        until = now + int(lease * NS)
        with self._transfers.atomic() as db:
            banned = {row[0] for row in db.execute("SELECT store FROM bans WHERE until IS NULL OR until>?", (now,))}
            for owner, served in self._free_owners(now, request):
                rows = self._takeable(owner, limit, max_bytes, request, kinds, banned)
                if not rows:
                    continue
                ids = [row.id for row in rows]
                db.executemany("UPDATE transfers SET state='ACQUIRED', worker=?, lease=?, changed=? WHERE id=?",
                               ((self._worker, until, now, ident) for ident in ids))
                cost = sum(2.0 ** -row.priority for row in rows)
                db.execute("UPDATE owners SET worker=?, lease=?, served=? WHERE owner=?",
                           (self._worker, until, served + cost, owner))
                self._transfers.derive({row.operation for row in rows}, TransferState.ACQUIRED)
                return [replace(row, state=TransferState.ACQUIRED, worker=self._worker, lease=until) for row in rows]
        return []

    def _free_owners(self, now: int, request: str | None) -> list[tuple[str, float]]:
        """Owners with a NEW transfer that no other worker serves, the least served first."""
        read = self._transfers.read
        if request:
            names = [row[0] for row in read("SELECT owner FROM requests WHERE id=?", [request])]
        else:  # one step of the index per owner, however many transfers each has
            names, last = [], ""
            while rows := read("SELECT owner FROM transfers WHERE state='NEW' AND owner>? ORDER BY owner LIMIT 1",
                               (last,)):
                names.append(last := rows[0][0])
        known = {row[0]: row[1:] for row in read("SELECT owner, worker, lease, served FROM owners")}
        free = [(name, known[name][2]) for name in names
                if known[name][0] in (None, self._worker) or known[name][1] <= now]
        return sorted(free, key=lambda item: (item[1], item[0]))

    def _takeable(self, owner: str, limit: int, max_bytes: int | None, request: str | None,
                  kinds: Sequence[str] | None, banned: set[str]) -> list[Transfer]:
        wheres, values = ["state='NEW'", "owner=?"], [owner]
        for column, chosen in (("request", [request] if request else None), ("kind", kinds)):
            if chosen is not None:
                wheres.append(f"{column} IN ({_marks(chosen)})")
                values += chosen
        for column in ("source", "store"):
            if banned:
                wheres.append(f"{column} NOT IN ({_marks(banned)})")
                values += banned
        rows: list[Transfer] = []
        size = 0
        for raw in self._transfers.each(f"SELECT {COLUMNS} FROM transfers WHERE {' AND '.join(wheres)} "
                                        "ORDER BY priority DESC, id LIMIT ?", (*values, limit)):
            row = transfer_of(raw)
            size += row.size or 0
            if rows and max_bytes is not None and size > max_bytes:
                break
            rows.append(row)
        return rows

    # renewing and releasing

    def renew(self, lease: float) -> None:
        """Extend this worker's leases from now on: it is alive."""
        until = self._until(lease)
        with self._transfers.atomic() as db:
            db.execute("UPDATE owners SET lease=? WHERE worker=?", (until, self._worker))
            db.execute(f"UPDATE transfers SET lease=? WHERE worker=? AND state IN {_HELD}", (until, self._worker))

    def release(self, owner: str) -> None:
        """Let other workers serve the owner."""
        with self._transfers.atomic() as db:
            db.execute("UPDATE owners SET worker=NULL, lease=0 WHERE owner=? AND worker=?", (owner, self._worker))

    def held(self) -> list[Transfer]:
        """All transfers that this worker holds."""
        return self._transfers.rows(f"WHERE worker=? AND state IN {_HELD}", (self._worker,))

    def killed(self) -> set[int]:
        """Transfers that this worker holds and must let go of."""
        return {row[0] for row in self._transfers.read("SELECT id FROM transfers WHERE state='KILL' AND worker=?",
                                                       (self._worker,))}

    # taking over from others

    def workers(self) -> set[str]:
        """Workers that hold owners or transfers now."""
        return {row[0] for row in self._transfers.read(
            "SELECT DISTINCT worker FROM owners WHERE worker IS NOT NULL UNION SELECT DISTINCT worker FROM transfers "
            f"WHERE state IN {_HELD} AND worker IS NOT NULL")}

    def expire(self, worker: str) -> None:
        """End the leases of another worker, which is known to be dead."""
        with self._transfers.atomic() as db:
            db.execute("UPDATE owners SET lease=0 WHERE worker=?", (worker,))
            db.execute(f"UPDATE transfers SET lease=0 WHERE worker=? AND state IN {_HELD}", (worker,))

    def expired(self, limit: int = PAGE) -> list[Transfer]:
        """Transfers whose worker did not renew its lease: another worker must examine them."""
        return self._transfers.rows(f"WHERE state IN {_HELD} AND lease<? AND worker IS NOT NULL LIMIT ?",
                                    (self._transfers.clock.now(), limit))

    def adopt(self, transfer: Transfer, lease: float) -> bool:
        """Take over a transfer whose lease has expired; False if another worker did, or it was renewed."""
        with self._transfers.atomic() as db:
            return db.execute("UPDATE transfers SET worker=?, lease=? WHERE id=? AND worker=? AND lease=?", (
                self._worker, self._until(lease), transfer.id, transfer.worker, transfer.lease)).rowcount == 1


def _marks(values: Collection[Any]) -> str:
    return ",".join("?" * len(values))
