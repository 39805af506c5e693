"""The monitor keeps what is wanted running, once, through deaths, silence and its own restarts."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gsync.base.errors import Faulty, LockedError
from gsync.base.notify import Notifier
from gsync.base.process import Lock
from gsync.base.retry import Schedule
from gsync.recorder.status import RecorderStatus, read_status, write_status
from gsync.service.kept import ProcessSpec, complaint, recorder_spec, worker_spec
from gsync.service.managed import Managed, is_ours
from gsync.service.monitor import Monitor, monitor_lock
from gsync.session.control import Wanted, write_wanted
from gsync.session.metavolume import node_name
from gsync.session.options import Options
from gsync.session.session import Session, SessionHome
from gsync.session.status import WorkerStatus
from gsync.state.home import Home, Volume
from lab import REPOSITORY

PATIENCE = 60.0
SCHEDULE = Schedule(0.01, 0.05, lasted=60.0)

# A process as a monitor sees it: it notes its start, takes its lock, then does what `code` says.
PROCESS = """
import os, sys, time
lock, starts = sys.argv[1:3]
from gsync.base.notify import Notifier
from gsync.base.process import Lock
try:
    Lock(lock, "it").take()
except Exception:
    sys.exit(3)
with open(starts, "a") as file:
    file.write(f"{os.getpid()}\\n")
"""
SLEEPS = "time.sleep(600)"


def wait(condition: Callable[[], object], step: Callable[[], None] = lambda: None) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come in time"
        step()
        time.sleep(0.01)


class World:
    """A state directory with sessions, and monitors on it, whose workers and recorders do what `code` and `records` say
    when they start. `late` seconds are added to the monitors' clock; `ours`: whether they may end what they find;
    `mounted`: whether anything is mounted anywhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "master").mkdir()
        self.home = Home(str(folder / "home"))
        self.home.add("v", str(folder / "master"))
        self.code = self.records = SLEEPS
        self.late = 0.0
        self.silence = 600.0
        self.ours = self.mounted = True
        self.monitors: list[Monitor] = []
        self.monitor = self.new_monitor()

    def new_monitor(self, schedule: Schedule = SCHEDULE, notifier: Notifier | None = None) -> Monitor:
        monitor = Monitor(self.home, schedule=schedule, worker=self._worker, recorder=self._recorder,
                          managed=self._managed, mounted=lambda place: self.mounted or None, notifier=notifier,
                          look=0.01)
        self.monitors.append(monitor)
        return monitor

    def clock(self) -> float:
        return time.monotonic() + self.late

    def _managed(self, spec: ProcessSpec, schedule: Schedule) -> Managed:
        return Managed(spec, schedule, self.clock, ours=lambda running: self.ours and is_ours(running))

    def _argv(self, name: str, lock: str, code: str) -> list[str]:
        return [sys.executable, "-c", PROCESS + code, lock, str(self.folder / name), "--managed"]

    def _worker(self, session: Session, home: Home) -> ProcessSpec:
        spec = worker_spec(session, self._argv(session.name, session.worker_lock, self.code))
        return replace(spec, silence=self.silence, end=((0.05, signal.SIGTERM), (0.1, signal.SIGKILL)))

    def _recorder(self, volume: Volume, home: Home, site: Options) -> ProcessSpec:
        argv = [*self._argv(volume.name, volume.brick().lock, self.records), "-m", str(site.rollover_time)]
        return recorder_spec(f"recorder of volume {volume.name}", volume.brick(), self.silence, argv)

    def session(self, name: str = "s", wanted: Wanted = Wanted.STARTED) -> Session:
        sessions = SessionHome(self.home)
        session = sessions.find_or_new("v", f"/slaves/{name}", name)
        sessions.save(session)
        if wanted is not Wanted.CREATED:
            write_wanted(session, wanted)
        return session

    def starts(self, name: str = "s") -> list[int]:
        path = self.folder / name
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait(self, condition: Callable[[], object]) -> None:
        wait(condition, self.monitor.step)

    def status(self, session: Session) -> WorkerStatus:
        return WorkerStatus.read(session.worker_status) or WorkerStatus()

    def end(self) -> None:
        for monitor in self.monitors:
            for kept in [*monitor.workers.values(), *monitor.recorders.values()]:
                if kept.running is not None:
                    kept.running.send(signal.SIGKILL)
                    wait(kept.running.ended)
                    kept.running.close()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("GSYNC_SYSTEM_CONF", str(tmp_path / "none"))
    world = World(tmp_path)
    yield world
    world.end()


