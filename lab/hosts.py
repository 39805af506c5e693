"""Test hosts on one machine: each has its own network, mount and uts namespaces, and all share one private switch.

They share the machine's file systems and process ids, so a test reaches their files and processes directly. Traffic
stays on the switch, which leads nowhere else. Needs root, iproute2 and util-linux. Everything exits with the `with`.
Hosts with daemons (GlusterFS) also have folders and process ids of their own, so that no daemon outlives its host.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lab.place import Place

_NET = "10.77.0"


def wait_until(what: str, condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.05)


class Host:
    """A test host. Its processes have their usual pids, unless the host has `private` folders, given by the place at
    which it sees each: then all processes started there exit with it, daemons too."""

    def __init__(self, name: str, address: str = "", private: Mapping[str, Path] | None = None) -> None:
        self.name, self.address = name, address
        self._own_pids = private is not None
        pids = ["--pid", "--fork", "--kill-child", "--mount-proc"] if self._own_pids else []
        # Its first process must reap children that daemons leave behind.
        rest = "while :; do sleep 3600 & wait; done" if self._own_pids else "exec sleep infinity"
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--uts", "--net", *pids, "--", "sh", "-c",
             f'hostname "$0" && ip link set lo up && echo ready && {rest}', name],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            raise RuntimeError("test hosts need root, iproute2 and util-linux")
        self.pid = self._holder.pid
        if self._own_pids:
            self.pid = int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0])
        for place, folder in (private or {}).items():
            self.run("mount", "--bind", folder, place)

    def argv(self, *command: object) -> list[str]:
        """The command line that runs this command on the host."""
        pids = ["--pid"] if self._own_pids else []
        return ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--net", *pids, "--", *map(str, command)]

    def path(self, place: str | Path) -> Path:
        """The path, for everyone, of the file that the host sees at this absolute path."""
        return Path(f"/proc/{self.pid}/root{place}")

    def run(self, *command: object) -> str:
        """Run a command; return its output. CalledProcessError."""
        return subprocess.run(self.argv(*command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                              check=True).stdout

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)  # a first process exits after all others
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()


class Hosts:
    """Hosts with these names, in this order at 10.77.0.1, .2, … private: each host's private folders, by its name.
    kind: the class of the hosts."""

    def __init__(self, *names: str, private: Mapping[str, Mapping[str, Path]] | None = None,
                 kind: type[Host] = Host) -> None:
        self._open = contextlib.ExitStack()
        self.all: dict[str, Host] = {}
        with contextlib.ExitStack() as opened:
            self._switch = Host("switch")
            opened.callback(self._switch.close)
            self._switch.run("ip", "link", "add", "br0", "type", "bridge")
            self._switch.run("ip", "link", "set", "br0", "up")
            for number, name in enumerate(names, 1):
                host = self.all[name] = kind(name, f"{_NET}.{number}", (private or {}).get(name))
                opened.callback(host.close)
                self._switch.run("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "e0", "netns",
                                 host.pid)
                self._switch.run("ip", "link", "set", f"to-{name}", "master", "br0", "up")
                host.run("ip", "addr", "add", f"{host.address}/24", "dev", "e0")
                host.run("ip", "link", "set", "e0", "up")
            self._open = opened.pop_all()

    def __getitem__(self, name: str) -> Host:
        return self.all[name]

    def cut(self, name: str) -> None:
        """Drop all traffic to and from the host; nobody is told."""
        self._switch.run("ip", "link", "set", f"to-{name}", "nomaster")

    def heal(self, name: str) -> None:
        self._switch.run("ip", "link", "set", f"to-{name}", "master", "br0")

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


@contextlib.contextmanager
def sshd_on(host: Host, folder: Path) -> Iterator[Path]:
    """An OpenSSH server of its own on the host; yields the ssh_config with which the others reach it by its name."""
    folder.mkdir(mode=0o700)
    for key in ("host_key", "identity"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    shutil.copy(folder / "identity.pub", folder / "authorized_keys")
    kind, text = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"{host.address} {kind} {text}\n")
    (folder / "sshd_config").write_text(
        f"ListenAddress {host.address}\nHostKey {folder}/host_key\nPidFile none\nStrictModes no\nUsePAM yes\n"
        f"AuthorizedKeysFile {folder}/authorized_keys .ssh/authorized_keys\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nSubsystem sftp internal-sftp\nPermitRootLogin prohibit-password\n"
        "UseDNS no\nPrintMotd no\nMaxStartups 100\n")
    config = folder / "ssh_config"
    config.write_text(
        f"Host {host.name}\n  HostName {host.address}\n  User root\n  IdentityFile {folder}/identity\n"
        f"  IdentitiesOnly yes\n  IdentityAgent none\n  UserKnownHostsFile {folder}/known_hosts\n"
        "  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  LogLevel ERROR\n")
    host.run("mkdir", "-p", "/run/sshd")  # privilege separation requires it
    logins = Path("~root/.bashrc").expanduser()  # may wait for something a test has killed (pyenv's lock)
    if logins.exists():
        host.run("mount", "--bind", os.devnull, logins)
    sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    assert sshd is not None, "sshd is not installed (openssh-server)"
    with subprocess.Popen(host.argv(sshd, "-D", "-f", folder / "sshd_config", "-E", folder / "log"),
                          stdin=subprocess.DEVNULL) as server:
        try:
            wait_until("sshd", lambda: subprocess.run(
                host.argv("ssh", "-F", config, host.name, "true"), stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, check=False).returncode == 0)
            yield config
        finally:
            server.kill()


class Node(Place):
    """A host with a state directory of its own, that replicates what all nodes of its site share."""

    def __init__(self, site: Path, host: Host, settings: str) -> None:
        folder = site / host.name
        folder.mkdir()
        super().__init__(folder)
        self.host = host
        self.meta = folder / "meta"
        self.meta.mkdir()
        host.run("mount", "--bind", site / "shared", self.meta)
        self.home.mkdir()
        (self.home / "gsync.conf").write_text(
            f"[gsync]\nuse-meta-volume = true\nmeta-volume-mnt = {self.meta}\n{settings}\n")
        self._monitor: subprocess.Popen[bytes] | None = None

    def argv(self, *args: object) -> list[str]:
        return self.host.argv(*super().argv(*args))

    def start_monitor(self) -> None:
        self._monitor = subprocess.Popen(self.argv("monitor"), env=self.env, stdin=subprocess.DEVNULL)

    @property
    def state(self) -> str:
        """The worker's state, as its status tells."""
        return str(self.worker_status().get("state", ""))

    @property
    def active(self) -> bool:
        return self.state == "Active"

    def signal(self, role: str, number: signal.Signals) -> None:
        for pid in self.pids(role):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill_all(self) -> None:
        """Kill all of gsync's processes on this node at once, as a power failure does."""
        if self._monitor is not None:
            self._monitor.kill()
            self._monitor.wait()
        for role in ("monitor", "worker", "recorder"):
            self.signal(role, signal.SIGKILL)

    def log(self) -> str:
        return "".join(f"--- {self.host.name} {path.name}\n{path.read_text(errors='replace')}"
                       for path in [*self.home.glob("sessions/*/log"), *self.home.glob("monitor.log")])


