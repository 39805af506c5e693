"""A real GlusterFS site on test hosts: master nodes with a volume `mvol`, a slave node `s1` with a volume `svol`, and
the meta volume, mounted on every master node.

Each host has process ids, /var/lib/glusterd, /var/log/glusterfs, /run … of its own, so every glusterd and brick exits
with the `with`: a survivor on the path of a brick would take the changelogs of the next one. Bricks are on an ext4 of
their own. Needs root and Debian's glusterfs-server; starts a site in some 15 seconds.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.hosts import Host, Hosts, wait_until
from lab.images import FsImage

MASTER, SLAVE, META = "mvol", "svol", "gluster_shared_storage"
META_MNT = "/run/gluster/shared_storage"
ROLLOVER = 3  # seconds

_PRIVATE = ("/var/lib/glusterd", "/var/log/glusterfs", "/var/lib/misc", "/root/.ssh", "/mnt")
_OPTIONS = {
    "storage.health-check-interval": "0",  # its probe gives false alarms on a busy machine
    "changelog.changelog": "on", "changelog.rollover-time": str(ROLLOVER), "geo-replication.indexing": "on",
}
# A test's mount must show the bricks' present state, not that of a second ago.
_UNCACHED = {f"performance.{name}": "off" for name in (
    "quick-read", "io-cache", "stat-prefetch", "read-ahead", "readdir-ahead", "open-behind")}


@dataclass(frozen=True)
class Shape:
    """The layout of a volume: words for `gluster volume create`, and the nodes (from 1) of the bricks, in their
    order."""

    words: tuple[str, ...]
    nodes: tuple[int, ...]


SHAPES = {
    "one brick": Shape((), (1,)),
    "distribute 2": Shape((), (1, 2)),
    "replica 2": Shape(("replica", "2"), (1, 2)),
    "distribute 2 x replica 2": Shape(("replica", "2"), (1, 2, 1, 2)),
    "replica 3": Shape(("replica", "3"), (1, 2, 3)),
    "arbiter": Shape(("replica", "3", "arbiter", "1"), (1, 2, 3)),
    "disperse 3": Shape(("disperse", "3", "redundancy", "1"), (1, 2, 3)),
}


class Node(Host):
    """A host with glusterd, and with its bricks in `bricks`."""

    bricks: Path

    def gluster(self, *words: object) -> str:
        """Run GlusterFS's command line; return its output. AssertionError with its message if it fails."""
        done = subprocess.run(self.argv("gluster", "--mode=script", *words), stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, errors="replace", check=False)
        assert done.returncode == 0, f"gluster {' '.join(map(str, words))}: {done.stderr or done.stdout}"
        return done.stdout

    def mount(self, volume: str, place: str, *options: str) -> Path:
        """Mount a volume of this node's pool there; return the path by which everyone reaches it."""
        self.run("mkdir", "-p", place)
        words = ["-o", ",".join(options)] if options else []
        self.run("mount", "-t", "glusterfs", *words, f"{self.address}:/{volume}", place)
        return self.path(place)