def test_a_started_session_gets_a_worker_and_its_volume_a_recorder(world: World) -> None:
    session = world.session()
    world.wait(lambda: world.starts() and world.starts("v"))
    for _ in range(5):
        world.monitor.step()
    assert len(world.starts()) == len(world.starts("v")) == 1
    assert Lock(session.worker_lock, "").holder() == world.starts()[0]


@pytest.mark.parametrize("wanted", [Wanted.CREATED, Wanted.STOPPED])
def test_a_session_that_is_not_started_gets_none(world: World, wanted: Wanted) -> None:
    world.session(wanted=wanted)
    world.session("other")
    world.wait(lambda: world.starts("other"))
    assert world.starts() == []


def test_a_session_that_was_never_started_needs_no_recorder_and_one_that_is_stopped_does(world: World) -> None:
    session = world.session(wanted=Wanted.CREATED)
    for _ in range(5):
        world.monitor.step()
    assert world.monitor.recorders == {}
    write_wanted(session, Wanted.STOPPED)
    world.wait(lambda: world.starts("v"))
    SessionHome(world.home).remove(session)
    world.wait(lambda: world.monitor.recorders == {})
    assert Lock(world.home.get("v").brick().lock, "").holder() is None


def test_a_worker_that_does_not_end_by_itself_is_ended(world: World) -> None:
    world.code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPS
    session = world.session()
    world.wait(world.starts)
    write_wanted(session, Wanted.STOPPED)
    world.wait(lambda: not world.monitor.workers)
    assert Lock(session.worker_lock, "").holder() is None
    assert world.status(session).state == "Stopped"
    assert len(world.starts()) == 1


def test_a_deleted_session_loses_its_worker_and_gets_no_files(world: World) -> None:
    session = world.session()
    world.wait(world.starts)
    SessionHome(world.home).remove(session)
    world.wait(lambda: not world.monitor.workers)
    assert not os.path.exists(session.folder)


@pytest.mark.parametrize(("code", "reason"), [
    ("sys.stderr.write('noise\\ngsync: slave h:/s: refused\\nmore noise\\n'); sys.exit(4)", "slave h:/s: refused"),
    ("os.kill(os.getpid(), 9)", "worker of session s was killed by SIGKILL"),
    ("raise ZeroDivisionError('seven')", "ZeroDivisionError: seven"),
    ("sys.exit(5)", "worker of session s exited with code 5"),
], ids=["a complaint", "a kill", "a crash", "no word"])
def test_a_worker_that_dies_is_faulty_with_its_reason_and_starts_again(world: World, code: str, reason: str) -> None:
    world.code = code
    session = world.session()
    world.wait(lambda: len(world.starts()) >= 3)
    world.wait(lambda: world.status(session).state == "Faulty")
    assert world.status(session).reason == reason


def test_pauses_grow_and_end_when_the_session_is_changed(world: World) -> None:
    world.monitor = world.new_monitor(Schedule(600.0, 600.0))
    world.code = "sys.exit(5)"
    session = world.session()
    world.wait(lambda: world.monitor.workers and world.monitor.workers["s"].tries.failed == 1)
    world.monitor.step()
    assert len(world.starts()) == 1
    world.late = 601.0
    world.wait(lambda: len(world.starts()) == 2)
    world.wait(lambda: world.monitor.workers["s"].tries.failed == 2)
    world.code = SLEEPS
    Path(session.config).write_text("[gsync]\nsync-jobs = 3\n")
    world.wait(lambda: len(world.starts()) == 3)


