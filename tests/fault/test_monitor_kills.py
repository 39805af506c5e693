"""Monitor, worker and agent killed at random under load, as a session of an admin meets it: nothing is lost, nothing is
left, and status says what is true."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from lab.place import Place
from lab.sshd import HOST, Sshd
from lab.trees import Churn, compare, make_everything, wait_until_equal

VICTIMS = ["monitor", "worker", "agent"]
PATIENCE = 90.0
SOON = 5.0      # s after which status has to be true again
QUIET = 120.0   # s for the trees to become equal; a pause before a restart may be a minute


def churn(root: Path, outside: Path, seed: int, stop: Event) -> None:
    with Churn(root, seed, False, outside) as changes:
        while not stop.is_set():
            changes.run(0.2, 60)


class Kills:
    """A session that runs under a monitor, which is started again at once when it dies, as systemd does it."""

    def __init__(self, place: Place, seed: int) -> None:
        self.place, self.rng = place, random.Random(seed)
        self.slowest = 0.0      # s until status was true again
        self.untrue = ""        # what was seen last that was not
        self._monitor: subprocess.Popen[bytes] | None = None

    def keep_monitor(self) -> None:
        if self._monitor is None or self._monitor.poll() is not None:
            self._monitor = subprocess.Popen(self.place.argv("monitor"), env=self.place.env, start_new_session=True,
                                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                             stderr=subprocess.DEVNULL)

    def end_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.terminate()
            self._monitor.wait(60)

    def wait(self, condition: Callable[[], object], patience: float = PATIENCE) -> None:
        end = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < end, f"{self.place.report()}\n{self.logs()}\n{self.place.processes()}"
            self.keep_monitor()
            time.sleep(0.05)

    def logs(self) -> str:
        monitor = self.place.home / "monitor.log"
        return self.place.log()[-20_000:] + (monitor.read_text()[-20_000:] if monitor.exists() else "")

    def status_is_true(self) -> bool:
        """What status says of the worker, beside what is there."""
        brick = self.place.report()["bricks"][0]
        workers, agents = self.place.pids("worker"), self.place.pids("agent")
        if brick["state"] == "Active":
            true = workers == [brick["pid"]] and bool(agents)
        elif brick["state"] == "Faulty":
            true = bool(brick["reason"]) and (brick["pid"] is None or workers == [brick["pid"]])
        elif brick["state"] == "Stopped":
            true = "no monitor is running" in brick["reason"] and not workers
        else:
            true = brick["state"] == "Initializing" and len(workers) <= 1
        if not true:
            self.untrue = f"{brick['state']} {brick['reason']} pid {brick['pid']}, workers {workers}, agents {agents}"
        return true

    def kill_one(self) -> None:
        """One of them, and wait until status is true again."""
        role = self.rng.choice(VICTIMS)
        self.wait(lambda: self.place.pids(role))
        time.sleep(self.rng.uniform(0, 1.5))  # anywhere in what they do
        for pid in self.place.pids(role)[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        self.wait(self.status_is_true)
        took = time.monotonic() - killed
        self.slowest = max(self.slowest, took)
        print(f"{role} killed, status true after {took:.1f} s; before: {self.untrue}", flush=True)

    def settled(self) -> bool:
        status = self.place.worker_status()
        return bool(status.get("state") == "Active" and status["in_step"] and status["failures"] == 0)


def run(folder: Path, kills: int, seed: int) -> Kills:
    """The whole of it; the trees are equal and nothing is left when it returns."""
    with contextlib.ExitStack() as cleanup:
        server = cleanup.enter_context(Sshd(folder / "sshd"))
        place = Place(folder, slave_arg=f"{HOST}:{folder}/slave")
        (folder / "outside").mkdir()
        place.home.mkdir()
        (place.home / "gsync.conf").write_text(
            f"[gsync]\nssh-config = {server.client_config}\nchange-detector = inotify\n")
        make_everything(place.master / "everything", seed, False)
        place.gsync("create", place.master, place.slave_arg, "--name", "s")
        killing = Kills(place, seed)
        for role in ("monitor", "worker", "recorder"):
            cleanup.callback(place.kill, role)
        killing.wait(lambda: place.pids("monitor") and "monitor started" in killing.logs())
        place.gsync("start", "--no-wait")
        stop = multiprocessing.Event()
        changes = multiprocessing.Process(target=churn, args=(place.master, folder / "outside", seed, stop))
        changes.start()
        try:
            for _ in range(kills):
                killing.kill_one()
        finally:
            stop.set()
            changes.join(60)
        assert changes.exitcode == 0

        killing.wait(lambda: killing.settled() and not compare(place.master, place.slave), QUIET)
        assert wait_until_equal(place.master, place.slave, 0) == []
        for role in ("monitor", "worker", "agent", "recorder"):
            assert len(place.pids(role)) == 1, place.processes()
        place.gsync("stop")
        assert place.pids("worker") == []
        killing.end_monitor()
        for pid in place.pids("recorder"):
            os.kill(pid, signal.SIGTERM)
        no_process_is_left(killing, server)
        no_lock_is_held(place)
        return killing


def no_process_is_left(killing: Kills, server: Sshd) -> None:
    mine = {os.getpid(), server.pid, *server.session_pids()}
    end = time.monotonic() + PATIENCE
    while left := [line for line in killing.place.processes() if int(line.split()[0]) not in mine
                   and "sshd" not in line]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def no_lock_is_held(place: Place) -> None:
    locks = list(place.home.rglob("*.lock"))
    assert len(locks) >= 3  # monitor's, worker's, recorder's
    for path in locks:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.slow
def test_killed_at_random_under_load(tmp_path: Path) -> None:
    run(tmp_path, kills=8, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [2])
def test_killed_fifty_times(tmp_path: Path, seed: int) -> None:
    killing = run(tmp_path, kills=50, seed=seed)
    print(f"status was true again within {killing.slowest:.1f} s")
    assert killing.slowest < SOON
