"""The data engines when things break: a full slave, killed receivers, a cut line, a worker that is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gsync.base.errors import SlaveError, Stopped, Transient, UsageError
from gsync.link import stream
from gsync.link.link import Link, Slave
from gsync.link.openssh import SshOptions
from gsync.link.ssh import SshLink
from gsync.sync.postbox import FileRequest, Result
from gsync.sync.rsync import RsyncEngine, RsyncSettings
from gsync.sync.tarssh import StreamEngine
from lab import REPOSITORY
from lab.engines import Files, World, at, content, local
from lab.images import FsImage
from lab.sshd import HOST, Sshd, below, descendants
from lab.trees import KIB, MIB


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("sshd")) as sshd:
        yield sshd


def new(gfid: bytes) -> FileRequest:
    return FileRequest(gfid, "N", bytes(16), b"", 0)


@pytest.mark.root
@pytest.mark.parametrize("method", ["tarssh", "rsync"])
def test_a_full_slave_is_said_and_what_arrived_before_counts(tmp_path: Path, method: str) -> None:
    with FsImage(tmp_path / "small", 8 * MIB, "tmpfs") as image:
        results: list[Result] = []
        with World(tmp_path, local(image.path), method) as world:
            small, large = world.source.add(b"small", b"x" * 1000), world.source.add(b"large", b"x" * 20 * MIB)
            assert world.fill_all({b"small": small, b"large": large}) == {"new"}
            with pytest.raises(SlaveError, match="No space left"):
                world.engine.move([new(small)], results.extend)
                world.engine.move([new(large)], results.extend)
                world.engine.flush(results.extend)
        assert Result(new(small), 0, "", 1000, False) in results
        with World(tmp_path, local(image.path), method, Files(tmp_path / "again")) as world:  # there is room again
            assert world.place(b"other", world.source.add(b"other", b"x" * 5 * MIB)).errno == 0


@pytest.mark.root
def test_what_a_full_slave_could_not_hold_is_gone_again_and_what_follows_has_room(tmp_path: Path) -> None:
    with FsImage(tmp_path / "small", 8 * MIB, "tmpfs") as image, World(tmp_path, local(image.path), "tarssh") as world:
        large, small = world.source.add(b"large", b"x" * 20 * MIB), world.source.add(b"small", b"y" * 2 * MIB)
        assert world.fill_all({b"large": large, b"small": small}) == {"new"}
        results: list[Result] = []
        with pytest.raises(SlaveError):
            world.engine.move([new(large), new(small)], results.extend)
            world.engine.flush(results.extend)
        assert [(r.request.gfid, r.errno) for r in results] == [(large, errno.ENOSPC), (small, 0)]
        assert world.limbo() == [small.hex()]
        assert content(world.copy(b".gsync/limbo/new/" + small.hex().encode())) == b"y" * 2 * MIB


def meddling(world: World, action: Callable[[], None]) -> None:
    """Have something happen in the middle of a transfer."""
    def meddle(path: bytes) -> None:
        if path.endswith(b"/middle"):
            action()
    world.source.meddle = meddle


def three(world: World) -> list[FileRequest]:
    gfids = {name: world.source.add(name, name * 600 * KIB) for name in (b"first", b"middle", b"last")}
    assert world.fill_all(gfids) == {"new"}
    return [new(gfid) for gfid in gfids.values()]


def kill_receiver(world: World) -> None:
    assert isinstance(world.engine, StreamEngine)
    (receiver,) = below(os.getpid(), b"--receive")
    os.kill(receiver, signal.SIGKILL)


def test_a_killed_receiver_is_transient_and_a_new_one_finishes(tmp_path: Path) -> None:
    with World(tmp_path, local(tmp_path / "slave"), "tarssh") as world:
        requests = three(world)
        meddling(world, lambda: kill_receiver(world))
        with pytest.raises(Transient, match="killed by signal 9"):
            world.move(*requests)
        world.source.meddle = lambda path: None
        world.engine.close()
        world.engine = StreamEngine(world.link, world.source, world.epoch, world.client.ticket, world.flow)
        assert [r.errno for r in world.move(*requests)] == [0, 0, 0]


def test_an_idle_receiver_that_is_killed_is_noticed_at_the_next_box(tmp_path: Path) -> None:
    with World(tmp_path, local(tmp_path / "slave"), "tarssh") as world:
        requests = three(world)
        world.move(requests[0])
        kill_receiver(world)
        with pytest.raises(Transient):
            world.move(*requests[1:])


@pytest.mark.parametrize("method", ["tarssh", "rsync", "auto"])
def test_a_cut_line_is_transient(tmp_path: Path, sshd: Sshd, method: str) -> None:
    link = SshLink(Slave(b"/", HOST), SshOptions(str(sshd.client_config)))
    try:
        with World(tmp_path, at(link, tmp_path / "slave"), method) as world:
            requests = three(world)
            meddling(world, sshd.drop_connections)
            with pytest.raises(Transient):
                world.move(*requests)
    finally:
        link.close()
    link = SshLink(Slave(b"/", HOST), SshOptions(str(sshd.client_config)))
    try:
        with World(tmp_path / "again", at(link, tmp_path / "slave"), method, Files(tmp_path / "files")) as world:
            assert [r.errno for r in world.move(*three(world))] == [0, 0, 0]
    finally:
        link.close()


@pytest.mark.parametrize("method", ["tarssh", "rsync"])
def test_abort_from_another_thread_breaks_a_transfer_off(tmp_path: Path, method: str) -> None:
    with World(tmp_path, local(tmp_path / "slave"), method) as world:
        requests = three(world)
        meddling(world, world.engine.abort)
        with pytest.raises((Transient, Stopped)):
            world.move(*requests)


def runs(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_rsync_does_not_outlive_its_worker(tmp_path: Path) -> None:
    """What rsync went on writing could land on top of what a new worker writes."""
    (tmp_path / "slave").mkdir()
    program = tmp_path / "worker.py"
    program.write_text(f"""
