"""gsync deliver, killed with SIGKILL before any of its steps on disk or database, and started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gsync.transfer.delivery import placement
from gsync.transfer.queue.database import QueueDatabase
from gsync.transfer.queue.transfers import Transfers
from lab.nights import HOSTILE, Nights, contents, night_of, remove

SAMPLES = 8
_STEPS = ("rename", "fsync", "mkdir", "link", "unlink", "rmdir", "fchmod", "chmod", "utime")


def kill_at(step: int, count: Callable[[int], None]) -> None:
    """From now on this process is killed before its n-th step; count is told of each."""
    done = 0

    def before() -> None:
        nonlocal done
        done += 1
        count(done)
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def stepping(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **named: Any) -> Any:
            before()
            return call(*args, **named)

        return wrapped

    for name in _STEPS:
        setattr(os, name, stepping(getattr(os, name)))
    placement.renameat2 = stepping(placement.renameat2)
    atomic = QueueDatabase.atomic

    @contextmanager
    def counted(self: QueueDatabase) -> Iterator[Any]:
        nested = self._db.in_transaction
        with atomic(self) as db:
            yield db
            if not nested and db.total_changes:
                before()  # all is written, and not committed

    QueueDatabase.atomic = counted  # type: ignore[method-assign]


def forked_round(nights: Nights, step: int) -> int:
    """A round in a process of its own, killed before its n-th step; how many steps it did without being killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            steps = 0

            def count(done: int) -> None:
                nonlocal steps
                steps = done

            kill_at(step, count)
            nights.round()
            os.write(writer, b"%d" % steps)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as file:
        steps = int(file.read() or b"0")
    _, status = os.waitpid(pid, 0)
    assert status == (0 if steps else signal.SIGKILL), f"step {step}: {status}"
    return steps


class World:
    """Two delivered units, one of them with late files, and four new ones, two of them bad; all of it is due."""

    def __init__(self, folder: Path, destination: Path | None) -> None:
        self.nights = nights = Nights(folder)
        if destination is not None:
            nights.write_ini(destination=destination)
            nights.destination = destination
        night = night_of(3)
        self.good = [nights.make(night, 1), nights.make(night, 2)]
        nights.round(now=datetime.now(UTC) - timedelta(days=3))
        self.before = {unit: contents(os.fsencode(nights.data / os.fsdecode(unit))) for unit in self.good}
        nights.write(self.good[0], b"late/x y", b"late")
        nights.write(self.good[0], b"sub/guide.txt", b"better than before")
        nights.write_list(self.good[0])
        self.good += [nights.make(night, 3, {name: name for name in HOSTILE[:4]}), nights.make(night, 4)]
        self.bad = [nights.make(night, 5), nights.make(night, 6, listed=False)]
        nights.write(self.bad[0], b"sub/guide.txt", b"wrong")
        self.kept = [folder, *([destination] if destination else [])]
        self.save()

    def save(self) -> None:
        for each in self.kept:
            subprocess.run(["cp", "-a", each, f"{each}.saved"], check=True)

    def restore(self) -> None:
        for each in self.kept:
            remove(each)
            subprocess.run(["cp", "-a", f"{each}.saved", each], check=True)

    def check_whole(self) -> None:
        """What can be seen at the destination is a unit as it was or as it is at the source, never less."""
        for unit in self.good:
            place = self.nights.destination / os.fsdecode(unit)
            if place.exists():
                assert self.nights.is_as_source(unit) or contents(os.fsencode(place)) == self.before.get(unit), unit
        for unit in self.bad:
            assert not (self.nights.destination / os.fsdecode(unit)).exists()

    def check_done(self) -> None:
        nights = self.nights
        assert nights.states() == {"delivered": 4, "quarantined": 2}
        for unit in self.good:
            assert nights.is_as_source(unit)
            assert nights.in_vault(unit) == contents(os.fsencode(nights.data / os.fsdecode(unit)))
        units = nights.units()
        assert [units[os.fsdecode(unit)]["reason"] for unit in self.bad] == [
            "checksum differs: sub/guide.txt", "no checksum list checksum-00000006.sha256sum"]
        assert {units[os.fsdecode(unit)]["colour"] for unit in self.good} == {"green"}
        for unit in self.bad:
            assert contents(os.fsencode(nights.quarantine / os.fsdecode(unit))) == contents(
                os.fsencode(nights.data / os.fsdecode(unit)))
        assert nights.leftovers() == []
        transfers = Transfers(str(nights.home))
        try:
            assert len(list(transfers.requests())) == 6
        finally:
            transfers.close()


@contextmanager
def world(tmp_path: Path, apart: bool) -> Iterator[World]:
    destination = Path(tempfile.mkdtemp(prefix="gsync-deliver-", dir="/dev/shm")) if apart else None
    try:
        yield World(tmp_path / "world", destination)
    finally:
        if destination is not None:
            remove(destination)
            shutil.rmtree(f"{destination}.saved", ignore_errors=True)


def killed_at_each(tmp_path: Path, apart: bool, samples: int | None) -> None:
    with world(tmp_path, apart) as w:
        total = forked_round(w.nights, 0)
        w.check_done()
        assert total > 200
        steps = range(1, total) if samples is None else range(1, total, max(1, total // samples))
        for step in steps:
            w.restore()
            if forked_round(w.nights, step):
                continue  # this time it was done with fewer
            w.check_whole()
            w.nights.round()
            w.check_whole()
            assert sum(vars(summary)["delivered"] for summary in w.nights.round()) == 0
            w.check_done()


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, True], ids=["one file system", "two file systems"])
def test_killed_at_steps_of_a_round(tmp_path: Path, apart: bool) -> None:
    killed_at_each(tmp_path, apart, SAMPLES)


@pytest.mark.soak
@pytest.mark.parametrize("apart", [False, True], ids=["one file system", "two file systems"])
def test_killed_at_every_step_of_a_round(tmp_path: Path, apart: bool) -> None:
    killed_at_each(tmp_path, apart, None)