def test_what_runs_is_found_by_the_next_monitor_and_obeys_it(world: World) -> None:
    session = world.session()
    world.wait(lambda: world.starts() and world.starts("v"))
    world.monitor = world.new_monitor()
    for _ in range(10):
        world.monitor.step()
    assert len(world.starts()) == len(world.starts("v")) == 1
    os.kill(world.starts()[0], signal.SIGKILL)
    first = world.monitors[0].workers["s"].running
    assert first is not None
    wait(first.ended)  # nobody else can wait for it
    world.wait(lambda: len(world.starts()) == 2)
    write_wanted(session, Wanted.STOPPED)
    world.wait(lambda: not world.monitor.workers)


def test_a_silent_worker_is_killed_and_started_again(world: World) -> None:
    world.silence = 300.0
    session = world.session()
    world.wait(world.starts)
    world.late = 301.0
    world.wait(lambda: len(world.starts()) == 2)
    assert world.status(session).reason == "worker of session s was silent for 300 s and was killed"


def test_a_worker_that_writes_its_status_is_not_silent(world: World) -> None:
    world.silence = 300.0
    session = world.session()
    world.wait(world.starts)
    for _ in range(3):
        world.late += 200.0
        WorkerStatus(reason=str(world.late)).write(session.worker_status)
        world.monitor.step()
    world.late += 200.0
    for _ in range(20):
        world.monitor.step()
        time.sleep(0.01)
    assert len(world.starts()) == 1


def test_a_damaged_session_does_not_stop_the_others(world: World) -> None:
    world.session("other")
    session = world.session()
    Path(session.folder, "session.json").write_text("{")
    world.wait(lambda: world.starts("other"))
    assert world.starts() == []
    assert "damaged" in world.monitor.sessions.broken["s"]


def test_a_running_session_whose_settings_are_damaged_is_left_alone(world: World) -> None:
    session = world.session()
    world.wait(world.starts)
    Path(session.config).write_text("[gsync]\nsync-jobs = many\n")
    world.wait(lambda: "s" in world.monitor.sessions.broken)
    assert len(world.starts()) == 1
    world.monitor.step()
    os.kill(world.starts()[0], signal.SIGKILL)
    world.wait(lambda: world.status(session).state == "Faulty")
    assert len(world.starts()) == 1
    Path(session.config).unlink()
    world.wait(lambda: len(world.starts()) == 2)


def test_damaged_settings_of_the_node_leave_all_as_it_is(world: World) -> None:
    world.session()
    world.wait(lambda: world.starts() and world.starts("v"))
    late = world.session("late", Wanted.CREATED)
    site = Path(world.home.path, "gsync.conf")
    site.write_text("nonsense")
    write_wanted(late, Wanted.STARTED)
    for _ in range(5):
        world.monitor.step()
    assert world.starts("late") == [] and len(world.starts()) == len(world.starts("v")) == 1
    site.unlink()
    world.wait(lambda: world.starts("late"))


def test_a_recorder_with_other_settings_is_replaced_and_one_of_others_is_not(world: World) -> None:
    world.session()
    world.wait(lambda: world.starts("v"))
    site = Path(world.home.path, "gsync.conf")
    site.write_text("[gsync]\nrollover-time = 7\n")
    world.wait(lambda: len(world.starts("v")) == 2)
    assert "7.0" in world.monitor.recorders["v"].running.argv()  # type: ignore[union-attr]

    world.ours = False
    world.late = 700.0
    SessionHome(world.home).remove(SessionHome(world.home).get("s"))
    for _ in range(5):
        world.monitor.step()
    assert Lock(world.home.get("v").brick().lock, "").holder() == world.starts("v")[-1]


def test_why_a_recorder_does_not_run_stands_in_its_status(world: World) -> None:
    brick = world.home.get("v").brick()
    os.makedirs(brick.folder)
    write_status(brick.status, RecorderStatus(state="Recording", complete_up_to=5))
    world.records = "print('gsync: no watches are left', file=sys.stderr); sys.exit(5)"
    world.session()
    world.wait(lambda: read_status(brick.status).reason)  # type: ignore[union-attr]
    status = read_status(brick.status)
    assert status is not None
    assert (status.state, status.reason, status.complete_up_to) == ("Faulty", "no watches are left", 5)


