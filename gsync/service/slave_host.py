"""Prepares a slave's host before there is a session: its host key in known hosts, the agent in the account."""

from __future__ import annotations

from dataclasses import replace

from gsync.base.errors import UsageError
from gsync.link.link import Slave
from gsync.service.sshoptions import ssh_options
from gsync.session.options import Options


def accept_host_key(slave: Slave, options: Options, fingerprint: str) -> None:
    """Add the host's key to known hosts, if it has this fingerprint. UsageError if it does not."""
    from gsync.link import hostkeys

    if slave.host is None:
        raise UsageError(f"--accept-host-key: slave {slave} is on this host, which needs no host key")
    hostkeys.accept_host_key(_at_port(slave, options), ssh_options(options), fingerprint)


def push_agent(slave: Slave, options: Options) -> str:
    """Install the agent in the slave's account; return its path there."""
    from gsync.link import account

    if slave.host is None:
        raise UsageError(f"--push-agent: slave {slave} is on this host, which needs no agent")
    return account.push_agent(_at_port(slave, options), ssh_options(options))


def _at_port(slave: Slave, options: Options) -> Slave:
    return replace(slave, port=options.ssh_port or slave.port)
