"""Where MASTER and SLAVE lead, and what is refused before anything is started."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.base.errors import UsageError
from gsync.link.link import Slave
from gsync.session import places
from gsync.session.places import check_apart, master_volume, slave_at, slave_text
from gsync.state.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path / "home"))


def test_a_directory_becomes_a_volume_once(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "my tree"
    tree.mkdir()
    (tmp_path / "link").symlink_to(tree)
    volume = master_volume(home, str(tree))
    assert volume.path == str(tree)
    assert volume.name.startswith("my-tree-")
    assert master_volume(home, str(tmp_path / "link")) == volume
    assert master_volume(home, f"{tree}/") == volume
    monkeypatch.chdir(tree)
    assert master_volume(home, ".") == volume
    assert home.list() == [volume]


def test_a_name_without_slash_is_a_volume_before_it_is_a_directory(
        home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "named"):
        (tmp_path / name).mkdir()
    volume = home.add("photos", str(tmp_path / "named"))
    assert master_volume(home, "photos") == volume
    assert master_volume(home, "./photos").path == str(tmp_path / "photos")
    assert master_volume(home, "named") == volume  # by its path


def test_a_master_that_is_no_directory_is_refused(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, complaint in [("file", "Not a directory"), ("missing", "no such directory"),
                            ("dangling", "no such directory"), ("a\nb", "no such directory")]:
        with pytest.raises(UsageError, match=complaint) as caught:
            master_volume(home, str(tmp_path / name))
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no such directory or volume"):
        master_volume(home, "nosuchvolume")
    assert home.list() == []


def test_a_master_that_was_replaced_is_refused(home: Home, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    master_volume(home, str(tree))
    tree.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="gone"):
        master_volume(home, str(tree))
    tree.mkdir()
    with pytest.raises(UsageError, match="another directory than before"):
        master_volume(home, str(tree))


@pytest.mark.parametrize(
    ("text", "slave"),
    [
        ("/a/b/", Slave(b"/a/b")),
        ("/a/../b", Slave(b"/b")),
        ("/with:colon", Slave(b"/with:colon")),
        ("host:/a", Slave(b"/a", "host")),
        ("me@host:/a", Slave(b"/a", "host", "me")),
        ("ssh://me@host:2222/a", Slave(b"/a", "host", "me", 2222)),
        ("[::1]:/a", Slave(b"/a", "::1")),
        ("/\udcff\n", Slave(b"/\xff\n")),
        ("host:/\udcff", Slave(b"/\xff", "host")),
    ],
)
def test_a_slave_is_the_same_after_it_was_written_down(text: str, slave: Slave) -> None:
    assert slave_at(text) == slave
    assert slave_at(slave_text(slave)) == slave


def test_a_slave_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("copy", "./copy", "x/../copy/"):
        assert slave_at(text) == Slave(os.fsencode(tmp_path / "copy"))
    assert slave_at("./with:colon") == Slave(os.fsencode(tmp_path / "with:colon"))
    with pytest.raises(UsageError):
        slave_at("host:relative")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """master/sub/deep, a copy beside, and links into both."""
    for path in ("master/sub/deep", "copy/sub", "home"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "to-sub").symlink_to("master/sub")
    (tmp_path / "to-master").symlink_to("master")
    return tmp_path


@pytest.mark.parametrize(
    ("slave", "complaint"),
    [
        ("master", "slave .* lies inside the master"),
        ("master/sub/deep", "slave .* lies inside the master"),
        ("master/new/below", "slave .* lies inside the master"),
        ("to-sub/deep", "slave .* lies inside the master"),
        ("to-master/new", "slave .* lies inside the master"),
        (".", "master .* lies inside the slave"),
        ("home", "state directory .* lies inside the slave"),
        ("home/sessions/../..", "master .* lies inside the slave"),
    ],
)
@pytest.mark.parametrize("blind", ["_origin", "_ancestors"])
def test_trees_that_lie_in_each_other_are_refused(
        world: Path, home: Home, monkeypatch: pytest.MonkeyPatch, slave: str, complaint: str, blind: str) -> None:
    monkeypatch.setattr(places, blind, lambda path: [path])  # either look finds it alone
    volume = master_volume(home, str(world / "to-master"))
    with pytest.raises(UsageError, match=complaint):
        check_apart(volume, slave_at(os.path.join(world, slave)), home)


def test_trees_beside_each_other_are_fine(world: Path, home: Home) -> None:
    volume = master_volume(home, str(world / "master"))
    for slave in (f"{world}/copy", f"{world}/copy/sub", f"{world}/master2", f"{world}/new/place", "host:/master",
                  f"host:{world}/master"):
        check_apart(volume, slave_at(slave), home)


def test_the_state_folder_may_lie_in_the_master(world: Path) -> None:
    home = Home(str(world / "master" / ".state"))
    check_apart(master_volume(home, str(world / "master")), slave_at(f"{world}/copy"), home)


@pytest.fixture
def bound(world: Path) -> Iterator[Path]:
    """A bind mount of master/sub, at a name that needs escapes in mountinfo."""
    at = world / "bound \\040here"
    at.mkdir()
    subprocess.run(["mount", "--bind", world / "master" / "sub", at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


@pytest.mark.root
def test_a_bind_mount_hides_nothing(world: Path, home: Home, bound: Path) -> None:
    volume = master_volume(home, str(world / "master"))
    for slave in (bound, bound / "deep", bound / "new"):
        with pytest.raises(UsageError, match=r"slave .* lies inside the master"):
            check_apart(volume, slave_at(str(slave)), home)
    inner = master_volume(home, str(bound))
    with pytest.raises(UsageError, match=r"master .* lies inside the slave"):
        check_apart(inner, slave_at(f"{world}/master"), home)
    check_apart(inner, slave_at(f"{world}/copy"), home)
