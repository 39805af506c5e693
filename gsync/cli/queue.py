"""`gsync queue`: what is to be moved, what is being moved, and what became of it."""

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

app = typer.Typer(no_args_is_help=True, help="Transfers that are to be done, are being done, or were done.")

_SHOWN = 100  # transfers that `show` prints
OwnerOption = Annotated[str | None, typer.Option("--owner", help="Of this owner.")]
LinkOption = Annotated[str | None, typer.Option("--link", metavar="FROM,TO", help=(
    "From this store to that one; either may be left out."))]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say how many it would be.")]
Requests = Annotated[list[str] | None, typer.Argument(
    metavar="[ID]…", help="Transfers by number; requests, or the first digits of them where those are no such number.",
    autocompletion=completion.requests)]


@app.command("submit")
def submit(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A file or directory: STORE:PATH, /path, host:/path.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="What it is to be called there.")],
    owner: Annotated[str | None, typer.Option("--owner", help="On whose share it counts; default: you.")] = None,
    priority: Annotated[int, typer.Option("--priority", min=-3, max=3, help="Each step doubles the share.")] = 0,
    label: Annotated[str, typer.Option("--label", help="What it is, for lists.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Replace files that are there.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read every copy anew and compare it.")] = False,
    register: Annotated[str | None, typer.Option(
        "--register", metavar="CATALOG", autocompletion=completion.catalogs,
        help="Have gsync publish make the files known there once they have arrived.")] = None,
    replica: Annotated[list[str] | None, typer.Option("--replica", metavar="PLACE", help=(
        "Another place of the same, written as SRC: taken where SRC is corrupt. Can be repeated."))] = None,
    move: Annotated[bool, typer.Option("--move", help=(
        "Remove the source once all has arrived, each file after its copy was read and compared."))] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Do it here and now, and end with what became of it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be moved.")] = False,
    json: JsonOption = False, state: StateOption = None,
) -> int:
    """Queue a copy of a file, or of a directory with all that is in it. A worker (gsync queue run) does it."""
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
        "--in", metavar="STATE", help="In this state: QUEUED, NEW, SUBMITTED, RETRY, DONE, FAILED, KILLED.")] = None,
    owner: OwnerOption = None,
    kind: Annotated[str | None, typer.Option("--kind", help=(
        "Made by: queue, send, archive, deliver; failure: what replication could not sync."))] = None,
    label: Annotated[str | None, typer.Option("--label", metavar="TEXT", help="With this in their label.")] = None,
    link: LinkOption = None,
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help=(
        "Put in since then: 2h, 3d (ago), 2026-11-23, 2026-11-23T12:00:00Z."))] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="And before then.")] = None,
    transfers: Annotated[bool, typer.Option("--transfers", help="Transfers rather than requests.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="At most so many lines, the newest; 0: all.")] = 50,
    json: JsonOption = False, state: StateOption = None,
) -> None:
    """List requests, the newest last, or with --transfers (or --link) their transfers."""
    with _Queue(state) as queue:
        of: dict[str, Any] = {"states": [_state(word) for word in state_ or []], "owner": owner, "kind": kind,
                              "label": label, "span": _span(since, until), "limit": limit or -1}
        if transfers or link:
            _list_transfers(queue, {**of, "link": _link(link)}, json)
        else:
            _list_requests(queue, of, json)


@app.command("show")
def show(ident: Annotated[str, typer.Argument(metavar="ID", help="The request, or the first digits of it.",
                                              autocompletion=completion.requests)],
         all_: Annotated[bool, typer.Option("--all", help=f"All transfers, not {_SHOWN} only.")] = False,
         json: JsonOption = False, state: StateOption = None) -> int:
    """Show a request: its operations, its transfers, and why what failed has failed. Exit code 1 if something has."""
    from gsync.base.errors import UsageError
    from gsync.transfer.queue.failures import PREFIX, failures_of

    with _Queue(state) as queue:
        if ident.startswith(PREFIX):
            failures = failures_of(queue.home, ident)
            if not failures.rows:
                raise UsageError(f"{ident}: nothing is noted of it")
            _print_failures(failures, json)
            return 1
        found = queue.request(ident)
        _print_request(queue, found, json, all_)
        return _exit_code(queue.transfers.counts(found.id))


@app.command("summary")
def summary(json: JsonOption = False, state: StateOption = None) -> None:
    """Count what waits, moves and has failed: by what is done, by owner, by link; and show stores left alone."""
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
    rows += [["store", each["store"], f"left alone until {each['until'] or 'allowed'}: {each['reason']}"]
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
    """Try what FAILED or was KILLED again, with its tries counted anew; what waits in RETRY does not wait longer."""
    with _Queue(state) as queue:
        what = "would retry" if dry_run else "retry"
        _tell(what, _orders(queue, what, ids, owner, link), json)


@app.command("kill")
def kill(ids: Requests = None, owner: OwnerOption = None, link: LinkOption = None,
         yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
         dry_run: DryRunOption = False,
         json: JsonOption = False, state: StateOption = None) -> None:
    """Kill what is not finished of requests, an owner or a link; it stays killed. What was brought stays there."""
    from gsync.base.errors import UsageError
    from gsync.cli.output import asked

    with _Queue(state) as queue:
        count = _orders(queue, "would kill", ids, owner, link)
        if dry_run:
            _tell("would kill", count, json)
            return
        if count and not yes and not asked(f"Kill {count} transfers?"):
            raise UsageError("queue kill: nothing was killed; --yes kills without asking")
        _tell("kill", _orders(queue, "kill", ids, owner, link), json)


@app.command("report")
def report(outbox: Annotated[str, typer.Argument(metavar="OUTBOX", help="The folder; made if it is missing.")],
           json: JsonOption = False, state: StateOption = None) -> None:
    """Write what has ended since the last report into AsyncStageOut's files: OUTBOX/<owner>/Reporter-<time>.json."""
    from gsync.cli.output import print_json
    from gsync.transfer.catalog.asyncstageout import Outbox

    with _Queue(state) as queue:
        count = Outbox(outbox).report(queue.transfers)
    if json:
        print_json({"files": count})
    else:
        print(f"{count} files written")


@app.command("run")
def run(once: Annotated[bool, typer.Option("--once", help="End when nothing is left that can be done now.")] = False,
        settings: SetOption = None, state: StateOption = None) -> int:
    """Work off the queue, until Ctrl-C. Several may run at once; each owner is served by one of them at a time.

    Its settings are options of gsync config: queue-jobs, queue-max-retries, queue-retry-pause, queue-job-timeout,
    queue-history, log-level. --set puts another value in the place of one for this run. What gsync config changes
    meanwhile holds within half a minute (log-level: with the next start).
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
          + (f", {waiting} waiting for their time or store" if waiting else ""))
    return 1 if failed else 0


# what commands share


class _Queue:
    """The database and the stores, open for a `with`. looking: neither is made."""

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
            raise UsageError(f"request {ident}: there is none, or several that begin so; gsync queue list shows them")
        return found


def _work(state: str | None, request: str | None, options: Callable[[], Options], once: bool = False
          ) -> dict[str, int]:
    """Run a worker until it ends or a signal comes; how many transfers came to which state meanwhile."""
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
    """The settings of this node, with those of --set in their place."""
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
    """Directories, then what is in them, then the directories' attributes; with `move` the source goes then. UsageError
    if there is no such source."""
    from gsync.base.errors import UsageError
    from gsync.transfer.queue.requests import NewOperation, NewTransfer

    source = stores.writable(src.store) if move else stores.get(src.store)
    stores.writable(dst.store)
    item = source.stat(src.path)
    if item is None:
        raise UsageError(f"{src}: is not there")
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
    if move:  # a directory goes if nothing has come into it; there is no other replica to be asked for
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
        raise UsageError(f"{word}: not one of {', '.join(state.value for state in TransferState)}") from None


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
        raise UsageError(f"--link {text}: FROM,TO, names of stores; one of them may be left out")
    return source, destination


def _orders(queue: _Queue, what: str, ids: list[str] | None, owner: str | None, link: str | None) -> int:
    """kill or retry (or "would kill", "would retry": how many it would be) of the requests and transfers named."""
    from gsync.base.errors import UsageError
    from gsync.transfer.queue.failures import PREFIX
    from gsync.transfer.queue.orders import Orders

    orders = Orders(queue.transfers)
    order = {"kill": orders.kill, "retry": orders.retry, "would kill": orders.count_killable,
             "would retry": orders.count_retryable}[what]
    if not ids:
        if owner is None and link is None:
            raise UsageError(f"queue {what.split()[-1]}: of what? Give ids, --owner or --link")
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
    """The same for what replication could not sync; killing it is dropping it from the ledger."""
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
               "retry": f"{count} transfers are tried again",
               "would retry": f"would try {count} transfers again"}[what])


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
    """What replication could not sync, a line for each session."""
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
    print(f"{found.session.name}: replication could not sync {len(rows)}; it tries them again by itself. Given up one "
          f"by one: gsync queue kill {found.id}/GFID")
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
        print(f"… and {more} more; --all shows them")
