"""The supervisor keeps two real children running, and ends when it should, leaving nothing behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from gsync.base.process import Lock, start_time
from gsync.base.retry import Schedule
from gsync.service.child import child_argv
from gsync.service.kept import Ending, ProcessSpec, RecorderStatusFile, WorkerStatusFile
from gsync.service.supervisor import Attempts, Supervisor
from gsync.session.status import WorkerStatus
from lab import REPOSITORY

SCHEDULE = Schedule(0.01, 0.05, lasted=60.0)
SLEEPS = "import time; time.sleep(600)"

# What the children of these tests begin with: `runs` counts the starts of this child, `say` writes worker.status.
PRELUDE = """
import os, signal, sys, time
from gsync.base.process import start_time
from gsync.session.status import WorkerStatus
folder, name = sys.argv[1], sys.argv[2]
with open(folder + "/" + name, "a") as file:
    file.write(str(os.getpid()) + "\\n")
runs = len(open(folder + "/" + name).readlines())
def say(state):
    WorkerStatus(pid=os.getpid(), started=start_time(os.getpid()), state=state, stime=runs).write(folder + "/status")
def be_seen(state):
    say(state)
    while not os.path.exists(folder + "/seen " + str(os.getpid())):
        time.sleep(0.01)
"""


class Seen:
    """An Observer that keeps everything, and tells a worker that its status was seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.endings: list[tuple[str, Ending]] = []
        self.states: list[str] = []
        self.on_tick: Callable[[WorkerStatus], None] = lambda status: None

    def heard(self, child: str, line: str) -> None:
        self.lines.append(line)

    def ended(self, child: str, ending: Ending, pause: float | None) -> None:
        self.endings.append((child, ending))

    def tick(self, statuses: Sequence[WorkerStatus]) -> None:
        status = WorkerStatus.of_all(statuses)
        if self.states[-1:] != [status.state]:
            self.states.append(status.state)
        if status.pid is not None:
            (self.folder / f"seen {status.pid}").touch()
        self.on_tick(status)


