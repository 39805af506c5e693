"""The bench's measuring tools: results and their table, peak memory, bytes over the network, waiting."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.sshd import descendants

MIB = 1024 * 1024


@dataclass
class Result:
    """One measurement of gsync and of a peer: for each round, the samples taken in it.

    The ratio of a round is gsync's median over the peer's: below 1, gsync is better. `max_ratio` and `max_value` are
    the project's aims.
    """

    name: str
    unit: str
    peer: str
    max_ratio: float | None = None
    max_value: float | None = None
    gsync: list[list[float]] = field(default_factory=list)
    peers: list[list[float]] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.gsync, self.peers, strict=False)
        return [statistics.median(mine) / statistics.median(theirs) for mine, theirs in pairs]

    def aim(self) -> str:
        """The aim, and whether the median met it."""
        if self.max_ratio is not None:
            if not self.ratios:
                return f"ratio ≤ {self.max_ratio:g}: not measured"
            met, text = statistics.median(self.ratios) <= self.max_ratio, f"ratio ≤ {self.max_ratio:g}"
        elif self.max_value is not None:
            met = statistics.median(_flat(self.gsync)) <= self.max_value
            text = f"≤ {self.max_value:g} {self.unit}"
        else:
            return ""
        return f"{text}: {'met' if met else 'missed'}"

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "unit": self.unit, "gsync": self.gsync, "peer": self.peer, "peer_values": self.peers,
            "gsync_summary": _summary(_flat(self.gsync)), "peer_summary": _summary(_flat(self.peers)),
            "ratios": self.ratios, "ratio_summary": _summary(self.ratios), "aim": self.aim(),
        }

    def cells(self) -> list[str]:
        mine, theirs = (f"{_three(_flat(rounds))} {self.unit}" for rounds in (self.gsync, self.peers))
        return [self.name, mine, self.peer, theirs, _three(self.ratios), self.aim()]


HEADINGS = ["workload", "gsync: min / median / max", "peer", "peer: min / median / max", "ratio gsync/peer", "aim"]


def _flat(rounds: list[list[float]]) -> list[float]:
    return [value for samples in rounds for value in samples]


def _summary(values: list[float]) -> dict[str, float] | None:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)} if values else None


def _three(values: list[float]) -> str:
    summary = _summary(values)
    return "-" if summary is None else " / ".join(f"{value:.3g}" for value in summary.values())


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that can also be read as plain text."""
    widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
             for row in [headings, *rows]]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


# ---------------------------------------------------------------------------------------------- memory

def role_of(argv: list[str]) -> str | None:
    """The kind of gsync process that this command line runs: run, recorder, worker, agent or receiver."""
    if any("gsync.slave.program" in arg or re.search(r"agent[^/]*\.pyz$", arg) for arg in argv):
        return "receiver" if "--receive" in argv else "agent"
    for module, role in (("gsync.service.run_worker", "worker"), ("gsync.recorder", "recorder")):
        if module in argv:
            return role
    return "run" if "run" in argv and any(os.path.basename(arg) == "gsync" for arg in argv[:2]) else None


class MemoryWatch(threading.Thread):
    """Reads the peak memory (VmHWM) of every gsync process below the given ones, again and again.

    `peaks` has the highest value seen, in bytes, by role. A peak within the last `EVERY` of a process's life is missed.
    """

    EVERY = 0.25  # each look takes processor time from the measured work

    def __init__(self) -> None:
        super().__init__(name="memory")
        self.peaks: dict[str, int] = {}
        self.parents: set[int] = set()
        self._ending = threading.Event()

    def run(self) -> None:
        while not self._ending.wait(self.EVERY):
            for parent in list(self.parents):
                for pid in [parent, *descendants(parent)]:
                    self._look(pid)

    def _look(self, pid: int) -> None:
        with contextlib.suppress(OSError):
            role = role_of(Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0"))
            found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
            if role is not None and found is not None:
                self.peaks[role] = max(self.peaks.get(role, 0), int(found[1]) * 1024)

    def stop(self) -> None:
        self._ending.set()
        self.join()


# --------------------------------------------------------------------------------------------- network

class CountingProxy:
    """A TCP proxy on 127.0.0.1 in front of `port`; `sent` counts the bytes of both directions together."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.sent = 0
        self._lock = threading.Lock()
        self._accepting = self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, name="proxy", daemon=True)
        thread.start()
        return thread

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # stop() closes it
            while True:
                client, _address = self._listening.accept()
                self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._to) as server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answers = self._start(self._copy, server, client)
            self._copy(client, server)
            answers.join()

    def _copy(self, source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(256 * 1024):
                with self._lock:
                    self.sent += len(data)
                to.sendall(data)
        with contextlib.suppress(OSError):
            to.shutdown(socket.SHUT_WR)

    def stop(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._accepting.join()


# ----------------------------------------------------------------------------------- running and waiting

class Failed(Exception):
    """A contestant did not do as it was asked; the text is its own last words."""


LONGEST = 1800.0  # seconds that any step may take


class Running:
    """A contestant's process; its output goes to `log`."""

    def __init__(self, argv: list[str], log: Path, memory: MemoryWatch) -> None:
        self.argv, self.log, self._memory = argv, log, memory
        with log.open("wb") as out:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        memory.parents.add(self.process.pid)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._memory.parents.discard(self.process.pid)

    def finish(self) -> None:
        if self.process.wait(LONGEST):
            raise self.failure(f"exit {self.process.returncode}")

    def failure(self, what: str) -> Failed:
        last = self.log.read_text(errors="replace").splitlines()[-15:]
        return Failed("\n".join([f"{what}: {' '.join(self.argv)}", *last]))

    def wait_for(self, what: str, done: Callable[[], bool], pause: float = 0.002) -> None:
        """Call `done` again and again while the process runs."""
        end = time.monotonic() + LONGEST
        while not done():
            if self.process.poll() is not None:
                raise self.failure(f"ended with {self.process.returncode} before {what}")
            if time.monotonic() > end:
                raise self.failure(f"not {what} within {LONGEST:.0f} s")
            time.sleep(pause)


@contextlib.contextmanager
def timed(samples: list[float]) -> Iterator[None]:
    start = time.monotonic()
    yield
    samples.append(time.monotonic() - start)
