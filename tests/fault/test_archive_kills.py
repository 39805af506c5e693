"""kill -9 behind any step of an archive's operations: whatever was reached, going on brings the very tree back."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gsync.transfer.archive.flags import SETFLAGS
from lab.archives import Here, Place, changes, small_tree

STEPS = ["rename", "unlink", "mkdir", "rmdir", "link", "symlink", "fsync", "chmod", "utime", "setxattr", "chown"]
OPERATIONS = ["create", "put", "purge", "get", "delete"]


class Steps:
    """Counts the steps of a process that change something, and kills it behind one of them."""

    def __init__(self, fatal: int) -> None:
        self.fatal, self.count = fatal, 0
        for name in STEPS:
            setattr(os, name, self._wrapped(getattr(os, name)))
        real = fcntl.ioctl
        setattr(fcntl, "ioctl", lambda fd, request, *args: (  # noqa: B010 typed as what it is not
            self._wrapped(real) if request == SETFLAGS else real)(fd, request, *args))

    def _wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **more: Any) -> Any:
            result = real(*args, **more)
            self.count += 1
            if self.count == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return step


def in_a_child(place: Place, operation: str, fatal: int) -> int | None:
    """Does the operation in a process of its own; how many steps it took, None if it was killed behind one."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with Here(place) as here:
                steps = Steps(fatal)
                act(here, operation)
                os.write(writer, b"%d" % steps.count)
        finally:
            os._exit(0)
    os.close(writer)
    status = os.waitpid(pid, 0)[1]
    answer = os.read(reader, 100)
    os.close(reader)
    assert answer or os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    return int(answer) if answer else None


def act(here: Here, operation: str) -> None:
    if operation == "create":
        here.create()
    else:
        getattr(here.do, operation)(here.root)


def go_on(here: Here, operation: str) -> None:
    """What a person does who finds it as it is."""
    state = here.state
    if operation == "create":
        if state != "created":
            here.create()
    elif operation == "delete":
        if state != "none":
            here.do.delete(here.root)
    elif state != f"{operation} done":
        getattr(here.do, operation)(here.root, retry=state == f"{operation} failed")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for place in tmp_path.iterdir():
        Place(place).close()


def history(folder: Path, operation: str, fatal: int) -> int | None:
    """One archive's life, with a kill in one operation. None: that was reached."""
    folder.mkdir()
    place = Place(folder)
    small_tree(place)
    before = place.seen()
    killed: int | None = None
    for at in OPERATIONS:
        if at == operation:
            killed = in_a_child(place, at, fatal)
            with Here(place) as here:
                go_on(here, at)
        else:
            with Here(place) as here:
                act(here, at)
        if at != "purge":
            assert changes(before, place.seen()) == [], f"after {at}"
        else:
            assert not place.seen().keys() - {b"."}
    assert sorted(os.listdir(place.tree)) == ["d", "empty", "empty dir", "hard", "link"]
    with open(place.tree / "d/f", "r+b"):  # nothing is immutable any more
        pass
    shutil.rmtree(folder)
    return killed


@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_behind_some_steps(folder: Path, operation: str) -> None:
    steps = history(folder / "whole", operation, 0)
    assert steps is not None
    assert steps > 10
    for fatal in sorted({1, 2, steps // 3, steps // 2, 2 * steps // 3, steps - 1, steps}):
        assert history(folder / str(fatal), operation, fatal) is None


@pytest.mark.soak
@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_behind_every_step(folder: Path, operation: str) -> None:
    steps = history(folder / "whole", operation, 0)
    assert steps is not None
    for fatal in range(1, steps + 1):
        assert history(folder / str(fatal), operation, fatal) is None
