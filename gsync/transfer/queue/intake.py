"""How requests enter the queue: directly into the database, or through the spool while that cannot be written.

Promise: a request is durable when `submit` returns. Not here: how requests are carried out (leases, worker).
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress

from gsync.base.log import get_logger
from gsync.base.model import NS
from gsync.transfer.queue.requests import NewRequest, TransferState
from gsync.transfer.queue.spool import Spool, read
from gsync.transfer.queue.transfers import Transfers

_log = get_logger(__name__)


class Intake:
    """Takes requests into `transfers`."""

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers
        self.spool = Spool(os.path.join(transfers.home, "spool"))

    def submit(self, request: NewRequest) -> str:
        """Submit a request; return its id. The request is in the database, or in the spool until `sweep` takes it from
        there."""
        try:
            with self._transfers.atomic():
                self._transfers.insert(request)
        except sqlite3.OperationalError as exc:
            _log.warning("the database cannot be written, the request goes to the spool", request=request.id, error=exc)
            self.spool.write(request)
        return request.id

    def begin(self, request: NewRequest, worker: str, lease: float) -> None:
        """Submit, with the first operation acquired by this worker for `lease` seconds. Raises sqlite3.OperationalError
        if the database cannot be written; then it writes nothing."""
        transfers = self._transfers
        with transfers.atomic() as db:
            transfers.insert(request)
            first = db.execute("SELECT id FROM operations WHERE request=? AND position=0", (request.id,)).fetchone()[0]
            rows = db.execute("SELECT id FROM transfers WHERE operation=?", (first,)).fetchall()
            transfers.advance([row[0] for row in rows], TransferState.NEW, TransferState.ACQUIRED, worker=worker,
                              lease=transfers.clock.now() + int(lease * NS))

    def submit_kept(self, request: NewRequest) -> None:
        """Submit a request that the spool kept until now."""
        self.submit(request)
        self.spool.forget(request.id)

    def sweep(self) -> int:
        """Take the spooled requests in; return their number. An unreadable file is renamed to *.bad and holds up
        nothing else."""
        taken = 0
        for path in self.spool.waiting():
            try:
                request = read(path)
                with self._transfers.atomic() as db:
                    if not db.execute("SELECT 1 FROM requests WHERE id=?", (request.id,)).fetchone():
                        self._transfers.insert(request)
            except FileNotFoundError:
                continue  # another worker was faster
            except sqlite3.OperationalError as exc:
                _log.warning("the spool has to wait", error=exc)
                return taken
            except (ValueError, KeyError, TypeError, sqlite3.Error) as exc:
                _log.error("a spooled request cannot be read and is put aside", file=path, error=repr(exc))
                with suppress(FileNotFoundError):
                    os.rename(path, path + ".bad")
                continue
            with suppress(FileNotFoundError):
                os.unlink(path)
            taken += 1
        return taken
