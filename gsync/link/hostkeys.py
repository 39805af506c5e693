"""The key of a slave host, read with paramiko: its fingerprint, and its acceptance once a person has compared it.

Used when a session is set up or the host is refused, never while replicating. Not here: connections (ssh).
"""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
import socket
from pathlib import Path

import paramiko  # type: ignore[import-untyped]

from gsync.base.errors import SlaveError, Transient, UsageError
from gsync.link.link import Slave
from gsync.link.openssh import SshOptions, effective_config, known_as, ssh_argv


def fingerprint(key: paramiko.PKey) -> str:
    """The fingerprint as ssh-keygen -l prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def host_key_fingerprint(slave: Slave, options: SshOptions) -> str:
    """The fingerprint of the key that the slave host presents now; Transient if it is unreachable."""
    return fingerprint(_host_key(slave, options, effective_config(slave, options)))


def accept_host_key(slave: Slave, options: SshOptions, expected: str) -> None:
    """Add the slave host's key to the user's known_hosts if it has the fingerprint `expected`, else SlaveError."""
    config = effective_config(slave, options)
    key = _host_key(slave, options, config)
    if fingerprint(key) != expected:
        raise SlaveError(f"slave {slave}: the host shows the key {fingerprint(key)}, not {expected}: not accepted")
    files = config.get("userknownhostsfile", "").split()
    if not files or files[0] in ("none", "/dev/null"):
        raise UsageError(f"slave {slave}: ssh's configuration names no UserKnownHostsFile to keep the key in")
    path = Path(files[0]).expanduser()
    line = f"{known_as(config)} {key.get_name()} {key.get_base64()}\n".encode()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with open(fd, "rb+", buffering=0) as file:
            text = file.read()
            if line not in text.splitlines(keepends=True):
                file.write((b"" if text.endswith(b"\n") or not text else b"\n") + line)
                os.fsync(file.fileno())
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}") from exc


def _host_key(slave: Slave, options: SshOptions, config: dict[str, str]) -> paramiko.PKey:
    host, port = config["hostname"], int(config["port"])
    try:
        proxy = _proxy_command(slave, options, config)
        between = paramiko.ProxyCommand(proxy) if proxy else None
        transport = paramiko.Transport(between or socket.create_connection((host, port), options.connect_timeout))
        try:
            transport.start_client(timeout=options.connect_timeout)
            return transport.get_remote_server_key()
        finally:
            transport.close()
            if between is not None:  # paramiko does not wait for its end
                transport.join(options.connect_timeout)
                with between.process as process:
                    process.kill()
    except (OSError, EOFError, paramiko.SSHException) as exc:
        raise Transient(f"slave {slave}: {host} port {port}: {exc}") from exc


def _proxy_command(slave: Slave, options: SshOptions, config: dict[str, str]) -> str | None:
    """The command that leads to the host, if ssh would not connect directly."""
    jump, command = config.get("proxyjump", "none"), config.get("proxycommand", "none")
    if jump != "none":
        *before, last = jump.split(",")
        argv = [arg for arg in ssh_argv(Slave(b"/", slave.host), options) if not arg.startswith("-oProxy")]
        argv += ["-J", ",".join(before)] if before else []
        return shlex.join([*argv, "-W", f"[{config['hostname']}]:{config['port']}", last])
    return command if command != "none" else None
