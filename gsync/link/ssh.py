"""The link to a slave on another host: OpenSSH, one connection, with everything else multiplexed over it.

The first program on the connection is a probe in plain sh. It reports on the host, then waits for end of file on its
stdin and takes the connection down with it. So when this process dies, for whatever reason, none of our processes
survive over there. The user's ~/.ssh/config applies; settings that must hold are given on the command line. gsync never
adds host keys here.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gsync.base import rpc
from gsync.base.durable import replace_file
from gsync.base.errors import GsyncError, SlaveError, Transient, UsageError
from gsync.base.log import get_logger
from gsync.base.model import shown
from gsync.link import bundle
from gsync.link.link import Channel, Slave, lost
from gsync.link.openssh import SshOptions, cipher_list, effective_config, has_aes, known_as, ssh_argv

_log = get_logger(__name__)

_SSH_FAILED = 255
# What ssh says, after the reason, when its proxy command has ended (a proxy has no port).
_PROXY_ENDED = re.compile(r"^kex_exchange_identification: |UNKNOWN port 65535")
NOT_FORCED = (77, 127, 2)  # exit statuses: a forced command refuses; a shell without gsync; one with it
INSTALLED_IN, INSTALLED_AS = ".local/share/gsync", "agent.pyz"  # below the account's home
_MARK = "gsync-probe"
_counter = itertools.count(1)


# One line, double quotes only, no backslash: every login shell passes that through single quotes unharmed.
PROBE = "; ".join([
    f"echo {_MARK}",
    "grep -qw aes /proc/cpuinfo 2>/dev/null && echo aes",
    'cache="${XDG_CACHE_HOME:-$HOME/.cache}/gsync"',
    'echo "cache $cache"',
    'test -f "$cache/$1" && echo agent',
    "command -v rsync >/dev/null 2>&1 && echo rsync",
    "for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 /usr/libexec/platform-python",
    'do p=$(command -v "$p" 2>/dev/null) || continue',
    'v=$("$p" -I -c "import sys; print(sys.version.split()[0], sys.executable, flush=True); import ctypes, sqlite3; '
    'sys.exit(sys.version_info < (3, 9))" 2>/dev/null)',
    'if test $? -eq 0',
    'then echo "python $v"',
    'break',
    'else echo "useless $v ($p)"',
    'fi',
    "done",
])
_STAY = "echo end; exec cat >/dev/null"
PUSH = "; ".join([  # $1: folder, $2: name, $3: size
    "umask 077",
    'cd && mkdir -p "$1" && cd "$1" && cat >".$2.$$" && test $(wc -c <".$2.$$") -eq "$3" && mv -f ".$2.$$" "$2" '
    '&& echo "$(pwd -P)/$2" && exit 0',
    'rm -f ".$2.$$" "$1/.$2.$$"',
    "exit 1",
])


@dataclass(frozen=True)
class Host:
    """The probe's findings. python: the path of a usable one; useless: version and path of the others."""

    aes: bool
    cache: str
    has_agent: bool
    has_rsync: bool
    python: str | None
    useless: tuple[str, ...]
    protocol: str | None = None  # reported by a forced command, like the fields below
    gsync: str | None = None
    directory: bytes | None = None

    @classmethod
    def parse(cls, lines: Sequence[str]) -> Host:
        """Parse the lines between the mark and the end."""
        found: dict[str, list[str]] = {}
        for line in lines:
            key, _, value = line.partition(" ")
            found.setdefault(key, []).append(value)
        python = found["python"][0].partition(" ")[2] if "python" in found else None
        try:
            directory = bytes.fromhex(found["directory"][0]) if "directory" in found else None
        except ValueError:
            directory = None
        return cls("aes" in found, found.get("cache", [""])[0], "agent" in found, "rsync" in found, python,
                   tuple(found.get("useless", ())), found.get("protocol", [None])[0], found.get("gsync", [None])[0],
                   directory)


def remote_command(argv: Sequence[bytes]) -> bytes:
    """The command line with which the remote shell starts exactly this program."""
    return os.fsencode("exec " + shlex.join([os.fsdecode(arg) for arg in argv]))


