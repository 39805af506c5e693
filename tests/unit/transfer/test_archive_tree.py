"""The disk side of an archive: everything a tree can hold is read, frozen, removed and brought back the same."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.transfer.archive import eosfile
from gsync.transfer.archive.disk import DiskTree, TreeError
from gsync.transfer.archive.inventory import Inventory
from gsync.transfer.archive.manifest import Manifest, ManifestEntry, ManifestHeader, ManifestWriter
from gsync.transfer.archive.restore import Restore
from gsync.transfer.archive.statefiles import StateFiles
from lab.trees import Entry as Seen
from lab.trees import _differences, make_everything, scan

PRIVILEGED = os.geteuid() == 0


def nothing(count: int, size: int) -> None:
    pass


def state_of(path: Path) -> dict[bytes, Seen]:
    return scan(path, exclude=eosfile.RESERVED)


def changes(before: dict[bytes, Seen], path: Path) -> list[object]:
    now = state_of(path)
    return [*(before.keys() ^ now.keys()),
            *((name, text) for name in before.keys() & now.keys()
              for text in _differences(before[name], now[name], False))]


@pytest.fixture
def disk(tree: Path) -> Iterator[DiskTree]:
    (tree / "d").mkdir()
    (tree / "d/f").write_text("content")
    (tree / "d/g").hardlink_to(tree / "d/f")
    (tree / "empty").touch()
    disk = DiskTree(os.fsencode(tree))
    yield disk
    disk.thaw_all()
    disk.close()


def manifest_of(disk: DiskTree, folder: Path, freeze: bool = False) -> Manifest:
    writer = ManifestWriter(os.fsencode(folder / "manifest"))
    for entry in Inventory(disk).entries(freeze, nothing):
        writer.add(entry)
    return writer.finish(ManifestHeader(disk.root, "v", b"p", 0))


def others(manifest: Manifest) -> Iterator[ManifestEntry]:
    return (entry for _, entry in manifest.entries(manifest.behind_directories()))


@pytest.mark.parametrize("freeze", [False, pytest.param(True, marks=pytest.mark.root)])
def test_everything_is_brought_back(tmp_path: Path, tree: Path, freeze: bool) -> None:
    make_everything(tree, 3, privileged=PRIVILEGED)
    before = state_of(tree)
    disk = DiskTree(os.fsencode(tree))
    try:
        Inventory(disk).survey(nothing)
        manifest = manifest_of(disk, tmp_path, freeze)
        for _, entry in manifest.entries():
            assert disk.content_differs(entry, read=True) == ""
            assert disk.attributes_differ(entry) == ""
        contents: dict[bytes, bytes] = {}
        for entry in others(manifest):
            if entry.has_content:
                with disk.open_file(entry.path) as file:
                    contents[entry.path] = file.read()
        for entry in manifest.directories():
            disk.open_up(entry.path)
        for entry in [*others(manifest), *manifest.reversed_directories()]:
            if entry.path:
                disk.remove(entry)
        assert os.listdir(tree) == []
        Restore(disk).begin()
        for entry in manifest.directories():
            Restore(disk).directory(entry)
        for entry in others(manifest):
            if entry.has_content:
                Restore(disk).file(entry, lambda out, path=entry.path: out.write(contents[path]), freeze)  # type: ignore
            else:
                Restore(disk).other(entry, freeze)
        Restore(disk).end()
        for entry in manifest.reversed_directories():
            disk.set_attributes(entry, freeze)
        assert changes(before, tree) == []
    finally:
        disk.thaw_all()
        disk.close()


@pytest.mark.root
def test_a_frozen_tree_refuses_every_write(disk: DiskTree, tree: Path, tmp_path: Path) -> None:
    assert disk.can_freeze()
    manifest_of(disk, tmp_path, freeze=True)
    for attempt in (lambda: (tree / "d/f").write_text("x"), lambda: (tree / "d/new").touch(), (tree / "empty").unlink,
                    lambda: (tree / "d/f").rename(tree / "d/h"), lambda: (tree / "d").rename(tree / "e"),
                    lambda: os.utime(tree / "d/f"), lambda: os.chmod(tree / "d", 0o700)):
        with pytest.raises(PermissionError):
            attempt()
    assert disk.is_frozen(b"d/f")
    assert disk.thaw_all() == 4  # root, d, f (once for both names), empty
    (tree / "d/f").write_text("x")


@pytest.mark.root
def test_the_time_of_freezing_is_not_the_ctime_of_a_file(disk: DiskTree, tree: Path, tmp_path: Path) -> None:
    ctime = (tree / "d/f").stat().st_ctime_ns
    manifest = manifest_of(disk, tmp_path, freeze=True)
    assert {e.ctime for e in others(manifest) if e.path in (b"d/f", b"d/g")} == {ctime}


def test_state_files_leave_the_root_as_it_was(disk: DiskTree, tree: Path, tmp_path: Path) -> None:
    before = state_of(tree)
    StateFiles(disk).set(eosfile.INIT, iter([b"{}\n"]))
    StateFiles(disk).append_log("made")
    manifest_of(disk, tmp_path, freeze=PRIVILEGED)
    StateFiles(disk).set(eosfile.marker("put", False))
    StateFiles(disk).append_log("going")
    StateFiles(disk).set(eosfile.marker("put", True))
    assert StateFiles(disk).present() == b".archive.put.done"
    assert (tree / ".archive.put.done").read_text() == "{}\n"
    assert (tree / ".archive.log").read_text() == "made\ngoing\n"
    assert changes(before, tree) == []
    StateFiles(disk).set(None)
    assert sorted(os.listdir(tree)) == ["d", "empty"]


@pytest.mark.parametrize("name", [b".archive.init", b".archive.purge.done"])
def test_a_nested_archive_is_refused(disk: DiskTree, tree: Path, name: bytes) -> None:
    (tree / "d" / os.fsdecode(name)).touch()
    with pytest.raises(TreeError, match="nested"):
        Inventory(disk).survey(nothing)


@pytest.mark.root
def test_an_entry_that_is_immutable_already_is_refused(disk: DiskTree, tree: Path) -> None:
    fd = os.open(tree / "empty", os.O_RDONLY)
    from gsync.transfer.archive.flags import set_immutable

    set_immutable(fd, True)
    os.close(fd)
    with pytest.raises(TreeError, match="empty: is immutable"):
        Inventory(disk).survey(nothing)


def test_both_checks_tell_what_is_wrong(disk: DiskTree, tree: Path, tmp_path: Path) -> None:
    """The transfer check: exists, kind, size, checksum. The metadata check: attributes, and nothing else."""
    (tree / "link").symlink_to("d")
    manifest = manifest_of(disk, tmp_path)
    entry = {e.path: e for _, e in manifest.entries()}
    st = (tree / "d/f").stat()
    (tree / "d/f").write_text("CONTENT")
    os.utime(tree / "d/f", ns=(st.st_atime_ns, st.st_mtime_ns))
    (tree / "empty").unlink()
    (tree / "link").unlink()
    (tree / "link").symlink_to("e")
    os.chmod(tree / "d", 0o700)
    os.utime(tree / "d", ns=(1, 1))
    first = next(e for e in entry.values() if e.has_content and e.size)
    assert disk.content_differs(first, read=True) == "has another checksum"
    assert disk.content_differs(first, read=False) == ""
    assert disk.content_differs(entry[b"empty"], read=True) == "is missing"
    assert disk.content_differs(entry[b"link"], read=True) == "has another target"
    assert disk.content_differs(entry[b"d"], read=True) == ""
    assert disk.attributes_differ(entry[b"d"]) == "mode, mtime"
    (tree / "d/g").unlink()
    (tree / "d/g").write_text("content")
    second = next(e for e in entry.values() if e.link is not None)
    assert disk.content_differs(second, read=True).startswith("is not a hard link to d/")


def test_a_file_that_cannot_be_fetched_leaves_what_is_there(disk: DiskTree, tree: Path, tmp_path: Path) -> None:
    manifest = manifest_of(disk, tmp_path)
    (entry,) = [e for e in others(manifest) if e.has_content and e.size]
    Restore(disk).begin()

    def broken(out: object) -> None:
        raise OSError(errno.EIO, "vault")

    with pytest.raises(TreeError, match="vault"):
        Restore(disk).file(entry, broken, False)
    Restore(disk).end()
    assert (tree / "d/f").read_text() == "content"
    assert sorted(os.listdir(tree)) == ["d", "empty"]


def test_a_directory_that_holds_more_than_the_archive_is_not_removed(disk: DiskTree, tree: Path,
                                                                   tmp_path: Path) -> None:
    manifest = manifest_of(disk, tmp_path)
    (tree / "d/later").touch()
    for entry in others(manifest):
        disk.remove(entry)
    with pytest.raises(TreeError, match="d: holds entries that are not in the archive"):
        disk.remove(next(e for e in manifest.reversed_directories() if e.path == b"d"))
    assert (tree / "d/later").exists()


def test_what_a_killed_restore_left_is_swept(disk: DiskTree, tree: Path) -> None:
    Restore(disk).begin()
    (tree / ".archive.tmp/7").touch()
    Restore(disk).begin()
    assert os.listdir(tree / ".archive.tmp") == []
    assert stat.S_IMODE((tree / ".archive.tmp").stat().st_mode) == 0o700
    Restore(disk).end()
    assert not (tree / ".archive.tmp").exists()


def test_no_symlink_is_followed(disk: DiskTree, tree: Path, tmp_path: Path) -> None:
    """A directory that was replaced by a link to one outside is a missing entry, and nothing outside is touched."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("mine")
    manifest = manifest_of(disk, tmp_path)
    for name in ("f", "g"):
        (tree / "d" / name).unlink()
    (tree / "d").rmdir()
    (tree / "d").symlink_to(outside)
    for entry in others(manifest):
        if entry.path.startswith(b"d/"):
            assert disk.content_differs(entry, read=True) == "is missing"
            with pytest.raises(TreeError):
                disk.set_attributes(entry)
    assert (outside / "f").read_text() == "mine"
