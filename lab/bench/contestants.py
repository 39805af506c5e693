"""gsync and its peers, as command lines. Each reaches the slave host through the same sshd."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lab import REPOSITORY
from lab.sshd import HOST

PROJECT = REPOSITORY


@dataclass(frozen=True)
class Slave:
    """A folder, reached over ssh if there is an ssh configuration. `state`: where a contestant may keep its own
    files."""

    path: Path
    state: Path
    ssh_config: Path | None = None

    @property
    def place(self) -> str:
        return str(self.path) if self.ssh_config is None else f"{HOST}:{self.path}"

    @property
    def ssh(self) -> str:
        return f"ssh -F {self.ssh_config}"


class Gsync:
    name = "gsync"

    def __init__(self, command: Path = PROJECT / "scripts" / "gsync") -> None:
        self._command = command

    def follow(self, master: Path, slave: Slave) -> list[str]:
        argv = [str(self._command), "run", str(master), slave.place, "--state", str(slave.state)]
        return argv if slave.ssh_config is None else [*argv, "--ssh-config", str(slave.ssh_config)]

    def once(self, master: Path, slave: Slave) -> list[str]:
        return [*self.follow(master, slave), "--once"]


class Rsync:
    name = "rsync -a"

    def once(self, master: Path, slave: Slave) -> list[str]:
        remote = [] if slave.ssh_config is None else ["-e", slave.ssh]
        return ["rsync", "-a", *remote, f"{master}/", f"{slave.place}/"]


class Lsyncd:
    """lsyncd with its shortest delay, and over ssh in the mode that renames at the slave (rsyncssh)."""

    name = "lsyncd delay 1"

    def follow(self, master: Path, slave: Slave) -> list[str]:
        options = "archive = true"
        if slave.ssh_config is None:
            mode = f'default.rsync, source = "{master}", target = "{slave.path}"'
        else:
            mode = f'default.rsyncssh, source = "{master}", host = "{HOST}", targetdir = "{slave.path}"'
            mode += f', ssh = {{ binary = "/usr/bin/ssh", _extra = {{ "-F", "{slave.ssh_config}" }} }}'
            options += f', rsh = "/usr/bin/ssh -F {slave.ssh_config}"'
        config = slave.state.with_suffix(".lua")
        config.write_text(
            "settings { nodaemon = true, inotifyMode = \"CloseWrite or Modify\" }\n"
            f"sync {{ {mode}, delay = 1, delete = true, rsync = {{ {options} }} }}\n"
        )
        return ["lsyncd", str(config)]
