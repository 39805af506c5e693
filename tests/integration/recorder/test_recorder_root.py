"""The root of the tree is gone, moved, unmounted, covered or replaced: Faulty, and nothing is recorded as deleted."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsync.base.errors import Faulty
from gsync.changelog.records import Entry, Fop
from gsync.recorder.bounds import Bounds, Intervals
from gsync.recorder.recorder import Recorder
from gsync.recorder.status import FAULTY, RECORDING, STOPPED, RecorderPort
from lab.images import FsImage
from lab.recorder_changes import a_directory
from lab.recording import FACTORIES, World, wait_for

DETECTORS = [pytest.param("fanotify", marks=pytest.mark.root), "inotify", "inotify by path"]


@pytest.fixture(params=DETECTORS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, FACTORIES[request.param])
    yield world
    world.close()


def removals(world: World) -> list[bytes]:
    return [r.names[0][1] for r in world.new_records() if isinstance(r, Entry) and r.fop in (Fop.UNLINK, Fop.RMDIR)]


def gone(world: World) -> Callable[[], None]:
    world.tree.rename(world.tree.with_name("away"))

    def back() -> None:
        world.tree.with_name("away").rename(world.tree)

    return back


def replaced(world: World) -> Callable[[], None]:
    world.tree.rename(world.tree.with_name("away"))
    world.tree.mkdir()

    def back() -> None:
        world.tree.rmdir()
        world.tree.with_name("away").rename(world.tree)

    return back


def a_file(world: World) -> Callable[[], None]:
    world.tree.rename(world.tree.with_name("away"))
    world.tree.touch()

    def back() -> None:
        world.tree.unlink()
        world.tree.with_name("away").rename(world.tree)

    return back


def covered(world: World) -> Callable[[], None]:
    subprocess.run(["mount", "-t", "tmpfs", "none", world.tree], check=True)

    def back() -> None:
        subprocess.run(["umount", world.tree], check=True)

    return back


WAYS = [gone, replaced, a_file, pytest.param(covered, marks=pytest.mark.root)]


@pytest.mark.parametrize("way", WAYS)
def test_at_the_start(world: World, way: Callable[[World], Callable[[], None]]) -> None:
    a_directory(world.tree, world.outside)
    world.start()
    world.cut()
    world.stop()
    back = way(world)
    with pytest.raises(Faulty, match=r"root of volume v at .*nothing was recorded as deleted"):
        world.start()
    world.stop()
    back()
    (world.tree / "d" / "f").write_bytes(b"changed")
    assert removals(world) == []
    world.start()
    world.cut()


@pytest.mark.parametrize("way", WAYS)
def test_while_recording(world: World, way: Callable[[World], Callable[[], None]]) -> None:
    a_directory(world.tree, world.outside)
    world.start()
    world.cut()
    (world.tree / "e" / "new").touch()
    back = way(world)
    with pytest.raises(Faulty, match=r"root of volume v at .*nothing was recorded as deleted"):
        world.close_slice()
    world.stop()
    assert removals(world) == []
    back()
    world.start()
    world.cut()


def test_a_tree_that_is_removed_with_its_root_stays_at_the_slave(world: World) -> None:
    a_directory(world.tree, world.outside)
    world.start()
    world.cut()
    shutil.rmtree(world.tree)
    with pytest.raises(Faulty, match="is gone"):
        world.close_slice()
    assert removals(world) == []
    world.tree.mkdir()
    world.stop()


@pytest.mark.root
def test_an_unmounted_file_system_is_not_a_mass_delete(tmp_path: Path) -> None:
    with FsImage(tmp_path / "fs", 32 << 20) as image:
        world = World(tmp_path, FACTORIES["inotify"], tree=image.path)
        a_directory(world.tree, world.outside)
        world.start()
        world.cut()
        subprocess.run(["umount", "--lazy", image.path], check=True)
        with pytest.raises(Faulty, match="not mounted"):
            world.close_slice()
        world.stop()
        with pytest.raises(Faulty, match="not mounted"):
            world.start()
        assert removals(world) == []
        subprocess.run(["mount", "-o", "loop", image.dir / "image", image.path], check=True)
        (world.tree / "d" / "f").write_bytes(b"changed")
        world.start()
        world.cut()
        world.close()


def test_it_goes_on_by_itself_when_the_root_is_back(tmp_path: Path) -> None:
    world = World(tmp_path, FACTORIES["inotify"])
    a_directory(world.tree, world.outside)
    world.start()
    world.stop()
    stop = threading.Event()
    thread = threading.Thread(target=Recorder(world.volume, detector=FACTORIES["inotify"], stop=stop,
                                              bounds=Bounds(pace=Intervals(root=0.05))).run)
    port = RecorderPort(world.brick)
    thread.start()
    try:
        wait_for(port, lambda s: s.state == RECORDING)
        back = replaced(world)
        port.poke()
        status = wait_for(port, lambda s: s.state == FAULTY and "is another directory than before" in s.reason)
        back()
        (world.tree / "new").touch()
        wait_for(port, lambda s: s.state == RECORDING and s.complete_up_to is not None and s.gaps > status.gaps)
        assert port.status().reason == ""  # type: ignore[union-attr]
    finally:
        stop.set()
        port.poke()
        thread.join()
    assert port.status().state == STOPPED  # type: ignore[union-attr]
    world.sync(world.new_records())
    assert b"new" in {name[1] for name in world.copy().names}
    world.close()


@pytest.mark.root
def test_a_mount_point_inside_the_tree_is_an_empty_directory(tmp_path: Path) -> None:
    world = World(tmp_path, FACTORIES["fanotify"])
    (world.tree / "mnt").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", world.tree / "mnt"], check=True)
    try:
        (world.tree / "mnt" / "other").touch()
        world.start()
        world.cut()
        (world.tree / "mnt" / "more").touch()
        assert world.cut() == []
        world.stop()
        world.start()
        world.cut()
    finally:
        subprocess.run(["umount", world.tree / "mnt"], check=True)
        world.close()
