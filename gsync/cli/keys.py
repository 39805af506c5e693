"""`gsync keys`: a session's own ssh key, which can only replicate into one directory of the slave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, StateOption

if TYPE_CHECKING:
    from gsync.session.session import Session


def keys(
    session: Annotated[str | None, typer.Argument(
        metavar="SESSION", help="Name of the session. Optional if there is only one.",
        autocompletion=completion.sessions)] = None,
    install: Annotated[bool, typer.Option(
        "--install", help="Install the agent and the key over your own ssh access.")] = False,
    rotate: Annotated[bool, typer.Option(
        "--rotate", help="Replace the key. Needs --install.")] = False,
    json: JsonOption = False,
    state: StateOption = None,
) -> None:
    """Create or install an ssh key that can only replicate.

    Without --install this prints the line for ~/.ssh/authorized_keys of the slave's account. With that line, the key
    can replicate into the slave's directory and do nothing else: no shell, no forwarding, no other file. From then on
    the session uses only its key. To return to your own ssh access, delete `key` and `key.pub` in the session's
    directory, and the line at the slave.
    """
    from gsync.base.errors import UsageError
    from gsync.cli.output import print_json
    from gsync.service.session_key import use_own_key
    from gsync.session.session import SessionHome
    from gsync.state.home import Home

    if rotate and not install:
        raise UsageError("keys --rotate: it needs --install, or the session would lose access to the slave")
    chosen = SessionHome(Home(state)).the(session)
    made = use_own_key(chosen, install=install, rotate=rotate)
    target, where = made.slave.target, made.installed_in
    if json:
        print_json({"session": chosen.name, "key": chosen.key, "line": made.line, "installed_in": where})
    elif where is not None:
        print(f"{target}: the key is installed in {where}; from now on the session uses it ({chosen.key})")
    else:
        print(made.line)
        _explain(chosen, target)


def _explain(session: Session, target: str) -> None:
    import sys

    print(f"Add the line above to ~/.ssh/authorized_keys of {target}, and install the agent there as "
          f"~/.local/share/gsync/agent.pyz; gsync keys {session.name} --install does both. From now on the session "
          f"uses this key: {session.key}", file=sys.stderr)
