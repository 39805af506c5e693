"""Where gsync's state lies, and what makes a volume the same as before."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from gsync.base.errors import Faulty, LockedError, UsageError
from gsync.base.process import Lock
from gsync.state.home import Home, Volume, default_path
from lab.images import FsImage


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path / "state"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


def test_a_volume_is_read_as_it_was_added(home: Home, tree: Path) -> None:
    added = home.add("v1", str(tree))
    assert home.get("v1") == added
    assert home.list() == [added]
    assert home.at_path(f"{tree}/../tree") == added
    assert len(added.tag) == 4
    os.close(added.open_root())


def test_the_files_of_a_brick_lie_in_the_volume(home: Home, tree: Path) -> None:
    brick = home.add("v1", str(tree)).brick()
    assert brick.folder == os.path.join(home.path, "volumes", "v1", "bricks", "0")
    assert {os.path.basename(p) for p in (brick.changelogs, brick.namespace, brick.status, brick.ctl, brick.lock)} == {
        "changelogs", "namespace.db", "recorder.status", "recorder.ctl", "recorder.lock"}


def test_a_path_of_any_bytes_is_kept(home: Home, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/new\nline \xff\xfe %\\")
    os.mkdir(path)
    home.add("v", path)
    assert home.get("v").path == path


def test_a_symlink_is_followed_once_and_for_all(home: Home, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree)
    assert home.add("v", str(tmp_path / "link")).path == str(tree)


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b", "a\n", "x" * 129, "ä"])
def test_a_bad_name_is_refused(home: Home, tree: Path, name: str) -> None:
    with pytest.raises(UsageError, match="a name is made of"):
        home.add(name, str(tree))


def test_what_cannot_be_a_volume_is_refused_in_one_line(home: Home, tree: Path) -> None:
    home.add("v", str(tree))
    (tree / "file").touch()
    for name, path, text in [("w", str(tree / "none"), "No such file or directory"),
                             ("w", str(tree / "file"), "Not a directory"),
                             ("v", str(tree), "already exists"),
                             ("w", str(tree), "is volume v already")]:
        with pytest.raises(UsageError, match=text) as error:
            home.add(name, path)
        assert "\n" not in str(error.value)
    assert [v.name for v in home.list()] == ["v"]


def test_an_unknown_volume_and_a_damaged_file_are_named(home: Home, tree: Path) -> None:
    with pytest.raises(UsageError, match="no such volume: v"):
        home.get("v")
    volume = home.add("v", str(tree))
    file = Path(volume.folder, "volume.json")
    good = json.loads(file.read_text())
    for bad in ["", "[]", "{}", json.dumps({**good, "tag": "00"}), json.dumps({**good, "root": "xyz"}),
                json.dumps({**good, "file_system": 3}), json.dumps({**good, "format": 2})]:
        file.write_text(bad)
        with pytest.raises(UsageError, match=r"volume\.json: "):
            home.get("v")


def test_a_removed_volume_is_gone_and_its_tree_is_not(home: Home, tree: Path) -> None:
    volume = home.add("v", str(tree))
    os.makedirs(volume.brick().changelogs)
    (tree / "kept").touch()
    home.remove("v")
    assert home.list() == []
    assert not os.path.exists(volume.folder)
    assert (tree / "kept").exists()


def test_a_volume_whose_recorder_runs_is_not_removed(home: Home, tree: Path) -> None:
    volume = home.add("v", str(tree))
    os.makedirs(volume.brick().folder)
    with Lock(volume.brick().lock, "recorder"), pytest.raises(LockedError, match=f"pid {os.getpid()}"):
        home.remove("v")
    assert home.get("v") == volume


def test_the_state_folder_is_the_one_that_is_named() -> None:
    assert default_path({"GSYNC_HOME": "/x"}) == "/x"
    if os.geteuid() == 0:
        assert default_path({"XDG_STATE_HOME": "/y"}) == "/var/lib/gsync"
    else:
        assert default_path({"XDG_STATE_HOME": "/y"}) == "/y/gsync"


def test_the_oldest_stime_that_a_session_needs_counts(home: Home, tree: Path) -> None:
    volume = home.add("v", str(tree))
    assert volume.needed_from() is None
    os.mkdir(volume.needed)
    Path(volume.needed, "one").write_text("300\n")
    Path(volume.needed, "two").write_text("200\n")
    assert volume.needed_from() == 200
    Path(volume.needed, "three").write_text("damaged")
    assert volume.needed_from() == 0


def refusal(volume: Volume) -> str:
    with pytest.raises(Faulty) as error:
        volume.open_root()
    assert "nothing was recorded as deleted" in str(error.value)
    return str(error.value)


def test_a_root_that_is_gone_or_another_is_refused(home: Home, tree: Path) -> None:
    volume = home.add("v", str(tree))
    tree.rename(tree.with_name("elsewhere"))
    assert "is gone" in refusal(volume)
    tree.touch()
    assert "not a directory" in refusal(volume)
    tree.unlink()
    tree.mkdir()
    assert "another directory" in refusal(volume)
    tree.rmdir()
    tree.with_name("elsewhere").rename(tree)
    os.close(volume.open_root())


@pytest.mark.root
def test_a_file_system_is_known_again_and_another_is_not(home: Home, tmp_path: Path) -> None:
    """The roots of two fresh file systems have the same handle: the file system's own id tells."""
    with FsImage(tmp_path / "one", 32 << 20) as one, FsImage(tmp_path / "two", 32 << 20) as two:
        volume = home.add("v", str(one.path))
        one.unmount()
        assert "another" in refusal(volume)  # the empty mount point
        subprocess.run(["mount", "--bind", two.path, one.path], check=True)
        assert "another file system" in refusal(volume)
        subprocess.run(["umount", one.path], check=True)
        subprocess.run(["mount", "-o", "loop", one.dir / "image", one.path], check=True)
        os.close(volume.open_root())


@pytest.mark.root
def test_47_a_new_file_system_with_the_old_uuid_is_another(home: Home, tmp_path: Path) -> None:
    """An empty one would empty the only copy that is left. A volume of gsync 0.1 learns the birth at the first look."""
    with FsImage(tmp_path / "disk", 32 << 20) as disk:
        volume = home.add("v", str(disk.path))
        known_to_0_1 = {key: value for key, value in volume.file_system.items() if key != "born"}
        home.keep(dataclasses.replace(volume, file_system=known_to_0_1))
        os.close(home.get("v").open_root())
        assert home.get("v").file_system == volume.file_system
        disk.unmount()
        time.sleep(1.1)  # mkfs.ext4 gives the root a birth in whole seconds
        subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", "-I", "256", "-m", "0", "-U",
                        volume.file_system["uuid"], disk.dir / "image"], check=True)
        subprocess.run(["mount", "-o", "loop", disk.dir / "image", disk.path], check=True)
        assert "made anew" in refusal(home.get("v"))
