"""`gsync hold`: deletes that were held back because one batch would have removed too much."""

from __future__ import annotations

from typing import Annotated

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, StateOption
from gsync.cli.words import session_and_verb

VERBS = ("show", "approve", "discard")


def hold(
    words: Annotated[list[str] | None, typer.Argument(
        metavar="[SESSION] [show|approve|discard]", autocompletion=completion.words(VERBS))] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: JsonOption = False,
    state: StateOption = None,
) -> None:
    """Deletes that wait, because one batch would have removed more than max-delete entries.

    show lists them; approved ones go with the next batch; discarded ones are forgotten, and what they are about stays
    at the slave.
    """
    import os

    from gsync.base.errors import UsageError
    from gsync.base.times import rfc3339
    from gsync.cli.failures import opened
    from gsync.cli.output import asked, path_shown, print_json, print_table
    from gsync.state.home import Home

    name, verb, _ = session_and_verb(words, VERBS)
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
            raise UsageError(f"hold {verb}: not done; --yes does it without asking")
        count = sum(ledger.approve() if verb == "approve" else ledger.discard() for ledger in ledgers)
    finally:
        for ledger in ledgers:
            ledger.close()
    if json:
        print_json({"session": session.name, "action": verb, "names": count})
    else:
        print(f"{session.name}: {count} names {'will be deleted' if verb == 'approve' else 'stay at the slave'}")
