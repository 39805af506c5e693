"""`gsync send`: send files to the first store that accepts them, else to a failover store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, StateOption

if TYPE_CHECKING:
    from gsync.transfer.client import Client, Sent
    from gsync.transfer.queue.registry import StorePath
    from gsync.transfer.send import Plan


def send(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Files to send.")],
    to: Annotated[list[str], typer.Option(
        "--to", metavar="STORE[:FOLDER][,STORE…]", autocompletion=completion.store_words,
        help="Destinations; the first store that accepts a file gets it.")],
    failover: Annotated[list[str] | None, typer.Option(
        "--failover", metavar="STORE[:FOLDER][,STORE…]", autocompletion=completion.store_words,
        help="Stores to hold files while no destination accepts them. `gsync queue run` moves them on.")] = None,
    register: Annotated[str | None, typer.Option(
        "--register", metavar="CATALOG", autocompletion=completion.catalogs,
        help="Catalog to register in. default, sqlite:/PATH, jsonl:/PATH, command:PROGRAM ARG…, http(s)://…")] = None,
    name: Annotated[str | None, typer.Option(
        "--name", help="Name at the destination, for a single file. Default: its own name.")] = None,
    owner: Annotated[str | None, typer.Option("--owner", help="Owner of the request. Default: you.")] = None,
    label: Annotated[str, typer.Option("--label", help="Description shown by `gsync queue list`.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask the stores and print what would be done.")] = False,
    json: JsonOption = False,
    state: StateOption = None,
) -> int:
    """Send files to the first store that accepts them.

    STORE is a name from `gsync store list`, a directory, or a store's URL. Existing files are not replaced. send never
    waits: while the destinations are down, a failover store holds the file, and while the catalog is down, its
    registration is pending. `gsync queue run` completes what is pending; `gsync queue show ID` shows the progress.

    Exit codes: 0 every file is at a destination; 1 all files are safe and something is pending; 4 no store accepted a
    file.
    """
    from gsync.base.errors import UsageError
    from gsync.cli.output import print_json
    from gsync.transfer.client import Client

    if name is not None and len(files) != 1:
        raise UsageError("send --name: give exactly one file")
    code = 0
    with Client(state, looking=dry_run) as client:
        for file in files:
            plan = client.plan(file, _words(to), _words(failover), register, name, owner)
            if dry_run:
                found = _looked_at(client, plan)
                print_json(found) if json else _print_plan(found)
                continue
            sent = client.carry_out(plan, label)
            print_json(_described(sent)) if json else _print(sent)
            code = max(code, 4 if sent.at is None else 1 if sent.pending else 0)
    return code


def _words(given: list[str] | None) -> list[str]:
    return [word for words in given or [] for word in words.split(",") if word]


def _place(place: StorePath | None) -> dict[str, str] | None:
    import os

    return None if place is None else {"store": place.store, "path": os.fsdecode(place.path)}


def _described(sent: Sent) -> dict[str, Any]:
    return {"request": sent.request, "file": sent.file, "at": _place(sent.at), "temporary": sent.is_temporary,
            "size": sent.size, "sha256": sent.sha256, "pending": list(sent.pending),
            "failed": [{**(_place(a.place) or {}), "error": a.error, "category": a.category.value}
                       for a in sent.failed]}


def _print(sent: Sent) -> None:
    from gsync.base.times import shown_size
    from gsync.cli.output import path_shown, print_error

    if sent.at is None:
        print_error(f"send {path_shown(sent.file)}: no store accepted it ({sent.request})")
    else:
        where = f"{sent.at}{', temporarily' if sent.is_temporary else ''}"
        print(f"{path_shown(sent.file)}: at {where} ({shown_size(sent.size)}, {sent.request})")
    for attempt in sent.failed:
        print(f"  failed: {attempt.error}")
    for pending in sent.pending:
        print(f"  pending: {pending}")


def _looked_at(client: Client, plan: Plan) -> dict[str, Any]:
    """What the destinations of a plan say now."""
    import os

    from gsync.base.errors import GsyncError

    def state(place: StorePath) -> str:
        try:
            if client.stores.banned(place.store):
                return "banned"
            store = client.stores.writable(place.store)
            store.probe()
            return "ready" if store.stat(place.path) is None else "occupied"
        except GsyncError as exc:
            return str(exc)

    return {"file": "/" + os.fsdecode(plan.source), "size": plan.content.size, "sha256": plan.content.sha256,
            "to": [{**(_place(place) or {}), "state": state(place)} for place in plan.wanted],
            "failover": [{**(_place(place) or {}), "state": state(place)} for place in plan.failover],
            "register": plan.catalog}


def _print_plan(found: dict[str, Any]) -> None:
    from gsync.base.times import shown_size
    from gsync.cli.output import path_shown

    print(f"{path_shown(found['file'])} ({shown_size(found['size'])}) would go to the first that accepts it:")
    for kind in ("to", "failover"):
        for place in found[kind]:
            print(f"  {place['store']}:{path_shown(place['path'])}{', temporarily' if kind == 'failover' else ''}:"
                  f" {place['state']}")
    if found["register"]:
        print(f"and be registered in {found['register']}")
