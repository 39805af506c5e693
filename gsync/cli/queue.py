"""`gsync queue`: transfers that wait, run, or have ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from json import dumps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, SetOption, StateOption, overrides

if TYPE_CHECKING:
    from gsync.session.options import Options
    from gsync.state.home import Home
    from gsync.transfer.queue.failures import SessionFailures
    from gsync.transfer.queue.registry import StorePath, Stores
    from gsync.transfer.queue.requests import NewOperation, NewTransfer, Request, Transfer, TransferState
    from gsync.transfer.queue.retry import RetryPolicy
    from gsync.transfer.queue.transfers import Transfers

app = typer.Typer(no_args_is_help=True, help="Manage transfers: submit, run, list, retry, kill.")

_SHOWN = 100  # transfers that `show` prints
OwnerOption = Annotated[str | None, typer.Option("--owner", help="Select by owner.")]
LinkOption = Annotated[str | None, typer.Option("--link", metavar="FROM,TO", help=(
    "Select by source and destination store. Either may be empty."))]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print how many it would be; change nothing.")]
Requests = Annotated[list[str] | None, typer.Argument(
    metavar="[ID]…", help="Transfer numbers, request IDs or unique prefixes of those.",
    autocompletion=completion.requests)]


@app.command("submit")
def submit(
    source: Annotated[str, typer.Argument(metavar="SRC", help="File or directory: STORE:PATH, /path, host:/path.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="Destination path, written like SRC.")],
    owner: Annotated[str | None,
                     typer.Option("--owner", help="Owner whose share it counts against. Default: you.")] = None,
    priority: Annotated[int,
                        typer.Option("--priority", min=-3, max=3, help="Priority; each step doubles the share.")] = 0,
    label: Annotated[str, typer.Option("--label", help="Description shown in lists.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Replace existing files.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read back and compare every copy.")] = False,
    register: Annotated[str | None, typer.Option(
        "--register", metavar="CATALOG", autocompletion=completion.catalogs,
        help="Catalog to register the files in. gsync publish does it once they have arrived.")] = None,
    replica: Annotated[list[str] | None, typer.Option("--replica", metavar="PLACE", help=(
        "Another copy of SRC, used where SRC is corrupt. Repeatable."))] = None,
    move: Annotated[bool, typer.Option("--move", help=(
        "Remove the source once everything has arrived. Each copy is read back first."))] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Run the transfer now and exit with its result.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be copied; change nothing.")] = False,
    json: JsonOption = False, state: StateOption = None,
) -> int:
    """Queue a copy of a file or directory.

    Workers (`gsync queue run`) carry it out.
    """
    from gsync.base.times import shown_size
    from gsync.cli.output import path_shown, print_json
    from gsync.transfer.catalog.catalog import parse_catalog
    from gsync.transfer.queue.intake import Intake
    from gsync.transfer.queue.requests import NewRequest

    catalog = None if register is None else parse_catalog(register)
    with _Queue(state, looking=dry_run) as queue:
        src, dst = queue.stores.place(source), queue.stores.place(destination)
        operations = _operations(queue.stores, src, dst, {"replace": replace, "verify": verify}, catalog, move,
                                 [queue.stores.place(text) for text in replica or []])
        moves = [t for operation in operations for t in operation.transfers]
        files = sum(len(operation.transfers) for operation in operations if operation.kind == "copy")
        size = sum(t.size or 0 for t in moves)
        if dry_run:
            if json:
                print_json({"files": files, "bytes": size, "from": str(src), "to": str(dst)})
            else:
                print(f"would copy {files} files, {shown_size(size)}, from {path_shown(str(src))} to "
                      f"{path_shown(str(dst))}")
            return 0
        ident = Intake(queue.transfers).submit(NewRequest("queue", owner or _me(), operations,
                                                          label or f"{src} → {dst}",
                                                  priority))
        if not wait:
            if json:
                print_json({"id": ident, "files": files, "bytes": size})
            else:
                print(f"request {ident}: {files} files, {shown_size(size)}; gsync queue show {ident}")
            return 0
    _work(state, ident, lambda: node_options(state))
    with _Queue(state) as queue:
        found = queue.request(ident)
        _print_request(queue, found, json)
        return _exit_code(queue.transfers.counts(ident))


@app.command("list")
def list_(
    state_: Annotated[list[str] | None, typer.Option(
        "--in", metavar="STATE",
        help="Select by state. QUEUED, NEW, SUBMITTED, RETRY, DONE, FAILED or KILLED; repeatable.")] = None,
    owner: OwnerOption = None,
    kind: Annotated[str | None, typer.Option("--kind", help=(
        "Select by kind. queue, send, archive, backup, deliver, failure (what replication could not sync)."))] = None,
    label: Annotated[str | None,
                     typer.Option("--label", metavar="TEXT", help="Select labels that contain TEXT.")] = None,
    link: LinkOption = None,
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help=(
        "Select what was submitted since then. 2h, 3d (ago), 2026-11-23, 2026-11-23T12:00:00Z."))] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME",
                                              help="Select what was submitted before this time.")] = None,
    transfers: Annotated[bool, typer.Option("--transfers", help="List transfers instead of requests.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Show only the newest N lines; 0: all.")] = 50,
    json: JsonOption = False, state: StateOption = None,
) -> None:
    """List requests, newest last.

    --transfers or --link list their transfers instead.
    """
    with _Queue(state) as queue:
        of: dict[str, Any] = {"states": [_state(word) for word in state_ or []], "owner": owner, "kind": kind,
                              "label": label, "span": _span(since, until), "limit": limit or -1}
        if transfers or link:
            _list_transfers(queue, {**of, "link": _link(link)}, json)
        else:
            _list_requests(queue, of, json)


@app.command("show")
def show(ident: Annotated[str, typer.Argument(metavar="ID", help="Request ID or unique prefix.",
                                              autocompletion=completion.requests)],
         all_: Annotated[bool, typer.Option("--all", help=f"Show all transfers, not just the first {_SHOWN}.")] = False,
         json: JsonOption = False, state: StateOption = None) -> int:
    """Show a request, its operations and its transfers.

    Exit code 1: a transfer failed.
    """
    from gsync.base.errors import UsageError
    from gsync.transfer.queue.failures import PREFIX, failures_of

    with _Queue(state) as queue:
        if ident.startswith(PREFIX):
            failures = failures_of(queue.home, ident)
            if not failures.rows:
                raise UsageError(f"{ident}: no failures are recorded")
            _print_failures(failures, json)
            return 1
        found = queue.request(ident)
        _print_request(queue, found, json, all_)
        return _exit_code(queue.transfers.counts(found.id))


@app.command("summary")
def summary(json: JsonOption = False, state: StateOption = None) -> None:
    """Count open and failed transfers by kind, owner and link.

    Banned stores, running archive jobs and replication failures are shown too.
    """
    from gsync.cli.output import path_shown, print_json, print_table
    from gsync.transfer.delivery.overview import overview
    from gsync.transfer.queue.listing import counts_text

    with _Queue(state) as queue:
        found = overview(queue.transfers)
    if json:
        print_json(found)
        return
    print(counts_text(found["states"]) or f"nothing is queued in {queue.home.path}")
    rows = [[what, path_shown(each["name"]), counts_text(each["states"])]
            for what, key in (("what", "work"), ("owner", "owners"), ("link", "links")) for each in found[key]]
    rows += [["store", each["store"], f"banned until {each['until'] or 'allowed'}: {each['reason']}"]
             for each in found["banned"]]
    rows += [[each["kind"], path_shown(each["directory"]), each["state"]] for each in found["archives"]
             if each["running"] or each["failed"]]
    rows += [["replication", path_shown(each["label"]), f"{each['failures']} not synced"]
             for each in found["replication"]]
    if rows:
        print_table(["BY", "NAME", "OPEN"], rows)


@app.command("retry")
def retry(ids: Requests = None, owner: OwnerOption = None, link: LinkOption = None, dry_run: DryRunOption = False,
          json: JsonOption = False, state: StateOption = None) -> None:
    """Retry failed, killed or waiting transfers now.

    Tries are counted from zero again. Transfers in RETRY do not wait any longer.
    """
    with _Queue(state) as queue:
        what = "would retry" if dry_run else "retry"
        _tell(what, _orders(queue, what, ids, owner, link), json)


@app.command("kill")
def kill(ids: Requests = None, owner: OwnerOption = None, link: LinkOption = None,
         yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
         dry_run: DryRunOption = False,
         json: JsonOption = False, state: StateOption = None) -> None:
    """Kill unfinished transfers.

    They stay killed until they are retried. Files that have arrived stay where they are.
    """
    from gsync.base.errors import UsageError
    from gsync.cli.output import asked

    with _Queue(state) as queue:
        count = _orders(queue, "would kill", ids, owner, link)
        if dry_run:
            _tell("would kill", count, json)
            return
        if count and not yes and not asked(f"Kill {count} transfers?"):
            raise UsageError("queue kill: nothing killed; --yes kills without asking")
        _tell("kill", _orders(queue, "kill", ids, owner, link), json)


@app.command("report")
def report(outbox: Annotated[str, typer.Argument(metavar="OUTBOX", help="Outbox directory, created if missing.")],
           json: JsonOption = False, state: StateOption = None) -> None:
    """Write AsyncStageOut reporter files for ended transfers.

    Each file is OUTBOX/<owner>/Reporter-<time>.json and holds what ended since the last report.
    """
    from gsync.cli.output import print_json
    from gsync.transfer.catalog.asyncstageout import Outbox

    with _Queue(state) as queue:
        count = Outbox(outbox).report(queue.transfers)
    if json:
        print_json({"files": count})
    else:
        print(f"{count} files written")


@app.command("run")
def run(once: Annotated[bool, typer.Option("--once", help="Exit when nothing more can be done now.")] = False,
        settings: SetOption = None, state: StateOption = None) -> int:
    """Carry out queued transfers until stopped.

    Several workers may run at once; each owner is served by one worker at a time. Set queue-jobs, queue-max-retries,
    queue-retry-pause, queue-job-timeout, queue-history and log-level with gsync config; --set overrides a setting for
    this run. Changed settings take effect within half a minute (log-level: at the next start).
    """
    from gsync.base import log

    log.setup(node_options(state, settings).log_level)
    ended = _work(state, None, lambda: node_options(state, settings), once=once)
    if not once:
        return 0
    with _Queue(state) as queue:
        waiting = sum(n for s, n in queue.transfers.counts().items() if s.value not in ("DONE", "FAILED", "KILLED"))
    done, failed, killed = (ended.get(word, 0) for word in ("DONE", "FAILED", "KILLED"))
    print(f"{done} done, {failed} failed" + (f", {killed} killed" if killed else "")
          + (f", {waiting} waiting for their next try or store" if waiting else ""))
    return 1 if failed else 0


# what commands share


class _Queue:
    """The database and the stores, open within a `with`. looking: make neither."""

    def __init__(self, state: str | None, looking: bool = True) -> None:
        from gsync.state.home import Home
        from gsync.transfer.queue.registry import Stores
        from gsync.transfer.queue.transfers import Transfers

        self.home: Home = Home(state)
        self.transfers: Transfers = Transfers(self.home.path, looking)
        self.stores: Stores = Stores(self.transfers)

    def __enter__(self) -> _Queue:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stores.close()
        self.transfers.close()

    def request(self, ident: str) -> Request:
        from gsync.base.errors import UsageError

        found = self.transfers.request(ident) if ident else None
        if found is None:
            raise UsageError(f"no such request, or not a unique prefix: {ident}; list them with gsync queue list")
        return found


def _work(state: str | None, request: str | None, options: Callable[[], Options], once: bool = False
          ) -> dict[str, int]:
    """Run a worker until it exits or a signal comes; how many transfers came to each state."""
    import signal
    import threading

    from gsync.state.home import Home
    from gsync.transfer.kinds import HANDLERS
    from gsync.transfer.queue.worker import QueueSettings, QueueWorker

    def settings() -> QueueSettings:
        now = options()
        return QueueSettings(jobs=now.queue_jobs, job_timeout=now.queue_job_timeout, history=now.queue_history,
                        policy=retry_policy(now))

    stop = threading.Event()
    ended: dict[str, int] = {}

    def told(transfer: Transfer, now: TransferState, reason: str) -> None:
        ended[now.value] = ended.get(now.value, 0) + 1

    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        QueueWorker(Home(state).path, settings(), handlers=HANDLERS, reread=settings, stop=stop, request=request,
                    once=once,
                    told=told).run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return ended


def node_options(state: str | None, settings: list[str] | None = None) -> Options:
    """The settings of this node, overridden by those of --set."""
    from gsync.session import config
    from gsync.state.home import Home

    return config.load_options(config.site_paths(Home(state).path), overrides(settings))


def retry_policy(options: Options) -> RetryPolicy:
    from gsync.transfer.queue.retry import RetryPolicy

    return RetryPolicy(options.queue_max_retries, options.queue_retry_pause)


def _me() -> str:
    import getpass

    return getpass.getuser()


def _operations(stores: Stores, src: StorePath, dst: StorePath, arguments: dict[str, bool], catalog: str | None,
                move: bool,
                replicas: Sequence[StorePath]) -> list[NewOperation]:
    """Make directories, copy files, set the directories' attributes; with `move` remove the source. UsageError if the
    source does not exist."""
    from gsync.base.errors import UsageError
    from gsync.transfer.queue.requests import NewOperation, NewTransfer

    source = stores.writable(src.store) if move else stores.get(src.store)
    stores.writable(dst.store)
    item = source.stat(src.path)
    if item is None:
        raise UsageError(f"{src}: no such file or directory")
    chosen = {key: value for key, value in arguments.items() if value}
    if not item.is_dir:
        one = NewTransfer(src.store, src.path, dst.store, dst.path, item.size, catalog=catalog,
                          replicas=tuple((place.store, place.path) for place in replicas))
        gone = [NewTransfer(dst.store, dst.path, src.store, src.path, item.size)] if move else []
        return [NewOperation("copy", [one], chosen), *([NewOperation("remove", gone)] if move else [])]
    folders: list[NewTransfer] = []
    files: list[NewTransfer] = []

    def walk(path: bytes) -> Iterator[bytes]:
        folders.append(NewTransfer(src.store, path, dst.store, moved(path, dst)))
        for item in source.list(path):
            if item.is_dir:
                yield item.path
            else:
                files.append(NewTransfer(
                    src.store, item.path, dst.store, moved(item.path, dst), item.size, catalog=catalog,
                    replicas=tuple((place.store, moved(item.path, place)) for place in replicas)))

    def moved(path: bytes, place: StorePath) -> bytes:
        """The path of something below the source, below another place."""
        below = path[len(src.path):].lstrip(b"/")
        return b"/".join(part for part in (place.path, below) if part)

    todo = [src.path]
    while todo:
        todo += walk(todo.pop())
    found = [NewOperation("mkdir", folders), NewOperation("copy", files, chosen),
             NewOperation("meta", sorted(folders, key=lambda t: t.path, reverse=True))]
    if move:  # a directory is removed if it is empty by then; no replica of it needs checking
        found += [NewOperation("remove", [NewTransfer(t.store, t.path, t.source, t.source_path) for t in files]),
                  NewOperation("remove", [NewTransfer("", b"", t.source, t.source_path) for t in sorted(
                      folders, key=lambda t: t.source_path, reverse=True) if t.source_path])]
    return [operation for operation in found if operation.transfers]


def _state(word: str) -> TransferState:
    from gsync.base.errors import UsageError
    from gsync.transfer.queue.requests import TransferState

    try:
        return TransferState(word.upper())
    except ValueError:
        words = ", ".join(state.value for state in TransferState)
        raise UsageError(f"unknown state: {word}; expected one of {words}") from None


def _span(since: str | None, until: str | None) -> tuple[int, int]:
    """From when to when, ns."""
    import time

    from gsync.base.errors import UsageError
    from gsync.base.times import parse_past
    from gsync.transfer.queue.listing import EVER

    now = time.time_ns()

    def moment(text: str) -> int:
        try:
            return parse_past(text, now)
        except ValueError as exc:
            raise UsageError(f"{text!r} is {exc}") from None

    return (moment(since) if since else EVER[0], moment(until) if until else EVER[1])


def _link(text: str | None) -> tuple[str, str] | None:
    from gsync.base.errors import UsageError

    if text is None:
        return None
    source, comma, destination = text.partition(",")
    if not comma or not (source or destination):
        raise UsageError(f"--link {text}: expected FROM,TO: names of stores, either may be empty")
    return source, destination


def _orders(queue: _Queue, what: str, ids: list[str] | None, owner: str | None, link: str | None) -> int:
    """Kill or retry the named requests and transfers, or count them for "would kill" and "would retry"."""
    from gsync.base.errors import UsageError
    from gsync.transfer.queue.failures import PREFIX
    from gsync.transfer.queue.orders import Orders

    orders = Orders(queue.transfers)
    order = {"kill": orders.kill, "retry": orders.retry, "would kill": orders.count_killable,
             "would retry": orders.count_retryable}[what]
    if not ids:
        if owner is None and link is None:
            raise UsageError(f"queue {what.split()[-1]}: give request ids, --owner or --link")
        return order(owner=owner, link=_link(link))
    total = 0
    for ident in ids:
        if ident.startswith(PREFIX):
            total += _failure_orders(queue, what, ident)
        elif ident.isdigit() and len(ident) < 16 and queue.transfers.transfer(int(ident)) is not None:
            total += order(ids=[int(ident)], owner=owner, link=_link(link))
        else:
            total += order(request=queue.request(ident).id, owner=owner, link=_link(link))
    return total


def _failure_orders(queue: _Queue, what: str, ident: str) -> int:
    """The same for replication failures; killing one drops it from the ledger."""
    from gsync.transfer.queue import failures

    if what == "retry":
        return failures.retry(queue.home, ident)
    if what == "kill":
        return failures.drop(queue.home, ident, f"gsync queue kill, by {_me()}")
    return len(failures.failures_of(queue.home, ident).rows)


def _tell(what: str, count: int, json: bool) -> None:
    from gsync.cli.output import print_json

    if json:
        print_json({"action": what, "transfers": count})
    else:
        print({"kill": f"{count} transfers killed", "would kill": f"would kill {count} transfers",
               "retry": f"{count} transfers will be retried",
               "would retry": f"would retry {count} transfers"}[what])


def _exit_code(counts: dict[TransferState, int]) -> int:
    from gsync.transfer.queue.requests import TransferState

    return 1 if counts.get(TransferState.FAILED) else 0


# printing


def _described(request: Request) -> dict[str, Any]:
    from gsync.base.times import rfc3339

    return {"id": request.id, "kind": request.kind, "owner": request.owner, "priority": request.priority,
            "label": request.label, "state": request.state.value, "created": rfc3339(request.created),
            "changed": rfc3339(request.changed)}


def _transfers_json(rows: Iterable[tuple[str, bytes, bytes]]) -> Iterator[str]:
    from gsync.cli.output import path_json

    return (f'{text[:-1]}, "from_path": {path_json(source)}, "to_path": {path_json(path)}}}'
            for text, source, path in rows)


def _list_requests(queue: _Queue, of: dict[str, Any], json: bool) -> None:
    from itertools import chain

    from gsync.cli.output import path_shown, print_json_array, print_table
    from gsync.transfer.queue import listing

    # few, and a person should see them: below the others, whatever the limit
    failures = _failures(queue) if of["owner"] is None and of["label"] is None and of["kind"] in (None, "failure") and (
        not of["states"] or "RETRY" in {state.value for state in of["states"]}) and of["span"] == listing.EVER else []
    if json:
        print_json_array(chain(listing.find_requests_json(queue.transfers, **of), map(dumps, failures)))
        return
    is_all = not (of["states"] or of["owner"] or of["kind"] or of["label"]) and of["span"] == listing.EVER
    noted = ([f["id"], f["kind"], f["owner"], f["state"], listing.counts_text(f["transfers"]), f["created"], f["label"]]
             for f in failures)
    lines = chain(listing.find_requests_lines(queue.transfers, **of), noted)
    print_table(listing.REQUEST_HEADINGS, ([*cells, path_shown(label)] for *cells, label in lines),
                none=f"nothing is queued in {queue.home.path}" if is_all else "no such requests")


def _failures(queue: _Queue) -> list[dict[str, Any]]:
    """Replication failures, one line for each session."""
    from gsync.transfer.queue.failures import all_failures

    return [_described_failures(found) for found in all_failures(queue.home)]


def _described_failures(found: SessionFailures) -> dict[str, Any]:
    from gsync.base.times import rfc3339

    return {"id": found.id, "kind": "failure", "owner": "", "priority": 0, "label": found.label, "state": "RETRY",
            "created": rfc3339(found.created), "changed": rfc3339(found.changed),
            "transfers": {"RETRY": len(found.rows)}}


def _print_failures(found: SessionFailures, json: bool) -> None:
    import os

    from gsync.base.model import gfid_str
    from gsync.base.times import rfc3339
    from gsync.cli.output import path_shown, print_json, print_table

    rows = [{"what": row.what, "gfid": row.gfid and gfid_str(row.gfid), "path": os.fsdecode(row.path),
             "tries": row.tries, "reason": row.message, "created": rfc3339(row.first), "changed": rfc3339(row.last)}
            for row in found.rows]
    if json:
        print_json({**_described_failures(found), "rows": rows})
        return
    print(f"{found.session.name}: replication could not sync {len(rows)}; it retries them by itself. To give up one: "
          f"gsync queue kill {found.id}/GFID")
    print_table(["WHAT", "TRIES", "LAST", "PATH", "WHY", "GFID"],
                [[str(r["what"]), str(r["tries"]), str(r["changed"]), path_shown(str(r["path"])), str(r["reason"]),
                  str(r["gfid"] or "")] for r in rows])


def _list_transfers(queue: _Queue, of: dict[str, Any], json: bool) -> None:
    from gsync.cli.output import print_json_array, print_table
    from gsync.transfer.queue import listing

    if json:
        print_json_array(_transfers_json(listing.find_json(queue.transfers, **of)))
    else:
        print_table(listing.TRANSFER_HEADINGS, listing.find_lines(queue.transfers, **of), none="no such transfers")


def _print_request(queue: _Queue, request: Request, json: bool, all_: bool = False) -> None:
    from itertools import islice

    from gsync.cli.output import path_shown, print_json_array, print_table
    from gsync.transfer.queue import listing

    operations = queue.transfers.operations(request.id)
    counts = {s.value: n for s, n in queue.transfers.counts(request.id).items()}
    if json:
        head = dumps({**_described(request), "transfers": counts, "operations": [
            {"kind": o.kind, "state": o.state.value, "arguments": o.arguments} for o in operations]})
        print_json_array(_transfers_json(listing.find_json(queue.transfers, request=request.id)),
                         f'{head[:-1]}, "rows": ', "}")
        return
    for key, value in (("request", request.id), ("kind", request.kind), ("owner", request.owner),
                       ("what", path_shown(request.label)), ("state", request.state.value),
                       ("operations", ", ".join(f"{o.kind} {o.state.value}" for o in operations)),
                       ("transfers", ", ".join(f"{n} {s}" for s, n in sorted(counts.items())))):
        print(f"{key + ':':12} {value}")
    print_table(listing.TRANSFER_HEADINGS, islice(listing.find_lines(queue.transfers, request=request.id),
                                                  None if all_ else _SHOWN))
    if not all_ and (more := sum(counts.values()) - _SHOWN) > 0:
        print(f"… and {more} more; --all shows all")
