"""What is mounted in the master's tree, before gsync starts and while it follows: the slave's copy stays (rule 46)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lab.place import Place
from lab.trees import compare

pytestmark = pytest.mark.root
Mount = Callable[[Path], None]


@contextmanager
def mounted(at: Path, *what: object) -> Iterator[None]:
    subprocess.run(["mount", *map(str, what), at], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", at], check=True)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    (place.master / "full" / "deep").mkdir(parents=True)
    (place.master / "full" / "deep" / "file").write_text("of the tree")
    (place.master / "real").mkdir()
    (place.master / "real" / "file").write_text("real")
    (place.master / "empty").mkdir()
    return place


def others(place: Place, folder: Path) -> tuple[object, ...]:
    """Three kinds of mounts: another file system, another part of the same one, the tree itself (which is a loop)."""
    return ((("-t", "tmpfs", "none"), ("--bind", folder), ("--bind", place.master)))


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["tmpfs", "bind", "loop"])
@pytest.mark.parametrize("follows", [False, True], ids=["once", "following"])
def test_42_what_lies_under_a_mount_stays_at_the_slave(place: Place, tmp_path: Path, kind: int, follows: bool) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "foreign").write_text("not of the tree")
    place.once()
    assert compare(place.master, place.slave) == []
    what = others(place, other)[kind]
    assert isinstance(what, tuple)
    full, slaves = place.master / "full", place.slave / "full" / "deep" / "file"
    with ExitStack() as opened:
        if follows:
            opened.enter_context(place.follow())
        with mounted(full, *what):
            (place.master / "real" / "file").write_text(f"changed {kind}")
            (place.master / "real" / "moved").mkdir()
            if follows:
                place.wait_for(lambda status: (place.slave / "real" / "moved").exists()
                               and (place.slave / "real" / "file").read_text() == f"changed {kind}")
            else:
                place.once()
            assert (place.slave / "real" / "file").read_text() == f"changed {kind}"
            assert slaves.read_text() == "of the tree"
            assert not (place.slave / "full" / "foreign").exists()
        (full / "deep" / "file").write_text("and changed")
        if follows:
            place.wait_for(lambda status: slaves.read_text() == "and changed")
    place.once()
    assert compare(place.master, place.slave) == []


def test_42_a_bind_mount_in_the_tree_is_not_crossed(place: Place) -> None:
    """The same directory at two names: the name did not settle, and the run ended with a failure."""
    with mounted(place.master / "empty", "--bind", place.master / "real"):
        place.once()
        assert list((place.slave / "empty").iterdir()) == []
        assert (place.slave / "real" / "file").read_text() == "real"
    place.once()
    assert compare(place.master, place.slave) == []


def test_42_a_file_that_is_mounted_over_is_not_the_tree_s(place: Place, tmp_path: Path) -> None:
    (tmp_path / "foreign").write_text("foreign")
    place.once()
    with mounted(place.master / "real" / "file", "--bind", tmp_path / "foreign"):
        (place.master / "real" / "new").write_text("new")
        place.once()
        assert (place.slave / "real" / "file").read_text() == "real"
        assert (place.slave / "real" / "new").read_text() == "new"
    place.once()
    assert compare(place.master, place.slave) == []
