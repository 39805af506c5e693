"""`gsync keys` where there is nothing to reach: what it makes, prints and refuses."""

from __future__ import annotations

import json
import os
import stat

from gsync.session.session import SessionHome
from lab.cli import Cli


def session(cli: Cli, slave: str) -> str:
    """Make session s; where its key would lie."""
    sessions = SessionHome(cli.home)
    made = sessions.find_or_new("v", slave, "s", {})
    sessions.save(made, {})
    return made.key


def test_a_key_is_made_once_and_its_line_printed(cli: Cli) -> None:
    key = session(cli, "me@far:/srv/a copy")
    line = cli("keys")
    assert line.startswith("restrict,command=\"python3 -I .local/share/gsync/agent.pyz --forced '/srv/a copy'\" "
                           "ssh-ed25519 ")
    assert line.endswith(f" gsync s {os.uname().nodename}\n")
    assert "gsync keys s --install" in cli.err
    assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    assert json.loads(cli("keys", "s", "--json")) == {
        "session": "s", "key": key, "line": line.rstrip("\n"), "installed_in": None}
    assert sorted(name for name in os.listdir(os.path.dirname(key)) if name.startswith("key")) == ["key", "key.pub"]


def test_what_makes_no_sense_is_said(cli: Cli) -> None:
    assert cli.fails("keys", code=2).startswith("there are no sessions;")
    session(cli, "far:/srv/copy")
    assert "would lose access to the slave" in cli.fails("keys", "--rotate", code=2)


def test_a_slave_on_this_host_needs_no_key(cli: Cli) -> None:
    key = session(cli, "/srv/copy")
    assert "needs no key" in cli.fails("keys", code=2)
    assert not os.path.exists(key)
