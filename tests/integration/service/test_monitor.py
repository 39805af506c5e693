"""Sessions that a monitor runs: start, pause, resume and stop as an admin does them, deaths, restarts, logs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.place import Place
from lab.sshd import HOST, Sshd
from lab.trees import wait_until_equal

PATIENCE = 60.0


def wait(condition: Callable[[], object], place: Place) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"it did not come\n{place.log()}\n{monitor_log(place)}\n{place.processes()}"
        time.sleep(0.05)


def monitor_log(place: Place) -> str:
    path = place.home / "monitor.log"
    return path.read_text() if path.exists() else ""


@contextlib.contextmanager
def managed(place: Place, *create: object) -> Iterator[Place]:
    """A session "s" that is created; in the end its processes and the monitor are ended, and none is left."""
    place.gsync("create", place.master, place.slave_arg, "--name", "s", *create)
    (place.home / "gsync.conf").write_text("[gsync]\nchange-detector = inotify\n")
    try:
        yield place
        place.gsync("stop", "--all")
    finally:
        for role in ("monitor", "recorder", "worker"):
            for pid in place.pids(role):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        left = Leftover(place)
        try:
            wait(left, place)
        finally:
            for role in ("monitor", "recorder", "worker"):
                place.kill(role)


class Leftover:
    """Whether nothing is left of a place's processes."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def __call__(self) -> bool:
        return not self._place.processes()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with managed(Place(tmp_path)) as place:
        yield place


def only(pids: list[int]) -> int:
    (pid,) = pids
    return pid


def brick(place: Place) -> dict[str, Any]:
    found: dict[str, Any] = place.report()["bricks"][0]
    return found


def test_a_session_from_its_start_to_its_stop(place: Place) -> None:
    (place.master / "a").write_text("a")
    started = place.gsync("start")
    assert started.stdout.startswith("s: started; its worker is Active, pid ")
    assert "started one in the background" in started.stderr
    monitor = only(place.pids("monitor"))
    assert wait_until_equal(place.master, place.slave, PATIENCE, 0.1) == []

    assert "Paused" in place.gsync("pause").stdout
    worker = only(place.pids("worker"))
    assert brick(place)["state"] == "Paused"
    (place.master / "b").write_text("b")
    assert place.gsync("resume", "s").stdout == f"s: resumed; its worker is Active, pid {worker}\n"
    assert wait_until_equal(place.master, place.slave, PATIENCE, 0.1) == []

    assert place.gsync("stop", "s").stdout == "s: stopped\n"
    assert place.pids("worker") == place.pids("agent") == []
    assert brick(place)["state"] == "Stopped"
    (place.master / "c").write_text("c")  # recorded all the same
    again = json.loads(place.gsync("start", "--json").stdout)
    assert again == [{"name": "s", "state": "Started", "worker": "Active", "pid": again[0]["pid"], "reason": ""}]
    assert wait_until_equal(place.master, place.slave, PATIENCE, 0.1) == []
    assert only(place.pids("monitor")) == monitor
    assert "hybrid crawl" not in place.log().rpartition("now=Stopped")[2]


def test_commands_on_all_sessions_and_on_several(place: Place) -> None:
    place.gsync("create", place.master, place.folder / "slave2", "--name", "t")
    assert place.gsync("pause", "--all").stdout == place.gsync("resume", "--all").stdout == ""
    assert place.gsync("stop", "s").stdout == "s: was never started\n"
    done = place.gsync("start", "s", "nobody", "t", code=2)
    assert done.stderr.startswith("gsync: no such session: nobody")
    assert [line[:2] for line in done.stdout.splitlines()] == ["s:", "t:"]
    assert len(place.pids("worker")) == 2 and len(place.pids("recorder")) == 1
    assert place.gsync("stop", "--all").stdout == "s: stopped\nt: stopped\n"


def test_a_session_that_gsync_run_runs_is_left_to_it(place: Place) -> None:
    with place.follow():
        done = place.gsync("start", code=3)
        assert "`gsync run` is running it, pid " in done.stderr
        assert place.gsync("start", "--all").stdout == ""
    place.gsync("start")
    refused = place.gsync("run", place.master, place.slave, "--once", code=3)
    assert "session s is started" in refused.stderr


