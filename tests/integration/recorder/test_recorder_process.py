"""The recorder as a process: lock, signals, status, cuts asked for, SIGKILL, retention, an ordinary user."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gsync.base.errors import Faulty, LockedError, Transient, UsageError
from gsync.base.fsid import Inodes
from gsync.changelog.reader import History
from gsync.changelog.records import Data, Entry
from gsync.recorder import detectors
from gsync.recorder.bounds import Bounds, Intervals, Keep
from gsync.recorder.detector import Detector, Knows, Unavailable
from gsync.recorder.recorder import Recorder, run_recorder
from gsync.recorder.status import RECORDING, STOPPED, Control, RecorderPort, read_status
from gsync.state.home import Brick
from lab import REPOSITORY
from lab.recorder_changes import a_directory, one_file
from lab.recording import FACTORIES, World, copy_of, differences, wait_for
from lab.trees import Churn


@contextmanager
def process(world: World, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A recorder; ended by SIGTERM unless it has ended."""
    argv = [sys.executable, "-m", "gsync.recorder", "v", "--home", world.home.path, *args]
    running = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd="/",
                               env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    try:
        yield running
    finally:
        if running.poll() is None:
            running.terminate()
        running.wait()
        assert running.stderr is not None
        running.stderr.close()


@contextmanager
def process_of_nobody(world: World) -> Iterator[int]:
    """A recorder without privileges; its pid. Forked, as nobody may not be allowed to start this interpreter, nor to
    import: the world must have recorded before."""
    pid = os.fork()
    if pid == 0:
        try:
            stop = threading.Event()
            signal.signal(signal.SIGTERM, lambda *_: stop.set())
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: else /proc/self is root's
            run_recorder("v", world.home, stop=stop)
            os._exit(0)
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGTERM)
        assert os.waitpid(pid, 0)[1] == 0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, FACTORIES["inotify"])
    yield world
    world.close()


def copy_when_recording(world: World, port: RecorderPort) -> None:
    wait_for(port, lambda s: s.state == RECORDING)
    world.slave = copy_of(world.volume)


def equal_after(world: World, port: RecorderPort) -> None:
    """The tree is quiet: what is recorded up to now makes the slave equal."""
    port.wait_complete(time.time_ns())
    world.sync(world.new_records())
    assert differences(world.copy(), copy_of(world.volume)) == []


@pytest.mark.parametrize("detector", [pytest.param("fanotify", marks=pytest.mark.root), "inotify"])
def test_it_records_from_start_to_sigterm(world: World, detector: str) -> None:
    a_directory(world.tree, world.outside)
    port = RecorderPort(world.brick)
    with process(world, "--detector", detector) as running:
        copy_when_recording(world, port)
        assert port.holder() == running.pid
        status = port.status()
        assert status is not None and (status.detector, status.pid) == (detector, running.pid)
        assert status.entries == 5
        (world.tree / "d").rename(world.tree / "n")
        (world.tree / "n" / "new").write_bytes(b"x")
        equal_after(world, port)
        (world.tree / "last").write_bytes(b"written just before the end")
        running.send_signal(signal.SIGTERM)
        assert running.wait() == 0
    status = port.status()
    assert status is not None and status.state == STOPPED
    assert b"last" in {name[1] for r in world.new_records() if isinstance(r, Entry) for name in r.names}
    assert port.holder() is None
    assert not port.poke()


def test_a_second_one_is_refused_with_the_pid_of_the_first(world: World) -> None:
    with process(world) as running:
        wait_for(RecorderPort(world.brick), lambda s: s.state == RECORDING)
        second = subprocess.run(running.args, capture_output=True, text=True, check=False, cwd=REPOSITORY)
        assert second.returncode == LockedError.exit_code
        assert second.stderr.strip().splitlines()[-1] == (
            f"gsync: the recorder of volume v is running already, pid {running.pid}")


def test_state_that_cannot_be_written_is_one_line(world: World) -> None:
    os.rename(f"{world.volume.folder}/bricks", f"{world.volume.folder}/away")
    Path(world.volume.folder, "bricks").write_text("a file in the way")
    with process(world) as running:
        assert running.stderr is not None
        complaint = running.stderr.read()
        running.wait()
    assert running.returncode == 5
    assert complaint.splitlines()[-1].startswith("gsync: recorder of volume v: ")


def test_an_unknown_volume_or_detector_is_a_usage_error(world: World) -> None:
    with pytest.raises(UsageError, match="no such volume: w"):
        run_recorder("w", world.home)
    with pytest.raises(UsageError, match="there are auto, fanotify and inotify"):
        run_recorder("v", world.home, detector="dnotify")


@pytest.mark.slow
@pytest.mark.parametrize("detector", [pytest.param("fanotify", marks=pytest.mark.root), "inotify"])
def test_sigkill_again_and_again_under_churn_loses_nothing(world: World, detector: str) -> None:
    port = RecorderPort(world.brick)
    with Churn(world.tree, 1, privileged=False, max_entries=300) as churn:
        for _ in range(30):
            churn.step()
        with process(world, "--detector", detector):
            copy_when_recording(world, port)
        for n in range(8):
            with process(world, "--detector", detector) as running:
                for _ in range(10 + 7 * n):
                    churn.step()
                if n % 2:
                    wait_for(port, lambda s, pid=running.pid: s.pid == pid)  # type: ignore[misc]
                for _ in range(20):
                    churn.step()
                world.sync(world.new_records())
                running.kill()
                running.wait()
    with process(world, "--detector", detector) as last:
        wait_for(port, lambda s: s.state == RECORDING and s.pid == last.pid)
        equal_after(world, port)


