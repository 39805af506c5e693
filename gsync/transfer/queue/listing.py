"""Lists of the queue: as lines for a table, and as the JSON that scripts read, which SQLite makes.

Rows are read as they are asked for, a hundred thousand in a moment. Reading waits for no writer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gsync.transfer.queue.requests import TransferState, shown_place
from gsync.transfer.queue.transfers import Transfers, selection, states_sql

Span = tuple[int, int]
EVER: Span = (0, (1 << 63) - 1)

_TIME = "strftime('%Y-%m-%dT%H:%M:%S', {0}/1000000000, 'unixepoch') || printf('.%06dZ', {0}/1000%1000000)"
_REQUEST = f"""json_object('id', id, 'kind', kind, 'owner', owner, 'priority', priority, 'label', label, 'state', state,
  'created', {_TIME.format("created")}, 'changed', {_TIME.format("changed")})"""
_TRANSFER = f"""json_object('id', id, 'request', request, 'kind', kind, 'owner', owner, 'from', source, 'to', store,
  'size', size, 'checksum', checksum, 'state', state, 'tries', tries,
  'not_before', iif(state='RETRY', {_TIME.format("not_before")}, NULL), 'category', category, 'reason', reason,
  'created', {_TIME.format("created")}, 'changed', {_TIME.format("changed")}, 'publication', publication)"""

TRANSFER_HEADINGS = ["ID", "REQUEST", "STATE", "TRIES", "FROM", "TO", "WHY"]
REQUEST_HEADINGS = ["REQUEST", "KIND", "OWNER", "STATE", "TRANSFERS", "CREATED", "WHAT"]


def find_json(db: Transfers, **of: Any) -> Iterator[tuple[str, bytes, bytes]]:
    """Transfers as JSON objects, sorted by id. Each comes with its source path and destination path, which the JSON
    lacks.

    of, any of them: states; owner; kind and label (a substring) of their requests; link, either store of which may be
    empty; span: submitted at or after the first and before the second time, ns; request; limit: only the newest so many
    (-1: all).
    """
    return db.each(*_transfers(f"{_TRANSFER}, source_path, path", **of))


def find_lines(db: Transfers, **of: Any) -> Iterator[list[str]]:
    """Transfers as lines below TRANSFER_HEADINGS; `of` as for find_json."""
    rows, values = _transfers("id, request, state, tries, source, source_path, store, path, reason", **of)
    for ident, request, state, tries, source, source_path, store, path, reason in db.each(rows, values):
        yield [str(ident), request[:8], state, str(tries), shown_place(source, source_path), shown_place(store, path),
               reason]


def find_requests_json(db: Transfers, **of: Any) -> Iterator[str]:
    """Requests as JSON objects, with the number of their transfers in each state; the newest last.

    of: as for find_json, without link and request.
    """
    rows, newest, values = _requests(f"id, {_REQUEST}", **of)
    with db.snapshot():
        counts = _counts(db, newest, values)
        for ident, text in db.each(rows, values):
            shares = ", ".join([f'"{state}": {count}' for state, count in counts.get(ident, {}).items()])
            yield f'{text[:-1]}, "transfers": {{{shares}}}}}'


def find_requests_lines(db: Transfers, **of: Any) -> Iterator[list[str]]:
    """Requests as lines below REQUEST_HEADINGS; the last cell is the label, as it was given."""
    rows, newest, values = _requests(f"id, kind, owner, state, {_TIME.format('created')}, label", **of)
    with db.snapshot():
        counts = _counts(db, newest, values)
        for ident, kind, owner, state, created, label in db.each(rows, values):
            yield [ident, kind, owner, state, counts_text(counts.get(ident, {})), created, label]


def counts_text(counts: dict[str, int]) -> str:
    """The number of transfers in each state, for people."""
    return " ".join([f"{count} {state}" for state, count in sorted(counts.items())])


def _transfers(columns: str, *, states: Sequence[TransferState] = (), owner: str | None = None, kind: str | None = None,
               label: str | None = None, link: tuple[str, str] | None = None, span: Span = EVER,
               request: str | None = None, limit: int = -1) -> tuple[str, list[Any]]:
    wheres, values = selection(request, owner, link)
    _narrow(wheres, values, states, span)
    for condition, value in (("kind=?", kind), ("instr(label, ?)", label)):
        if value is not None:
            wheres.append(f"request IN (SELECT id FROM requests WHERE {condition})")
            values.append(value)
    where = " AND ".join(wheres) or "1"
    if limit >= 0:
        where = f"id IN (SELECT id FROM transfers WHERE {where} ORDER BY id DESC LIMIT ?)"
        values.append(limit)
    return f"SELECT {columns} FROM transfers WHERE {where} ORDER BY id", values


def _requests(columns: str, *, states: Sequence[TransferState] = (), owner: str | None = None, kind: str | None = None,
              label: str | None = None, span: Span = EVER, limit: int = -1) -> tuple[str, str, list[Any]]:
    """The query for the rows; the query for their ids if limited, else ""; the values of both."""
    wheres, values = selection(owner=owner)
    _narrow(wheres, values, states, span)
    for condition, value in (("kind=?", kind), ("instr(label, ?)", label)):
        if value is not None:
            wheres.append(condition)
            values.append(value)
    where, newest = " AND ".join(wheres) or "1", ""
    if limit >= 0:
        # +: with a filter, a sort is faster than the index by time, because the rows are stored by id
        newest = (f"SELECT id FROM requests WHERE {where} ORDER BY {'+' if wheres else ''}created DESC, id DESC "
                  "LIMIT ?")
        where = f"id IN ({newest})"
        values.append(limit)
    return f"SELECT {columns} FROM requests WHERE {where} ORDER BY +created, id", newest, values


def _counts(db: Transfers, requests: str, values: Sequence[Any]) -> dict[str, dict[str, int]]:
    """The number of each request's transfers in each state. requests: a query for ids; "": all requests."""
    found: dict[str, dict[str, int]] = {}
    for request, state, count in db.each(
            "SELECT o.request, t.state, count(*) FROM operations o CROSS JOIN transfers t ON t.operation=o.id "
            f"{f'WHERE o.request IN ({requests}) ' if requests else ''}GROUP BY o.id, t.state",
            values if requests else ()):
        of = found.setdefault(request, {})
        of[state] = of.get(state, 0) + count
    return found


def _narrow(wheres: list[str], values: list[Any], states: Sequence[TransferState], span: Span) -> None:
    if states:
        wheres.append(f"state IN {states_sql(states)}")
    if span != EVER:
        wheres.append("+created>=? AND +created<?")
        values += span