class World:
    """A supervisor of two children that run the given code, in `folder`."""

    def __init__(self, folder: Path, worker: str, recorder: str = SLEEPS, *, once: bool = False,
                 schedule: Schedule = SCHEDULE, patience: Attempts | None = None) -> None:
        self.folder, self.seen = folder, Seen(folder)
        self.recorder_lock = Lock(str(folder / "recorder.lock"), "recorder")

        def argv(name: str, code: str) -> list[str]:
            return [sys.executable, "-c", PRELUDE + code, str(folder), name]

        self.supervisor = Supervisor(
            [ProcessSpec("worker", argv("worker", worker), WorkerStatusFile(str(folder / "status")),
                         str(folder / "worker.lock"))],
            ProcessSpec("recorder", argv("recorder", recorder), RecorderStatusFile(str(folder / "recorder.status")),
                        self.recorder_lock.path),
            self.seen, once=once, schedule=schedule, patience=patience)

    def starts(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def pids(self) -> list[int]:
        return [int(line) for name in ("worker", "recorder") for line in self.starts(name)]

    def stop_when(self, condition: Callable[[WorkerStatus], bool], number: int = signal.SIGTERM) -> None:
        def look(status: WorkerStatus) -> None:
            if condition(status):
                os.kill(os.getpid(), number)
                self.seen.on_tick = lambda status: None
        self.seen.on_tick = look


def ends(pid: int) -> bool:
    """Whether a process that is not our child ends; waits for it (a pidfd is readable at the end)."""
    try:
        with open(os.pidfd_open(pid), "rb", closefd=True) as fd:
            return select.select([fd], [], [], 60)[0] != []
    except ProcessLookupError:
        return True


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize("code", [0, 1])
def test_once_ends_with_the_workers_exit_code(tmp_path: Path, code: int) -> None:
    world = World(tmp_path, f"""
while not os.path.exists(folder + "/recorder"):
    time.sleep(0.01)
print('hello', flush=True)
sys.exit({code})
""", once=True)
    assert world.supervisor.run().code == code
    assert "hello" in world.seen.lines
    assert len(world.starts("worker")) == 1
    assert {start_time(pid) for pid in world.pids()} == {None}


def test_once_ends_when_all_workers_are_done_with_the_worst_code(tmp_path: Path) -> None:
    def at(name: str, code: str) -> ProcessSpec:
        return ProcessSpec(name, [sys.executable, "-c", PRELUDE + code, str(tmp_path), name],
                           WorkerStatusFile(f"{tmp_path}/{name}.status"), f"{tmp_path}/{name}.lock")

    seen = Seen(tmp_path)
    workers = [at("a", "sys.exit(1)"), at("b", "while not os.path.exists(folder + '/a'): time.sleep(0.01)"),
               at("c", "if runs == 1: os.kill(os.getpid(), signal.SIGKILL)")]
    assert Supervisor(workers, None, seen, once=True, schedule=SCHEDULE).run().code == 1
    assert [len((tmp_path / name).read_text().splitlines()) for name in "abc"] == [1, 1, 2]


@pytest.mark.parametrize("code", [2, 3, 4])
def test_a_worker_that_cannot_start_ends_the_run_with_its_code_and_line(
        tmp_path: Path, code: int) -> None:
    world = World(tmp_path, f"sys.stderr.write('noise\\ngsync: slave h:/s: refused\\n'); sys.exit({code})",
                  patience=Attempts(locked_tries=2))
    assert world.supervisor.run() == Ending(code, "slave h:/s: refused")
    status = WorkerStatus.read(str(tmp_path / "status"))
    assert status is not None
    assert (status.state, status.reason, status.pid) == ("Stopped", "slave h:/s: refused", None)


def test_a_worker_that_was_active_is_started_again_when_the_slave_goes_away(tmp_path: Path) -> None:
    world = World(tmp_path, """
be_seen("Active")
if runs > 2:
    time.sleep(600)
print("gsync: slave h:/s: lost", flush=True)
sys.exit(4)
""")
    world.stop_when(lambda status: status.stime == 3 and status.state == "Active")
    assert world.supervisor.run().code == 0
    assert len(world.starts("worker")) == 3
    assert world.seen.endings == [("worker", Ending(4, "slave h:/s: lost"))] * 2


def test_a_run_once_does_not_outwait_a_slave_that_went_away(tmp_path: Path) -> None:
    lost = "be_seen('Active'); sys.stderr.write('gsync: lost\\n'); sys.exit(4)"
    world = World(tmp_path, lost, once=True)
    assert world.supervisor.run() == Ending(4, "lost")


def test_a_killed_worker_is_started_again(tmp_path: Path) -> None:
    world = World(tmp_path, "runs < 3 and os.kill(os.getpid(), signal.SIGKILL)", once=True)
    assert world.supervisor.run().code == 0
    assert len(world.starts("worker")) == 3
    assert world.seen.endings[0] == ("worker", Ending(-9, "worker was killed by SIGKILL"))


def test_while_no_worker_runs_the_status_says_why(tmp_path: Path) -> None:
    world = World(tmp_path, """
be_seen("Active")
if runs == 1:
    sys.exit("gsync: no space left")
time.sleep(600)
""", schedule=Schedule(0.5, 0.5), patience=Attempts(look=0.25))  # one look at the least comes in between
    world.stop_when(lambda status: status.stime == 2)
    world.supervisor.run()
    assert "Faulty" in world.seen.states
    assert world.seen.states[-1] == "Active"


def test_a_worker_that_fails_again_and_again_ends_a_run_once_only(tmp_path: Path) -> None:
    world = World(tmp_path, "sys.stderr.write('gsync: bug\\n'); sys.exit(5)", once=True)
    assert world.supervisor.run() == Ending(5, "bug")
    assert len(world.starts("worker")) == 4
    (tmp_path / "2").mkdir()
    world = World(tmp_path / "2", "sys.stderr.write('gsync: bug\\n'); sys.exit(5)")
    world.stop_when(lambda status: len(world.starts("worker")) > 6)
    assert world.supervisor.run().code == 0


def test_a_status_of_a_former_worker_is_not_believed(tmp_path: Path) -> None:
    WorkerStatus(pid=1, started=1, state="Active", stime=99, in_step=True).write(str(tmp_path / "status"))
    world = World(tmp_path, "time.sleep(600)")
    world.stop_when(lambda status: bool(world.starts("worker")))
    world.supervisor.run()
    assert world.seen.states == ["Initializing"]
    status = WorkerStatus.read(str(tmp_path / "status"))
    assert status is not None
    assert (status.state, status.stime, status.in_step) == ("Stopped", 99, False)


def test_a_running_recorder_is_used_and_replaced_when_it_ends(tmp_path: Path) -> None:
    world = World(tmp_path, SLEEPS)
    world.recorder_lock.take()
    ticks = iter(range(100))

    def look(status: WorkerStatus) -> None:
        if next(ticks) == 3:
            assert world.starts("recorder") == []
            world.recorder_lock.release()
        if world.starts("recorder"):
            os.kill(os.getpid(), signal.SIGTERM)

    world.seen.on_tick = look
    assert world.supervisor.run().code == 0
    assert len(world.starts("recorder")) == 1


def test_a_recorder_that_lost_the_race_for_the_lock_is_no_error(tmp_path: Path) -> None:
    world = World(tmp_path, SLEEPS, "sys.exit(3)")
    world.stop_when(lambda status: len(world.starts("recorder")) > 1)
    assert world.supervisor.run().code == 0
    assert world.seen.endings == []


def test_a_recorder_that_refuses_ends_the_run(tmp_path: Path) -> None:
    world = World(tmp_path, SLEEPS, "sys.stderr.write('gsync: /m: not a directory\\n'); sys.exit(2)")
    assert world.supervisor.run() == Ending(2, "/m: not a directory")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_both_children_in_order(tmp_path: Path, number: int) -> None:
    in_order = """
import atexit
atexit.register(lambda: open(folder + "/" + name + ".ended", "w").close())
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
time.sleep(600)
"""
    world = World(tmp_path, in_order, in_order)
    world.stop_when(lambda status: len(world.pids()) == 2, number)
    before = signal.getsignal(signal.SIGINT)
    assert world.supervisor.run().code == 0
    assert world.supervisor.signal == number
    assert (tmp_path / "worker.ended").exists()
    assert (tmp_path / "recorder.ended").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_signal_kills_a_child_that_does_not_end(tmp_path: Path) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); open(folder + '/deaf', 'w').close()\n"
    world = World(tmp_path, deaf + SLEEPS)

    def ask_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()

    world.seen.on_tick = lambda status: ask_twice() if (tmp_path / "deaf").exists() else None
    assert world.supervisor.run().code == 0
    assert {start_time(pid) for pid in world.pids()} == {None}


