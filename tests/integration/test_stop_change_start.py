"""Stop everything, change the tree, start: only the difference is sent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.place import Place
from tests.trees import compare, make_everything

DETECTORS = [pytest.param("fanotify", marks=pytest.mark.root), "inotify"]


@pytest.fixture(params=DETECTORS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """In step and stopped; d/ and e/ hold files of 1000 bytes."""
    place = Place(tmp_path, args=("--detector", request.param))
    make_everything(place.master / "everything", 3, privileged=os.geteuid() == 0)
    for folder in ("d", "d/sub", "e"):
        (place.master / folder).mkdir()
        for n in range(20):
            (place.master / folder / f"{n}").write_bytes(b"%4d" % n * 250)
    place.once()
    assert compare(place.master, place.slave) == []
    yield place
    assert place.processes() == []


def test_nothing_changed_nothing_sent(place: Place) -> None:
    assert place.sent(place.once()) == (0, 0)


def test_names_and_attributes_move_no_data(place: Place) -> None:
    d, e = place.master / "d", place.master / "e"
    (d / "sub").rename(e / "moved")
    d.rename(place.master / "n")
    (place.master / "n" / "1").rename(place.master / "at the top")
    (place.master / "n" / "2").rename(e / "2")                          # over an existing file
    os.link(place.master / "n" / "3", e / "a second name")
    (place.master / "n" / "4").unlink()
    (e / "5").rename(e / "t")
    (e / "6").rename(e / "5")
    (e / "t").rename(e / "6")
    (place.master / "n" / "7").chmod(0o4750)
    os.utime(place.master / "n" / "8", ns=(1, 999_999_999))
    os.setxattr(place.master / "n" / "9", "user.colour", b"red")
    (place.master / "everything" / "hard-links").rename(place.master / "links")
    assert place.sent(place.once()) == (0, 0)
    assert compare(place.master, place.slave) == []


def test_only_what_is_new_or_changed_is_sent(place: Place) -> None:
    d = place.master / "d"
    (d / "new").write_bytes(b"x" * 3000)
    with (d / "1").open("ab") as file:
        file.write(b"y" * 500)
    (d / "sub" / "1").write_bytes(b"z" * 700)
    (d / "2").rename(d / "sub" / "renamed and changed")
    (d / "sub" / "renamed and changed").write_bytes(b"r" * 800)
    (place.master / "e").rename(d / "e")
    files, size = place.sent(place.once())
    assert files == 4
    assert 3000 + 1500 + 700 + 800 <= size < 3000 + 1500 + 700 + 800 + 4000
    assert compare(place.master, place.slave) == []


def test_what_was_deleted_goes(place: Place) -> None:
    for n in range(20):
        (place.master / "d" / "sub" / f"{n}").unlink()
    (place.master / "d" / "sub").rmdir()
    (place.master / "e" / "1").unlink()
    (place.master / "e" / "1").mkdir()                                 # something else at an old name
    assert place.sent(place.once()) == (0, 0)
    assert compare(place.master, place.slave) == []
