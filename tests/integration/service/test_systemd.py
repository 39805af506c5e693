"""Monitor, recorder and delivery as services: the units in conf/, and what they tell systemd."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import REPOSITORY
from lab.place import Place

UNITS = ["gsync-monitor.service", "gsync-recorder@.service", "gsync-deliver.service", "gsync-queue.service",
         "gsync-publish.service"]
# In tenths; a unit that is not hardened has 96.
EXPOSURE = {"gsync-monitor.service": 41, "gsync-recorder@.service": 24, "gsync-deliver.service": 41,
            "gsync-queue.service": 41, "gsync-publish.service": 31}

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


@pytest.fixture
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The unit with a command that exists here."""
    text = (REPOSITORY / "conf" / request.param).read_text()
    assert "ExecStart=/usr/local/bin/gsync " in text
    path = tmp_path / str(request.param)
    path.write_text(text.replace("/usr/local/bin/gsync", str(REPOSITORY / "scripts" / "gsync")))
    return path


def analyze(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *map(str, args)], capture_output=True, text=True, timeout=60, check=False)


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, indirect=True)
def test_a_unit_is_valid(unit: Path) -> None:
    done = analyze("verify", unit)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, indirect=True)
def test_a_unit_stays_hardened(unit: Path) -> None:
    done = analyze("security", "--offline=yes", f"--threshold={EXPOSURE[unit.name]}", unit)
    assert done.returncode == 0, done.stdout


@contextlib.contextmanager
def service(place: Place, *args: object) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """The command as systemd starts it, and where its messages arrive."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(place.folder / "notify"))
        systemd.settimeout(60)
        env = {**place.env, "NOTIFY_SOCKET": str(place.folder / "notify"), "WATCHDOG_USEC": "800000"}
        process = subprocess.Popen(place.argv(*args), env=env)
        try:
            yield process, systemd
        finally:
            process.kill()
            process.wait()


def hear(systemd: socket.socket, wanted: str) -> None:
    while not systemd.recv(4096).decode().startswith(wanted):
        pass


@pytest.mark.parametrize("what", ["monitor", "recorder"])
def test_a_service_is_ready_lives_and_stops(tmp_path: Path, what: str) -> None:
    place = Place(tmp_path)
    place.gsync("volume", "add", "v", place.master)
    args = ["monitor"] if what == "monitor" else ["recorder", "run", "v", "--detector", "inotify"]
    with service(place, *args) as (process, systemd):
        hear(systemd, "READY=1")
        hear(systemd, "WATCHDOG=1")
        hear(systemd, "WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        hear(systemd, "STOPPING=1")
        assert process.wait(60) == 0


def test_a_monitor_that_hangs_is_not_alive(tmp_path: Path) -> None:
    """The settings are a FIFO that nobody writes to, so the loop stands still: only then life is not told."""
    place = Place(tmp_path)
    place.home.mkdir()
    with service(place, "monitor") as (_, systemd):
        hear(systemd, "WATCHDOG=1")
        os.mkfifo(place.home / "gsync.conf")
        systemd.settimeout(2)  # it would have been told ten times
        with pytest.raises(TimeoutError):
            while True:
                hear(systemd, "WATCHDOG=1")
        systemd.settimeout(60)
        writer = os.open(place.home / "gsync.conf", os.O_WRONLY)
        os.unlink(place.home / "gsync.conf")  # before it is read to its end, and looked at again
        os.close(writer)
        hear(systemd, "WATCHDOG=1")