class Site:
    """Two nodes, `a` and `b`, that see one master tree and one meta volume, and a slave host, all in a folder. A
    session is created and started on a; both have a monitor."""

    def __init__(self, folder: Path, hosts: Hosts, ssh_config: Path, interval: float = 1.0) -> None:
        self.hosts = hosts
        self.master, self.slave = folder / "tree", folder / "copy"
        for path in (self.master, self.slave, folder / "shared"):
            path.mkdir()
        settings = (f"ssh-config = {ssh_config}\nlog-level = DEBUG\nreplica-failover-interval = {interval}\n"
                    "slave-timeout = 10")
        self.nodes = {name: Node(folder, hosts[name], settings) for name in ("a", "b")}
        for node in self.nodes.values():
            node.gsync("volume", "add", "v", self.master)
            node.start_monitor()
        first = self.nodes["a"]
        first.gsync("create", "v", f"slave:{self.slave}", "--name", "s")
        first.gsync("start", "s", "--no-wait")

    def close(self) -> None:
        for node in self.nodes.values():
            node.kill_all()
        self.wait("all processes have ended", lambda: not any(node.pids("worker") for node in self.nodes.values()))

    def wait(self, what: str, condition: Callable[[], object], seconds: float = 60) -> None:
        try:
            wait_until(what, condition, seconds)
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n" + "".join(node.log()[-6000:] for node in self.nodes.values())) from None

    def settled(self) -> tuple[Node, Node]:
        """Wait until one node is active and the other passive; return them in this order."""
        a, b = self.nodes.values()
        self.wait("one is active and the other passive",
                  lambda: sorted((a.state, b.state)) == ["Active", "Passive"])
        return (a, b) if a.active else (b, a)

    def taken_over(self, epoch: int, begun: float) -> tuple[Node, float]:
        """Wait until a node is Active with a younger epoch; return the node, and the seconds since `begun`
        (monotonic)."""
        def younger() -> list[Node]:
            return [node for node in self.nodes.values() if node.active and node.worker_status()["epoch"] > epoch]

        self.wait(f"somebody is active with an epoch after {epoch}", younger)
        return younger()[0], time.monotonic() - begun

    def watch_epochs(self) -> None:
        """From now on, make the slave's index note every epoch in which it is changed, in order."""
        with contextlib.closing(sqlite3.connect(self._index, timeout=30)) as db, db:
            db.execute("CREATE TABLE seen (n INTEGER PRIMARY KEY, epoch INTEGER)")
            db.execute("CREATE TRIGGER seen AFTER INSERT ON facts WHEN NEW.key='epoch' "
                       "BEGIN INSERT INTO seen (epoch) VALUES (NEW.value); END")

    def epochs(self) -> list[int]:
        """The epochs of all hellos and commits since then."""
        with contextlib.closing(sqlite3.connect(self._index, timeout=30)) as db:
            return [row[0] for row in db.execute("SELECT epoch FROM seen ORDER BY n")]

    @property
    def _index(self) -> Path:
        return self.slave / ".gsync" / "index.db"


@contextlib.contextmanager
def site(folder: Path, interval: float = 1.0) -> Iterator[Site]:
    with Hosts("a", "b", "slave") as hosts, sshd_on(hosts["slave"], folder / "sshd") as config:
        made = Site(folder, hosts, config, interval)
        try:
            yield made
        finally:
            made.close()

