"""A real OpenSSH server of its own for tests and benches: key-only, on a free port of 127.0.0.1.

It has its own keys and configuration in one folder, needs nothing in /etc/ssh, and runs as root or as any other user
(who can then log in only as themselves). Sessions have a HOME of their own there: none of the account's shell
configuration runs, and nothing is left in the account.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

HOST = "gsync-test"


class Sshd:
    """Runs from construction to `stop()` (or the end of the `with`).

    `client_config` is for `ssh -F`: it knows `gsync-test` and `127.0.0.1`, both leading here. `forced_command` is the
    only command that the key may run (SSH_ORIGINAL_COMMAND has the requested one). With `known=False` the client has
    never seen the host key, so a strict client refuses. `environment` is that of the started programs.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, forced_command: str | None = None, known: bool = True,
        max_sessions: int = 10, environment: Mapping[str, str] | None = None,
    ) -> None:
        self.dir = Path(folder).absolute()
        self.dir.mkdir(parents=True, exist_ok=True)
        self.dir.chmod(0o700)
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self.host_key, self.identity = self.dir / "host_key", self.dir / "identity"
        self.client_config, self.known_hosts = self.dir / "ssh_config", self.dir / "known_hosts"
        self.home = self.dir / "home"
        self.home.mkdir(exist_ok=True)
        for key in (self.host_key, self.identity):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key.name, "-f", key], check=True)
        options = "" if forced_command is None else f'restrict,command="{forced_command}" '
        authorized = self.dir / "authorized_keys"
        authorized.write_text(options + self.identity.with_suffix(".pub").read_text())
        self._max_sessions = max_sessions
        self._environment = {"HOME": str(self.home), **(environment or {})}
        self.port = 0
        self._authorized = authorized
        self.start()
        self.known_hosts.touch()
        if known:
            self.learn_host_key()
        self._write_client_config()

    def learn_host_key(self) -> None:
        key = self.host_key.with_suffix(".pub").read_text().split()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {key[0]} {key[1]}\n")

    def start(self) -> None:
        """Start it; after a `stop()`, on the same port."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # privilege separation requires it
        sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if sshd is None:
            raise FileNotFoundError("sshd is not installed (openssh-server)")
        log = self.dir / "sshd.log"
        for _attempt in range(5):
            self.port = self.port or _free_port()
            config = self.dir / "sshd_config"
            # Without PAM, root's key is refused as well if root's password is locked; others cannot ask PAM for an
            # account.
            pam = "yes" if os.geteuid() == 0 else "no"
            config.write_text(
                f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.host_key}\nPidFile none\n"
                f"AuthorizedKeysFile {self._authorized} {self.home}/.ssh/authorized_keys\n"
                f"StrictModes no\nUsePAM {pam}\nUseDNS no\nPrintMotd no\n"
                "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPubkeyAuthentication yes\n"
                "PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\nMaxStartups 100\n"
                f"MaxSessions {self._max_sessions}\nSetEnv"
                + "".join(f' "{name}={value}"' for name, value in self._environment.items()) + "\n"
            )
            self._process = subprocess.Popen(
                [sshd, "-D", "-f", config, "-E", log], stdin=subprocess.DEVNULL, start_new_session=True
            )
            if self._is_up():
                return
            self.stop()
            self.port = 0
        raise RuntimeError(f"sshd does not start: {log.read_text()}")

    def _is_up(self) -> bool:
        while self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 10) as link:
                return link.recv(4) == b"SSH-"
            time.sleep(0.01)
        return False

    def _write_client_config(self) -> None:
        self.client_config.write_text(
            f"Host {HOST} 127.0.0.1\n  HostName 127.0.0.1\n  Port {self.port}\n  User {self.user}\n"
            f"  IdentityFile {self.identity}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile /dev/null\n"
            "  StrictHostKeyChecking yes\n  PasswordAuthentication no\n  LogLevel ERROR\n"
        )

    def ssh(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ssh", "-F", self.client_config, HOST, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def session_pids(self) -> list[int]:
        """The processes that serve connections, and those that they started."""
        return list(descendants(self.pid))

    def drop_connections(self) -> None:
        """End every connection at once, as a lost link does; the server keeps running."""
        for pid in self.session_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        pids = self.session_pids()
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Sshd:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()


def below(pid: int, word: bytes) -> list[int]:
    """The descendants of a process that were started with this argument."""
    found = []
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{each}/cmdline").read_bytes().split(b"\0"):
                found.append(each)
    return found


def descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                yield int(child)
                yield from descendants(int(child))


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
