"""`gsync store`: the stores that bounded transfers read from and write to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, StateOption, duration

if TYPE_CHECKING:
    from gsync.transfer.queue.registry import RegisteredStore, Stores

app = typer.Typer(no_args_is_help=True, help="Manage the stores that transfers read and write.")

NameArgument = Annotated[str,
                         typer.Argument(metavar="NAME", help="Name of the store.", autocompletion=completion.stores)]


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name for the store.")],
    url: Annotated[str, typer.Argument(metavar="URL", help=(
        "Location of the store. /path, host:/path, ssh://[user@]host[:port]/path, gluster://host/VOLUME[/path], "
        "tar:///path (a vault)."))],
    option: Annotated[list[str] | None, typer.Option(
        "-o", "--option", metavar="KEY=VALUE",
        help="Option of the store, repeatable. ssh: ssh-config. tar: tar-size, command-timeout, "
             "{put,get,size,delete,read}-command.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Never write to the store.")] = False,
    json: JsonOption = False, state: StateOption = None,
) -> None:
    """Register a store under a name.

    The store is opened first, to see that it exists. With tar:// an empty directory becomes a vault.
    """
    import os

    from gsync.base.errors import UsageError
    from gsync.cli.output import print_json

    options = {}
    for each in option or []:
        key, equals, value = each.partition("=")
        if not equals:
            raise UsageError(f"store add: --option {each}: expected KEY=VALUE")
        options[key] = value
    if url in (".", "..") or url.startswith(("./", "../", "~/")):
        url = os.path.abspath(os.path.expanduser(url))
    with _stores(state, looking=False) as stores:
        stores.add(name, url, options, read_only)
        known = stores.known(name)
    if json:
        print_json(_described(known))
    else:
        print(f"store {name} is {url}")


@app.command("list")
def list_(json: JsonOption = False, state: StateOption = None) -> None:
    """List stores and their health."""
    from gsync.cli.output import print_json, print_table

    with _stores(state) as stores:
        found = [_described(known) for known in stores.all()]
    if json:
        print_json(found)
    elif found:
        print_table(["STORE", "KIND", "URL", "HEALTH"], [[s["name"], s["kind"], s["url"], _health(s)] for s in found])
    else:
        print("no stores; add one with gsync store add NAME URL")


@app.command("check")
def check(name: NameArgument, json: JsonOption = False, state: StateOption = None) -> int:
    """Check that a store is reachable, and show its free space.

    If it is, a ban by the queue ends.
    """
    from gsync.base.times import shown_size
    from gsync.cli.output import print_error, print_json
    from gsync.transfer.stores.store import StoreError

    reason, free = "", None
    with _stores(state) as stores:
        stores.known(name)
        try:
            store = stores.get(name)
            store.probe()
            free = store.free()
        except StoreError as exc:
            reason = str(exc)
        else:
            stores.is_back(name)
        known = stores.known(name)
    if json:
        print_json({**_described(known), "reachable": not reason, "reason": reason or known.reason, "free": free})
    elif reason:
        print_error(reason)
    else:
        room = f", {shown_size(free)} free" if free is not None else ""
        print(f"store {name}: reachable{room}" + (f"; {_health(_described(known))}" if known.banned else ""))
    return StoreError.exit_code if reason else 0


@app.command("ban")
def ban(
    name: NameArgument,
    for_: Annotated[str | None, typer.Option("--for", metavar="TIME",
                                             help="Duration of the ban: 30m, 2h, 1d. Default: until allowed.")]
    = None,
    reason: Annotated[str, typer.Option("--reason", help="Reason, shown in lists.")] = "by hand",
    json: JsonOption = False, state: StateOption = None,
) -> None:
    """Ban a store: start no transfer that needs it.

    Transfers wait for the store and lose no try.
    """
    with _stores(state) as stores:
        stores.known(name)
        stores.ban(name, reason, duration(for_, "--for"))
        _tell(stores.known(name), json)


@app.command("allow")
def allow(name: NameArgument, json: JsonOption = False, state: StateOption = None) -> None:
    """End a ban; transfers that wait for the store are due now."""
    with _stores(state) as stores:
        stores.known(name)
        stores.allow(name)
        _tell(stores.known(name), json)


@app.command("remove")
def remove(name: NameArgument, yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
           json: JsonOption = False, state: StateOption = None) -> None:
    """Unregister a store; its contents are not touched.

    Refused while unfinished transfers need it.
    """
    from gsync.base.errors import UsageError
    from gsync.cli.output import asked, print_json

    with _stores(state) as stores:
        known = stores.known(name)
        if not yes and not asked(f"Remove store {name} ({known.url})? Its contents are kept."):
            raise UsageError(f"store {name}: not removed; --yes removes without asking")
        stores.remove(name)
    if json:
        print_json(_described(known))
    else:
        print(f"store {name}: removed")


@contextmanager
def _stores(state: str | None, looking: bool = True) -> Iterator[Stores]:
    """The registry. looking: do not make it."""
    from gsync.state.home import Home
    from gsync.transfer.queue.registry import Stores
    from gsync.transfer.queue.transfers import Transfers

    transfers = Transfers(Home(state).path, looking)
    stores = Stores(transfers)
    try:
        yield stores
    finally:
        stores.close()
        transfers.close()


def _described(known: RegisteredStore) -> dict[str, Any]:
    from gsync.base.times import rfc3339
    from gsync.transfer.queue.registry import kind_of

    until = known.banned_until
    return {"name": known.name, "kind": kind_of(known.url), "url": known.url, "options": dict(known.options),
            "read_only": known.read_only, "banned": known.banned,
            "banned_until": rfc3339(until) if known.banned and until is not None else None, "reason": known.reason}


def _health(store: dict[str, Any]) -> str:
    words = []
    if store["banned"]:
        words.append(f"banned until {store['banned_until'] or 'allowed'}" + (f": {store['reason']}" if store["reason"]
                                                                              else ""))
    if store["read_only"]:
        words.append("read-only")
    return "; ".join(words) or "ok"


def _tell(known: RegisteredStore, json: bool) -> None:
    from gsync.cli.output import print_json

    described = _described(known)
    if json:
        print_json(described)
    else:
        print(f"store {known.name}: {_health(described)}")
