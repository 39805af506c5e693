"""Stop everything, change the tree, start: only the difference is sent."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from lab.place import Place
from lab.trees import compare, make_everything

DETECTORS = [pytest.param("fanotify", marks=pytest.mark.root), "inotify"]


@pytest.fixture(scope="module", params=DETECTORS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """In step and stopped, before and after each test; each finds its folders below `<name of the test>`."""
    place = Place(tmp_path_factory.mktemp(request.param), args=("--detector", request.param))
    make_everything(place.master / "everything", 3, privileged=os.geteuid() == 0)
    for test in ("names", "data", "deletes"):
        for folder in ("d", "d/sub", "e"):
            (place.master / test / folder).mkdir(parents=True)
            for n in range(20):
                (place.master / test / folder / f"{n}").write_bytes(b"%4d" % n * 250)
    place.once()
    assert compare(place.master, place.slave) == []
    return place


@pytest.fixture(autouse=True)
def nothing_is_left(place: Place) -> Iterator[None]:
    yield
    assert place.processes() == []


def test_nothing_changed_nothing_sent(place: Place) -> None:
    assert place.sent(place.once()) == (0, 0)


def test_names_and_attributes_move_no_data(place: Place) -> None:
    top = place.master / "names"
    d, e, n = top / "d", top / "e", top / "n"
    (d / "sub").rename(e / "moved")
    d.rename(n)
    (n / "1").rename(place.master / "at the top")
    (n / "2").rename(e / "2")                                           # over an existing file
    os.link(n / "3", e / "a second name")
    (n / "4").unlink()
    (e / "5").rename(e / "t")
    (e / "6").rename(e / "5")
    (e / "t").rename(e / "6")
    (n / "7").chmod(0o4750)
    os.utime(n / "8", ns=(1, 999_999_999))
    os.setxattr(n / "9", "user.colour", b"red")
    (place.master / "everything" / "hard-links").rename(place.master / "links")
    assert place.sent(place.once()) == (0, 0)
    assert compare(place.master, place.slave) == []


def test_only_what_is_new_or_changed_is_sent(place: Place) -> None:
    top = place.master / "data"
    d = top / "d"
    (d / "new").write_bytes(b"x" * 3000)
    with (d / "1").open("ab") as file:
        file.write(b"y" * 500)
    (d / "sub" / "1").write_bytes(b"z" * 700)
    (d / "2").rename(d / "sub" / "renamed and changed")
    (d / "sub" / "renamed and changed").write_bytes(b"r" * 800)
    (top / "e").rename(d / "e")
    files, size = place.sent(place.once())
    assert files == 4
    assert 3000 + 1500 + 700 + 800 <= size < 3000 + 1500 + 700 + 800 + 4000
    assert compare(place.master, place.slave) == []


def test_what_was_deleted_goes(place: Place) -> None:
    top = place.master / "deletes"
    for n in range(20):
        (top / "d" / "sub" / f"{n}").unlink()
    (top / "d" / "sub").rmdir()
    (top / "e" / "1").unlink()
    (top / "e" / "1").mkdir()                                          # something else at an old name
    assert place.sent(place.once()) == (0, 0)
    assert compare(place.master, place.slave) == []
