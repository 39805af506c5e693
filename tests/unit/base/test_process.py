"""A process is known by pid and start time; a lock says who holds it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gsync.base.errors import LockedError
from gsync.base.process import Lock, is_alive, start_time

HOLD = """
import sys
from gsync.base.process import Lock
lock = Lock(sys.argv[1], "it")
lock.take()
print("taken", flush=True)
sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"taken\n"
    return process


def test_a_process_is_alive_until_it_has_ended() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        started = start_time(process.pid)
        assert is_alive(process.pid, started)
        assert not is_alive(process.pid, (started or 0) + 1)  # another process with that pid
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(process.pid, started)  # dead, not yet reaped
    assert not is_alive(process.pid, started)
    assert not is_alive(None, started)
    assert not is_alive(os.getpid(), None)


def test_a_lock_is_refused_with_the_pid_of_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as process:
        lock = Lock(str(path), "session x")
        assert lock.holder() == process.pid
        with pytest.raises(LockedError, match=f"session x is running already, pid {process.pid}"):
            lock.take()
        process.communicate()
    with lock:
        assert lock.holder() == os.getpid()
    assert lock.holder() is None


def test_a_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as process:
        process.kill()
    lock = Lock(str(path), "it")
    assert lock.holder() is None
    with lock:
        assert lock.holder() == os.getpid()


def test_a_lock_that_is_not_named_keeps_others_out_and_shows_nobody(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with Lock(path, "it", named=False):
        assert Lock(path, "").holder() is None
        with pytest.raises(LockedError, match="it is running already"):
            Lock(path, "it").take()
    with Lock(path, "it") as lock:
        assert lock.holder() == os.getpid()
