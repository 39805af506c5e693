"""AsyncStageOut's reporter files: ended transfers, as its users' scripts read them from an outbox.

`<outbox>/<user>/Reporter-<time>.json` with the lists LFNs, transferStatus ("done" or "failed") and failure_reason, of
equal length, and timestamp and username. Format and names: CRAB's AsyncStageOut, its monitor's outbox.

Promise: a file is there whole or not at all, and is never replaced; every transfer is in exactly one file, even if the
process is killed at any point. A file is prepared under a hidden name and then renamed. Once the hidden name is gone
the file was delivered, even if its reader has already taken it away.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.database import Database
from gsync.base.durable import fsync_dir, make_dirs, replace_file
from gsync.base.errors import UsageError
from gsync.base.process import Lock
from gsync.transfer.queue.requests import ENDED, Transfer, TransferState
from gsync.transfer.queue.transfers import Transfers

LARGEST = 1000                      # transfers in a file
_STATE = ".gsync-reporter.db"       # in the outbox: what was reported there
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (id INTEGER PRIMARY KEY AUTOINCREMENT, user TEXT, name TEXT, data BLOB, state TEXT);
CREATE TABLE IF NOT EXISTS reported (transfer INTEGER PRIMARY KEY, changed INTEGER);
"""


def reporter_json(user: str, ended: list[Transfer], now: int) -> dict[str, Any]:
    """The content of a file; `now` in ns. ASO knows two outcomes: a killed transfer counts as failed, with that
    reason."""
    done = [each.state is TransferState.DONE for each in ended]
    return {"LFNs": [os.fsdecode(each.path) for each in ended],
            "transferStatus": ["done" if ok else "failed" for ok in done],
            "failure_reason": ["" if ok else each.reason or each.state.value
                               for ok, each in zip(done, ended, strict=True)],
            "timestamp": now / 1e9, "username": user}


class Outbox:
    """The folder `path`, created if missing. One reporter at a time: LockedError."""

    def __init__(self, path: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._path = os.path.abspath(path)
        self._clock = clock

    def report(self, transfers: Transfers) -> int:
        """Write the ended transfers that were not reported here yet; return the number of files."""
        try:
            make_dirs(self._path, 0o755)
            with Lock(os.path.join(self._path, ".gsync-reporter.lock"), f"the reporter of {self._path}"), \
                    self._reported() as db:
                files = self._deliver(db)
                self._prepare(db, transfers)
                return files + self._deliver(db)
        except OSError as exc:
            raise UsageError(f"outbox {self._path}: {exc.strerror}") from exc

    @contextmanager
    def _reported(self) -> Iterator[Database]:
        path = os.path.join(self._path, _STATE)
        with closing(Database.open(path, _SCHEMA, _SCHEMA_VERSION, wal=False, synchronous="FULL")) as db:
            yield db

    def _prepare(self, db: Database, transfers: Transfers) -> None:
        """Record the unreported transfers as files to be written."""
        blocks: dict[str, list[Transfer]] = {}
        for state in ENDED:
            after = 0
            while page := transfers.page(state=state, after=after):
                after = page[-1].id
                for each in page:
                    # The time counts too: a failed transfer that was retried and has ended anew is a new result.
                    known = db.execute("SELECT changed FROM reported WHERE transfer=?", (each.id,)).fetchone()
                    if (known is None or known[0] != each.changed) and _is_result(transfers, each):
                        blocks.setdefault(each.owner, []).append(each)
        for owner, ended in blocks.items():
            for start in range(0, len(ended), LARGEST):
                self._note(db, owner, ended[start:start + LARGEST])

    def _note(self, db: Database, owner: str, ended: list[Transfer]) -> None:
        now = self._clock.now()
        data = json.dumps(reporter_json(owner, ended, now)).encode("ascii")
        with db.atomic():
            ident = db.execute("INSERT INTO files (user, data, state) VALUES (?,?,'NEW')", (owner, data)).lastrowid
            # The number makes the name unique, whatever the clock does.
            db.execute("UPDATE files SET name=? WHERE id=?", (f"Reporter-{now // 10**9}.{ident}.json", ident))
            db.executemany("INSERT OR REPLACE INTO reported VALUES (?,?)", ((each.id, each.changed) for each in ended))

    def _deliver(self, db: Database) -> int:
        count = 0
        for ident, user, name, data, state in db.execute(
                "SELECT id, user, name, data, state FROM files WHERE state<>'DONE' ORDER BY id").fetchall():
            folder = os.path.join(self._path, _folder_name(user))
            hidden = os.path.join(folder, f".{name}")
            make_dirs(folder, 0o755)
            if state == "NEW":
                replace_file(hidden, data, 0o644)
                db.execute("UPDATE files SET state='WRITTEN' WHERE id=?", (ident,))
            if os.path.exists(hidden):
                os.rename(hidden, os.path.join(folder, name))
                fsync_dir(folder)
            db.execute("UPDATE files SET state='DONE', data=NULL WHERE id=?", (ident,))
            count += 1
        return count


def _is_result(transfers: Transfers, each: Transfer) -> bool:
    """Whether the transfer's result is its file's: of a send, only the transfer to its last destination counts."""
    if each.kind not in ("place", "replicate"):
        return each.kind == "copy"
    operations = {operation.kind: operation.state for operation in transfers.operations(each.request)}
    moves_on = operations["place"] is TransferState.DONE and "replicate" in operations
    return (each.kind == "replicate") == moves_on


def _folder_name(user: str) -> str:
    """A name of one path component for any user."""
    name = quote(user, safe="@+ ")
    return "%2E" + name[1:] if name.startswith(".") else name
