"""The meta volume and what lies on it: what is not mounted is Faulty, volumes have one identity for all nodes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.base.errors import Faulty, UsageError
from gsync.session.metavolume import MetaVolume, Mirror, mount_at
from gsync.session.session import SessionHome
from gsync.session.sharedvolumes import add_volume, keep_volume
from gsync.state.home import Home


def mount(*args: object) -> None:
    subprocess.run(["mount", *map(str, args)], check=True)


def unmount(path: Path) -> None:
    subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def mnt(tmp_path: Path) -> Iterator[Path]:
    """A folder with a space in its name at which a shared one is mounted."""
    path, shared = tmp_path / "meta mnt", tmp_path / "shared"
    path.mkdir()
    shared.mkdir()
    mount("--bind", shared, path)
    yield path
    while mount_at(str(path)):
        unmount(path)


def node(folder: Path, mnt: Path) -> Home:
    folder.mkdir(exist_ok=True)
    (folder / "gsync.conf").write_text(f"[gsync]\nuse-meta-volume = true\nmeta-volume-mnt = {mnt}\n")
    return Home(str(folder))


def test_a_folder_is_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(Faulty, match="not mounted"):
        MetaVolume(str(tmp_path), str(tmp_path / "memory")).check()
    assert not (tmp_path / "geo-rep").exists()


@pytest.mark.root
def test_it_is_remembered_which_one_it_is(tmp_path: Path, mnt: Path) -> None:
    one, two = (MetaVolume(str(mnt), str(tmp_path / name)) for name in ("one", "two"))
    one.check()
    two.check()
    unmount(mnt)
    for each in (one, two):
        with pytest.raises(Faulty, match="not mounted"):
            each.check()
    mount("-t", "tmpfs", "tmpfs", mnt)
    with pytest.raises(Faulty, match="another file system was mounted there before"):
        one.check()
    assert os.listdir(mnt) == []
    unmount(mnt)
    mount("--bind", tmp_path / "shared", mnt)
    one.check()
    assert os.listdir(mnt / "geo-rep") == ["id"]


@pytest.mark.root
def test_a_second_node_takes_the_identity_of_the_volume_over(tmp_path: Path, mnt: Path) -> None:
    tree, elsewhere, other = (tmp_path / name for name in ("tree", "elsewhere", "other"))
    for path in (tree, elsewhere, other):
        path.mkdir()
    mount("--bind", tree, elsewhere)
    try:
        a, b = node(tmp_path / "a", mnt), node(tmp_path / "b", mnt)
        first = add_volume(a, "v", str(tree))
        with pytest.raises(UsageError, match="not the tree that other nodes have"):
            add_volume(b, "v", str(other))
        second = add_volume(b, "v", str(elsewhere))
    finally:
        unmount(elsewhere)
    assert (second.uuid, second.tag, second.path) == (first.uuid, first.tag, str(elsewhere))
    assert b.get("v").uuid == first.uuid


@pytest.mark.root
def test_a_volume_that_was_there_before_the_meta_volume_is_shared_later(tmp_path: Path, mnt: Path) -> None:
    (tmp_path / "tree").mkdir()
    volumes = [Home(str(tmp_path / name)).add("v", str(tmp_path / "tree")) for name in "ab"]
    a, b = (node(tmp_path / name, mnt) for name in "ab")
    keep_volume(a, volumes[0])
    assert a.get("v") == volumes[0]
    with pytest.raises(UsageError, match="independently"):
        keep_volume(b, volumes[1])


@pytest.mark.root
def test_nothing_is_shared_while_it_is_not_mounted(tmp_path: Path, mnt: Path) -> None:
    (tmp_path / "tree").mkdir()
    a = node(tmp_path / "a", mnt)
    unmount(mnt)
    with pytest.raises(Faulty, match="not mounted"):
        add_volume(a, "v", str(tmp_path / "tree"))
    assert a.list() == []


@pytest.mark.root
def test_a_session_is_seen_by_the_other_node(tmp_path: Path, mnt: Path) -> None:
    (tmp_path / "tree").mkdir()
    a, b = node(tmp_path / "a", mnt), node(tmp_path / "b", mnt)
    add_volume(a, "v", str(tmp_path / "tree"))
    sessions = SessionHome(a)
    session = sessions.find_or_new("v", "/slave", "s")
    assert session.on_meta_volume and session.meta_volume_mnt == str(mnt)
    sessions.save(session)
    seen = SessionHome(b).get("s")
    assert (seen.shared, seen.lease, seen.slave) == (session.shared, session.lease, "/slave")
    assert seen.folder != session.folder


def test_a_mirror_shows_the_latest_and_waits_for_nobody() -> None:
    shown: list[bytes] = []

    def write(data: bytes) -> None:
        shown.append(data)
        if data == b"1":
            raise OSError("the meta volume is gone for a moment")

    mirror = Mirror(write)
    for data in (b"1", b"2", b"3"):
        mirror.show(data)
    mirror.close(30)
    assert shown[-1] == b"3"