def test_a_slave_that_cannot_be_reached_is_told(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with managed(place):
        place.gsync("start")
        place.gsync("stop")
        place.slave.rename(place.folder / "away")
        done = place.gsync("start", code=4)
        assert "session s: started, but its worker is Faulty" in done.stderr and str(place.slave) in done.stderr
        assert brick(place)["state"] == "Faulty"
        (place.folder / "away").rename(place.slave)
        wait(lambda: brick(place)["state"] == "Active", place)


def test_workers_and_recorders_survive_the_monitor(place: Place) -> None:
    place.gsync("start")
    worker, recorder = only(place.pids("worker")), only(place.pids("recorder"))
    for number in (signal.SIGKILL, signal.SIGTERM):
        monitor = only(place.pids("monitor"))
        os.kill(monitor, number)
        wait(lambda: not place.pids("monitor"), place)
        (place.master / number.name).touch()
        assert wait_until_equal(place.master, place.slave, PATIENCE, 0.1) == []
        place.gsync("start")  # has a monitor again
        assert only(place.pids("monitor")) != monitor
    assert (only(place.pids("worker")), only(place.pids("recorder"))) == (worker, recorder)
    os.kill(worker, signal.SIGKILL)  # found again, it is looked after again
    wait(lambda: brick(place)["state"] == "Active" and place.pids("worker") != [worker], place)


def test_a_second_monitor_is_refused_with_the_pid_of_the_first(place: Place) -> None:
    place.gsync("start")
    done = place.gsync("monitor", code=3)
    assert done.stderr == f"gsync: a monitor of this node is running already, pid {only(place.pids('monitor'))}\n"


def test_a_worker_stops_when_no_monitor_runs(place: Place) -> None:
    place.gsync("start")
    place.kill("monitor")
    wait(lambda: not place.pids("monitor"), place)
    assert place.gsync("stop").stdout == "s: stopped\n"


def test_settings_that_change_restart_what_they_concern(place: Place) -> None:
    place.gsync("start")
    worker, recorder = only(place.pids("worker")), only(place.pids("recorder"))
    place.gsync("config", "s", "set", "sync-jobs", "3")
    wait(lambda: place.pids("worker") not in ([], [worker]) and brick(place)["state"] == "Active", place)
    assert only(place.pids("recorder")) == recorder
    with open(place.home / "gsync.conf", "a") as site:
        site.write("rollover-time = 2\n")
    wait(lambda: place.pids("recorder") not in ([], [recorder]), place)


# ------------------------------------------------------------------------------------------------------------- logs

def test_logs_show_the_last_lines_and_follow(place: Place) -> None:
    assert "session s has no log yet" in place.gsync("logs", code=2).stderr
    place.gsync("start")
    assert " connected " in place.gsync("logs", "s").stdout
    assert len(place.gsync("logs", "-n", "2").stdout.splitlines()) == 2
    assert "monitor started" in place.gsync("logs", "--monitor").stdout
    assert "tree is scanned" in place.gsync("logs", "--recorder").stdout
    with subprocess.Popen(place.argv("logs", "-f"), env=place.env, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        place.gsync("pause")
        while "now=Paused" not in follower.stdout.readline():
            pass
        follower.send_signal(signal.SIGINT)
        assert follower.wait(60) == 0


def test_one_line_tells_of_a_batch(place: Place) -> None:
    place.gsync("start")
    for n in range(3):
        (place.master / f"{n}").write_text("x" * 1000)
    assert wait_until_equal(place.master, place.slave, PATIENCE, 0.1) == []
    wait(lambda: brick(place)["lag_seconds"] is not None and "batch synced" in place.log(), place)
    lines = [line for line in place.log().splitlines() if "batch synced" in line or "hybrid crawl done" in line]
    assert all(" took=" in line and " files=" in line and " bytes=" in line for line in lines)


# ------------------------------------------------------------------------------------------------------------ pauses

SIZE = 40 << 20


def at_the_slave(place: Place) -> int:
    """Bytes in the file, wherever it is by now."""
    found = 0
    for path in [*(place.slave / ".gsync").rglob("*"), *place.slave.glob("large*")]:
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_blocks * 512 if path.is_file() and not path.name.startswith("index.db") else 0
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("method", "rate"), [("tarssh", "4M"), ("rsync", "8M")])
def test_a_pause_stands_still_on_its_connection_and_goes_on(tmp_path: Path, method: str, rate: str) -> None:
    """A large file on its way over ssh, at a rate that leaves time to look: half of it for rsync, one of two jobs."""
    with Sshd(tmp_path / "sshd") as server:
        place = Place(tmp_path, slave_arg=f"{HOST}:{tmp_path}/slave")
        conf = {"ssh-config": server.client_config, "sync-method": method, "bandwidth-limit": rate}
        (place.home).mkdir()
        (place.home / "gsync.conf").write_text("[gsync]\n" + "".join(f"{k} = {v}\n" for k, v in conf.items()))
        place.gsync("create", place.master, place.slave_arg, "--name", "s")
        (place.master / "large").write_bytes(os.urandom(SIZE))
        try:
            place.gsync("start")
            wait(lambda: at_the_slave(place) > 1 << 20, place)
            pids = place.pids("worker"), place.pids("agent"), place.pids("receiver")
            place.gsync("pause")
            end = time.monotonic() + PATIENCE
            before = -1  # what was on its way still arrives
            while (now := at_the_slave(place)) != before:
                assert time.monotonic() < end
                before = now
                time.sleep(1)
            time.sleep(2)
            assert at_the_slave(place) == before < SIZE
            assert brick(place)["state"] == "Paused"
            assert (place.pids("worker"), place.pids("agent"), place.pids("receiver")) == pids
            place.gsync("resume")
            assert wait_until_equal(place.master, place.slave, PATIENCE * 2, 0.2) == []
            assert (place.pids("worker"), place.pids("agent"), place.pids("receiver")) == pids
            place.gsync("stop")
        finally:
            for role in ("monitor", "recorder", "worker"):
                place.kill(role)
        wait(lambda: not [line for line in place.processes() if "sshd" not in line], place)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tarssh", "rsync"])
def test_nothing_is_left_of_a_worker_that_is_killed_in_a_pause(tmp_path: Path, method: str) -> None:
    place = Place(tmp_path)
    with managed(place):
        place.gsync("config", "s", "set", "sync-method", method)
        place.gsync("config", "s", "set", "bandwidth-limit", "4M")
        (place.master / "large").write_bytes(os.urandom(64 << 20))
        place.gsync("start")
        wait(lambda: at_the_slave(place) > 1 << 20, place)
        place.gsync("pause")
        place.kill("monitor")
        place.kill("worker")
        recorder = only(place.pids("recorder"))
        wait(lambda: [line.partition(" ")[0] for line in place.processes()] == [str(recorder)], place)
