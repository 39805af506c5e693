"""`gsync failures`: what could not be replicated, and why."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, StateOption
from gsync.cli.words import no_more, session_and_verb

if TYPE_CHECKING:
    from gsync.engine.ledger import Failure, Ledger
    from gsync.session.session import Session
    from gsync.state.home import Home

VERBS = ("list", "retry", "drop")


def opened(home: Home, name: str | None) -> tuple[Session, list[Ledger]]:
    """The session and its ledgers: one for each part of the master that has its own worker."""
    from gsync.base.errors import UsageError
    from gsync.engine.ledger import Ledger
    from gsync.session.session import SessionHome

    session = SessionHome(home).the(name)
    try:
        paths = session.ledger_dbs(home.get(session.volume))
    except UsageError:  # the volume is gone
        paths = [session.ledger_db]
    return session, [Ledger(path) for path in paths]


def failures(
    words: Annotated[list[str] | None, typer.Argument(
        metavar="[SESSION] [list|retry|drop GFID]", help="What to do. SESSION is optional if there is only one.",
        autocompletion=completion.words(VERBS))] = None,
    reason: Annotated[str | None, typer.Option(
        "--reason", metavar="TEXT", help="Why the failure is dropped. The log keeps it.")] = None,
    json: JsonOption = False,
    state: StateOption = None,
) -> None:
    """Show, retry or drop what could not be replicated.

    `list` shows the failures and their reasons. `retry` retries them with the next batch; gsync also retries by itself,
    with growing pauses. `drop` forgets the failures of one inode.
    """
    from gsync.cli.output import print_json
    from gsync.state.home import Home

    name, verb, rest = session_and_verb(words, VERBS)
    no_more(f"failures {verb}", rest[1:] if verb == "drop" else rest)
    session, ledgers = opened(Home(state), name)
    with ExitStack() as closing_all:
        for ledger in ledgers:
            closing_all.callback(ledger.close)
        if verb == "list":
            _list(session, ledgers, json)
            return
        count = sum(ledger.hurry() for ledger in ledgers) if verb == "retry" else _drop(session, ledgers, rest, reason)
    if json:
        print_json({"session": session.name, "action": verb, "failures": count})
    else:
        print(f"{session.name}: {count} failures " + ("will be retried" if verb == "retry" else "dropped"))


def _list(session: Session, ledgers: Sequence[Ledger], json: bool) -> None:
    from gsync.cli.output import path_shown, print_json, print_table

    rows = [_described(failure) for ledger in ledgers for failure in ledger.all()]
    if json:
        print_json(rows)
        return
    print_table(["WHAT", "TRIES", "LAST", "PATH", "WHY", "GFID"],
                [[str(r["what"]), str(r["tries"]), str(r["last"]), path_shown(str(r["path"])), str(r["message"]),
                  str(r["gfid"] or "")] for r in rows], none=f"{session.name}: no failures")


def _described(failure: Failure) -> dict[str, object]:
    import os

    from gsync.base.model import gfid_str
    from gsync.base.times import rfc3339

    return {"what": failure.what, "gfid": failure.gfid and gfid_str(failure.gfid), "path": os.fsdecode(failure.path),
            "errno": failure.errno, "message": failure.message, "tries": failure.tries,
            "first": rfc3339(failure.first), "last": rfc3339(failure.last)}


def _drop(session: Session, ledgers: Sequence[Ledger], gfids: Sequence[str], reason: str | None) -> int:
    """Forget the failures of one inode, and log why; how many there were."""
    from gsync.base import log
    from gsync.base.errors import UsageError
    from gsync.base.model import gfid_parse

    if len(gfids) != 1 or not reason:
        raise UsageError("failures drop: give a GFID as `gsync failures list` shows it, and --reason TEXT")
    (gfid,) = gfids
    try:
        count = sum(ledger.drop(gfid_parse(gfid)) for ledger in ledgers)
    except ValueError:
        raise UsageError(f"failures drop: not a GFID: {gfid}; `gsync failures list` shows them") from None
    if not count:
        raise UsageError(f"failures drop: no failures of {gfid}; `gsync failures list` shows them")
    log.setup(path=session.log)
    log.get_logger("gsync.failures").info("dropped", gfid=gfid, reason=reason)
    return count