def test_a_cut_that_is_asked_for_comes_at_once(world: World) -> None:
    """With a heartbeat of an hour and slices of an hour nothing else would bring it."""
    stop = threading.Event()
    thread = threading.Thread(target=Recorder(world.volume, detector=FACTORIES["inotify"], rollover=3600, quiet=3600,
                                              stop=stop, bounds=Bounds(pace=Intervals(heartbeat=3600))).run)
    port = RecorderPort(world.brick)
    thread.start()
    try:
        wait_for(port, lambda s: s.state == RECORDING)
        one_file(world.tree, world.outside)
        gfid = world.gfid(world.tree / "f")
        port.wait_complete(time.time_ns())
        assert Data(gfid) in world.new_records()
    finally:
        stop.set()
        port.poke()
        thread.join()


def test_waiting_for_a_recorder_that_does_not_run_ends(world: World) -> None:
    stop = threading.Event()
    with pytest.raises(Transient, match="none runs"):
        RecorderPort(world.brick, timeout=0).wait_complete(time.time_ns())
    stop.set()
    with pytest.raises(Transient, match="asked to stop"):
        RecorderPort(world.brick, stop).wait_complete(time.time_ns())


def test_a_damaged_status_is_none(tmp_path: Path) -> None:
    for text in ["", "{", "[]", '{"unknown": 1}']:
        (tmp_path / "status").write_text(text)
        assert read_status(str(tmp_path / "status")) is None
    assert read_status(str(tmp_path / "missing")) is None


def test_what_is_no_fifo_is_replaced_by_one(tmp_path: Path) -> None:
    brick = Brick(str(tmp_path))
    Path(brick.ctl).write_text("a file")
    control = Control(brick.ctl)
    assert not control.asked()
    assert RecorderPort(brick).poke()
    assert control.asked() and not control.asked()
    for _ in range(fcntl.fcntl(control.fd, fcntl.F_SETPIPE_SZ, 4096) + 1):  # more than the FIFO holds
        assert RecorderPort(brick).poke()
    control.close()
    assert not RecorderPort(brick).poke()


def test_auto_takes_the_first_that_works(world: World) -> None:
    def refuse(root_fd: int, inodes: Inodes, knows: Knows) -> Detector:
        raise Unavailable("not here")

    fd = os.open(world.tree, os.O_RDONLY)
    try:
        inodes = Inodes(fd, b"tags")
        detector = detectors.first_of({"fanotify": refuse, "inotify": detectors.inotify}, fd, inodes, lambda gfid: True)
        assert detector.name == "inotify"
        detector.close()
        if os.geteuid() == 0:
            detector = detectors.auto(fd, inodes, lambda gfid: True)
            assert detector.name == "fanotify"
            detector.close()
    finally:
        os.close(fd)


def test_watches_that_are_used_up_are_a_fault_that_says_what_to_do(
        monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    import errno

    from inotify_simple import INotify

    def add_watch(self: INotify, path: bytes, mask: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(INotify, "add_watch", add_watch)
    with pytest.raises(Faulty, match=r"fs\.inotify\.max_user_watches"):
        world.start()
    world.stop()


def test_old_changelogs_go_but_for_what_a_session_needs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.start(bounds=Bounds(keep=Keep(0, 0)))
    assert world.recorder is not None
    for n in range(3):
        (world.tree / f"{n}").touch()
        world.cut()
    kept = [c.ts for c in History(os.fsencode(world.brick.changelogs)).since(0)]
    assert len(kept) == 3
    os.mkdir(world.volume.needed)
    Path(world.volume.needed, "session").write_text(f"{kept[1]}000000000")
    world.recorder.purge()
    assert [c.ts for c in History(os.fsencode(world.brick.changelogs)).since(kept[1] * 10**9)] == kept[2:]
    assert History(os.fsencode(world.brick.changelogs)).covered_from() == kept[1] * 10**9


@pytest.mark.root
def test_an_ordinary_user_records_a_tree_of_his_own() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        os.chmod(folder, 0o755)
        world = World(Path(folder), FACTORIES["inotify by path"])
        a_directory(world.tree, world.outside)
        (world.tree / "shut").mkdir()
        world.start()
        world.cut()
        world.stop()
        assert world.home.get("v") == world.volume
        for top in (world.home.path, str(world.tree)):
            for path in [top, *(str(p) for p in Path(top).rglob("*"))]:
                os.chown(path, 65534, 65534)
        os.chown(world.tree / "shut", 0, 0)
        os.chmod(world.tree / "shut", 0o700)
        port = RecorderPort(world.brick)
        with process_of_nobody(world) as pid:
            status = wait_for(port, lambda s: s.state == RECORDING and s.pid == pid)
            assert status.detector == "inotify"
            (world.tree / "d").rename(world.tree / "e" / "n")
            (world.tree / "e" / "n" / "f").write_bytes(b"changed")
            (world.tree / "e" / "n" / "sub" / "g").unlink()
            (world.tree / "x" / "y").mkdir(parents=True)
            (world.tree / "x" / "y" / "z").write_bytes(b"new")
            equal_after(world, port)
        world.close()
