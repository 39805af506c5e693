"""Every kind of change that a tree sees, as (prepare, change) by name: for tests of how each is recorded."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.trees import HOSTILE_NAMES, acl, mkdir_at, opened, write_at

Change = Callable[[Path, Path], None]  # the tree, and a folder outside it on the same file system


@dataclass(frozen=True)
class Kind:
    prepare: Change
    change: Change
    moves: bool = False  # only names change: no data needs to be sent


KINDS: dict[str, Kind] = {}


def kind(prepare: Change = lambda tree, outside: None, *, moves: bool = False) -> Callable[[Change], Change]:
    def register(change: Change) -> Change:
        KINDS[change.__name__] = Kind(prepare, change, moves)
        return change

    return register


def one_file(tree: Path, outside: Path) -> None:
    (tree / "f").write_bytes(b"first contents")


def two_files(tree: Path, outside: Path) -> None:
    one_file(tree, outside)
    (tree / "g").write_bytes(b"other contents")


def a_directory(tree: Path, outside: Path) -> None:
    (tree / "d" / "sub").mkdir(parents=True)
    (tree / "d" / "f").write_bytes(b"in d")
    (tree / "d" / "sub" / "g").write_bytes(b"in sub")
    (tree / "e").mkdir()


@kind()
def create(tree: Path, outside: Path) -> None:
    (tree / "new").write_bytes(b"something")


@kind()
def create_empty(tree: Path, outside: Path) -> None:
    os.mknod(tree / "new", 0o644)


@kind(a_directory)
def create_in_directory(tree: Path, outside: Path) -> None:
    (tree / "d" / "sub" / "new").write_bytes(b"something")


@kind(one_file)
def write(tree: Path, outside: Path) -> None:
    with (tree / "f").open("r+b") as file:
        file.write(b"FIRST")


@kind(one_file)
def append(tree: Path, outside: Path) -> None:
    with (tree / "f").open("ab") as file:
        file.write(b" and more")


@kind(one_file)
def truncate(tree: Path, outside: Path) -> None:
    os.truncate(tree / "f", 3)


def a_long_file(tree: Path, outside: Path) -> None:
    (tree / "f").write_bytes(bytes(10000))


@kind(a_long_file)
def mmap_write(tree: Path, outside: Path) -> None:
    with (tree / "f").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[5000:5004] = b"here"


@kind(one_file)
def chmod(tree: Path, outside: Path) -> None:
    (tree / "f").chmod(0o4711)


@kind(a_directory)
def chmod_directory(tree: Path, outside: Path) -> None:
    (tree / "d" / "sub").chmod(0o2711)


@kind()
def chmod_root(tree: Path, outside: Path) -> None:
    tree.chmod(0o711)


@kind(one_file)
def touch(tree: Path, outside: Path) -> None:
    os.utime(tree / "f", ns=(1_000_000_007, 2_000_000_009))


@kind(a_directory)
def touch_directory(tree: Path, outside: Path) -> None:
    os.utime(tree / "d", ns=(1_000_000_007, 2_000_000_009))


@kind(one_file)
def set_xattr(tree: Path, outside: Path) -> None:
    os.setxattr(tree / "f", "user.colour", b"red")


@kind(a_directory)
def set_acl(tree: Path, outside: Path) -> None:
    os.setxattr(tree / "d", "system.posix_acl_default", acl({1234: 6}))
    os.setxattr(tree / "d" / "f", "system.posix_acl_access", acl({1234: 4}))


@kind(one_file)
def link(tree: Path, outside: Path) -> None:
    os.link(tree / "f", tree / "second")


def a_file_of_two_names(tree: Path, outside: Path) -> None:
    one_file(tree, outside)
    os.link(tree / "f", tree / "second")


@kind(a_file_of_two_names)
def unlink_one_of_two(tree: Path, outside: Path) -> None:
    (tree / "f").unlink()


def a_file_in_two_directories(tree: Path, outside: Path) -> None:
    a_directory(tree, outside)
    os.link(tree / "d" / "f", tree / "e" / "link")


@kind(a_file_in_two_directories)
def write_through_a_link(tree: Path, outside: Path) -> None:
    (tree / "e" / "link").write_bytes(b"through the link")


@kind(one_file)
def unlink(tree: Path, outside: Path) -> None:
    (tree / "f").unlink()


@kind(one_file)
def unlink_and_create_again(tree: Path, outside: Path) -> None:
    (tree / "f").unlink()
    (tree / "f").write_bytes(b"another one")


@kind(one_file)
def file_becomes_directory(tree: Path, outside: Path) -> None:
    (tree / "f").unlink()
    (tree / "f").mkdir()
    (tree / "f" / "below").write_bytes(b"x")


@kind(a_directory)
def directory_becomes_symlink(tree: Path, outside: Path) -> None:
    shutil.rmtree(tree / "d")
    (tree / "d").symlink_to("e")


@kind()
def mkdir(tree: Path, outside: Path) -> None:
    (tree / "new").mkdir(0o750)


@kind()
def mkdir_deep(tree: Path, outside: Path) -> None:
    (tree / "a/b/c/d/e").mkdir(parents=True)
    (tree / "a/b/c/file").write_bytes(b"x")
    (tree / "a/b/c/d/e/file").write_bytes(b"y")


@kind(a_directory)
def rmdir(tree: Path, outside: Path) -> None:
    (tree / "e").rmdir()


@kind(lambda tree, outside: mkdir_deep(tree, outside))
def rm_rf(tree: Path, outside: Path) -> None:
    shutil.rmtree(tree / "a")


@kind()
def symlinks(tree: Path, outside: Path) -> None:
    (tree / "dangling").symlink_to("nowhere")
    (tree / "absolute").symlink_to(outside)
    (tree / "up").symlink_to("..")


@kind(lambda tree, outside: symlinks(tree, outside))
def symlink_is_replaced(tree: Path, outside: Path) -> None:
    (tree / "new").symlink_to("somewhere")
    os.replace(tree / "new", tree / "dangling")


@kind()
def special_files(tree: Path, outside: Path) -> None:
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "socket", 0o140600)


@kind(one_file, moves=True)
def rename(tree: Path, outside: Path) -> None:
    (tree / "f").rename(tree / "renamed")


@kind(a_directory, moves=True)
def rename_across(tree: Path, outside: Path) -> None:
    (tree / "d" / "f").rename(tree / "e" / "renamed")


@kind(two_files, moves=True)
def rename_over_file(tree: Path, outside: Path) -> None:
    (tree / "f").rename(tree / "g")


@kind(a_directory, moves=True)
def rename_directory(tree: Path, outside: Path) -> None:
    (tree / "d").rename(tree / "renamed")


@kind(a_directory, moves=True)
def rename_directory_across(tree: Path, outside: Path) -> None:
    (tree / "d").rename(tree / "e" / "renamed")


@kind(a_directory, moves=True)
def rename_directory_over_empty_one(tree: Path, outside: Path) -> None:
    (tree / "d").rename(tree / "e")


@kind(a_directory, moves=True)
def rename_directory_and_then_below(tree: Path, outside: Path) -> None:
    (tree / "d").rename(tree / "n")
    (tree / "n" / "f").rename(tree / "n" / "h")
    (tree / "n" / "sub").rename(tree / "e" / "sub2")
    (tree / "e" / "sub2" / "g").rename(tree / "g")


@kind(two_files, moves=True)
def swap_files(tree: Path, outside: Path) -> None:
    (tree / "f").rename(tree / "t")
    (tree / "g").rename(tree / "f")
    (tree / "t").rename(tree / "g")


@kind(a_directory, moves=True)
def swap_directories(tree: Path, outside: Path) -> None:
    (tree / "d").rename(tree / "t")
    (tree / "e").rename(tree / "d")
    (tree / "t").rename(tree / "e")


@kind(a_directory, moves=True)
def swap_parent_and_child(tree: Path, outside: Path) -> None:
    (tree / "d" / "sub").rename(tree / "t")
    (tree / "d").rename(tree / "t" / "sub")
    (tree / "t").rename(tree / "d")


@kind(a_directory)
def exchange_directories(tree: Path, outside: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.renameat2(-100, bytes(tree / "d"), -100, bytes(tree / "e"), 2) == 0


@kind(two_files, moves=True)
def chain(tree: Path, outside: Path) -> None:
    for n in range(5):
        (tree / "f").rename(tree / f"f{n}")
        (tree / f"f{n}").rename(tree / "f")
    (tree / "g").rename(tree / "h")
    (tree / "f").rename(tree / "g")


@kind(a_directory, moves=True)
def there_and_back(tree: Path, outside: Path) -> None:
    for _ in range(3):
        (tree / "d").rename(tree / "x")
        (tree / "x").rename(tree / "d")


@kind(a_directory, moves=True)
def into_sibling(tree: Path, outside: Path) -> None:
    (tree / "d").rename(tree / "e" / "d")


@kind(a_directory)
def rename_and_write(tree: Path, outside: Path) -> None:
    (tree / "d" / "f").write_bytes(b"before")
    (tree / "d").rename(tree / "n")
    (tree / "n" / "sub" / "g").write_bytes(b"after")
    (tree / "n" / "sub" / "new").write_bytes(b"new")


@kind(a_directory)
def move_out(tree: Path, outside: Path) -> None:
    (tree / "d").rename(outside / "d")


@kind(one_file)
def move_file_out(tree: Path, outside: Path) -> None:
    (tree / "f").rename(outside / "f")


@kind(lambda tree, outside: a_directory(outside, outside))
def move_in(tree: Path, outside: Path) -> None:
    (outside / "d").rename(tree / "d")


@kind(lambda tree, outside: one_file(outside, outside))
def move_file_in_and_on(tree: Path, outside: Path) -> None:
    (outside / "f").rename(tree / "a")
    (tree / "a").rename(tree / "b")


@kind(one_file)
def move_file_out_write_and_in_again(tree: Path, outside: Path) -> None:
    (tree / "f").rename(outside / "f")
    (outside / "f").write_bytes(b"written outside")
    (outside / "f").rename(tree / "f")


@kind(one_file)
def move_file_out_write_in_and_on(tree: Path, outside: Path) -> None:
    """Scenario 4, moved_in_and_on."""
    (tree / "f").rename(outside / "f")
    (outside / "f").write_bytes(b"written outside")
    (outside / "f").rename(tree / "b")
    (tree / "b").rename(tree / "c")


@kind(one_file)
def link_in_from_outside(tree: Path, outside: Path) -> None:
    """Scenario 5, link_from_outside."""
    (tree / "f").rename(outside / "f")
    (outside / "f").write_bytes(b"written outside")
    os.link(outside / "f", tree / "b")


@kind(a_directory)
def move_directory_out_change_and_in_again(tree: Path, outside: Path) -> None:
    (tree / "d").rename(outside / "d")
    (outside / "d" / "f").write_bytes(b"written outside")
    (outside / "d" / "sub" / "g").unlink()
    (outside / "d" / "sub").rename(outside / "d" / "sub2")
    (outside / "d" / "new").write_bytes(b"made outside")
    (outside / "d").rename(tree / "d")


@kind(a_directory)
def move_out_of_a_directory_that_is_outside(tree: Path, outside: Path) -> None:
    (tree / "d").rename(outside / "d")
    (outside / "d" / "f").write_bytes(b"written outside")
    (outside / "d" / "f").rename(tree / "e" / "f")


@kind(one_file)
def rotate_log(tree: Path, outside: Path) -> None:
    with (tree / "f").open("ab") as log:
        (tree / "f").rename(tree / "f.1")
        log.write(b"last line of the old one\n")
    (tree / "f").write_bytes(b"first line of the new one\n")


@kind(one_file)
def save_like_an_editor(tree: Path, outside: Path) -> None:
    os.link(tree / "f", tree / "f~")
    (tree / ".f.swp").write_bytes(b"edited")
    (tree / ".f.swp").rename(tree / "f")


@kind(lambda tree, outside: mkdir_deep(tree, outside))
def snapshot_by_links(tree: Path, outside: Path) -> None:
    subprocess.run(["cp", "-al", tree / "a", tree / "snapshot"], check=True)


@kind()
def extract_tar(tree: Path, outside: Path) -> None:
    mkdir_deep(outside, outside)
    subprocess.run(["tar", "-cf", outside / "t.tar", "-C", outside, "a"], check=True)
    subprocess.run(["tar", "-xf", outside / "t.tar", "-C", tree], check=True)


def _git(*args: object) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "safe.directory=*", *map(str, args)],
                   check=True, capture_output=True)


def a_repository(tree: Path, outside: Path) -> None:
    _git("init", "-q", "-b", "main", outside / "repo")
    for branch in ("main", "other"):
        (outside / "repo" / branch).mkdir()
        for n in range(5):
            (outside / "repo" / branch / f"{n}.c").write_text(f"{branch} {n}\n")
        (outside / "repo" / "README").write_text(branch)
        _git("-C", outside / "repo", "add", ".")
        _git("-C", outside / "repo", "commit", "-qm", branch)
        if branch == "main":
            _git("-C", outside / "repo", "checkout", "-q", "-b", "other")


@kind(a_repository)
def git_clone_and_checkout(tree: Path, outside: Path) -> None:
    _git("clone", "-q", outside / "repo", tree / "clone")
    _git("-C", tree / "clone", "checkout", "-q", "main", "--")


@kind()
def database_in_place(tree: Path, outside: Path) -> None:
    for n in range(3):
        with contextlib.closing(sqlite3.connect(tree / "db")) as db, db:
            db.execute("CREATE TABLE IF NOT EXISTS t (k)")
            db.execute("INSERT INTO t VALUES (?)", (n,))


@kind()
def hostile_names(tree: Path, outside: Path) -> None:
    with opened(tree) as fd:
        for name in HOSTILE_NAMES:
            if name != b".gsync":
                os.close(mkdir_at(fd, b"d" + name[:254]))
                with opened(b"d" + name[:254], dir_fd=fd) as below:
                    write_at(below, name, name)


@kind(lambda tree, outside: hostile_names(tree, outside), moves=True)
def hostile_renames(tree: Path, outside: Path) -> None:
    with opened(tree) as fd:
        for name in HOSTILE_NAMES:
            if name != b".gsync":
                os.rename(b"d" + name[:254], b"e" + name[:254], src_dir_fd=fd, dst_dir_fd=fd)


def beyond_path_max(tree: Path, outside: Path) -> None:
    fd = os.open(tree, os.O_RDONLY)
    try:
        for _ in range(20):
            below = mkdir_at(fd, b"x" * 250)
            os.close(fd)
            fd = below
        write_at(fd, b"bottom", b"deep")
    finally:
        os.close(fd)


@kind()
def create_beyond_path_max(tree: Path, outside: Path) -> None:
    beyond_path_max(tree, outside)


@kind(beyond_path_max)
def change_beyond_path_max(tree: Path, outside: Path) -> None:
    with opened(b"x" * 250, dir_fd=os.open(tree, os.O_RDONLY)) as fd:
        os.mkdir(b"side", dir_fd=fd)
        os.rename(b"x" * 250, b"y" * 250, src_dir_fd=fd, dst_dir_fd=fd)
        here = os.open(b"y" * 250, os.O_RDONLY, dir_fd=fd)
        for _ in range(18):
            below = os.open(b"x" * 250, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        write_at(here, b"beside the bottom", b"new")
        os.rename(b"bottom", b"bottom2", src_dir_fd=here, dst_dir_fd=here)
        os.close(here)


@kind(a_directory)
def many_new_directories(tree: Path, outside: Path) -> None:
    for n in range(30):
        (tree / "e" / str(n) / "below").mkdir(parents=True)
        (tree / "e" / str(n) / "below" / "f").write_bytes(b"%d" % n)
    (tree / "e").rename(tree / "e2")
    shutil.rmtree(tree / "e2" / "3")
