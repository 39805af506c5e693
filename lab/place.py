"""A master, a slave and a state directory in one folder, and the real `gsync` command on them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gsync.base.process import start_time
from lab import REPOSITORY

PATIENCE = 90.0  # seconds that any wait may take on a slow machine before a test gives up
_ROLES = [  # words in a command line that tell the role, tried in this order
    ("monitor", re.compile(rb"\0-m\0gsync\0monitor\0")),
    ("run", re.compile(rb"\0-m\0gsync\0run\0")), ("recorder", re.compile(rb"\0gsync\.recorder\0")),
    ("worker", re.compile(rb"\0gsync\.service\.run_worker\0")), ("receiver", re.compile(rb"\0--receive\0")),
    ("agent", re.compile(rb"gsync\.slave\.program|/agent-[0-9a-f]+\.pyz\0")),
]


class Place:
    """`run`'s slave is the local folder unless `slave_arg` names another way to reach it; `args` go with every run."""

    def __init__(self, folder: Path, *, slave_arg: str | None = None, args: tuple[object, ...] = ()) -> None:
        self.folder = folder
        self.master, self.slave, self.home = (folder / name for name in ("master", "slave", "home"))
        self.master.mkdir(exist_ok=True)
        self.slave.mkdir(exist_ok=True)
        self.slave_arg = slave_arg or str(self.slave)
        self.args = args
        path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        self.env = {**os.environ, "GSYNC_HOME": str(self.home), "PYTHONPATH": path, "COLUMNS": "150", "TERM": "xterm"}
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)  # otherwise, each process of each run compiles gsync anew

    def argv(self, *args: object) -> list[str]:
        return [sys.executable, "-P", "-m", "gsync", *map(str, args)]

    def gsync(self, *args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.argv(*args), env=self.env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, done.stderr + self.log()
        return done

    def once(self, *args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.gsync("run", self.master, self.slave_arg, "--once", *self.args, *args, code=code)

    def start(self, *args: object) -> subprocess.Popen[bytes]:
        """Start `gsync run` without reading its output, which goes only to the session's log."""
        argv = self.argv("run", self.master, self.slave_arg, *self.args, *args)
        return subprocess.Popen(argv, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL)

    @contextlib.contextmanager
    def running(self, *args: object) -> Iterator[subprocess.Popen[bytes]]:
        """Run `gsync run` until the end of the block, however that ends."""
        argv = self.argv("run", self.master, self.slave_arg, *self.args, *args)
        with subprocess.Popen(argv, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.terminate()
                process.wait(PATIENCE)

    @contextlib.contextmanager
    def follow(self, *args: object) -> Iterator[subprocess.Popen[bytes]]:
        """The same, and in sync before the block begins."""
        with self.running(*args) as process:
            self.wait_for(lambda brick: brick["state"] == "Active" and brick["last_synced"] is not None)
            yield process

    def report(self) -> dict[str, Any]:
        reports = json.loads(self.gsync("status", "--json").stdout)
        return reports[0] if reports else {"bricks": [{"state": "", "last_synced": None, "pid": None}]}

    def wait_for(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for the condition, checked whenever the worker reports something; return the brick's part of `gsync
        status`."""
        end = time.monotonic() + PATIENCE
        while True:
            said = self.worker_status()
            brick: dict[str, Any] = self.report()["bricks"][0]
            if condition(brick):
                return brick
            assert time.monotonic() < end, f"{brick}\n{self.log()}"
            ask_again = time.monotonic() + 1
            while self.worker_status() == said and time.monotonic() < ask_again:
                time.sleep(0.02)

    def worker_status(self) -> dict[str, Any]:
        """worker.status as it is; {} if there is none yet."""
        for path in self.home.glob("sessions/*/worker.status"):
            with contextlib.suppress(OSError, ValueError):
                values: dict[str, Any] = json.loads(path.read_text())
                return values
        return {}

    def log(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in self.home.glob("sessions/*/log"))

    def _alive(self) -> Iterator[tuple[int, bytes]]:
        mark = bytes(self.folder) + b"/"
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if not entry.isdigit() or start_time(int(entry)) is None:
                    continue
                command = Path("/proc", entry, "cmdline").read_bytes()
                if mark in command or mark in Path("/proc", entry, "environ").read_bytes():
                    yield int(entry), command

    def processes(self) -> list[str]:
        """The command lines of all processes that work for this place."""
        return [f"{pid} {command.replace(bytes(1), b' ').decode(errors='replace')}"
                for pid, command in self._alive() if pid != os.getpid()]

    def pids(self, role: str) -> list[int]:
        """This place's gsync processes that are a run, recorder, worker, agent or receiver."""
        return [pid for pid, command in self._alive() if _role(command) == role]

    def kill(self, role: str) -> bool:
        """Send SIGKILL; return whether there was such a process."""
        pids = self.pids(role)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def sent(self, run: subprocess.CompletedProcess[str]) -> tuple[int, int]:
        """The files and bytes in the run's summary."""
        done = re.search(r" done files=(\d+) bytes=(\d+) ", run.stderr)
        assert done is not None, run.stderr
        return int(done[1]), int(done[2])


def _role(command: bytes) -> str | None:
    if b"python" not in command.split(b"\0", 1)[0]:  # ssh, with the same words for the other end
        return None
    return next((name for name, pattern in _ROLES if pattern.search(command)), None)