def test_sessions_on_a_meta_volume_that_is_away_are_faulty_and_come_back(world: World) -> None:
    mount = world.folder / "meta"
    mount.mkdir()
    Path(world.home.path, "gsync.conf").write_text(
        f"[gsync]\nuse-meta-volume = true\nmeta-volume-mnt = {mount}\n")
    session = world.session()
    assert session.on_meta_volume
    world.wait(world.starts)
    world.mounted = False
    mount.rename(world.folder / "away")
    for _ in range(5):
        world.monitor.step()
    assert len(world.starts()) == 1  # it is the lease that stops it
    os.kill(world.starts()[0], signal.SIGKILL)
    world.wait(lambda: world.status(session).state == "Faulty" and "not mounted" in world.status(session).reason)
    os.unlink(Path(session.folder, "session.json"))  # another node has created it
    for _ in range(10):
        world.monitor.step()
        time.sleep(0.01)
    assert len(world.starts()) == 1
    (world.folder / "away").rename(mount)
    world.mounted = True
    world.wait(lambda: len(world.starts()) == 2)
    os.makedirs(session.statuses)
    os.kill(world.starts()[1], signal.SIGKILL)
    told = Path(session.statuses, node_name())
    world.wait(told.exists)
    assert (WorkerStatus.read(str(told)) or WorkerStatus()).reason == "worker of session s was killed by SIGKILL"


def test_a_session_of_all_nodes_whose_volume_is_not_here_is_other_nodes_business(world: World) -> None:
    mount = world.folder / "meta"
    mount.mkdir()
    Path(world.home.path, "gsync.conf").write_text(
        f"[gsync]\nuse-meta-volume = true\nmeta-volume-mnt = {mount}\n")
    session = world.session()
    world.home.remove("v")
    for _ in range(5):
        world.monitor.step()
    assert world.monitor.workers == world.monitor.recorders == {}
    assert session.name in world.monitor.sessions.views


def test_a_second_monitor_is_refused_with_the_pid_of_the_first(world: World) -> None:
    os.makedirs(world.home.path, exist_ok=True)
    with monitor_lock(world.home), pytest.raises(LockedError, match=f"pid {os.getpid()}"):
        world.monitor.run()


class Told(Notifier):
    """Keeps what it is told; the third sign of life calls `enough`."""

    def __init__(self, enough: Callable[[], None]) -> None:
        super().__init__({})
        self.words: list[str] = []
        self._enough = enough

    def ready(self) -> None:
        self.words.append("ready")

    def alive(self) -> None:
        self.words.append("alive")
        if self.words.count("alive") == 3:
            self._enough()

    def says(self, text: str) -> None:
        self.words.append("step")

    def stopping(self) -> None:
        self.words.append("stopping")


def test_signs_of_life_come_from_the_loop_alone(world: World) -> None:
    told = Told(lambda: os.kill(os.getpid(), signal.SIGTERM))
    world.new_monitor(notifier=told).run()
    assert told.words == ["step", "ready", "alive", "step", "alive", "step", "alive", "step", "stopping"]
    assert monitor_lock(world.home).holder() is None


def test_a_monitor_whose_state_folder_is_replaced_ends(world: World) -> None:
    told = Told(lambda: os.rename(world.home.path, f"{world.home.path}.old"))
    with pytest.raises(Faulty, match="removed or replaced"):
        world.new_monitor(notifier=told).run()


def test_a_complaint_is_the_last_line_of_ours_or_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "said"
    assert complaint(str(path)) == ""
    path.write_text("x" * 9999 + "\ngsync: first\ngsync: second\nlast\n\n")
    assert complaint(str(path)) == "second"
    path.write_text("Traceback\nImportError: no\n")
    assert complaint(str(path)) == "ImportError: no"


def test_a_recorder_suits_whatever_python_runs_it(world: World) -> None:
    argv = ["/new/python", "-P", "-m", "gsync.recorder", "v"]
    spec = recorder_spec("recorder", world.home.get("v").brick(), 1.0, argv)
    assert spec.suits(["/old/python", "-P", "-m", "gsync.recorder", "v"])
    assert not spec.suits(["/old/python", "-P", "-m", "gsync.recorder", "v", "--rollover", "3"])
