"""`gsync keys`: a session's own ssh key, which can do nothing at the slave but replicate into one directory."""

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
    import os
    from dataclasses import replace

    from gsync.base.errors import UsageError
    from gsync.cli.output import print_json
    from gsync.link import account
    from gsync.link.link import parse_slave
    from gsync.service.sshoptions import ssh_options
    from gsync.session.session import SessionHome
    from gsync.state.home import Home

    if rotate and not install:
        raise UsageError("keys --rotate: it needs --install, or the session would lose access to the slave")
    chosen = SessionHome(Home(state)).the(session)
    slave = parse_slave(chosen.slave)
    slave = replace(slave, port=chosen.options.ssh_port or slave.port)
    if slave.host is None:
        raise UsageError(f"session {chosen.name}: slave {slave} is on this host, which needs no key")
    key = chosen.key
    if rotate or not os.path.exists(key):
        key += ".new"
        _make(chosen, key)
    with open(key + ".pub", encoding="ascii") as file:
        public = file.read().strip()
    where: str | None = None
    if install:
        line, where = account.authorize(slave, ssh_options(chosen.options), public)
    else:
        line = account.authorized_line(public, slave)
    if key != chosen.key:
        os.replace(key + ".pub", chosen.key + ".pub")
        os.replace(key, chosen.key)
    if json:
        print_json({"session": chosen.name, "key": chosen.key, "line": line, "installed_in": where})
    elif where is not None:
        print(f"{slave.target}: the key is installed in {where}; from now on the session uses it ({chosen.key})")
    else:
        print(line)
        _explain(chosen, slave.target)


def _make(session: Session, key: str) -> None:
    """A new pair of keys, without a passphrase, for this node."""
    import os
    import subprocess
    from contextlib import suppress

    from gsync.base.errors import UsageError

    for path in (key, key + ".pub"):
        with suppress(FileNotFoundError):
            os.unlink(path)
    os.makedirs(session.folder, mode=0o700, exist_ok=True)
    comment = f"gsync {session.name} {os.uname().nodename}"
    done = subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", key],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UsageError(f"{key}: ssh-keygen: {done.stderr.strip() or done.stdout.strip()}")


def _explain(session: Session, target: str) -> None:
    import sys

    print(f"Add the line above to ~/.ssh/authorized_keys of {target}, and install the agent there as "
          f"~/.local/share/gsync/agent.pyz; gsync keys {session.name} --install does both. From now on the session "
          f"uses this key: {session.key}", file=sys.stderr)