class Cluster:
    """The hosts, their daemons and volumes. `master` and `slave` are mounts of mvol on m1 and of svol on s1."""

    def __init__(self, folder: Path, shape: str = "replica 2", *, options: dict[str, str] | None = None,
                 slave: str = "one brick") -> None:
        self.shape = SHAPES[shape]
        names = [f"m{n}" for n in range(1, max(2, *self.shape.nodes) + 1)]
        self._open = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:
            self.disk = opened.enter_context(FsImage(folder / "disk", 8 << 30, "ext4")).path
            private = {name: self._folders(name) for name in (*names, "s1")}
            self.hosts = opened.enter_context(Hosts(*names, "s1", private=private, kind=Node))
            for host in self.hosts.all.values():
                assert isinstance(host, Node)
                host.bricks = self.disk / host.name / "bricks"
                host.run("mount", "-t", "tmpfs", "tmpfs", "/run")
                host.run("glusterd", "--pid-file=/run/glusterd.pid")
            self.nodes = [self[name] for name in names]
            for host in (*self.nodes, self["s1"]):
                self._answers(host, "pool", "list")
            first = self.nodes[0]
            for other in self.nodes[1:]:
                first.gluster("peer", "probe", other.address)
            wait_until("all peers are connected", lambda: all(
                node.gluster("pool", "list").count("Connected") == len(names) for node in self.nodes))
            self.make(MASTER, self.shape, options=_OPTIONS | (options or {}))
            # With two nodes, both sides of a partition could write to it; three have a majority.
            self.make(META, Shape(("replica", str(len(names))), tuple(range(1, len(names) + 1))))
            for node in self.nodes:
                node.mount(META, META_MNT)
            self.master = first.mount(MASTER, "/mnt/m", "acl")
            self.slave = self.make_slave(SLAVE, SHAPES[slave])
            self._open = opened.pop_all()

    def __getitem__(self, name: str) -> Node:
        host = self.hosts[name]
        assert isinstance(host, Node)
        return host

    def _folders(self, name: str) -> dict[str, Path]:
        folders = {}
        for place in _PRIVATE:
            Path(place).mkdir(parents=True, exist_ok=True)
            folders[place] = self.disk / name / "root" / place.strip("/")
            folders[place].mkdir(parents=True)
        hooks = Path("/var/lib/glusterd/hooks")  # the package's hooks, but no files that a daemon wrote
        if hooks.is_dir():
            shutil.copytree(hooks, folders["/var/lib/glusterd"] / "hooks")
        (self.disk / name / "bricks").mkdir()
        return folders

    @staticmethod
    def _answers(node: Node, *words: str) -> None:
        wait_until(f"glusterd on {node.name}", lambda: subprocess.run(
            node.argv("gluster", "--mode=script", *words), stdin=subprocess.DEVNULL, capture_output=True,
            check=False).returncode == 0)

    def make(self, volume: str, shape: Shape, options: dict[str, str] | None = None) -> None:
        """Make a volume on the master nodes, and start it."""
        bricks = [self.nodes[node - 1].bricks / f"{volume}-{n}" for n, node in enumerate(shape.nodes)]
        hosts = [self.nodes[node - 1] for node in shape.nodes]
        self._make(self.nodes[0], volume, shape.words, bricks, options or {}, hosts)

    def make_slave(self, volume: str, shape: Shape = SHAPES["one brick"]) -> Path:
        """Make a volume on s1, start and mount it; return the path by which everyone reaches it."""
        slave = self["s1"]
        self._make(slave, volume, shape.words, [slave.bricks / f"{volume}-{n}" for n in range(len(shape.nodes))],
                   _UNCACHED)
        return slave.mount(volume, f"/mnt/{volume}", "acl", "attribute-timeout=0", "entry-timeout=0",
                           "direct-io-mode=enable")

    @staticmethod
    def _make(node: Node, volume: str, words: Sequence[str], bricks: Sequence[Path], options: dict[str, str],
              hosts: Sequence[Node] | None = None) -> None:
        where = [f"{host.address}:{brick}" for host, brick in zip(hosts or [node] * len(bricks), bricks, strict=True)]
        node.gluster("volume", "create", volume, *words, *where, "force")
        for name, value in {"storage.health-check-interval": "0", **options}.items():
            node.gluster("volume", "set", volume, name, value)
        node.gluster("volume", "start", volume)

    def bricks(self, volume: str = MASTER) -> list[tuple[Node, Path]]:
        """The node and path of every brick, in the volume's order."""
        owner = self.nodes[0] if volume in (MASTER, META) else self["s1"]
        info = ET.fromstring(owner.gluster("--xml", "volume", "info", volume))
        by_address = {node.address: node for node in (*self.nodes, self["s1"])}
        found = [str(brick.findtext("name")).split(":", 1) for brick in info.iter("brick")]
        return [(by_address[address], Path(path)) for address, path in found]

    def brick_pid(self, node: Node, brick: Path) -> int:
        """The pid, as the node sees it, of the process that serves this brick; 0 if none does."""
        for file in node.path("/run/gluster/vols").glob(f"*/*{str(brick).strip('/').replace('/', '-')}.pid"):
            pid = int(file.read_text() or 0)
            if subprocess.run(node.argv("kill", "-0", pid), stderr=subprocess.DEVNULL, check=False).returncode == 0:
                return pid
        return 0

    def kill_brick(self, node: Node, brick: Path) -> None:
        node.run("kill", f"-{int(signal.SIGKILL)}", self.brick_pid(node, brick))

    def start_bricks(self, volume: str = MASTER) -> None:
        """Start bricks that do not run, as an admin would."""
        owner = self["s1"] if volume == SLAVE else self.nodes[0]
        owner.gluster("volume", "start", volume, "force")

    def heal(self, node: Node) -> bool:
        """Order healing on this node; return whether that worked: it cannot until the node knows all others."""
        return subprocess.run(node.argv("gluster", "--mode=script", "volume", "heal", MASTER), stdin=subprocess.DEVNULL,
                              capture_output=True, check=False).returncode == 0

    def healed(self, volume: str = MASTER) -> bool:
        """Whether no brick has anything to heal."""
        owner = self["s1"] if volume == SLAVE else self.nodes[0]
        try:
            info = ET.fromstring(owner.gluster("--xml", "volume", "heal", volume, "info"))
        except ET.ParseError:  # there is no XML while bricks come and go
            return False
        return all(brick.findtext("numberOfEntries") == "0" for brick in info.iter("brick"))

    def close(self) -> None:
        self._open.close()


@contextlib.contextmanager
def cluster(folder: Path, shape: str = "replica 2", *, options: dict[str, str] | None = None,
            slave: str = "one brick") -> Iterator[Cluster]:
    """A site that lasts until the end of the block. shape: one of SHAPES, for mvol; options: more of mvol's own."""
    made = Cluster(folder, shape, options=options, slave=slave)
    try:
        yield made
    finally:
        made.close()