import os, signal, sys, threading, time
from pathlib import Path
from lab.engines import World, local
from gsync.sync.engine import Flow
from gsync.sync.postbox import FileRequest
world = World(Path({str(tmp_path)!r}) / "w", local(Path({str(tmp_path / 'slave')!r})), "rsync", flow=Flow(400_000))
gfid = world.source.add(b"f", os.urandom(4 << 20))
world.fill(b"f", gfid)
threading.Thread(target=world.new, args=(gfid,), daemon=True).start()
while world.engine._running is None:
    time.sleep(0.01)
print(world.engine._running.pid, flush=True)
sys.stdin.read()
""")
    (tmp_path / "w").mkdir()
    worker = subprocess.Popen([sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert worker.stdout is not None
    rsync = int(worker.stdout.readline())
    while b"rsync\0" not in Path(f"/proc/{rsync}/cmdline").read_bytes()[:6]:
        time.sleep(0.01)
    limbo = tmp_path / "slave/.gsync/limbo/link"
    while not any(path.stat().st_size for path in limbo.iterdir()):
        time.sleep(0.01)
    family = [rsync, *descendants(rsync)]
    worker.kill()
    worker.communicate()
    while any(runs(pid) for pid in family):
        time.sleep(0.01)
    (received,) = limbo.iterdir()
    assert received.stat().st_size < 4 * MIB, "it was broken off"


class Missing:
    """A link to a host without rsync."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def __getattr__(self, name: str) -> object:
        return getattr(self._link, name)

    def has_rsync(self) -> bool:
        return False


def test_without_rsync_auto_uses_the_stream_and_rsync_says_so(tmp_path: Path) -> None:
    link = Missing(local(tmp_path / "slave"))
    with World(tmp_path, link, "auto") as world:  # type: ignore[arg-type]
        gfid = world.source.add(b"f", b"x" * 5 * MIB)
        assert world.place(b"f", gfid).errno == 0
        world.source.add(b"f", b"y" * 5 * MIB)
        assert world.in_place(gfid)[0].errno == 0
        assert content(world.copy(b"f")) == b"y" * 5 * MIB
        with pytest.raises(SlaveError, match="needs rsync on both hosts"):
            RsyncEngine(link, world.client, world.source, world.epoch, world.flow)  # type: ignore[arg-type]


def test_wrong_options_of_the_users_for_rsync_are_said(tmp_path: Path) -> None:
    with World(tmp_path, local(tmp_path / "slave"), "tarssh") as world:
        engine = RsyncEngine(world.link, world.client, world.source, world.epoch, world.flow,
                             RsyncSettings(options=("--no-such-option",)))
        gfid = world.source.add(b"f", b"x")
        world.fill(b"f", gfid)
        with pytest.raises(UsageError, match="no-such-option"):
            engine.move([new(gfid)], lambda results: None)
        engine.close()


@pytest.mark.parametrize("piece", [0, 1])
def test_a_read_error_of_the_master_hurts_one_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
                                                        ) -> None:
    monkeypatch.setattr(stream, "EXTENT_MAX", 1 << 20)
    with World(tmp_path, local(tmp_path / "slave"), "tarssh") as world:
        gfids = {name: world.source.add(name, name * 3 * MIB) for name in (b"1", b"2", b"3", b"4")}
        assert world.fill_all(gfids) == {"new"}
        broken = os.stat(world.source.path(b"2")).st_ino
        really = os.sendfile

        def sendfile(out: int, fd: int, offset: int, count: int) -> int:
            if os.fstat(fd).st_ino == broken and offset >= piece << 20:
                raise OSError(errno.EIO, "Input/output error")
            return really(out, fd, offset, count)

        monkeypatch.setattr(os, "sendfile", sendfile)
        results = world.new(*gfids.values())
        assert [r.errno for r in results] == [0, errno.EIO, 0, 0]
        assert len(world.limbo()) == 3


def test_a_file_system_without_sendfile_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sendfile(out: int, fd: int, offset: int, count: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "sendfile", sendfile)
    with World(tmp_path, local(tmp_path / "slave"), "tarssh") as world:
        data = os.urandom(3 * MIB + 1)
        gfid = world.source.add(b"f", data)
        assert world.place(b"f", gfid).errno == 0
        assert content(world.copy(b"f")) == data


def test_a_source_that_shrinks_every_time_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with World(tmp_path, local(tmp_path / "slave"), "tarssh") as world:
        gfids = {name: world.source.add(name, b"x" * 9 * MIB) for name in (b"f", b"good")}
        assert world.fill_all(gfids) == {"new"}

        def shrink(path: bytes) -> None:
            if path.endswith(b"/f"):
                os.truncate(path, os.stat(path).st_size - MIB)

        world.source.meddle = shrink
        results = world.new(*gfids.values())
        assert [r.errno for r in results] == [errno.EAGAIN, 0]
        assert world.limbo() == [gfids[b"good"].hex()]
