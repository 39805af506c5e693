"""Calls OpenSSH: its options, its configuration for a slave host, and the cipher that is fast there.

Not here: connections (ssh), host keys (hostkeys).
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gsync.base.errors import UsageError
from gsync.link.link import Slave

_FAST_CIPHER = "aes128-gcm@openssh.com"


@dataclass(frozen=True)
class SshOptions:
    """Settings for ssh: its configuration file (None: the user's), further options as for `ssh -o`, times in seconds,
    the program. identity: the private key of a session, restricted to what `agent --forced` allows."""

    config_file: str | None = None
    extra: tuple[str, ...] = ()
    connect_timeout: int = 10
    alive_interval: int = 15
    compression: bool = False
    command: str = "ssh"
    identity: str | None = None


def ssh_argv(slave: Slave, options: SshOptions) -> list[str]:
    """The ssh command with the options that all our uses share, without the host."""
    argv = [options.command, "-T", "-x", "-a", "-oBatchMode=yes", f"-oConnectTimeout={options.connect_timeout}",
            f"-oServerAliveInterval={options.alive_interval}", "-oServerAliveCountMax=4", "-oClearAllForwardings=yes",
            "-oPermitLocalCommand=no", "-oRemoteCommand=none", "-oRequestTTY=no", "-oEscapeChar=none",
            "-oControlPersist=no", f"-oCompression={'yes' if options.compression else 'no'}"]
    if options.config_file is not None:
        argv[1:1] = ["-F", options.config_file]
    if slave.port is not None:
        argv.append(f"-p{slave.port}")
    if options.identity is not None:
        argv += ["-i", options.identity.replace("%", "%%"), "-oIdentitiesOnly=yes"]
    argv += [f"-o{option}" for option in options.extra]
    return argv


def effective_config(slave: Slave, options: SshOptions) -> dict[str, str]:
    """The options that ssh would use for this slave: the first value of each, by its name in lower case (`ssh -G`)."""
    done = subprocess.run([*ssh_argv(slave, options), "-G", slave.target], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise UsageError(f"slave {slave}: ssh: {done.stderr.strip()}")
    config: dict[str, str] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        config.setdefault(key, value)
    return config


def known_as(config: dict[str, str]) -> str:
    """The name under which known_hosts keeps this host's key."""
    name = config.get("hostkeyalias") or config["hostname"]
    port = config.get("port", "22")
    return name if port == "22" or config.get("hostkeyalias") else f"[{name}]:{port}"


def has_aes() -> bool:
    """Whether this processor has instructions for AES."""
    try:
        return re.search(r"^(flags|Features)\s*:.*\baes\b", Path("/proc/cpuinfo").read_text(), re.M) is not None
    except OSError:
        return False


def cipher_list(configured: str, default: str) -> str | None:
    """The list of ciphers with the fast one first; None if the user has chosen ciphers, or ssh lacks it."""
    ciphers = default.split(",")
    if configured != default or _FAST_CIPHER not in ciphers:
        return None
    return ",".join([_FAST_CIPHER, *(c for c in ciphers if c != _FAST_CIPHER)])
