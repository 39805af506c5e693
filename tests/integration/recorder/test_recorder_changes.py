"""Every kind of change is recorded: seen live by each detector, and found by the gap scan after a stop.

What the records must achieve is checked by the model slave of tests/recording.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.changelog.records import Data, Entry, Fop
from lab.recorder_changes import KINDS, Kind, a_directory, one_file
from lab.recording import FACTORIES, World

DETECTORS = [pytest.param("fanotify", marks=pytest.mark.root), "inotify", "inotify by path"]


@pytest.fixture(params=DETECTORS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, FACTORIES[request.param])
    yield world
    world.close()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_seen_live(world: World, kind: Kind) -> None:
    kind.prepare(world.tree, world.outside)
    world.start()
    world.cut()
    kind.change(world.tree, world.outside)
    records = world.cut()
    if kind.moves:
        assert not [r for r in records if isinstance(r, Data)], records
    assert world.cut() == []


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_found_after_a_stop(world: World, kind: Kind) -> None:
    kind.prepare(world.tree, world.outside)
    world.start()
    world.cut()
    world.stop()
    kind.change(world.tree, world.outside)
    world.start()
    world.cut()
    assert world.cut() == []


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_made_before_anything_was_looked_at(world: World, kind: Kind) -> None:
    """The preparation and the change in one slice: events merged, and all older than the first look."""
    world.start()
    world.cut()
    kind.prepare(world.tree, world.outside)
    kind.change(world.tree, world.outside)
    world.cut()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_of_what_was_recorded_a_moment_ago(world: World, kind: Kind) -> None:
    world.start()
    kind.prepare(world.tree, world.outside)
    assert world.recording is not None
    world.recording.poll()
    kind.change(world.tree, world.outside)
    world.cut()
    world.stop()
    world.start()
    world.cut()


def test_a_renamed_directory_is_one_record(world: World) -> None:
    a_directory(world.tree, world.outside)
    world.start()
    world.cut()
    (world.tree / "d").rename(world.tree / "e" / "n")
    entries = [r for r in world.cut() if isinstance(r, Entry)]
    assert [(r.fop, r.names[0][1], r.names[1][1]) for r in entries] == [(Fop.RENAME, b"d", b"n")]


def test_after_a_stop_a_renamed_directory_is_one_record(world: World) -> None:
    a_directory(world.tree, world.outside)
    world.start()
    world.settle()
    world.stop()
    (world.tree / "d").rename(world.tree / "e" / "n")
    world.start()
    records = world.cut()
    assert [(r.fop, r.names[0][1], r.names[1][1]) for r in records if isinstance(r, Entry)] == [
        (Fop.RENAME, b"d", b"n")]
    assert not [r for r in records if isinstance(r, Data)]


def test_after_a_stop_nothing_is_said_of_what_stayed_the_same(world: World) -> None:
    a_directory(world.tree, world.outside)
    world.start()
    world.cut()
    for n in range(100):
        (world.tree / "d" / f"new{n}").write_bytes(b"x")
    world.settle()
    world.stop()
    world.start()
    assert world.cut() == []


def test_every_hinted_name_is_said_even_if_the_index_agrees(world: World) -> None:
    """Scenario 1, resolve_ABA_suppressed: somebody may have looked in between."""
    one_file(world.tree, world.outside)
    world.start()
    world.cut()
    (world.tree / "f").rename(world.tree / "g")
    (world.tree / "g").rename(world.tree / "f")
    names = {name[1] for r in world.cut() if isinstance(r, Entry) for name in r.names}
    assert names == {b"f", b"g"}


def test_a_name_that_a_rename_left_is_said_when_another_file_is_removed_from_it_later(world: World) -> None:
    """Of the rename itself it is said once; but that holds for one look only."""
    one_file(world.tree, world.outside)
    world.start()
    world.cut()
    (world.tree / "f").rename(world.tree / "g")
    world.cut()
    (world.tree / "f").write_bytes(b"another")
    world.cut()
    (world.tree / "f").unlink()
    entries = [r for r in world.cut() if isinstance(r, Entry)]
    assert [(r.fop, r.names[0][1]) for r in entries] == [(Fop.UNLINK, b"f")]


def test_a_file_open_for_long_is_said_in_each_slice_in_which_it_is_written(world: World) -> None:
    one_file(world.tree, world.outside)
    world.start()
    world.cut()
    gfid = world.gfid(world.tree / "f")
    with (world.tree / "f").open("ab", buffering=0) as file:
        for _ in range(3):
            file.write(b"more")
            file.write(b"and more")
            assert [r for r in world.cut() if isinstance(r, Data)] == [Data(gfid)]


def test_own_folders_are_not_recorded(world: World) -> None:
    home = world.tree / "home"
    (home / "state").mkdir(parents=True)
    world.ignored = (str(home),)
    world.start()
    (home / "state" / "file").write_bytes(b"x")
    (world.tree / ".gsync").mkdir()
    (world.tree / ".gsync" / "index.db").write_bytes(b"x")
    (world.tree / "d" / ".gsync").mkdir(parents=True)
    for _ in range(2):
        world.close_slice()
        names = {name[1] for r in world.new_records() if isinstance(r, Entry) for name in r.names}
        assert names == ({b"d", b".gsync"} if world.recorder.status.gaps == 1 else set())  # type: ignore[union-attr]
        world.stop()
        (home / "another").mkdir(exist_ok=True)
        world.start()


@pytest.mark.root
def test_a_write_through_a_link_outside_is_seen_by_fanotify(tmp_path: Path) -> None:
    world = World(tmp_path, FACTORIES["fanotify"])
    one_file(world.tree, world.outside)
    os.link(world.tree / "f", world.outside / "f")
    world.start()
    world.cut()
    (world.outside / "f").write_bytes(b"from outside")
    assert Data(world.gfid(world.tree / "f")) in world.cut()
    world.close()


@pytest.mark.root
def test_a_swap_in_one_step_moves_no_data_with_fanotify(tmp_path: Path) -> None:
    world = World(tmp_path, FACTORIES["fanotify"])
    KINDS["exchange_directories"].prepare(world.tree, world.outside)
    world.start()
    world.cut()
    KINDS["exchange_directories"].change(world.tree, world.outside)
    records = world.cut()
    assert not [r for r in records if isinstance(r, Data)], records
    world.close()


@pytest.mark.root
def test_a_snapshot_by_links_moves_no_data_with_fanotify(tmp_path: Path) -> None:
    world = World(tmp_path, FACTORIES["fanotify"])
    KINDS["snapshot_by_links"].prepare(world.tree, world.outside)
    world.start()
    world.cut()
    KINDS["snapshot_by_links"].change(world.tree, world.outside)
    records = world.cut()
    assert not [r for r in records if isinstance(r, Data)], records
    world.close()
