"""The agent in a GlusterFS volume is killed (-9) at a step of a batch: the next one converges."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gsync.engine.connection import Connection
from gsync.link.client import SlaveClient
from gsync.link.link import Channel
from gsync.recorder import detectors
from gsync.sync.engine import Flow
from gsync.sync.syncer import Syncer
from gsync.sync.tarssh import StreamEngine
from lab import REPOSITORY
from lab.gluster.slavehost import HostLink, SlaveHost, slave_host
from lab.model.world import World
from lab.trees import compare
from tests.fault.test_kill_steps import changed, prepared

pytestmark = [pytest.mark.gluster, pytest.mark.root]

SHARES = 6  # of the steps, for each test

_DIES = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(2))
from gsync.slave import serve
left = int(sys.argv.pop(1))
def step(name):
    global left
    left -= 1
    if left < 0:
        print(name, file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
os.umask(0)
sys.exit(serve.run(os.fsencode(sys.argv[1]), step))
"""


class DyingLink(HostLink):
    """The agent, not the receivers, dies after so many steps."""

    steps: int | None = None

    def agent(self, argv: Sequence[bytes]) -> Channel:
        if self.steps is None or b"--receive" in argv:
            return super().agent(argv)
        package = os.fsencode(REPOSITORY)
        program = [sys.executable.encode(), b"-I", b"-c", _DIES.encode(), b"%d" % self.steps, package]
        return Channel([*self.there(), *program, *argv])


class RealClient(SlaveClient):
    def die(self) -> None:
        self.close()


class VolumeWorld(World):
    """A World whose slave is a volume, with a real agent and real receivers. dies_after: steps of the next agents."""

    def __init__(self, base: Path, host: SlaveHost, volume: str, way: str) -> None:
        self._host, self._volume, self._way = host, volume, way
        self.mount = host.node.path(f"/mnt/{volume}")
        self.dies_after: int | None = None
        super().__init__(base, detectors.inotify)

    def _connect(self, epoch: int) -> Connection:
        link = DyingLink(self._host.node, self._volume, self._way)
        link.steps = self.dies_after
        client = RealClient(link)
        try:
            hello = client.hello(self.volume.uuid, "v", "session", epoch)
        except BaseException:
            client.close()
            raise
        syncer = Syncer(1, lambda flow: StreamEngine(link, self, epoch, client.ticket, flow), Flow())
        return Connection(client, hello, syncer, link)

    def open(self, gfid: bytes) -> tuple[int, os.stat_result]:
        return self.tree.open(gfid)

    def fstat(self, fd: int) -> os.stat_result:
        return self.tree.fstat(fd)

    def xattrs(self, gfid: bytes, fd: int, st: os.stat_result) -> list[tuple[bytes, bytes]]:
        return self.tree.xattrs(gfid, fd, st)

    def changed(self, fd: int, st: os.stat_result) -> bool:
        return self.tree.changed(fd, st)

    def worker_dies(self) -> None:
        if self.connection is not None:
            self.connection.syncer.close()
        super().worker_dies()

    def check_equal(self) -> None:
        assert compare(self.master, self.mount) == []
        limbo = self.mount / ".gsync" / "limbo"
        assert [path for folder in ("new", "old") for path in (limbo / folder).iterdir()] == []
        self._worker()
        assert self.ledger.all() == []


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlaveHost]:
    with slave_host(tmp_path_factory.mktemp("slave")) as made:
        yield made


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize(("shape", "way"), [("dist", "gfapi"), ("one", "mount")], ids=["gfapi", "mount"])
def test_killed_at_every_step_of_a_batch(host: SlaveHost, tmp_path: Path, shape: str, way: str, share: int) -> None:
    host.volume(f"{way}{share}", shape)
    w = VolumeWorld(tmp_path / "w", host, f"{way}{share}", way)
    try:
        nth = share
        while True:
            prepared(w, f"m/{nth}")
            changed(w, f"m/{nth}")
            w.worker_dies()
            w.dies_after = nth
            while w.cycle() and w.worker is not None:
                pass
            died, w.dies_after = w.worker is None, None
            w.quiet()
            w.check_equal()
            if not died:
                break
            nth += SHARES
        assert nth > 4 * SHARES
    finally:
        w.close()
