"""`gsync volume`: the named trees whose changes are recorded."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gsync.cli.options import JsonOption, StateOption

app = typer.Typer(no_args_is_help=True, help="The named trees whose changes are recorded.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME")]


@app.command("add")
def add(name: NameArgument, path: Annotated[str, typer.Argument(metavar="PATH")], json: JsonOption = False,
        state: StateOption = None) -> None:
    """Make a directory a volume."""
    from gsync.volume.home import Home

    volume = Home(state).add(name, path)
    _print([_described(volume)], json)


@app.command("list")
def list_(json: JsonOption = False, state: StateOption = None) -> None:
    """List the volumes."""
    from gsync.cli.output import print_json
    from gsync.volume.home import Home

    volumes = [_described(volume) for volume in Home(state).list()]
    if json:
        print_json(volumes)
    else:
        _print(volumes, json)


@app.command("info")
def info(name: NameArgument, json: JsonOption = False, state: StateOption = None) -> None:
    """Show one volume."""
    from gsync.volume.home import Home

    _print([_described(Home(state).get(name))], json)


@app.command("remove")
def remove(name: NameArgument, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
           json: JsonOption = False, state: StateOption = None) -> None:
    """Forget a volume with its changelogs and index. The tree itself stays as it is."""
    from gsync.cli.output import asked
    from gsync.errors import UsageError
    from gsync.session.session import SessionHome
    from gsync.volume.home import Home

    home = Home(state)
    volume = home.get(name)
    used = [session.name for session in SessionHome(home).list() if session.volume == name]
    if not yes:
        also = f", which {len(used)} session(s) need to go on from where they are" if used else ""
        if not asked(f"Forget volume {name} with its recorded changes{also}?"):
            raise UsageError(f"volume {name}: not removed; --yes removes it without asking")
    home.remove(name)
    _print([_described(volume)] if json else [], json)


def _described(volume: Any) -> dict[str, Any]:
    from gsync.session.report import recorder_report

    report = recorder_report(volume, volume.needed_from())
    return {"name": volume.name, "kind": volume.kind, "path": volume.path, "uuid": volume.uuid,
            "recorder": report}


def _print(volumes: list[dict[str, Any]], json: bool) -> None:
    from gsync.cli.output import path_shown, print_json, print_table

    if json:
        print_json(volumes[0])
    elif volumes:
        print_table(["VOLUME", "KIND", "PATH", "RECORDER"],
                    [[v["name"], v["kind"], path_shown(v["path"]), v["recorder"]["state"]] for v in volumes])
