"""Invariant 9 at the slave: once a younger hello has returned, nothing of an older connection changes anything."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gsync.base import rpc
from gsync.base.errors import SlaveError, Stopped, Transient
from gsync.base.process import start_time
from gsync.link import stream
from gsync.link.client import SlaveClient
from gsync.link.link import Link, Slave
from gsync.link.openssh import SshOptions
from gsync.link.protocol import Fenced, FillRow
from gsync.link.ssh import SshLink
from gsync.slave import fence
from gsync.slave.directory.identity import take
from gsync.sync.engine import Flow
from gsync.sync.postbox import FileRequest
from gsync.sync.rsync import RsyncEngine
from lab.engines import World, at, local
from lab.sshd import HOST, Sshd
from lab.trees import MIB

VOLUME = "00000000-0000-0000-0000-00000000c0de"
ROOT = bytes(15) + b"\x01"


def connect(link: Link, epoch: int, silence: float | None = None) -> SlaveClient:
    client = SlaveClient(link, silence=silence)
    try:
        client.hello(VOLUME, "test", "test", epoch)
    except BaseException:
        client.close()
        raise
    return client


def directory(number: int, name: bytes) -> FillRow:
    return FillRow(ROOT, name, bytes([number]) * 16, stat.S_IFDIR | 0o755, 1, 2, os.geteuid(), os.getegid(), 0, 0, 0)


def holders(root: Path, name: str) -> list[int]:
    fd = os.open(root / ".gsync" / name, os.O_RDONLY)
    try:
        return list(fence.holders(fd))
    finally:
        os.close(fd)


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "slave"


@pytest.fixture
def clients() -> Iterator[list[SlaveClient]]:
    made: list[SlaveClient] = []
    yield made
    for client in made:
        client.close()


@pytest.mark.parametrize("younger", [7, 6], ids=["higher epoch", "the same worker again"])
@pytest.mark.parametrize("freeze", [False, True], ids=["idle", "frozen"])
def test_an_older_agent_is_ended(root: Path, clients: list[SlaveClient], freeze: bool, younger: int) -> None:
    old = connect(local(root), 6)
    clients.append(old)
    (pid,) = holders(root, "lock")
    if freeze:
        os.kill(pid, signal.SIGSTOP)
    waiting = old.submit("fill", rows=[directory(3, b"late").to_json()]) if freeze else None
    new = connect(local(root), younger)
    clients.append(new)
    assert holders(root, "lock") != [pid]
    assert start_time(pid) is None
    with pytest.raises(Transient, match="signal 9"):
        old.call("ping") if waiting is None else waiting.result()
    assert new.fill([directory(2, b"d")]).answers == ["made"]
    assert len(os.listdir(root / ".gsync/passes")) == 1


def test_an_older_epoch_never_displaces_a_younger_one(root: Path, clients: list[SlaveClient]) -> None:
    new = connect(local(root), 7)
    clients.append(new)
    with pytest.raises(Fenced, match="epoch 7 has taken over the slave; this one has epoch 6"):
        connect(local(root), 6)
    new.ping()
    new.close()
    clients.remove(new)
    with pytest.raises(Fenced):
        connect(local(root), 6)


def test_an_agent_that_nobody_can_kill_refuses_everything_and_ends(root: Path, clients: list[SlaveClient]) -> None:
    old = connect(local(root), 6)
    clients.append(old)
    idle = connect(local(root.parent / "other"), 6)
    clients.append(idle)
    for tree in (root, root.parent / "other"):
        state = os.open(tree / ".gsync", os.O_RDONLY)
        fence.announce(state, 7, "0123456789abcdef").close()
        os.close(state)
    with pytest.raises(Fenced, match="epoch 7"):
        old.fill([directory(3, b"late")])
    assert not (root / "late").exists()
    wait_until(lambda: not holders(root.parent / "other", "lock"))  # by itself, though nothing is asked


def test_what_cannot_be_ended_is_said(root: Path) -> None:
    """Here because it is this very process; else it is on another host, in a container or another account's."""
    root.mkdir()
    held = take(os.fsencode(root), VOLUME, "v", False, session="s")
    with pytest.raises(SlaveError, match=rf"another gsync agent is running there \(pid {os.getpid()} of uid"):
        take(os.fsencode(root), VOLUME, "v", False, session="s", epoch=1, patience=fence.Patience(own=0.02))
    with pytest.raises(Fenced):
        held.own.check()
    held.close()


def test_who_only_reads_the_lock_file_is_left_alone(root: Path, clients: list[SlaveClient]) -> None:
    clients.append(connect(local(root), 1))
    with open(root / ".gsync/lock", "rb") as lock, subprocess.Popen(["cat", "-"], stdin=subprocess.PIPE,
                                                                     pass_fds=[lock.fileno()]) as reader:
        clients.append(connect(local(root), 2))
        assert reader.poll() is None
        assert reader.stdin is not None
        reader.stdin.close()


def content_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*")
            if path.is_file() and path.relative_to(root).parts[0] != ".gsync"}


