"""`gsync volume`: the named trees whose changes are recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, StateOption

if TYPE_CHECKING:
    from gsync.state.home import Home, Volume

app = typer.Typer(no_args_is_help=True, help="Manage volumes, the named trees whose changes are recorded.")

NameArgument = Annotated[str, typer.Argument(
    metavar="NAME", help="Name of the volume.", autocompletion=completion.volumes)]


@app.command("add")
def add(
    name: Annotated[str | None, typer.Argument(
        metavar="[NAME]", help="Name of the new volume. Optional with --gluster.")] = None,
    path: Annotated[str | None, typer.Argument(metavar="[PATH]", help="Directory to register.")] = None,
    gluster: Annotated[str | None, typer.Option(
        "--gluster", metavar="VOLUME", help="Register a GlusterFS volume. Run this on each node that has bricks of it."
    )] = None,
    host: Annotated[str, typer.Option(
        "--host", metavar="HOST", help="Host whose glusterd gsync asks and mounts from.")] = "localhost",
    json: JsonOption = False,
    state: StateOption = None,
) -> None:
    """Register a directory or GlusterFS volume for recording."""
    from gsync.base.errors import UsageError
    from gsync.cli.output import path_shown, print_json
    from gsync.master.gluster.info import read_info
    from gsync.session.sharedvolumes import add_volume
    from gsync.state.home import Home

    home = Home(state)
    if (path is None) == (gluster is None) or (name is None and gluster is None):
        raise UsageError("volume add: give NAME and PATH, or --gluster VOLUME")
    if gluster is not None:
        volume = home.keep(home.new_gluster(name or gluster, read_info(gluster, host)))
        name = volume.name
    else:
        volume = add_volume(home, str(name), str(path))
    if json:
        print_json(_described(volume, home))
    elif volume.gluster is not None:
        here = len(volume.bricks_here())
        print(f"volume {name} is {volume.gluster.kind}, {len(volume.gluster.bricks)} bricks, {here} of them here\n"
              f"next: gsync create {name} SLAVE")
    else:
        print(f"volume {name} is {path_shown(volume.path)}\n"
              f"next: gsync create {name} SLAVE, or gsync recorder run {name}")


@app.command("list")
def list_(json: JsonOption = False, state: StateOption = None) -> None:
    """List the volumes."""
    from gsync.cli.output import path_shown, print_json, print_table
    from gsync.state.home import Home

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
    """Show a volume, its recorder and its sessions."""
    from gsync.cli.output import path_shown, print_json
    from gsync.state.home import Home

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
    for brick in volume.get("gluster", {}).get("bricks", []):
        print(f"{'brick ' + str(brick['number']) + ':':15} {brick['node']}:{path_shown(brick['path'])}, subvolume "
              f"{brick['subvolume']}{', here' if brick['here'] else ''}")


@app.command("remove")
def remove(name: NameArgument, yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
           json: JsonOption = False, state: StateOption = None) -> None:
    """Remove a volume that no session uses.

    This deletes its changelogs and index. The tree itself is not changed.
    """
    from gsync.base.errors import UsageError
    from gsync.cli.output import asked, print_json
    from gsync.state.home import Home

    home = Home(state)
    volume = _described(home.get(name), home)
    if volume["sessions"]:
        raise UsageError(f"volume {name}: used by sessions: {', '.join(volume['sessions'])}; delete them first with "
                         "gsync delete, since their slaves would refuse a volume that is added again")
    if not yes and not asked(f"Remove volume {name} with its recorded changes? Its former slaves will refuse a "
                             "volume that is added again."):
        raise UsageError(f"volume {name}: not removed; confirm, or use --yes")
    home.remove(name)
    if json:
        print_json(volume)
    else:
        print(f"volume {name}: removed")


def _described(volume: Volume, home: Home) -> dict[str, Any]:
    from dataclasses import asdict

    from gsync.recorder.port import port_of
    from gsync.session.report import recorder_report
    from gsync.session.session import SessionHome

    sessions = SessionHome(home)
    report = recorder_report(port_of(volume), volume.needed_from(), sessions.site.changelog_retention)
    gluster = {} if volume.gluster is None else {"gluster": {
        "volume": volume.gluster.name, "kind": volume.gluster.kind, "bricks": [
            {"number": brick.number, "node": brick.host, "path": brick.path, "subvolume": brick.subvolume,
             "here": brick in volume.bricks_here()} for brick in volume.gluster.bricks]}}
    return {**gluster, "name": volume.name, "kind": volume.kind, "path": volume.path, "uuid": volume.uuid,
            "sessions": [session.name for session in sessions.list() if session.volume == volume.name],
            "recorder": asdict(report)}
