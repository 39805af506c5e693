"""What systemd hears."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.base.notify import Notifier


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        yield listener


def heard(systemd: socket.socket) -> list[str]:
    words = []
    while True:
        try:
            words.append(systemd.recv(4096).decode())
        except BlockingIOError:
            return words


def test_a_service_says_what_it_does(systemd: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier(environ)
    assert environ == {}  # nothing for children
    notifier.ready()
    notifier.says("3 sessions\nof many")
    notifier.says("3 sessions\nof many")
    notifier.alive()
    notifier.alive()  # too soon to be told
    notifier.stopping()
    assert heard(systemd) == ["READY=1", "STATUS=3 sessions of many", "WATCHDOG=1", "STOPPING=1"]


def test_life_is_told_four_times_in_the_time_that_systemd_waits(systemd: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "60000000"}
    seconds = iter(range(60))
    notifier = Notifier(environ, clock=lambda: float(next(seconds)))
    for _ in range(60):
        notifier.alive()
    assert heard(systemd) == ["WATCHDOG=1"] * 4


def test_the_watchdog_of_another_process_is_not_fed(systemd: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}
    Notifier(environ).alive()
    assert heard(systemd) == []


def test_an_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0gsync-test-{os.getpid()}")
        Notifier({"NOTIFY_SOCKET": f"@gsync-test-{os.getpid()}"}).ready()
        assert listener.recv(100) == b"READY=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}])
def test_nobody_listens(environ: dict[str, str]) -> None:
    notifier = Notifier(environ)
    notifier.ready()
    notifier.alive()
    notifier.stopping()
