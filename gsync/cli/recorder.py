"""`gsync recorder`: records a volume on its own, so that a session has a history when it starts."""

from __future__ import annotations

from typing import Annotated

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, StateOption

app = typer.Typer(no_args_is_help=True, help="Record the changes of volumes.")


@app.command("status")
def status(name: Annotated[str | None, typer.Argument(
    metavar="NAME", help="Show only the recorder of this volume.", autocompletion=completion.volumes)] = None,
           json: JsonOption = False, state: StateOption = None) -> None:
    """Show the state of the recorders."""
    from dataclasses import asdict

    from gsync.cli.output import print_json, print_table
    from gsync.recorder.port import port_of
    from gsync.session.report import recorder_report
    from gsync.session.session import SessionHome
    from gsync.state.home import Home

    home = Home(state)
    keep = SessionHome(home).site.changelog_retention
    volumes = home.list() if name is None else [home.get(name)]
    reports = [{"volume": volume.name,
                **asdict(recorder_report(port_of(volume), volume.needed_from(), keep))}
               for volume in volumes]
    if json:
        print_json(reports)
    else:
        print_table(["VOLUME", "RECORDER", "LAST CHANGELOG", "REASON"],
                    [[r["volume"], r["state"], r["last_changelog"] or "-", r["reason"]] for r in reports])


@app.command("run")
def run(name: Annotated[str, typer.Argument(
    metavar="NAME", help="Name of the volume.", autocompletion=completion.volumes)],
        detector: Annotated[str | None, typer.Option(
            metavar="auto|fanotify|inotify", help="How to detect changes.")] = None,
        log_level: Annotated[str | None, typer.Option(
            metavar="LEVEL", help="Lowest level to log. DEBUG, INFO, WARNING or ERROR.")] = None,
        state: StateOption = None) -> int:
    """Record a volume in the foreground until stopped.

    This keeps the history complete while no session is started. Other settings come from `gsync config --site`.
    """
    from gsync.recorder.__main__ import main
    from gsync.service.child import recorder_args
    from gsync.session import config
    from gsync.state.home import Home

    home = Home(state)
    given = {"change_detector": detector, "log_level": log_level}
    options = config.load_options(config.site_paths(home.path), {k: v for k, v in given.items() if v is not None})
    return main(recorder_args(name, home.path, options))
