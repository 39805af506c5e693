"""One host with a glusterd and as many volumes as a test wants, for GlusterFS as the slave; reached through an sshd.

Everything on it exits with it (see cluster.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gsync.base.model import Gfid
from gsync.link.client import SlaveClient
from gsync.link.link import Channel, Slave
from gsync.link.local import _PROGRAM, LocalLink
from gsync.link.protocol import FillAnswer, FillRow, Hello, RemoveAnswer, RemoveRow
from gsync.sync.engine import Flow
from gsync.sync.postbox import FileRequest, Result
from gsync.sync.tarssh import StreamEngine
from lab.engines import Files
from lab.gluster.cluster import Node
from lab.hosts import Host, Hosts, wait_until
from lab.images import FsImage
from lab.slave_side import LATE, NamesSide

SHAPES: dict[str, tuple[int, tuple[str, ...]]] = {
    "one": (1, ()), "dist": (2, ()), "rep": (2, ("replica", "2")), "disp": (3, ("disperse", "3", "redundancy", "1")),
    "shard": (2, ())}
_PRIVATE = ("/var/lib/glusterd", "/var/log/glusterfs", "/var/lib/misc", "/root/.ssh", "/mnt")
# A test's mounts must show the bricks' present state, not that of a second ago.
_OPTIONS = {"storage.health-check-interval": "0", **{f"performance.{name}": "off" for name in (
    "quick-read", "io-cache", "stat-prefetch", "read-ahead", "readdir-ahead", "open-behind")}}
_MOUNT = ("attribute-timeout=0", "entry-timeout=0", "direct-io-mode=enable")
VOLUME_ID = "00000000-0000-0000-0000-00000000c0de"


class SlaveHost:
    """The host `s`, whose volumes are made on request, and another one, `far`."""

    def __init__(self, node: Node, far: Host, folder: Path) -> None:
        self.node, self.far = node, far
        self.folder = folder

    def volume(self, name: str, shape: str = "one", brick: Path | None = None, **options: str) -> Path:
        """Make a volume, start and mount it; return the path of the mount for everyone. brick: where its one brick
        lies."""
        bricks, words = SHAPES[shape]
        places = [f"{self.node.address}:{brick or self.node.bricks / f'{name}-{n}'}" for n in range(bricks)]
        self.node.gluster("volume", "create", name, *words, *places, "force")
        if shape == "shard":
            options = {"features.shard": "on", "features.shard-block-size": "4MB", **options}
        for key, value in {**_OPTIONS, **options}.items():
            self.node.gluster("volume", "set", name, key, value)
        self.node.gluster("volume", "start", name)
        return self.node.mount(name, f"/mnt/{name}", "acl", *_MOUNT)

    def mount_anew(self, name: str) -> None:
        """Mount a volume again: a mount of a sharded volume caches the lengths of files for some time."""
        self.node.run("umount", "-l", f"/mnt/{name}")
        self.node.mount(name, f"/mnt/{name}", "acl", *_MOUNT)

    def lock_holder(self, name: str) -> int:
        """The pid, as the host sees it, of the agent that works in a volume."""
        info = self.node.gluster("volume", "info", name)
        volume_id = next(line.split(": ")[1] for line in info.splitlines() if line.startswith("Volume ID"))
        known = self.node.path(f"/run/gsync/volume-{volume_id}/lock").read_text()
        return int(known.split('"pid": ')[1].split(",")[0])

    def brick_pid(self, name: str, number: int) -> int:
        """The pid of a brick of a volume."""
        brick = str(self.node.bricks / f"{name}-{number}").strip("/").replace("/", "-")
        file, = self.node.path("/run/gluster/vols").glob(f"*/*{brick}.pid")
        return int(file.read_text())

    def kill(self, pid: int) -> None:
        self.node.run("kill", "-9", pid)


@contextlib.contextmanager
def slave_host(folder: Path) -> Iterator[SlaveHost]:
    with contextlib.ExitStack() as opened:
        disk = opened.enter_context(FsImage(folder / "disk", 4 << 30, "ext4")).path
        private = {}
        for place in _PRIVATE:
            Path(place).mkdir(parents=True, exist_ok=True)
            private[place] = disk / "root" / place.strip("/")
            private[place].mkdir(parents=True)
        hooks = Path("/var/lib/glusterd/hooks")
        if hooks.is_dir():
            shutil.copytree(hooks, private["/var/lib/glusterd"] / "hooks")
        hosts = opened.enter_context(Hosts("s", "far", private={"s": private}, kind=Node))
        node = hosts["s"]
        assert isinstance(node, Node)
        node.bricks = disk / "bricks"
        node.bricks.mkdir()
        node.run("mount", "-t", "tmpfs", "tmpfs", "/run")
        node.run("glusterd")
        wait_until("glusterd", lambda: subprocess.run(
            node.argv("gluster", "--mode=script", "pool", "list"), stdin=subprocess.DEVNULL, capture_output=True,
            check=False).returncode == 0)
        yield SlaveHost(node, hosts["far"], folder)


# Runs a command in a place where libgfapi cannot be loaded.
_WITHOUT_GFAPI = ("unshare", "--mount", "sh", "-c", 'mount --bind /dev/null "$0" && exec "$@"', next(
    iter(map(str, Path("/usr/lib").glob("*/libgfapi.so.0"))), "libgfapi.so.0"))


class HostLink(LocalLink):
    """Runs programs on a host, with pipes to them; the agent reaches the volume by this access: gfapi or mount."""

    def __init__(self, node: Node, volume: str, way: str) -> None:
        super().__init__(Slave(f"::{volume}".encode()))
        self._node, self._way = node, way

    def agent(self, argv: Sequence[bytes]) -> Channel:
        return Channel([*self.there(), *_PROGRAM, *argv])

    def there(self) -> list[bytes]:
        """The words before a command that runs on the host."""
        hidden = _WITHOUT_GFAPI if self._way == "mount" else ()
        return [word.encode() for word in self._node.argv("setpriv", "--pdeathsig", "KILL", *hidden)]


class Side(NamesSide):
    """A worker's side of one volume: fills names and sends files as a worker would, without a worker."""

    epochs = itertools.count(1)

    def __init__(self, host: SlaveHost, volume: str, way: str, source: Files) -> None:
        self.host, self.volume, self.way, self.source = host, volume, way, source
        self.mount = host.node.path(f"/mnt/{volume}")
        self._fresh = itertools.count(1)
        self._open = False
        self.hello = self.connect()
        maps = self.host.node.run("cat", f"/proc/{self.host.lock_holder(self.volume)}/maps")
        assert ("libgfapi" in maps) == (self.way == "gfapi")

    def connect(self) -> Hello:
        """Connect, or connect again."""
        self.epoch = next(self.epochs)
        self.link = HostLink(self.host.node, self.volume, self.way)
        self.client = SlaveClient(self.link)
        try:
            self.hello = self.client.hello(VOLUME_ID, "test", "test", self.epoch)
        except BaseException:
            self.client.close()
            raise
        self.engine = StreamEngine(self.link, self.source, self.epoch, self.client.ticket, Flow())
        self._open = True
        return self.hello

    def close(self) -> None:
        if self._open:
            self._open = False
            self.engine.close()
            self.client.close()

    # a worker's steps

    def _fill(self, rows: Sequence[FillRow]) -> FillAnswer:
        return self.client.fill(rows)

    def _remove(self, rows: Sequence[RemoveRow], keep_last: bool) -> RemoveAnswer:
        return self.client.remove(rows, keep_last)

    def move(self, *requests: FileRequest) -> list[Result]:
        results: list[Result] = []
        self.engine.move(requests, results.extend)
        self.engine.flush(results.extend)
        return sorted(results, key=lambda result: requests.index(result.request))

    def new_file(self, data: bytes) -> Gfid:
        return self.source.add(b"f%d" % next(self._fresh), data)

    def send(self, row: FillRow) -> None:
        fd, st = self.source.open(row.gfid)
        os.close(fd)
        assert [r.errno for r in self.move(FileRequest(row.gfid, "N", row.pargfid, row.bname, st.st_size))] == [0]

    def knows(self, gfid: Gfid) -> bool:
        return self.client.known([gfid]) == [True]

    def holds(self, gfid: Gfid, data: bytes) -> bool:
        return self.client.digest([gfid]) == [(len(data), hashlib.blake2b(data).hexdigest())]

    def wait_gone(self, *gfids: Gfid) -> None:
        wait_until("the agent has deleted them", lambda: not any(self.client.known(gfids)))

    def commit(self, stime: int = LATE) -> None:
        self.client.commit(stime, stime, self.epoch, clear=True)

    def listed(self, gfid: Gfid) -> dict[bytes, Gfid | None]:
        return dict(self.client.list(gfid)[0])

    def shows(self, condition: Callable[[], bool]) -> None:
        """Wait until the mount shows it; for a sharded volume, a new mount."""
        if self.volume.startswith("shard"):
            self.host.mount_anew(self.volume)
        assert condition()

    def path(self, *names: bytes) -> Path:
        return self.mount.joinpath(*(name.decode("utf-8", "surrogateescape") for name in names))