class SshLink:
    """A connection to slave.host, made by the constructor, which raises SlaveError or Transient if it cannot be made.

    memory: a file that keeps facts about the host for the next time. With a session's own key (identity in the options)
    the other end runs the agent's forced command: gsync uses its few words, and there is no shell.
    """

    def __init__(self, slave: Slave, options: SshOptions | None = None, memory: Path | None = None) -> None:
        self.slave = slave
        self._options = options or SshOptions()
        self._memory = memory
        self._ssh = ssh_argv(slave, self._options)
        self._agent_name = bundle.name()
        self._restricted = self._options.identity is not None
        fast = self._fast_ciphers()
        offered = fast is not None and self._remembers_aes()
        self._host = Host.parse(self._open(fast if offered else None, self._shell_command(f"{PROBE}; {_STAY}")))
        if fast is not None and self._host.aes != offered:
            self.close()
            self._remember_aes(self._host.aes)
            self._open(fast if self._host.aes else None, self._shell_command(f"echo {_MARK}; {_STAY}"))
        try:
            if self._restricted:
                self._check_forced()
            elif self._host.python is None:
                found = ", ".join(self._host.useless) or "none"
                raise SlaveError(f"slave {slave}: that host needs Python 3.9 or newer with ctypes and sqlite3; found: "
                                 f"{found}; install python3 there")
            elif not self._host.has_agent:
                self._push(self._host.cache, self._agent_name)
        except BaseException:
            self.close()
            raise

    # properties of the link

    def _fast_ciphers(self) -> str | None:
        if not has_aes():
            return None
        default = effective_config(Slave(b"/", "localhost"), SshOptions(config_file="/dev/null"))
        return cipher_list(effective_config(self.slave, self._options).get("ciphers", ""), default.get("ciphers", ""))

    def _remembers_aes(self) -> bool:
        """Whether the host has AES, as far as is known. Nearly all have, so it is assumed at first."""
        if self._memory is None:
            return True
        try:
            return bool(json.loads(self._memory.read_bytes()) != {"host": self.slave.target, "aes": False})
        except (OSError, ValueError):
            return True

    def _remember_aes(self, aes: bool) -> None:
        if self._memory is not None:
            replace_file(os.fsencode(self._memory), json.dumps({"host": self.slave.target, "aes": aes}).encode())

    # the connection

    def _shell_command(self, script: str) -> bytes:
        """The command line for the script that reports and then holds the connection open."""
        if self._restricted:
            return b"gsync probe"
        return remote_command([b"/bin/sh", b"-c", script.encode(), b"gsync", self._agent_name.encode()])

    def _open(self, ciphers: str | None, stays: bytes) -> list[str]:
        """Make the connection with a program on it that reports, then stays; return the reported lines."""
        self._control = _socket_path()
        argv = [*self._ssh, "-M", "-S", self._control, self.slave.target]
        if ciphers is not None:
            argv.insert(-1, f"-oCiphers={ciphers}")
        self._master = Channel([*map(os.fsencode, argv), stays])
        lines: list[str] = []
        for raw in self._master.stdout:
            line = raw.decode("utf-8", "surrogateescape").rstrip("\r\n")
            if line == "end" and lines:
                return lines[1:]
            if lines or line == _MARK:
                lines.append(line)
        error = self.error(self._master)
        self._master.close()
        raise error

    def _check_forced(self) -> None:
        """Check that the forced command at the other end belongs to this version of gsync and to this slave."""
        again = "install it with gsync keys SESSION --install or gsync create --push-agent"
        if self._host.protocol != str(rpc.PROTOCOL):
            raise SlaveError(f"slave {self.slave}: the agent there is from another version of gsync "
                             f"({self._host.gsync}; it speaks protocol {self._host.protocol}, this one "
                             f"{rpc.PROTOCOL}): {again}")
        if self._host.directory != self.slave.path:
            there = shown(self._host.directory or b"?")
            raise SlaveError(f"slave {self.slave}: the session's key is for {there} there; put the line that gsync "
                             f"keys SESSION prints into authorized_keys")

    def _push(self, folder: str, name: str) -> str:
        """Put the agent into a folder on the host; return its path."""
        agent = bundle.zipapp()
        _log.info("bringing the agent along", slave=self.slave, bytes=len(agent))
        channel = self.spawn([b"/bin/sh", b"-c", PUSH.encode(), b"gsync", os.fsencode(folder), name.encode(),
                              b"%d" % len(agent)])
        try:
            with suppress(OSError):
                channel.write(agent)
            channel.end_input()
            path = os.fsdecode(channel.stdout.read()).rstrip("\n")
            if channel.end(patience=60) != 0:
                raise SlaveError(f"slave {self.slave}: cannot put the agent into {folder} there: "
                                 + "; ".join(channel.said()[-2:]))
            return path
        finally:
            channel.close()

    def install(self) -> str:
        """Install the agent in the account, where a forced command finds it; return its path."""
        return self._push(INSTALLED_IN, INSTALLED_AS)

    @property
    def python(self) -> str:
        """The path of the host's Python that runs the agent."""
        assert self._host.python is not None
        return self._host.python

    def spawn(self, argv: Sequence[bytes]) -> Channel:
        assert not self._restricted, "there is no shell"
        return self._start(remote_command(argv))

    def _start(self, command: bytes) -> Channel:
        return Channel([*map(os.fsencode, [*self._ssh, "-S", self._control, self.slave.target]), command])

    def agent(self, argv: Sequence[bytes]) -> Channel:
        if self._restricted:
            return self._start(b"gsync receive" if argv[0] == b"--receive" else b"gsync agent")
        return self.spawn([*self._program(), *argv])

    def _program(self) -> list[bytes]:
        return [os.fsencode(self.python), b"-I", os.fsencode(f"{self._host.cache}/{self._agent_name}")]

    def error(self, channel: Channel) -> GsyncError:
        status = channel.end()
        if self._restricted and status in NOT_FORCED:
            return SlaveError(f"slave {self.slave}: the session's key cannot be used: "
                              + "; ".join(channel.said()[-1:]) + "; see gsync keys SESSION")
        if status != _SSH_FAILED:
            return lost(self.slave, channel)
        said = channel.said()
        if channel is not self._master and self._master.ended(within=2):
            said = self._master.said() + said
        return ssh_error(self.slave, self._options, said)

    def has_rsync(self) -> bool:
        return self._host.has_rsync

    def rsync(self, epoch: int, ticket: str) -> list[bytes]:
        # Only the existing connection: rsync has its own quoting rules, so none of the user's options may appear here.
        shell = f"{self._options.command} -F none -oBatchMode=yes -oProxyCommand=false -S {self._control}"
        if self._restricted:
            server = b"gsync rsync %d %s" % (epoch, ticket.encode())
        else:
            server = remote_command([*self._program(), b"--rsync", self.slave.path, b"%d" % epoch, ticket.encode()])
        return [b"-e", os.fsencode(shell), b"--rsync-path=" + server]

    def alive(self) -> bool:
        return not self._master.ended(within=0)

    def break_off(self) -> None:
        self._master.kill()
        with suppress(FileNotFoundError):
            os.unlink(self._control)

    def close(self) -> None:
        self._master.close()