def long_file_in_place(gfid: bytes, size: int) -> bytes:
    head = stream.ItemHeader(stream.FILE, stream.IN_PLACE, 0, 0, 0, gfid, bytes(16), *(0,) * 7, size)
    return stream.HEADER.pack(*head) + stream.EXTENT.pack(0, size)


@pytest.mark.parametrize("freeze", [False, True], ids=["waiting", "frozen"])
def test_a_receiver_in_the_middle_of_a_file(tmp_path: Path, root: Path, clients: list[SlaveClient], freeze: bool
                                            ) -> None:
    with World(tmp_path, local(root), "tarssh") as world:
        gfid = world.source.add(b"f", b"o" * 8 * MIB)
        world.place(b"f", gfid)
        channel = world.link.agent([b"--receive", os.fsencode(root)])
        channel.write(stream.encode_hello(world.epoch, world.client.ticket))
        assert rpc.read_frame(channel.stdout) == {"ready": stream.PROTOCOL}
        channel.write(long_file_in_place(gfid, 8 * MIB) + b"n" * 5 * MIB)  # written in pieces of 4 MiB
        wait_until(lambda: (root / "f").read_bytes()[:4 * MIB] == b"n" * 4 * MIB)
        receiver = channel.pid
        if freeze:
            os.kill(receiver, signal.SIGSTOP)
            channel.write(b"n" * 10000)
        clients.append(connect(local(root), world.epoch + 1))
        before = content_of(root)
        assert start_time(receiver) is None
        with suppress(OSError):
            channel.write(b"n" * MIB)
        late = world.link.agent([b"--receive", os.fsencode(root)])  # one that was still to start
        late.write(stream.encode_hello(world.epoch, world.client.ticket))
        answer = rpc.read_frame(late.stdout)
        assert answer is not None
        assert answer["error"]["type"] == "fenced"
        for old in (channel, late):
            old.close()
        assert content_of(root) == before


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("sshd")) as sshd:
        yield sshd


@pytest.mark.parametrize("way", ["local", "ssh"])
def test_rsync_in_the_middle_of_a_big_file(tmp_path: Path, root: Path, clients: list[SlaveClient], way: str,
                                           sshd: Sshd) -> None:
    link = local(root) if way == "local" else at(SshLink(Slave(b"/", HOST), SshOptions(str(sshd.client_config))),
                                                   root)
    with World(tmp_path, link, "tarssh") as world:
        gfid = world.source.add(b"f", b"o" * 8 * MIB)
        world.place(b"f", gfid)
        world.source.add(b"f", b"n" * 8 * MIB)
        engine = RsyncEngine(link, world.client, world.source, world.epoch, Flow(MIB))
        ended: list[BaseException] = []

        def move() -> None:
            try:
                engine.move([FileRequest(gfid, "P", bytes(16), b"", 0)], lambda results: None)
            except (Transient, Stopped) as exc:
                ended.append(exc)

        mover = threading.Thread(target=move)
        mover.start()
        wait_until(lambda: b"n" * MIB in content_of(root)["f"])
        servers = holders(root, "receivers.lock")
        assert len(servers) >= 2  # rsync's two halves
        os.kill(servers[-1], signal.SIGSTOP)
        clients.append(connect(local(root), world.epoch + 1))
        before = content_of(root)
        assert [pid for pid in servers if start_time(pid) is not None] == []
        mover.join()
        assert len(ended) == 1
        engine.close()
        assert content_of(root) == before
        assert before["f"].startswith(b"n" * MIB)
        assert before["f"].endswith(b"o" * MIB)
    link.close()


def test_a_slave_that_falls_silent_is_noticed_and_left_at_once(sshd: Sshd, root: Path) -> None:
    """The line is cut: nothing comes, nothing goes, and nobody says so."""
    link = at(SshLink(Slave(b"/", HOST), SshOptions(str(sshd.client_config))), root)
    assert link.alive()
    client = connect(link, 1, silence=2)
    frozen = sshd.session_pids()
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(Transient, match="nothing heard from the slave for"):
            client.call("ping")
        wait_until(lambda: not link.alive())  # ssh was killed, and ends when the kernel gets to it
        client.close()
        link.close()
    finally:
        for pid in frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_a_busy_agent_gives_signs_of_life(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[bytes] = []
    read_frame = rpc.read_frame

    def noted(source: Any) -> Any:
        frame = read_frame(source)
        if frame == rpc.BEAT:
            beats.append(frame)
        return frame

    monkeypatch.setattr(rpc, "read_frame", noted)
    with World(tmp_path, local(root), "tarssh") as world:
        gfid = world.source.add(b"f", b"data")
        world.place(b"f", gfid)
        os.truncate(root / "f", 1 << 29)
        busy = connect(world.link, 2, silence=2)
        answer = busy.submit("digest", gfids=[gfid.hex()])
        beats.clear()
        assert answer.result()[0][1] == 1 << 29
        assert len(beats) >= 2
        busy.close()
