"""What the queue holds, as lists: of rows, and as the JSON that scripts read, which SQLite makes (100,000 in a moment).

Nobody who writes is waited for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gsync.transfer.database import Transfers, selection, states_sql
from gsync.transfer.requests import COLUMNS, Request, State, Transfer, request_of, transfer_of

Span = tuple[int, int]
EVER: Span = (0, (1 << 63) - 1)

_TIME = "strftime('%Y-%m-%dT%H:%M:%S', {0}/1000000000, 'unixepoch') || printf('.%06dZ', {0}/1000%1000000)"
_REQUEST = f"""json_object('id', id, 'kind', kind, 'owner', owner, 'priority', priority, 'label', label, 'state', state,
  'created', {_TIME.format("created")}, 'changed', {_TIME.format("changed")}, 'transfers', json((
    SELECT json_group_object(state, n) FROM (
      SELECT state, count(*) n FROM transfers t WHERE t.request=requests.id GROUP BY state))))"""
_TRANSFER = f"""json_object('id', id, 'request', request, 'kind', kind, 'owner', owner, 'from', source, 'to', store,
  'size', size, 'checksum', checksum, 'state', state, 'tries', tries,
  'not_before', iif(state='RETRY', {_TIME.format("not_before")}, NULL), 'category', category, 'reason', reason,
  'created', {_TIME.format("created")}, 'changed', {_TIME.format("changed")}, 'publication', publication)"""


def find(db: Transfers, *, states: Sequence[State] = (), owner: str | None = None, kind: str | None = None,
         link: tuple[str, str] | None = None, span: Span = EVER, limit: int = -1) -> list[Transfer]:
    """The newest `limit` (-1: all) that are so, in the order of their ids. kind: of their requests; link: either store
    may be empty; span: put in at or after the first and before the second time, ns."""
    where, values = _of_transfers(states, owner, kind, link, span)
    return [transfer_of(row) for row in db.read(
        f"SELECT {COLUMNS} FROM transfers WHERE {where} ORDER BY id DESC LIMIT ?", [*values, limit])][::-1]


def find_json(db: Transfers, *, states: Sequence[State] = (), owner: str | None = None, kind: str | None = None,
              link: tuple[str, str] | None = None, span: Span = EVER, limit: int = -1
              ) -> Iterator[tuple[str, bytes, bytes]]:
    """The same as JSON objects, each with the paths that it is still without: at the source, at the destination."""
    where, values = _of_transfers(states, owner, kind, link, span)
    newest = f"id IN (SELECT id FROM transfers WHERE {where} ORDER BY id DESC LIMIT ?)"
    return db.each(f"SELECT {_TRANSFER}, source_path, path FROM transfers WHERE {newest if limit >= 0 else where} "
                   "ORDER BY id", [*values, limit] if limit >= 0 else values)


def of_request_json(db: Transfers, request: str) -> Iterator[tuple[str, bytes, bytes]]:
    """All transfers of a request, likewise."""
    return db.each(f"SELECT {_TRANSFER}, source_path, path FROM transfers WHERE request=? ORDER BY id", [request])


def find_requests(db: Transfers, *, states: Sequence[State] = (), owner: str | None = None, kind: str | None = None,
                  span: Span = EVER, limit: int = -1) -> list[Request]:
    """The newest `limit` (-1: all) that are so, the newest last."""
    where, values = _of_requests(states, owner, kind, span)
    return [request_of(row) for row in db.read(
        "SELECT id, kind, owner, priority, label, created, changed, state FROM requests "
        f"WHERE {where} ORDER BY created DESC, id DESC LIMIT ?", [*values, limit])][::-1]


def find_requests_json(db: Transfers, *, states: Sequence[State] = (), owner: str | None = None,
                       kind: str | None = None, span: Span = EVER, limit: int = -1) -> Iterator[str]:
    """The same as JSON objects, with how many of their transfers are in which state."""
    where, values = _of_requests(states, owner, kind, span)
    rows = db.each(f"SELECT {_REQUEST} FROM (SELECT * FROM requests WHERE {where} ORDER BY created DESC, id DESC "
                   "LIMIT ?) AS requests ORDER BY created, id", [*values, limit])
    return (row[0] for row in rows)


def _of_transfers(states: Sequence[State], owner: str | None, kind: str | None, link: tuple[str, str] | None, span: Span
                  ) -> tuple[str, list[Any]]:
    wheres, values = selection(owner=owner, link=link)
    _narrow(wheres, values, states, span)
    if kind is not None:
        wheres.append("request IN (SELECT id FROM requests WHERE kind=?)")
        values.append(kind)
    return " AND ".join(wheres) or "1", values


def _of_requests(states: Sequence[State], owner: str | None, kind: str | None, span: Span) -> tuple[str, list[Any]]:
    wheres, values = selection(owner=owner)
    _narrow(wheres, values, states, span)
    if kind is not None:
        wheres.append("kind=?")
        values.append(kind)
    return " AND ".join(wheres) or "1", values


def _narrow(wheres: list[str], values: list[Any], states: Sequence[State], span: Span) -> None:
    if states:
        wheres.append(f"state IN {states_sql(states)}")
    if span != EVER:
        wheres.append("created>=? AND created<?")
        values += span
