"""`gsync publish`: register finished transfers in their catalogs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from gsync.cli.options import JsonOption, SetOption, StateOption

if TYPE_CHECKING:
    from gsync.session.options import Options
    from gsync.transfer.catalog.publish import Publication, Publisher

app = typer.Typer(no_args_is_help=True, help="Register finished transfers in catalogs.")


@app.command("run")
def run(settings: SetOption = None, state: StateOption = None) -> None:
    """Publish what is due until stopped.

    Several publishers may run at once. A request's files are due once publish-min-files of them have arrived, once one
    has waited for publish-max-age, or once the request has ended. Set these with gsync config, as well as
    publish-interval, queue-max-retries and queue-retry-pause; --set overrides a setting for this run.
    """
    import signal
    import threading

    from gsync.base import log
    from gsync.cli.queue import node_options

    options = node_options(state, settings)
    log.setup(options.log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with _publisher(state, options, looking=False) as publisher:
        publisher.run(stop, options.publish_interval)


@app.command("once")
def once(force: Annotated[bool,
                          typer.Option("--force", help="Publish everything that has arrived, due or not.")] = False,
         dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what is due; change nothing.")] = False,
         settings: SetOption = None, json: JsonOption = False, state: StateOption = None) -> int:
    """Publish what is due now, then exit.

    See `gsync publish run --help` for what is due. Exit code 1: a catalog did not accept everything.
    """
    from gsync.cli.queue import node_options
    from gsync.transfer.catalog.publish import Publication

    with _publisher(state, node_options(state, settings), looking=dry_run) as publisher:
        if dry_run:
            _print_due(publisher.look(force), json)
            return 0
        done = publisher.once(force)
        _print_counts(done, json)
    return 1 if done.get(Publication.FAILED) or done.get(Publication.RETRY) else 0


@app.command("status")
def status(json: JsonOption = False, state: StateOption = None) -> None:
    """Show the progress of publication for each catalog."""
    from gsync.cli.output import print_json, print_table

    with _publisher(state) as publisher:
        found = publisher.status()
    if json:
        print_json(found)
    elif not found:
        print("nothing is marked for publication")
    else:
        print_table(["CATALOG", "COMING", "NEW", "ACQUIRED", "DONE", "RETRY", "FAILED", "NOT REQUIRED", "WHY"],
                    [[f["catalog"], *(str(f[key]) for key in (
                        "coming", "NEW", "ACQUIRED", "DONE", "RETRY", "FAILED", "NOT_REQUIRED")), f["reason"]]
                     for f in found])


@app.command("retry")
def retry(ids: Annotated[list[str] | None, typer.Argument(
        metavar="REQUEST", help="Retry only these requests.")] = None,
        json: JsonOption = False, state: StateOption = None) -> None:
    """Retry failed publications."""
    from gsync.base.errors import UsageError
    from gsync.cli.output import print_json

    with _publisher(state) as publisher:
        count = publisher.retry(ids or [])
    if ids and not count:
        raise UsageError("publish retry: nothing failed in these requests; see gsync publish status")
    if json:
        print_json({"retried": count})
    else:
        print(f"{count} publications will be retried by gsync publish run or once")


@contextmanager
def _publisher(state: str | None, options: Options | None = None, looking: bool = True) -> Iterator[Publisher]:
    """A publisher with these settings of the node. looking: make nothing."""
    from gsync.cli.queue import node_options, retry_policy
    from gsync.state.home import Home
    from gsync.transfer.catalog.catalog import open_catalog
    from gsync.transfer.catalog.publish import Publisher, Thresholds
    from gsync.transfer.queue.registry import Stores
    from gsync.transfer.queue.transfers import Transfers

    options = options or node_options(state)
    transfers = Transfers(Home(state).path, looking)
    stores = Stores(transfers)
    try:
        yield Publisher(transfers, stores, lambda text: open_catalog(text, transfers.home),
                        Thresholds(options.publish_min_files, options.publish_max_age), retry_policy(options))
    finally:
        stores.close()
        transfers.close()


def _print_due(due: dict[str, int], json: bool) -> None:
    from gsync.cli.output import print_json

    if json:
        print_json([{"catalog": catalog, "due": count} for catalog, count in due.items()])
    else:
        print("\n".join(f"would register {count} entries in {catalog}" for catalog, count in due.items())
              or "nothing is due")


def _print_counts(done: dict[Publication, int], json: bool) -> None:
    from gsync.cli.output import print_json
    from gsync.transfer.catalog.publish import Publication

    states = (Publication.DONE, Publication.RETRY, Publication.FAILED)
    if json:
        print_json({state.value: done.get(state, 0) for state in states})
    elif not done:
        print("nothing is due")
    else:
        print(", ".join(f"{done[state]} {state.value}" for state in states if done.get(state)))