def _socket_path() -> str:
    """A path for a control socket: short, in a folder that only this account may enter."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folder = f"{runtime}/gsync" if re.fullmatch(r"/[\w/.-]{1,60}", runtime) else f"/tmp/gsync-{os.geteuid()}"
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    st = os.lstat(folder)
    if not stat.S_ISDIR(st.st_mode) or st.st_uid != os.geteuid() or st.st_mode & 0o077:
        raise UsageError(f"{folder} is not ours with mode 0700: somebody else created it; remove it")
    path = f"{folder}/{os.getpid()}-{next(_counter)}"
    with suppress(FileNotFoundError):
        os.unlink(path)  # left by a dead process with the same pid
    return path


def ssh_error(slave: Slave, options: SshOptions, said: Sequence[str]) -> GsyncError:
    """The error for a connection that ssh could not make or keep, derived from ssh's output."""
    text = "\n".join(said)
    telling = [line for line in said if not _PROXY_ENDED.search(line)]
    words = "; ".join((telling or list(said))[-2:]) or "ssh ended without a word"
    other = re.search(r"host key is known for (\S+)|[Hh]ost key for (\S+) has changed", text)
    if other and (name := other[1] or other[2]) != known_as(effective_config(slave, options)):
        return SlaveError(f"slave {slave}: the host key of {name}, on the way there, is "
                          f"{'not known' if other[1] else 'another one than before'}: compare it with that host and "
                          f"put it into known_hosts, as ssh does when you connect to it once")
    between = effective_config(slave, options).get("proxyjump", "none") if len(telling) < len(said) else "none"
    if between != "none" and "Host key verification failed" in text:
        return SlaveError(f"slave {slave}: the host key of {between}, on the way there, is not known: connect to it "
                          f"once with ssh, and compare it with that host")
    if between != "none" and "Permission denied" in text:
        return SlaveError(f"slave {slave}: {between}, on the way there: ssh: {words}; gsync needs a key that works "
                          f"without a question there too")
    if "IDENTIFICATION HAS CHANGED" in text:
        key = _fingerprint(slave, options)
        name = known_as(effective_config(slave, options))
        return SlaveError(f"slave {slave}: the host key has CHANGED, it is {key} now: somebody may be in between, or "
                          f"the host was set up anew; if you know that it was, compare {key} with the host, run "
                          f"ssh-keygen -R '{name}', then again with --accept-host-key {key}")
    if re.search(r"host key is known for|Host key verification failed", text):
        key = _fingerprint(slave, options)
        return SlaveError(f"slave {slave}: host key is not known; compare {key} with the host, then run again with "
                          f"--accept-host-key {key}")
    if "Permission denied" in text and options.identity is not None:
        return SlaveError(f"slave {slave}: ssh: {words}; the session's key is not accepted there: gsync keys SESSION "
                          f"prints the line that belongs into the account's authorized_keys, --install puts it there")
    if "Permission denied" in text:
        return SlaveError(f"slave {slave}: ssh: {words}; gsync needs a key that works without a question: "
                          f"ssh-copy-id {slave.target}, and ssh-add if it has a passphrase")
    if re.search(r"(?i)bad configuration option|can't open user config file|command-line line \d+:", text):
        return UsageError(f"slave {slave}: ssh: {words}")
    return Transient(f"slave {slave}: ssh: {words}")


def _fingerprint(slave: Slave, options: SshOptions) -> str:
    from gsync.link import hostkeys  # paramiko takes a fifth of a second to import, and only this needs it

    try:
        return hostkeys.host_key_fingerprint(slave, options)
    except Exception:  # noqa: BLE001 this only improves the message: whatever paramiko met, the error itself stands
        return "its fingerprint"
