"""Every kind of change, one after the other, while one `gsync run` follows; renames move no data."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.place import PATIENCE, Place
from lab.recorder_changes import KINDS
from lab.trees import opened, wait_until_equal

DETECTORS = [pytest.param("fanotify", marks=pytest.mark.root), "inotify"]


@pytest.fixture(scope="module", params=DETECTORS)
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A run that follows from the first test to the last."""
    place = Place(tmp_path_factory.mktemp(request.param), args=("--detector", request.param))
    (place.folder / "outside").mkdir()
    with place.follow():
        yield place


@pytest.fixture
def tree(live: Place) -> Iterator[Path]:
    """A folder of the test's own in the tree, empty; taken away afterwards."""
    tree = live.master / "here"
    tree.mkdir()
    yield tree
    shutil.rmtree(tree)


def in_step(live: Place) -> None:
    """Wait until the slave holds everything: changelogs go in order, so with this time came all that was before it."""
    last = live.master / "last"
    last.touch()
    now = time.time_ns()
    os.utime(last, ns=(now, now))
    there = live.slave / "last"
    end = time.monotonic() + PATIENCE
    while not there.exists() or there.stat().st_mtime_ns != now:
        assert time.monotonic() < end, f"{live.worker_status()}\n{live.log()}"
        time.sleep(0.02)
    assert wait_until_equal(live.master, live.slave, PATIENCE, 0.1) == []
    while not (status := live.worker_status())["in_step"]:
        assert time.monotonic() < end, f"{status}\n{live.log()}"
        time.sleep(0.02)
    assert status["failures"] == 0, live.log()


def moved(live: Place) -> tuple[int, int]:
    """Files and bytes sent so far; for a live worker in step, which publishes them about twice a second."""
    now = time.time_ns()
    while (status := live.worker_status())["updated"] < now:
        time.sleep(0.02)
    return status["files_done"], status["bytes_done"]


def prepared(live: Place, tree: Path) -> dict[str, tuple[Path, Path]]:
    """What each kind of change needs, in folders of its own."""
    places = {}
    for name, kind in KINDS.items():
        places[name] = tree / name, live.folder / "outside" / tree.name / name
        for folder in places[name]:
            folder.mkdir(parents=True)
        kind.prepare(*places[name])
    in_step(live)
    return places


def test_all_kinds_of_change_at_once(live: Place, tree: Path) -> None:
    places = prepared(live, tree)
    before = moved(live)
    for name, kind in KINDS.items():
        if kind.moves:
            kind.change(*places[name])
    in_step(live)
    assert moved(live) == before
    for name, kind in KINDS.items():
        if not kind.moves:
            kind.change(*places[name])
    in_step(live)


@pytest.mark.soak
def test_all_kinds_of_change_one_by_one(live: Place, tree: Path) -> None:
    places = prepared(live, tree.rename(tree.with_name("one by one")))
    for name, kind in KINDS.items():
        before = moved(live)
        kind.change(*places[name])
        in_step(live)
        if kind.moves:
            assert moved(live) == before, name
    tree.mkdir()


def test_a_file_open_and_written_for_long(live: Place, tree: Path) -> None:
    with (tree / "log").open("wb", buffering=0) as file:
        for n in range(2):
            file.write(b"line %d\n" % n)
            in_step(live)
        (tree / "log").rename(tree / "log.1")
        in_step(live)
        file.write(b"after the rename\n")
        in_step(live)


def test_rm_rf_of_a_deep_tree(live: Place, tree: Path) -> None:
    with opened(tree) as top:
        fd = os.dup(top)
        for level in range(100):
            os.mkdir(b"%d" % level, dir_fd=fd)
            below = os.open(b"%d" % level, os.O_RDONLY, dir_fd=fd)
            os.close(os.open(b"file", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
            os.close(fd)
            fd = below
        os.close(fd)
    in_step(live)
    subprocess.run(["rm", "-rf", tree / "0"], check=True)
    in_step(live)
