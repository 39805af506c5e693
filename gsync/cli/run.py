"""`gsync run`: records and replicates in the foreground."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gsync.cli import completion
from gsync.cli.options import SetOption, StateOption, duration, overrides

if TYPE_CHECKING:
    from gsync.base.logfile import LogFile
    from gsync.session.session import Session
    from gsync.state.home import Home, Volume


def run(
    master: Annotated[str, typer.Argument(
        metavar="MASTER", help="Directory or volume to replicate.", autocompletion=completion.volumes)],
    slave: Annotated[str, typer.Argument(
        metavar="SLAVE", help="Where the copy is kept. /path, [user@]host:/path, "
                               "ssh://[user@]host[:port]/path, or [user@]host::VOLUME for a GlusterFS volume.")],
    once: Annotated[bool, typer.Option(
        "--once", help="Exit once all existing files are durably at the slave.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print events, one JSON object per line.")] = False,
    state: StateOption = None,
    exclude: Annotated[list[str] | None, typer.Option(
        metavar="PATTERN", help="Leave out files that match, as in .gitignore. Repeatable.")] = None,
    exclude_from: Annotated[str | None, typer.Option(
        metavar="FILE", help="Read patterns from FILE. They come before those of --exclude.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and change nothing.")] = False,
    adopt: Annotated[bool, typer.Option(
        "--adopt", help="Take over an existing copy. gsync compares it and sends only what differs.")] = False,
    sync_method: Annotated[str | None, typer.Option(metavar="auto|rsync|tarssh", help="How file data is sent.")] = None,
    sync_jobs: Annotated[int | None, typer.Option(metavar="N", help="Number of parallel data streams.")] = None,
    bwlimit: Annotated[str | None, typer.Option(
        metavar="RATE", help="Limit in bytes per second, such as 10M. It may depend on the time of the week.")
    ] = None,
    delete_retention: Annotated[str | None, typer.Option(
        metavar="TIME",
        help="Keep deleted files in the slave's .gsync/trash this long. For example 7d, 12h or 2w.")] = None,
    max_delete: Annotated[int | None, typer.Option(
        metavar="N", help="Hold deletes if a batch would remove more than N entries.")] = None,
    ssh_config: Annotated[str | None, typer.Option(
        metavar="FILE", help="Configuration file of ssh, instead of ~/.ssh/config.")] = None,
    ssh_port: Annotated[int | None, typer.Option(metavar="PORT", help="Port of the slave's ssh server.")] = None,
    accept_host_key: Annotated[str | None, typer.Option(
        metavar="SHA256:…", help="Accept the slave's host key if it has this fingerprint.")] = None,
    detector: Annotated[str | None, typer.Option(
        metavar="auto|fanotify|inotify", help="How to detect changes of the master.")] = None,
    log_level: Annotated[str | None, typer.Option(
        metavar="LEVEL", help="Lowest level to log. DEBUG, INFO, WARNING or ERROR.")] = None,
    settings: SetOption = None,
) -> int:
    """Record and replicate in the foreground.

    Run the same command again to resume. Options apply to this run and override the settings of `gsync config`.
    """
    import os
    from dataclasses import replace

    from gsync.base.errors import LockedError
    from gsync.base.process import Lock
    from gsync.session import config, places
    from gsync.session.control import Wanted, read_wanted
    from gsync.session.options import Options
    from gsync.session.session import SessionHome
    from gsync.state.home import Home

    retention = duration(delete_retention, "delete-retention")
    values = {
        "exclude": _patterns(exclude or [], exclude_from) or None, "adopt": adopt or None, "sync_method": sync_method,
        "sync_jobs": sync_jobs, "bandwidth_limit": bwlimit, "ssh_port": ssh_port, "log_level": log_level,
        "max_delete": max_delete, "change_detector": detector,
        "delete_retention": None if retention is None else round(retention),
        "ssh_config": None if ssh_config is None else os.path.abspath(ssh_config),
    }
    with _errors_as_events(json):
        given = {**overrides(settings), **{key: value for key, value in values.items() if value is not None}}
        Options.of(given, "command line")
        home = Home(state)
        target = places.slave_at(slave)
        volume = places.master_volume(home, master)
        places.check_apart(volume, target, home)
        sessions = SessionHome(home)
        found = sessions.find_or_new(volume.name, places.slave_text(target))
        session = replace(found, options=config.load_options([*config.site_paths(home.path), found.config], given))
        if accept_host_key is not None:
            from gsync.service import slave_host  # brings the client of the slave along

            slave_host.accept_host_key(target, session.options, accept_host_key)
        sessions.save(found)
        with Lock(session.run_lock, f"session {session.name}"):
            if dry_run:
                return _dry_run(session, volume, home, json=json)
            if read_wanted(session) in (Wanted.STARTED, Wanted.PAUSED):
                raise LockedError(f"session {session.name} is started and run by the monitor; stop it first "
                                  f"with gsync stop {session.name}")
            return _supervise(session, given, volume, home, once=once, json=json)


def _patterns(exclude: list[str], exclude_from: str | None) -> tuple[str, ...]:
    from gsync.base.errors import UsageError

    lines: list[str] = []
    if exclude_from is not None:
        try:
            with open(exclude_from, encoding="utf-8", errors="surrogateescape") as file:
                lines = [line for line in file.read().split("\n") if line]
        except OSError as exc:
            raise UsageError(f"--exclude-from {exclude_from}: {exc.strerror}") from None
    return (*lines, *exclude)


@contextmanager
def _errors_as_events(json: bool) -> Iterator[None]:
    """With --json an error is also an event, besides the line on stderr."""
    from gsync.base.errors import GsyncError
    from gsync.cli.output import print_json

    try:
        yield
    except GsyncError as exc:
        if json:
            print_json(_error_event(str(exc), exc.exit_code))
        raise


def _error_event(message: str, exit_code: int) -> dict[str, Any]:
    import time

    from gsync.base.times import rfc3339

    return {"event": "error", "time": rfc3339(time.time_ns()), "message": message, "exit_code": exit_code}


def _supervise(session: Session, given: dict[str, Any], volume: Volume, home: Home, *, once: bool, json: bool) -> int:
    import sys
    import time

    from gsync.cli.output import print_error, print_json
    from gsync.cli.progress import LiveLine, RunView
    from gsync.service.foreground import exit_code, run_recorder, worker_specs
    from gsync.service.kept import DONE_WITH_FAILURES
    from gsync.service.supervisor import Supervisor

    until = time.time_ns()
    live = LiveLine() if sys.stderr.isatty() and not json else None
    with _logging(session, quiet=live is not None) as logfile:
        view = RunView(session.name, logfile.line, json=json, live=live)
        supervisor = Supervisor(worker_specs(session, volume, home, given, until if once else None),
                                run_recorder(session, volume, home), view, once=once)
        try:
            ending = supervisor.run()
        finally:
            if live is not None:
                live.close()
        statuses = supervisor.look()
        code = exit_code(ending, statuses)
        summary = view.finish(statuses, code)
        if code > DONE_WITH_FAILURES:
            if json:
                print_json(_error_event(ending.line, code))
            print_error(ending.line)
        if live is not None and code <= DONE_WITH_FAILURES:
            print(summary, file=sys.stderr)
    if supervisor.signal is not None and once:
        return -supervisor.signal  # the work was not done
    return code


@contextmanager
def _logging(session: Session, *, quiet: bool) -> Iterator[LogFile]:
    """Log lines go to the session's log and, unless quiet, to stderr; a traceback only to the log."""
    import logging
    import traceback

    from gsync.base import log
    from gsync.base.logfile import LogFile

    log.setup("INFO")
    root = logging.getLogger("gsync")
    logfile = LogFile(session.log, root.handlers[0].formatter)
    root.handlers[:] = [logfile, *([] if quiet else root.handlers)]
    try:
        yield logfile
    except Exception:
        logfile.line(traceback.format_exc().rstrip())
        raise
    finally:
        root.handlers[:] = []
        logfile.close()


def _dry_run(session: Session, volume: Volume, home: Home, *, json: bool) -> int:
    import os
    from collections import Counter

    from gsync.base.times import shown_size
    from gsync.cli.output import path_shown, print_json
    from gsync.service.dryrun import dry_run
    from gsync.service.foreground import recorder_argv

    found: Counter[str] = Counter()
    size = 0
    for line in dry_run(session, volume, home, recorder_argv(session, volume, home)):
        found[line.action] += 1
        size += line.size
        path = os.fsdecode(line.path)
        if json:
            print_json({"action": line.action, "path": path, "bytes": line.size}
                       | ({} if line.old is None else {"from": os.fsdecode(line.old)}))
        else:
            before = "" if line.old is None else path_shown(os.fsdecode(line.old)) + " → "
            print(f"{line.action:10} {shown_size(line.size) if line.size else '':>10}  {before}{path_shown(path)}")
    if not json:
        counts = ", ".join(f"{action} {count:,}" for action, count in sorted(found.items()))
        print(f"total: {counts or 'nothing to do'}" + (f"; {shown_size(size)} of data" if size else ""))
    return 0
