"""Sets up the slave's account for a session's own key: the agent, and the key's line in authorized_keys.

Both get there over the user's own ssh access. Used when something is set up, never while replicating.
"""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from dataclasses import replace

from gsync.base.errors import SlaveError, UsageError
from gsync.link.link import Slave
from gsync.link.openssh import SshOptions
from gsync.link.ssh import INSTALLED_AS, INSTALLED_IN, SshLink


def push_agent(slave: Slave, options: SshOptions) -> str:
    """Install this gsync's agent in the slave's account, over the user's own access; return its path there."""
    link = SshLink(slave, replace(options, identity=None))
    try:
        return link.install()
    finally:
        link.close()


def authorized_line(public_key: str, slave: Slave, python: str = "python3",
                    agent: str = f"{INSTALLED_IN}/{INSTALLED_AS}") -> str:
    """The authorized_keys line that restricts a key to replicating into this slave. python and agent: their paths as
    seen from the account's home."""
    command = shlex.join([python, "-I", agent, "--forced", os.fsdecode(slave.path)])
    if not command.isprintable():
        raise UsageError(f"slave {slave}: its path has characters that authorized_keys cannot hold")
    quoted = command.replace('"', '\\"')
    return f'restrict,command="{quoted}" {public_key}'


def authorize(slave: Slave, options: SshOptions, public_key: str) -> tuple[str, str]:
    """Install the agent in the slave's account and the key's line in its authorized_keys, over the user's own access.
    Return the line, and the file that contains it."""
    link = SshLink(slave, replace(options, identity=None))
    try:
        agent = link.install()
        line = authorized_line(public_key, slave, link.python, agent)
        channel = link.spawn([os.fsencode(link.python), b"-I", os.fsencode(agent), b"--authorize"])
        try:
            with suppress(OSError):
                channel.write(os.fsencode(line) + b"\n")
            channel.end_input()
            path = os.fsdecode(channel.stdout.read()).strip()
            if channel.end(patience=60) != 0:
                raise SlaveError(f"slave {slave}: cannot put the key into authorized_keys there: "
                                 + "; ".join(channel.said()[-2:]))
        finally:
            channel.close()
        return line, path
    finally:
        link.close()
