"""gsync on the nodes of a GlusterFS cluster: a session from the volume to a plain tree, or to a volume, on the slave
node."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lab.gluster.cluster import MASTER, META_MNT, SLAVE, Cluster, Node, cluster
from lab.hosts import sshd_on, wait_until
from lab.place import Place
from lab.trees import compare

PATIENCE = 120.0
IGNORED = (b".gsync", b".trashcan")


class GsyncNode(Place):
    """A master node with a state directory of its own, and a monitor."""

    def __init__(self, folder: Path, host: Node, ssh_config: Path) -> None:
        folder.mkdir()
        super().__init__(folder)
        self.host = host
        self.home.mkdir()
        (self.home / "gsync.conf").write_text(
            f"[gsync]\nuse-meta-volume = true\nmeta-volume-mnt = {META_MNT}\nssh-config = {ssh_config}\n"
            "log-level = INFO\nreplica-failover-interval = 1\nslave-timeout = 10\n")
        self._monitor: subprocess.Popen[bytes] | None = None

    def argv(self, *args: object) -> list[str]:
        return self.host.argv(*super().argv(*args))

    def start_monitor(self) -> None:
        self._monitor = subprocess.Popen(self.argv("monitor"), env=self.env, stdin=subprocess.DEVNULL)

    def kill_all(self) -> None:
        """Kill all of gsync's processes on this node at once."""
        for role in ("monitor", "worker"):
            for pid in self.pids(role):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self._monitor is not None:
            self._monitor.wait()

    def log(self) -> str:
        paths = [*self.home.glob("sessions/*/brick_*/log"), *self.home.glob("monitor.log"),
                 *self.home.glob("sessions/*/brick_*/worker.stderr")]
        return "".join(f"--- {self.host.name} {path}\n{path.read_text(errors='replace')[-5000:]}" for path in paths)


class GlusterSite:
    """`master` is a mount of the volume. `slave` is the plain tree, or with `to_volume` a mount of the slave volume.
    Both as everyone reaches them."""

    def __init__(self, folder: Path, site: Cluster, ssh_config: Path, settings: Sequence[str] = (),
                 create: Sequence[str] = (), to_volume: bool = False) -> None:
        self.cluster, self.master, self.folder = site, site.master, folder
        self.slave = site.slave if to_volume else folder / "copy"
        self.slave.mkdir(exist_ok=True)
        self.slave_arg = f"s1::{SLAVE}" if to_volume else f"s1:{self.slave}"
        self.nodes = [GsyncNode(folder / f"gsync-{node.name}", node, ssh_config) for node in site.nodes]
        for node in self.nodes:
            node.gsync("volume", "add", "--gluster", MASTER)
        self.first = self.nodes[0]
        more = [word for setting in settings for word in ("-o", setting)]
        self.created = self.first.gsync("create", MASTER, self.slave_arg, "--name", "s", *create, *more).stderr

    def start(self) -> None:
        for node in self.nodes:
            node.start_monitor()
        self.first.gsync("start", "s", "--no-wait")

    def report(self) -> list[dict[str, Any]]:
        bricks: list[dict[str, Any]] = self.first.report()["bricks"]
        return bricks

    def wait(self, what: str, condition: Callable[[], object], seconds: float = PATIENCE) -> None:
        try:
            wait_until(what, condition, seconds)
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.report()}\n" + "".join(node.log() for node in self.nodes)) from None

    def equal(self) -> bool:
        return not compare(self.master, self.slave, IGNORED)

    def settle(self, what: str = "the trees are equal") -> None:
        """Wait, by a checkpoint, until the slave has every change so far; then the trees are equal."""
        self.reach(what)
        found = compare(self.master, self.slave, IGNORED)
        assert not found, f"{what}\n" + "\n".join(map(str, found[:20])) + "".join(node.log() for node in self.nodes)

    def reach(self, what: str) -> None:
        """Wait, by a checkpoint, until the slave has every change so far."""
        self.first.gsync("checkpoint", "s", "now")
        self.wait(f"{what}: checkpoint", self._reached)

    def _reached(self) -> bool:
        return bool(json.loads(self.first.gsync("checkpoint", "s", "status", "--json").stdout)["reached"])

    def stop(self) -> None:
        self.first.gsync("stop", "s")
        self.wait("all workers have ended", lambda: not any(node.pids("worker") for node in self.nodes))

    def go_on(self) -> None:
        self.first.gsync("start", "s", "--no-wait")

    def no_failures(self) -> bool:
        said = self.first.gsync("failures", "s", "list").stdout
        assert said == "s: no failures\n", said
        return True

    def walks(self) -> int:
        """How often workers have walked through the whole volume."""
        return sum(path.read_text(errors="replace").count("hybrid crawl done")
                   for node in self.nodes for path in node.home.glob("sessions/*/brick_*/log"))

    def set_back(self, time_ns: int, stream: str = "") -> None:
        """Set the slave's stimes, or that of one stream, back to this time; the session is stopped."""
        with contextlib.closing(sqlite3.connect(self.slave / ".gsync" / "index.db", timeout=30)) as db, db:
            db.execute("UPDATE facts SET value=? WHERE (key GLOB 'stime*' OR key GLOB 'entry_stime*') "
                       "AND key GLOB ? AND value NOTNULL", (time_ns, f"*{stream}"))

    def watch_from(self, node: GsyncNode, master: Path) -> None:
        """From now on, ask this node, and look at the master through this mount."""
        self.first, self.master = node, master

    def clients(self, number: int) -> list[int]:
        """The processes that serve a mount of this brick's worker."""
        mark = f"/brick_{number}/mount".encode()
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                command = Path("/proc", entry, "cmdline").read_bytes() if entry.isdigit() else b""
                if command.startswith(b"glusterfs\0") and mark in command and bytes(self.folder) in command:
                    found.append(int(entry))
        return found

    def close(self) -> None:
        for node in self.nodes:
            node.kill_all()


@contextlib.contextmanager
def gluster_site(folder: Path, shape: str = "replica 2", settings: Sequence[str] = (), slave: str = "",
                 options: dict[str, str] | None = None) -> Iterator[GlusterSite]:
    """shape, options: of the master volume; slave: the shape of the slave volume, "" for a plain tree."""
    with (cluster(folder, shape, options=options, slave=slave or "one brick") as site,
          sshd_on(site["s1"], folder / "sshd") as config):
        made = GlusterSite(folder, site, config, settings, to_volume=bool(slave))
        try:
            yield made
        finally:
            made.close()
