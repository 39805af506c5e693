"""`gsync hold`: deletes that are held because one batch would have removed too much."""

from __future__ import annotations

from typing import Annotated

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, StateOption
from gsync.cli.words import no_more, session_and_verb

VERBS = ("show", "approve", "discard")


def hold(
    words: Annotated[list[str] | None, typer.Argument(
        metavar="[SESSION] [show|approve|discard]", help="What to do. SESSION is optional if there is only one.",
        autocompletion=completion.words(VERBS))] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    json: JsonOption = False,
    state: StateOption = None,
) -> None:
    """Show, approve or discard held deletes.

    gsync holds deletes when one batch would have removed more than max-delete entries. `show` lists them. `approve`
    deletes these files with the next batch. `discard` forgets the deletes: the files stay at the slave.
    """
    import os

    from gsync.base.errors import UsageError
    from gsync.base.times import rfc3339
    from gsync.cli.failures import opened
    from gsync.cli.output import asked, path_shown, print_json, print_table
    from gsync.state.home import Home

    name, verb, rest = session_and_verb(words, VERBS)
    no_more(f"hold {verb}", rest)
    session, ledgers = opened(Home(state), name)
    try:
        held = [row for ledger in ledgers for row in ledger.held()]
        if verb == "show":
            if json:
                print_json([{"path": os.fsdecode(path), "since": rfc3339(since)} for path, since in held])
            elif not held:
                print(f"{session.name}: no deletes are held")
            else:
                print_table(["HELD SINCE", "PATH"],
                            [[rfc3339(since) or "", path_shown(os.fsdecode(path))] for path, since in held])
            return
        if held and not yes and not asked(f"{verb.capitalize()} the deletion of {len(held)} names?"):
            raise UsageError(f"hold {verb}: nothing changed; confirm, or use --yes")
        count = sum(ledger.approve() if verb == "approve" else ledger.discard() for ledger in ledgers)
    finally:
        for ledger in ledgers:
            ledger.close()
    if json:
        print_json({"session": session.name, "action": verb, "names": count})
    else:
        print(f"{session.name}: {count} names {'will be deleted' if verb == 'approve' else 'stay at the slave'}")
