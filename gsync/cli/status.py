"""`gsync status`: the state of sessions and their workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, StateOption

if TYPE_CHECKING:
    from gsync.session.report import BrickReport, CheckpointReport, SessionReport

EVERY = 1.0  # seconds between two looks of --watch


def status(
    session: Annotated[str | None, typer.Argument(
        metavar="SESSION", help="Show only this session.", autocompletion=completion.sessions)] = None,
    detail: Annotated[bool, typer.Option(
        "--detail", help="Show backlog, failures, rate, checkpoint and recorder too.")] = False,
    json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every second until stopped.")] = False,
    check: Annotated[bool, typer.Option(
        "--check", help="Print one line as a Nagios plugin does. The exit code is 0 (OK), 1 (WARNING), 2 (CRITICAL) or "
                        "3 (UNKNOWN).")] = False,
    max_lag: Annotated[float | None, typer.Option(
        metavar="SECONDS", min=0, help="With --check, a longer lag is CRITICAL.")] = None,
    state: StateOption = None,
) -> int:
    """Show the state of sessions and their workers."""
    from gsync.base.errors import UsageError
    from gsync.cli.output import print_json
    from gsync.session.report import Reports
    from gsync.state.home import Home

    if check:
        if watch or json or detail:
            raise UsageError("status --check: it can only be combined with --max-lag")
        return _check(session, max_lag, state)
    if max_lag is not None:
        raise UsageError("status --max-lag: it needs --check")
    home = Home(state)

    def look() -> list[SessionReport]:
        return Reports(home).all(session)

    if watch:
        with suppress(KeyboardInterrupt):
            if json:
                for _ in _looks():
                    print_json([report.to_json() for report in look()])
            else:
                _watch(look, detail)
    elif json:
        print_json([report.to_json() for report in look()])
    else:
        found = look()
        if found:
            _print(found, detail)
        else:
            print(f"no sessions in {home.path}; create one with gsync create MASTER SLAVE")
    return 0


def _check(session: str | None, max_lag: float | None, state: str | None) -> int:
    """Errors are printed on stdout too, where monitoring systems look for them."""
    from gsync.session.health import Health, verdict
    from gsync.session.report import Reports
    from gsync.state.home import Home

    try:
        found = verdict(Reports(Home(state)).all(session), max_lag)
    except Exception as exc:  # noqa: BLE001 the check itself failed, which is a state of its own there
        print(f"UNKNOWN - {' '.join(str(exc).split())}")
        return Health.UNKNOWN
    print(found.line.encode("utf-8", "backslashreplace").decode())
    return found.health


def _looks() -> Iterator[None]:
    """One per second, without end."""
    import time

    while True:
        yield
        time.sleep(EVERY)


def _print(reports: list[SessionReport], detail: bool) -> None:
    from gsync.cli.output import print_table

    print_table(*_table(reports, detail))
    for line in _reasons(reports):
        print(line)


def _watch(reports: Callable[[], list[SessionReport]], detail: bool) -> None:
    import sys

    from gsync.cli.output import make_table

    if not sys.stdout.isatty():
        for _ in _looks():
            _print(reports(), detail)
            sys.stdout.flush()
        return
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False, vertical_overflow="visible") as live:
        for _ in _looks():
            found = reports()
            live.update(Group(make_table(*_table(found, detail)), *map(Text, _reasons(found))), refresh=True)


def _reasons(reports: list[SessionReport]) -> list[str]:
    """A line for each problem that no column is wide enough for."""
    lines = []
    for report in reports:
        for brick in report.bricks:
            where = f"{report.name} on {brick.node}" if len(report.bricks) > 1 else report.name
            reasons = dict.fromkeys(reason for reason in (brick.reason, brick.recorder.reason) if reason)
            lines += [f"{where}: {reason}" for reason in reasons]
            if brick.left_out:
                kinds = ", ".join(f"{kind} of {count:,}" for kind, count in brick.left_out.items())
                lines.append(f"{where}: left out, since the slave cannot store them: {kinds}")
            if brick.failures:
                lines.append(f"{where}: to list the failures: gsync failures {report.name} list")
            if brick.held:
                lines.append(f"{where}: deletes wait for approval: gsync hold {report.name} show")
    return lines


HEADINGS = ["SESSION", "NODE", "MASTER", "SLAVE", "STATUS", "CRAWL", "LAST SYNCED (UTC)"]
DETAILS = ["LAG", "ENTRY", "DATA", "META", "FAILURES", "HELD", "CHECKPOINT", "FILES/S", "BYTES/S", "TIME LEFT",
           "RECORDER"]


def _table(reports: list[SessionReport], detail: bool) -> tuple[list[str], list[list[str]]]:
    rows = [_row(report, brick, detail) for report in reports for brick in report.bricks]
    return HEADINGS + (DETAILS if detail else ["FAILURES"]), rows


def _row(report: SessionReport, brick: BrickReport, detail: bool) -> list[str]:
    from gsync.base.times import shown_duration, shown_size
    from gsync.cli.output import path_shown

    # What the worker says counts while it works; of one that rests, why it does.
    resting = report.state if brick.state in ("Stopped", "Initializing") else brick.state
    shown_state = brick.state if report.state in ("Started", "?") else resting
    row = [report.name, brick.node, path_shown(report.master), path_shown(report.slave), shown_state,
           brick.crawl, when(brick.last_synced)]
    if not detail:
        return [*row, str(brick.failures)]
    lag, eta = brick.lag_seconds, brick.eta_seconds
    return [*row, "-" if lag is None else shown_duration(lag),
            *(str(brick.pending[kind]) for kind in ("entry", "data", "meta")),
            str(brick.failures), str(brick.held), checkpoint_text(brick.checkpoint),
            f"{brick.rate['files']:,.0f}", shown_size(brick.rate["bytes"]),
            "-" if eta is None else shown_duration(eta), brick.recorder.state]


def when(time: str | None) -> str:
    """A time of a report for people, in UTC, to the second."""
    return (time or "-").replace("T", " ").partition(".")[0]


def checkpoint_text(checkpoint: CheckpointReport | None) -> str:
    if checkpoint is None:
        return "-"
    return f"{when(checkpoint.time)} {'reached' if checkpoint.reached else 'not yet'}"
