"""Replication failures as the queue shows them: one request of kind `failure` per session, from its ledgers.

The ledgers stay with the sessions (on several nodes: on the meta volume, one per epoch): a worker updates them in the
transaction of a batch, on whichever node it runs. The queue reads them and gives the same orders as `gsync failures`.
The pauses between tries are the queue's, but a row never becomes FAILED by itself, since the stime has passed it. A row
goes when it is repaired, or when a person drops it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gsync.base import log
from gsync.base.errors import UsageError
from gsync.base.model import gfid_parse, shown
from gsync.engine.ledger import Failure, Ledger
from gsync.session.session import Session, SessionHome
from gsync.state.home import Home

PREFIX = "session:"     # ids: session:NAME for a whole session, session:NAME/GFID for one inode
KIND = "failure"


@dataclass(frozen=True, slots=True)
class SessionFailures:
    """All failures of a session."""

    session: Session
    rows: tuple[Failure, ...]

    @property
    def id(self) -> str:
        return PREFIX + self.session.name

    @property
    def label(self) -> str:
        return f"{self.session.volume} → {shown(self.session.slave.encode('utf-8', 'surrogateescape'))}"

    @property
    def created(self) -> int:
        """When the oldest of them first failed, ns."""
        return min(row.first for row in self.rows)

    @property
    def changed(self) -> int:
        return max(row.last for row in self.rows)


def all_failures(home: Home) -> list[SessionFailures]:
    """The failures of every session that has any."""
    found = []
    for session in SessionHome(home, check=False).list():
        with _ledgers(home, session) as ledgers:
            rows = tuple(row for ledger in ledgers for row in ledger.all())
        if rows:
            found.append(SessionFailures(session, rows))
    return found


def failures_of(home: Home, ident: str) -> SessionFailures:
    """The failures with an id; UsageError if there is no such session."""
    session, gfid = _parse(home, ident)
    with _ledgers(home, session) as ledgers:
        rows = tuple(row for ledger in ledgers for row in ledger.all() if gfid is None or row.gfid == gfid)
    return SessionFailures(session, rows)


def retry(home: Home, ident: str) -> int:
    """Retry them with the next batch; return their number."""
    session, gfid = _parse(home, ident)
    with _ledgers(home, session) as ledgers:
        return sum(ledger.hurry(gfid) for ledger in ledgers)


def drop(home: Home, ident: str, reason: str) -> int:
    """Forget the failures of one inode; return the number of rows. UsageError for a whole session: the stime has passed
    these rows, so nothing else would show that the slave differs."""
    session, gfid = _parse(home, ident)
    if gfid is None:
        raise UsageError(f"{ident}: drop replication failures one by one: {ident}/GFID, or gsync "
                         f"failures {session.name} drop GFID --reason TEXT")
    with _ledgers(home, session) as ledgers:
        count = sum(ledger.drop(gfid) for ledger in ledgers)
    if count:
        log.setup(path=session.log)
        log.get_logger("gsync.failures").info("dropped", gfid=ident.rpartition("/")[2], reason=reason)
    return count


def _parse(home: Home, ident: str) -> tuple[Session, bytes | None]:
    name, slash, gfid = ident.removeprefix(PREFIX).partition("/")
    session = SessionHome(home, check=False).get(name)
    try:
        return session, gfid_parse(gfid) if slash else None
    except ValueError as exc:
        raise UsageError(f"{ident}: {exc}") from None


@contextmanager
def _ledgers(home: Home, session: Session) -> Iterator[list[Ledger]]:
    """Open the existing ledgers; reading creates none."""
    try:
        paths = session.ledger_dbs(home.get(session.volume))
    except UsageError:  # the volume is gone
        paths = [session.ledger_db]
    opened = [Ledger(path) for path in paths if os.path.exists(path)]
    try:
        yield opened
    finally:
        for ledger in opened:
            ledger.close()
