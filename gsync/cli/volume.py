"""`gsync volume`: the named trees whose changes are recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, StateOption

if TYPE_CHECKING:
    from gsync.volume.home import Home, Volume

app = typer.Typer(no_args_is_help=True, help="The named trees whose changes are recorded.")

NewNameArgument = Annotated[str, typer.Argument(metavar="NAME", help="What to call the volume.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The volume.", autocompletion=completion.volumes)]


@app.command("add")
def add(name: NewNameArgument, path: Annotated[str, typer.Argument(metavar="PATH", help="The directory.")],
        json: JsonOption = False, state: StateOption = None) -> None:
    """Make a directory a volume, so that its changes can be recorded and sessions can use it by name."""
    from gsync.cli.output import path_shown, print_json
    from gsync.session.sharedvolumes import add_volume
    from gsync.volume.home import Home

    home = Home(state)
    volume = add_volume(home, name, path)
    if json:
        print_json(_described(volume, home))
    else:
        print(f"volume {name} is {path_shown(volume.path)}\n"
              f"next: gsync create {name} SLAVE, or gsync recorder run {name}")


@app.command("list")
def list_(json: JsonOption = False, state: StateOption = None) -> None:
    """List the volumes."""
    from gsync.cli.output import path_shown, print_json, print_table
    from gsync.volume.home import Home

    home = Home(state)
    volumes = [_described(volume, home) for volume in home.list()]
    if json:
        print_json(volumes)
    elif volumes:
        print_table(["VOLUME", "KIND", "PATH", "RECORDER"],
                    [[v["name"], v["kind"], path_shown(v["path"]), v["recorder"]["state"]] for v in volumes])
    else:
        print(f"no volumes in {home.path}")


@app.command("info")
def info(name: NameArgument, json: JsonOption = False, state: StateOption = None) -> None:
    """Show one volume: its path and identity, its recorder, the sessions that use it."""
    from gsync.cli.output import path_shown, print_json
    from gsync.volume.home import Home

    home = Home(state)
    volume = _described(home.get(name), home)
    if json:
        print_json(volume)
        return
    recorder = volume["recorder"]
    for key, value in (("volume", volume["name"]), ("kind", volume["kind"]), ("path", path_shown(volume["path"])),
                       ("uuid", volume["uuid"]), ("sessions", ", ".join(volume["sessions"]) or "none"),
                       ("recorder", ": ".join(filter(None, (recorder["state"], recorder["reason"])))),
                       ("last changelog", recorder["last_changelog"] or "none")):
        print(f"{key + ':':15} {value}")


@app.command("remove")
def remove(name: NameArgument, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
           json: JsonOption = False, state: StateOption = None) -> None:
    """Forget a volume that no session uses, with its changelogs and index. The tree itself stays as it is."""
    from gsync.cli.output import asked, print_json
    from gsync.errors import UsageError
    from gsync.volume.home import Home

    home = Home(state)
    volume = _described(home.get(name), home)
    if volume["sessions"]:
        raise UsageError(f"volume {name}: used by {', '.join(volume['sessions'])}: their slaves would not know the "
                         "volume again if it were added anew; gsync delete them first")
    if not yes and not asked(f"Forget volume {name} with its recorded changes? The slaves that it has had would not "
                             "know it again."):
        raise UsageError(f"volume {name}: not removed; --yes removes it without asking")
    home.remove(name)
    if json:
        print_json(volume)
    else:
        print(f"volume {name}: removed")


def _described(volume: Volume, home: Home) -> dict[str, Any]:
    from gsync.session.report import recorder_report
    from gsync.session.session import SessionHome

    sessions = SessionHome(home)
    report = recorder_report(volume, volume.needed_from(), sessions.site.changelog_retention)
    return {"name": volume.name, "kind": volume.kind, "path": volume.path, "uuid": volume.uuid,
            "sessions": [session.name for session in sessions.list() if session.volume == volume.name],
            "recorder": report}
