"""All transfers, archives and replication failures in numbers: for `gsync queue summary` and the page.

Successful work is only counted; waiting, moving and failed work is listed.
"""

from __future__ import annotations

import os
import sqlite3
from typing import Any

from gsync.base.errors import GsyncError
from gsync.base.times import rfc3339
from gsync.state.home import Home
from gsync.transfer.archive.rows import Archives
from gsync.transfer.queue.failures import all_failures
from gsync.transfer.queue.requests import TransferState, shown_place
from gsync.transfer.queue.transfers import Transfers, states_sql

_OPEN = states_sql([state for state in TransferState if state not in (TransferState.DONE, TransferState.KILLED)])
_MOST = 20   # failed or retried transfers listed


def overview(db: Transfers) -> dict[str, Any]:
    """The numbers, JSON-ready, with names as os.fsdecode gives them:

    states {state: transfers}; work, owners, links: [{name, states}] of open transfers (a link is "FROM,TO", as --link
    takes it); attention [{id, request, state, what, from, to, reason, next_try}], the newest that failed or wait for
    another try, without those of deliver; banned [{store, until, reason}]; archives [{directory, kind, state, running,
    failed, stage, entries_done, stage_entries, entries, bytes, changed, reason}]; replication [{id, label, failures}].
    """
    with db.snapshot():
        found: dict[str, Any] = {
            "states": {state.value: count for state, count in db.counts().items()},
            **{name: _groups(db, column) for name, column in (
                ("work", "kind"), ("owners", "owner"), ("links", "source || ',' || store"))},
            "attention": [
                {"id": ident, "request": request, "state": state, "what": kind,
                 "from": shown_place(source, source_path), "to": shown_place(store, path), "reason": reason,
                 "next_try": rfc3339(not_before) if state == TransferState.RETRY.value else None}
                for ident, request, state, kind, source, source_path, store, path, reason, not_before in db.read(
                    "SELECT id, request, state, kind, source, source_path, store, path, reason, not_before FROM "
                    "transfers WHERE state IN ('FAILED', 'RETRY') AND request NOT IN "
                    "(SELECT id FROM requests WHERE kind='deliver') ORDER BY id DESC LIMIT ?", [_MOST])]}
    found["banned"] = [{"store": store, "until": rfc3339(until), "reason": reason} for store, until, reason in db.read(
        "SELECT store, until, reason FROM bans WHERE until IS NULL OR until>? ORDER BY store", [db.clock.now()])]
    found["archives"] = _archives(db)
    try:
        found["replication"] = [{"id": each.id, "label": each.label, "failures": len(each.rows)}
                                for each in all_failures(Home(db.home))]
    except (GsyncError, OSError, sqlite3.Error) as exc:
        found["replication"] = [{"id": "", "label": f"cannot read the ledgers: {exc}", "failures": 0}]
    return found


def _groups(db: Transfers, column: str) -> list[dict[str, Any]]:
    groups: dict[str, dict[str, int]] = {}
    for name, state, count in db.read(
            f"SELECT {column} AS name, state, count(*) FROM transfers WHERE state IN {_OPEN} GROUP BY name, state"):
        groups.setdefault(name, {})[state] = count
    return [{"name": name, "states": states} for name, states in groups.items()]


def _archives(db: Transfers) -> list[dict[str, Any]]:
    archives = Archives(db, db.home)
    found = []
    for archive in (*archives.all(), *archives.all("backup")):
        running = archives.holder(archive) is not None
        found.append({
            "directory": os.fsdecode(archive.root), "kind": archive.kind, "running": running,
            "state": f"{archive.operation} running" if running else archive.state, "stage": archive.stage,
            "entries": archive.entries, "bytes": archive.size, "changed": rfc3339(archive.changed),
            "stage_entries": archive.entries_all, "entries_done": archive.entries_done, "reason": archive.reason,
            "failed": not running and not archive.done})
    return found
