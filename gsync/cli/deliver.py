"""`gsync deliver`: pull, verify and deliver units of data, such as the exposures of a night."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, StateOption

if TYPE_CHECKING:
    from gsync.transfer.delivery.dataset import DeliverySettings
    from gsync.transfer.delivery.rounds import Rounds
    from gsync.transfer.delivery.rows import Deliveries

app = typer.Typer(no_args_is_help=True, help="""Deliver verified units of data, each in one step.

A unit is a directory that a symbolic link NIGHT/EXPOSURE in a ready folder points to. gsync pulls it to a staging
folder, verifies it against its checksum list, and renames it into its destination, or quarantines it with the reason.
conf/deliver.ini documents all settings; `gsync deliver once -c FILE --dry-run` prints what would be done.""")

ConfigOption = Annotated[str, typer.Option(
    "--config", "-c", metavar="FILE", help="Settings file, see conf/deliver.ini.")]
DryRunOption = Annotated[bool, typer.Option(
    "--dry-run", help="Print what would be done; change nothing.")]
KillFileOption = Annotated[str | None, typer.Option(
    "--kill-file", "-k", metavar="FILE",
    help="File whose presence stops delivery. Default: kill-file of the settings.")]
NoBackupOption = Annotated[bool, typer.Option("--no-backup", "-B", help="Skip the backup to the vault.")]
NightsArgument = Annotated[list[str] | None, typer.Argument(
    metavar="[NIGHT]...", help="Nights to select. Default: all.", autocompletion=completion.nights)]


@app.command()
def run(config: ConfigOption, dry_run: DryRunOption = False, no_backup: NoBackupOption = False,
        kill_file: KillFileOption = None, json: JsonOption = False, state: StateOption = None) -> int:
    """Deliver ready units until stopped.

    A signal or the kill file stops it.
    """
    from gsync.base.notify import Notifier

    if dry_run:
        return _plan(config, not no_backup, json, state)
    with _rounds(config, state, kill_file, not no_backup, daemon=True) as rounds:
        why = rounds.stop_signal.why() or rounds.run(Notifier())
    _say(json, {"event": "ended", "why": why}, why)
    return 0


@app.command()
def once(config: ConfigOption, dry_run: DryRunOption = False, no_backup: NoBackupOption = False,
         kill_file: KillFileOption = None, json: JsonOption = False, state: StateOption = None) -> int:
    """Deliver ready units, do all work that is due, then exit.

    Exit codes: 1 units are quarantined or could not be delivered; 4 a source or vault is unreachable.
    """
    if dry_run:
        return _plan(config, not no_backup, json, state)
    return _work("", config, kill_file, not no_backup, json, state)


@app.command()
def catchup(config: ConfigOption, nights: NightsArgument = None, dry_run: DryRunOption = False,
            kill_file: KillFileOption = None, json: JsonOption = False, state: StateOption = None) -> int:
    """Fetch late files of delivered and quarantined units now.

    A running daemon does it in its next round.
    """
    return _ordered("catchup", config, nights or [], dry_run, kill_file, json, state)


@app.command()
def backup(config: ConfigOption, nights: NightsArgument = None, dry_run: DryRunOption = False,
           kill_file: KillFileOption = None, json: JsonOption = False, state: StateOption = None) -> int:
    """Back up delivered units to the vault now.

    A running daemon does it in its next round.
    """
    return _ordered("backup", config, nights or [], dry_run, kill_file, json, state)


@app.command()
def audit(config: ConfigOption, nights: NightsArgument = None, dry_run: DryRunOption = False,
          kill_file: KillFileOption = None, json: JsonOption = False, state: StateOption = None) -> int:
    """Verify delivered units and their backups by reading them.

    A unit that differs from its checksum list raises an alert and is shown in red with the reason. Files that the vault
    has lost are backed up again by the next backup. A running daemon does it in its next round. Exit code 1: something
    needs attention.
    """
    return _ordered("checksum", config, nights or [], dry_run, kill_file, json, state)


@app.command()
def status(config: ConfigOption, nights: NightsArgument = None,
           everything: Annotated[bool, typer.Option("--all", help="Show all nights, not just the last ten.")] = False,
           json: JsonOption = False, state: StateOption = None) -> int:
    """Show delivered, pending and quarantined units by night.

    With NIGHT, show each unit.
    """
    import os
    from datetime import UTC, datetime

    from gsync.cli.output import print_json
    from gsync.transfer.delivery.rounds import holder
    from gsync.transfer.delivery.status import LAST
    from gsync.transfer.delivery.status import document as status_document

    settings = _settings(config)
    with _deliveries(state) as deliveries:
        groups = [os.fsencode(night) for night in nights or []]
        document = status_document(settings, deliveries, datetime.now(UTC), None if everything else LAST, groups)
    document["pid"] = holder(settings)
    if json:
        print_json(document)
    else:
        _print_status(document, nights or [])
    return 0


def _print_status(document: dict[str, Any], nights: list[str]) -> None:
    from gsync.cli.output import path_shown, print_table

    pid = document["pid"]
    print(f"daemon: {f'running, pid {pid}' if pid else 'not running'}")
    for found in document["sets"]:
        print(f"\n{found['name']}: {path_shown(found['source'])} -> {path_shown(found['destination'])}")
        if found["down"]:
            print(f"down since {found['down']['since']}: {path_shown(found['down']['reason'])}")
        elif found["note"]:
            print(f"waiting: {path_shown(found['note'])}")
        print(", ".join(f"{count} {state}" for state, count in found["units"].items()) or "no units yet")
        if found["nights"]:
            print()
            print_table(("NIGHT", "UNITS", "DONE", "IN PROGRESS", "ATTENTION", "BACKED UP"), (
                (path_shown(each["night"]), str(each["units"]), str(each["green"]), str(each["amber"]),
                 str(each["red"]), str(each["backed_up"]) if found["vault"] else "-") for each in found["nights"]))
        shown = [unit for each in found["nights"] for unit in each.get("members", ())] if nights else found["attention"]
        if nights and not shown:
            print(f"no units of {', '.join(map(path_shown, nights))}")
        elif shown:
            print()
            print_table(("UNIT", "STATE", "REQUEST", "REASON"), (
                (path_shown(unit["unit"]), unit["state"], unit["request"], path_shown(unit["reason"]))
                for unit in shown))


def _settings(config: str) -> DeliverySettings:
    import os

    from gsync.transfer.delivery import dataset

    return dataset.read(config, os.environ)


@contextmanager
def _rounds(config: str, state: str | None, kill_file: str | None, backups: bool, daemon: bool = False
            ) -> Iterator[Rounds]:
    """The rounds of a settings file, holding its locks; SIGTERM and SIGINT stop them. daemon: it keeps the log file."""
    import os
    import signal

    from gsync.base import log
    from gsync.state.home import Home
    from gsync.transfer.delivery.rounds import Rounds

    settings = _settings(config)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if settings.logging.filename:
            os.makedirs(os.path.dirname(settings.logging.filename), exist_ok=True)
        log.setup(settings.logging.level, settings.logging.filename or None, owner=daemon)
        with Rounds(settings, Home(state).path, kill_file=kill_file and os.path.abspath(kill_file),
                    backups=backups) as rounds:
            for number in before:
                signal.signal(number, rounds.stop_signal.end)
            yield rounds
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _work(only: str, config: str, kill_file: str | None, backups: bool, json: bool, state: str | None) -> int:
    """One round; its exit code. Stopped by a signal, that one, since the work was not done."""
    from gsync.base.errors import Stopped
    from gsync.transfer.delivery.context import Summary

    with _rounds(config, state, kill_file, backups) as rounds:
        summaries: list[Summary] = []
        try:
            summaries = rounds.once(only)
        except Stopped as why:
            _say(json, {"event": "ended", "why": str(why)}, str(why))
            return -(rounds.stop_signal.signal or 0)
        attention = sum(rounds.to_look_at())
        for each, summary in zip(rounds.settings.sets, summaries, strict=True):
            _say(json, {"event": "done", "set": each.name, **vars(summary)}, f"{each.name}: {summary}")
    if any(summary.down for summary in summaries):
        return 4
    return 1 if attention else 0


def _ordered(what: str, config: str, nights: list[str], dry_run: bool, kill_file: str | None, json: bool,
             state: str | None) -> int:
    import os

    from gsync.state.home import Home
    from gsync.transfer.delivery.rounds import holder, order
    from gsync.transfer.delivery.rows import Stage

    settings = _settings(config)
    groups = [os.fsencode(night) for night in nights]
    if dry_run:
        word = {Stage.CATCHUP: "catch up", Stage.BACKUP: "back up", Stage.CHECKSUM: "audit"}[Stage(what)]
        return _plan(config, True, json, state, word, groups)
    count = order(settings, Home(state).path, Stage(what), groups)
    if pid := holder(settings):
        _say(json, {"event": "ordered", "units": count, "pid": pid},
             f"{count} units: the daemon (pid {pid}) does it in its next round")
        return 0
    return _work(what, config, kill_file, True, json, state)


def _plan(config: str, backups: bool, json: bool, state: str | None, only: str = "", groups: list[bytes] | None = None
          ) -> int:
    """Print what would be done. Nothing is written, not even a state directory."""
    from gsync.cli.output import path_shown, print_json, print_table
    from gsync.state.home import Home
    from gsync.transfer.delivery.rounds import Rounds

    with Rounds(_settings(config), Home(state).path, backups=backups, looking=True) as rounds:
        lines = rounds.plan(only, groups or [])
    if json:
        print_json([dict(zip(("set", "what", "unit", "details"), line, strict=True)) for line in lines])
    else:
        print_table(("SET", "WHAT", "UNIT", ""), ([path_shown(cell) for cell in line] for line in lines))
    return 4 if any(line[1] == "down" for line in lines) else 0


@contextmanager
def _deliveries(state: str | None) -> Iterator[Deliveries]:
    from gsync.state.home import Home
    from gsync.transfer.delivery.rows import Deliveries
    from gsync.transfer.queue.transfers import Transfers

    transfers = Transfers(Home(state).path, looking=True)
    try:
        yield Deliveries(transfers)
    finally:
        transfers.close()


def _say(json: bool, document: dict[str, Any], text: str) -> None:
    from gsync.cli.output import print_json

    if json:
        print_json(document)
    else:
        print(text.encode("utf-8", "backslashreplace").decode())
