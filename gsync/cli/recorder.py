"""`gsync recorder`: recording on its own, so that history is there when a session starts."""

from __future__ import annotations

from typing import Annotated

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, StateOption

app = typer.Typer(no_args_is_help=True, help="The processes that record the changes of volumes.")


@app.command("status")
def status(name: Annotated[str | None, typer.Argument(
    metavar="NAME", help="Only this volume's.", autocompletion=completion.volumes)] = None,
           json: JsonOption = False, state: StateOption = None) -> None:
    """Show what the recorders do."""
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
    metavar="NAME", help="The volume.", autocompletion=completion.volumes)],
        detector: Annotated[str | None, typer.Option(
            metavar="auto|fanotify|inotify", help="How changes are noticed.")] = None,
        log_level: Annotated[str | None, typer.Option(metavar="LEVEL", help="DEBUG, INFO, WARNING or ERROR.")] = None,
        state: StateOption = None) -> int:
    """Record a volume's changes until stopped, on its own or before a session starts. What is not said here is as
    `gsync config --site` has it."""
    from gsync.recorder.__main__ import main
    from gsync.service.child import recorder_args
    from gsync.session import config
    from gsync.state.home import Home

    home = Home(state)
    given = {"change_detector": detector, "log_level": log_level}
    options = config.load_options(config.site_paths(home.path), {k: v for k, v in given.items() if v is not None})
    return main(recorder_args(name, home.path, options))
