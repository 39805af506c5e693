"""`gsync status`: what the sessions and their workers do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Annotated, Any

import typer

from gsync.cli.options import JsonOption, StateOption

EVERY = 1.0  # seconds between two looks of --watch


def status(
    session: Annotated[str | None, typer.Argument(metavar="SESSION", help="Only this session.")] = None,
    detail: Annotated[bool, typer.Option("--detail", help="Backlog, failures, rate and recorder too.")] = False,
    json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second, until stopped.")] = False,
    state: StateOption = None,
) -> None:
    """Show what the sessions do."""
    from gsync.cli.output import print_json
    from gsync.session.report import session_report
    from gsync.session.session import SessionHome
    from gsync.volume.home import Home

    home = Home(state)
    sessions = SessionHome(home)

    def reports() -> list[dict[str, Any]]:
        chosen = sessions.list() if session is None else [sessions.get(session)]
        return [session_report(each, home) for each in chosen]

    if watch:
        with suppress(KeyboardInterrupt):
            if json:
                for _ in _looks():
                    print_json(reports())
            else:
                _watch(reports, detail)
    elif json:
        print_json(reports())
    else:
        found = reports()
        if found:
            _print(found, detail)
        else:
            print(f"no sessions in {home.path}")


def _looks() -> Iterator[None]:
    """One a second, without end."""
    import time

    while True:
        yield
        time.sleep(EVERY)


def _print(reports: list[dict[str, Any]], detail: bool) -> None:
    from gsync.cli.output import print_table

    print_table(*_table(reports, detail))
    for line in _reasons(reports):
        print(line)


def _watch(reports: Callable[[], list[dict[str, Any]]], detail: bool) -> None:
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


def _reasons(reports: list[dict[str, Any]]) -> list[str]:
    """A line for each thing that is Faulty or left out, which no column is wide enough for."""
    lines = []
    for report in reports:
        for brick in report["bricks"]:
            reasons = dict.fromkeys(part["reason"] for part in (brick, brick["recorder"]) if part["reason"])
            lines += [f"{report['name']}: {reason}" for reason in reasons]
            if brick["left_out"]:
                kinds = ", ".join(f"{kind} of {count:,}" for kind, count in brick["left_out"].items())
                lines.append(f"{report['name']}: the slave cannot hold and leaves out: {kinds}")
    return lines


HEADINGS = ["SESSION", "NODE", "MASTER", "SLAVE", "STATUS", "CRAWL", "LAST SYNCED"]
DETAILS = ["LAG", "ENTRY", "DATA", "META", "FAILURES", "HELD", "FILES/S", "BYTES/S", "TIME LEFT", "RECORDER"]


def _table(reports: list[dict[str, Any]], detail: bool) -> tuple[list[str], list[list[str]]]:
    rows = [_row(report, brick, detail) for report in reports for brick in report["bricks"]]
    return HEADINGS + (DETAILS if detail else ["FAILURES"]), rows


def _row(report: dict[str, Any], brick: dict[str, Any], detail: bool) -> list[str]:
    from gsync.cli.output import duration_text, path_shown, size_text

    shown_state = report["state"] if report["state"] != "Started" else brick["state"]
    row = [report["name"], brick["node"], path_shown(report["master"]), path_shown(report["slave"]), shown_state,
           brick["crawl"], (brick["last_synced"] or "-").replace("T", " ").partition(".")[0]]
    if not detail:
        return [*row, str(brick["failures"])]
    lag, eta = brick["lag_seconds"], brick["eta_seconds"]
    return [*row, "-" if lag is None else duration_text(lag),
            *(str(brick["pending"][kind]) for kind in ("entry", "data", "meta")),
            str(brick["failures"]), str(brick["held"]), f"{brick['rate']['files']:,.0f}",
            size_text(brick["rate"]["bytes"]), "-" if eta is None else duration_text(eta),
            brick["recorder"]["state"]]
