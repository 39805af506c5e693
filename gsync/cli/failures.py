"""`gsync failures`: what could not be synced, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, StateOption
from gsync.cli.words import session_and_verb

if TYPE_CHECKING:
    from gsync.engine.ledger import Ledger
    from gsync.session.session import Session
    from gsync.state.home import Home

VERBS = ("list", "retry", "drop")


def opened(home: Home, name: str | None) -> tuple[Session, list[Ledger]]:
    """The session, and its ledgers: there is one for each part of the master that has a worker of its own."""
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
        metavar="[SESSION] [list|retry|drop GFID]", autocompletion=completion.words(VERBS))] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why a failure is dropped; goes to the log.")] = None,
    json: JsonOption = False,
    state: StateOption = None,
) -> None:
    """What could not be synced, and why.

    list shows it, retry has it tried again with the next batch (gsync does so by itself too, with growing pauses), drop
    forgets what is noted of one inode.
    """
    import os

    from gsync.base import log
    from gsync.base.errors import UsageError
    from gsync.base.model import gfid_parse, gfid_str
    from gsync.base.times import rfc3339
    from gsync.cli.output import path_shown, print_json, print_table
    from gsync.engine.ledger import Failure
    from gsync.state.home import Home

    def shown(failure: Failure) -> dict[str, object]:
        return {"what": failure.what, "gfid": failure.gfid and gfid_str(failure.gfid),
                "path": os.fsdecode(failure.path), "errno": failure.errno, "message": failure.message,
                "tries": failure.tries, "first": rfc3339(failure.first), "last": rfc3339(failure.last)}

    name, verb, rest = session_and_verb(words, VERBS)
    session, ledgers = opened(Home(state), name)
    try:
        if verb == "list":
            rows = [shown(failure) for ledger in ledgers for failure in ledger.all()]
            if json:
                print_json(rows)
            elif not rows:
                print(f"{session.name}: no failures")
            else:
                print_table(["WHAT", "TRIES", "LAST", "PATH", "WHY", "GFID"],
                            [[str(r["what"]), str(r["tries"]), str(r["last"]), path_shown(str(r["path"])),
                              str(r["message"]), str(r["gfid"] or "")] for r in rows])
            return
        if verb == "retry":
            count = sum(ledger.hurry() for ledger in ledgers)
        else:
            if len(rest) != 1 or not reason:
                raise UsageError("failures drop: give the gfid that `failures list` shows, and --reason TEXT")
            try:
                count = sum(ledger.drop(gfid_parse(rest[0])) for ledger in ledgers)
            except ValueError:
                raise UsageError(f"failures drop: {rest[0]!r} is no gfid; `gsync failures list` shows them") from None
            if not count:
                raise UsageError(f"failures drop: nothing is noted of {rest[0]}")
            log.setup(path=session.log)
            log.get_logger("gsync.failures").info("dropped", gfid=rest[0], reason=reason)
    finally:
        for ledger in ledgers:
            ledger.close()
    if json:
        print_json({"session": session.name, "action": verb, "failures": count})
    else:
        print(f"{session.name}: {count} failures " + ("are tried again" if verb == "retry" else "dropped"))
