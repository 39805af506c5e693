"""A session's own ssh key, which can only replicate: made, installed at the slave, rotated.

Promise: a new key replaces the old one only after its installation, so a failure never locks the session out.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass, replace

from gsync.base.errors import UsageError
from gsync.link import account
from gsync.link.link import Slave, parse_slave
from gsync.service.sshoptions import ssh_options
from gsync.session.session import Session


@dataclass(frozen=True)
class KeyLine:
    """The line for authorized_keys of the slave's account. installed_in: the file that it was added to, if it was."""

    slave: Slave
    line: str
    installed_in: str | None = None


def use_own_key(session: Session, *, install: bool, rotate: bool) -> KeyLine:
    """Make the session's key if it has none, or a new one to `rotate`; `install` it over the user's own ssh access.
    From then on the session uses it. UsageError for a slave on this host."""
    slave = parse_slave(session.slave)
    slave = replace(slave, port=session.options.ssh_port or slave.port)
    if slave.host is None:
        raise UsageError(f"session {session.name}: slave {slave} is on this host, which needs no key")
    key = session.key
    if rotate or not os.path.exists(key):
        key += ".new"
        _make(session, key)
    with open(key + ".pub", encoding="ascii") as file:
        public = file.read().strip()
    if install:
        made = KeyLine(slave, *account.authorize(slave, ssh_options(session.options), public))
    else:
        made = KeyLine(slave, account.authorized_line(public, slave))
    if key != session.key:
        os.replace(key + ".pub", session.key + ".pub")
        os.replace(key, session.key)
    return made


def _make(session: Session, key: str) -> None:
    """Make a new key pair, without a passphrase, for this node."""
    for path in (key, key + ".pub"):
        with suppress(FileNotFoundError):
            os.unlink(path)
    os.makedirs(session.folder, mode=0o700, exist_ok=True)
    comment = f"gsync {session.name} {os.uname().nodename}"
    done = subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", key],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UsageError(f"{key}: ssh-keygen: {done.stderr.strip() or done.stdout.strip()}")
