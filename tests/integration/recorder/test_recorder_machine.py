"""Random operations, late hints, cuts and crashes at every step: the real recorder against the model slave.

The invariant, at every cut: a worker that applied all changelogs, whenever it did, has a slave equal to the tree.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from gsync.base.fsid import Inodes
from gsync.recorder.bounds import Bounds
from gsync.recorder.detector import Detector, Hint, Knows, Overflow
from gsync.recorder.hints import HintLimits
from lab.recording import FACTORIES, World

STEPS = ["gap", "scan", "drain", "append", "roll", "commit", "publish"]
NAMES = ["a", "b", "c", "new\nline"]
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)


class Killed(BaseException):
    """The recorder died here."""


class Late:
    """A detector whose hints arrive in pieces, as long as `holding`."""

    def __init__(self, inner: Detector, machine: RecorderMachine) -> None:
        self._inner, self._machine = inner, machine
        self._kept: list[Hint] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def read(self) -> list[Hint]:
        self._kept += self._inner.read()
        if self._machine.overflows:
            self._machine.overflows = False
            self._kept = [Overflow()]
        count = self._machine.holding if self._machine.holding is not None else len(self._kept)
        hints, self._kept = self._kept[:count], self._kept[count:]
        return hints


def linked(path: Path) -> bool:
    """Whether a file at or below the path has several names."""
    return any(p.is_file() and p.stat().st_nlink > 1 for p in [path, *path.rglob("*")])


class RecorderMachine(RuleBasedStateMachine):
    factory = "inotify"
    bounds = Bounds()

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="machine-", dir=os.environ.get("TMPDIR", "/tmp")))
        self.holding: int | None = None
        self.overflows = False
        self.die_at: str | None = None

        def new_detector(root_fd: int, inodes: Inodes, knows: Knows) -> Detector:
            return Late(FACTORIES[self.factory](root_fd, inodes, knows), self)  # type: ignore[return-value]

        self.world = World(self.folder, new_detector, step=self.step, bounds=self.bounds)

    def step(self, name: str) -> None:
        if name == self.die_at:
            self.die_at = None
            raise Killed

    def teardown(self) -> None:
        try:
            self.die_at = None
            self.ensure_running()
            self.world.cut()
        finally:
            self.world.close()
            shutil.rmtree(self.folder)

    def ensure_running(self) -> None:
        while self.world.recording is None:
            with contextlib.suppress(Killed):
                self.world.start()
                return
            self.world.stop()

    @contextlib.contextmanager
    def perhaps_killed(self):  # type: ignore[no-untyped-def]
        try:
            yield
        except Killed:
            self.world.stop()

    @initialize(paths=st.lists(PATHS, max_size=4))
    def a_tree_is_recorded(self, paths: list[str]) -> None:
        for path in paths:
            self.write(path, b"at first", False)
        self.world.start()

    # the user

    @rule(path=PATHS, data=st.sampled_from([b"one", b"two", b""]), outside=st.booleans())
    def write(self, path: str, data: bytes, outside: bool) -> None:
        with contextlib.suppress(OSError):
            at = self.at(path, outside)
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_bytes(data)

    @rule(path=PATHS)
    def mkdir(self, path: str) -> None:
        with contextlib.suppress(OSError):
            self.at(path).mkdir(parents=True)

    @rule(old=PATHS, new=PATHS, from_outside=st.booleans(), to_outside=st.booleans())
    def rename(self, old: str, new: str, from_outside: bool, to_outside: bool) -> None:
        source = self.at(old, from_outside)
        if from_outside != to_outside and self.factory != "fanotify" and linked(source):
            return  # inotify cannot see what is written through the name outside
        with contextlib.suppress(OSError):
            os.rename(source, self.at(new, to_outside))

    @rule(old=PATHS, new=PATHS)
    def rename_within(self, old: str, new: str) -> None:
        with contextlib.suppress(OSError):
            os.rename(self.at(old), self.at(new))

    @rule(a=PATHS, b=PATHS)
    def swap(self, a: str, b: str) -> None:
        through = self.world.tree / "through"
        with contextlib.suppress(OSError):
            os.rename(self.at(a), through)
        with contextlib.suppress(OSError):
            os.rename(self.at(b), self.at(a))
        with contextlib.suppress(OSError):
            os.rename(through, self.at(b))

    @rule(old=PATHS, new=PATHS)
    def link(self, old: str, new: str) -> None:
        with contextlib.suppress(OSError):
            os.link(self.at(old), self.at(new))
        if self.factory != "fanotify" and self.world.recording is not None:
            with self.perhaps_killed():  # inotify does not tell whose name it is, the recorder must have looked
                self.world.recording.poll()

    @rule(path=PATHS)
    def remove(self, path: str) -> None:
        with contextlib.suppress(OSError):
            at = self.at(path)
            if at.is_dir():
                shutil.rmtree(at)
            else:
                at.unlink()

    @rule(path=PATHS, mode=st.sampled_from([0o700, 0o755]))
    def chmod(self, path: str, mode: int) -> None:
        with contextlib.suppress(OSError):
            self.at(path).chmod(mode)

    def at(self, path: str, outside: bool = False) -> Path:
        return (self.world.outside if outside else self.world.tree) / path

    # the recorder and the worker

    @rule(count=st.integers(0, 5))
    def poll(self, count: int) -> None:
        if self.world.recording is not None:
            self.holding = count
            with self.perhaps_killed():
                self.world.recording.poll()
            self.holding = None

    @rule()
    def cut(self) -> None:
        with self.perhaps_killed():
            if self.world.recording is None:
                self.world.start()
            self.world.cut()

    @rule()
    def apply_what_is_recorded(self) -> None:
        """A worker that sees more of the tree than was recorded."""
        self.world.sync(self.world.new_records())

    @rule()
    def lose_events(self) -> None:
        self.overflows = True

    @rule(step=st.sampled_from(STEPS))
    def kill_at(self, step: str) -> None:
        self.die_at = step

    @rule()
    def stop_recorder(self) -> None:
        self.world.stop()


def machine(factory: str, bounds: Bounds) -> type[RecorderMachine]:
    return type(f"Machine_{factory.replace(' ', '_')}", (RecorderMachine,), {"factory": factory, "bounds": bounds})


def run(factory: str, histories: int, steps: int = 30, bounds: Bounds | None = None) -> None:
    case = machine(factory, bounds or Bounds()).TestCase
    case.settings = settings(max_examples=histories, stateful_step_count=steps, deadline=None,
                             suppress_health_check=list(HealthCheck))
    case("runTest").runTest()


@pytest.mark.slow
@pytest.mark.parametrize("factory", [pytest.param("fanotify", marks=pytest.mark.root), "inotify", "inotify by path"])
@pytest.mark.parametrize("limits", [HintLimits(), HintLimits(in_memory=2, block=2)], ids=["memory", "disk"])
def test_histories(factory: str, limits: HintLimits) -> None:
    """Once with nearly all hints waiting on disk."""
    run(factory, 40, bounds=Bounds(limits))


@pytest.mark.soak
@pytest.mark.parametrize("factory", [pytest.param("fanotify", marks=pytest.mark.root), "inotify", "inotify by path"])
def test_many_histories(factory: str) -> None:
    run(factory, 5000, 50)