def test_what_a_killed_worker_started_is_ended_too(tmp_path: Path) -> None:
    world = World(tmp_path, """
import subprocess
if runs == 1:
    print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
""", once=True)
    assert world.supervisor.run().code == 0
    assert ends(int(world.seen.lines[0]))


def test_output_comes_in_lines_whatever_bytes_they_hold(tmp_path: Path) -> None:
    world = World(tmp_path, "os.write(1, b'one\\n\\xfftw'); time.sleep(0.1); os.write(2, b'o\\n\\nthree')", once=True)
    world.supervisor.run()
    assert world.seen.lines == ["one", "\\xfftwo", "three"]


def test_children_end_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n")
    code = "import subprocess, time\nfrom gsync.service.child import child_argv\n" \
           "subprocess.Popen(child_argv('sleeper', ['x']))\ntime.sleep(600)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert start_time(pid) is not None
        parent.kill()
        assert ends(pid)


def test_a_child_whose_parent_is_gone_already_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "marker.py").write_text("open('made', 'w').close()")
    argv = child_argv("marker", [])
    assert argv[4] == str(os.getpid())
    argv[4] = "1"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    subprocess.run(argv, env=env, cwd=tmp_path, check=True)
    assert not (tmp_path / "made").exists()
    subprocess.run([*argv[:4], str(os.getpid()), *argv[5:]], env=env, cwd=tmp_path, check=True)
    assert (tmp_path / "made").exists()


def test_a_child_imports_nothing_from_the_users_folder(tmp_path: Path) -> None:
    (tmp_path / "ctypes.py").write_text("raise SystemExit('hijacked')")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env["PYTHONPATH"] = str(REPOSITORY)
    done = subprocess.run(child_argv("this", []), env=env, cwd=tmp_path, capture_output=True, check=False)
    assert b"hijacked" not in done.stderr
