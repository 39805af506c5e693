"""The contract of stores, for each kind of them; and the mover between two."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from gsync.transfer.queue.mover import copy, verify
from gsync.transfer.stores.dir import PART, DirStore
from gsync.transfer.stores.store import Category, Content, Item, Store, StoreError
from lab import REPOSITORY

NAMES = [b"plain", b"new\nline", b"\xff\xfe", b"-rf", b"100%", b"n" * 255, b" "]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "store").mkdir()
    made = DirStore(os.fsencode(tmp_path / "store"), "here")
    yield made
    made.close()


def read(store: Store, path: bytes) -> bytes:
    into = io.BytesIO()
    store.get(path, into)
    return into.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_any_name_comes_back_with_its_content(store: Store, name: bytes) -> None:
    path = b"a/b/" + name
    content = store.put(path, io.BytesIO(b"data"))
    assert content == Content(4, hashlib.sha256(b"data").hexdigest())
    assert read(store, path) == b"data"
    assert [item.path for item in store.list(b"a/b")] == [path]
    assert store.checksum(path) == content.sha256
    assert store.durable(path)
    store.delete(path)
    store.delete(path)
    assert store.stat(path) is None


def test_attributes_are_kept(store: Store) -> None:
    item = Item(b"f", stat.S_IFREG, 0, 1_234_567_890_123_456_789, 0, 0o4750, os.getuid(), os.getgid(), None,
                ((b"user.colour", b"red\0"),))
    store.put(b"f", io.BytesIO(b""), item)
    there = store.stat(b"f")
    assert there is not None
    assert (there.kind, there.size, there.mtime, there.mode, there.xattrs) == (
        stat.S_IFREG, 0, item.mtime, 0o4750, item.xattrs)


def test_nothing_is_replaced_unless_that_is_said(store: Store) -> None:
    store.put(b"f", io.BytesIO(b"old"))
    with pytest.raises(StoreError) as refused:
        store.put(b"f", io.BytesIO(b"new"))
    assert (refused.value.category, refused.value.errno) == (Category.PERMANENT, errno.EEXIST)
    assert read(store, b"f") == b"old"
    store.put(b"f", io.BytesIO(b"new"), replace=True)
    assert read(store, b"f") == b"new"
    store.mkdir(b"d")
    with pytest.raises(StoreError):
        store.put(b"d", io.BytesIO(b"x"), replace=True)


def test_a_source_that_breaks_off_leaves_nothing(store: Store) -> None:
    class Breaks(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "medium error")

    with pytest.raises(StoreError) as broken:
        store.put(b"d/f", Breaks(b"x"))
    assert broken.value.category is Category.TRANSIENT
    assert list(store.list(b"d")) == []
    assert os.listdir(os.path.join(os.fsencode(store.url), b"d")) == []


def test_links_and_directories(store: Store) -> None:
    store.put(b"f", io.BytesIO(b"x"))
    store.link(b"d/g", b"f")
    store.link(b"d/g", b"f")
    store.symlink(b"d/s", Item(b"d/s", stat.S_IFLNK, target=b"../no such \xff"))
    store.symlink(b"d/s", Item(b"d/s", stat.S_IFLNK, target=b"../no such \xff"))
    there = store.stat(b"d/s")
    assert there is not None and there.target == b"../no such \xff"
    store.move(b"d", b"e/e")
    assert [item.path for item in store.list(b"e/e")] == [b"e/e/g", b"e/e/s"]
    with pytest.raises(StoreError):
        store.move(b"f", b"e")
    with pytest.raises(StoreError):
        store.delete(b"e")


@pytest.mark.parametrize("path", [b"../x", b"/etc/passwd", b"a/../b", b"a//b", b"nul\0"])
def test_what_is_no_path_is_refused(store: Store, path: bytes) -> None:
    for call in (store.stat, store.checksum, store.delete, store.mkdir):
        with pytest.raises(StoreError) as refused:
            call(path)
        assert refused.value.category is Category.PERMANENT


def test_no_symlink_leads_out(store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    os.symlink(tmp_path, os.path.join(os.fsencode(store.url), b"out"))
    for call in (store.checksum, store.stat):
        with pytest.raises(StoreError):
            call(b"out/secret")
    with pytest.raises(StoreError):
        store.put(b"out/new", io.BytesIO(b"x"))
    assert sorted(os.listdir(tmp_path)) == ["secret", "store"]


def test_deeper_than_a_path_may_be_long(store: Store) -> None:
    path = b"/".join([b"d" * 200] * 30) + b"/f"
    store.put(path, io.BytesIO(b"deep"))
    assert read(store, path) == b"deep"


def test_a_store_that_is_not_mounted_is_down(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as down:
        DirStore(os.fsencode(tmp_path / "missing"), "x")
    assert down.value.category is Category.STORE_DOWN


def test_a_copy_is_compared_and_a_torn_source_arrives_nowhere(store: Store, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = DirStore(os.fsencode(tmp_path / "other"))
    data = os.urandom(3_000_000)
    content = store.put(b"f", io.BytesIO(data))
    assert copy(store, b"f", other, b"x/f", content.sha256) == content
    verify(other, b"x/f", content)
    assert copy(store, b"f", other, b"x/f") == content  # already there

    class Torn(DirStore):
        def get(self, path: bytes, into: BinaryIO) -> Content:
            into.write(b"half")
            raise StoreError("lost", Category.STORE_DOWN)

    torn = Torn(os.fsencode(tmp_path / "store"))
    with pytest.raises(StoreError, match="lost"):
        copy(torn, b"f", other, b"y")
    assert other.stat(b"y") is None
    with pytest.raises(StoreError) as wrong:
        copy(store, b"f", other, b"z", "0" * 64)
    assert wrong.value.category is Category.CORRUPT
    assert other.stat(b"z") is None
    assert not any(name.startswith(PART) for name in map(os.fsencode, os.listdir(tmp_path / "other")))
    assert not any(thread.name == "mover" for thread in threading.enumerate())


def test_in_a_batch_a_file_has_no_name_before_its_bytes_are_durable(tmp_path: Path) -> None:
    named: list[int] = []
    store = DirStore(os.fsencode(tmp_path), flush=lambda fd: named.append(len(os.listdir(fd))))
    with store.batch():
        for n in range(20):
            store.put(b"%d" % n, io.BytesIO(b"x"))
        assert os.listdir(store.url) == []  # and no other name either
    store.close()
    assert named == [0, 20]


def test_a_killed_process_leaves_nothing_behind(store: Store, tmp_path: Path) -> None:
    program = ("import os, sys\nfrom gsync.transfer.stores.dir import DirStore\nclass Endless:\n"
               "    def read(self, size=-1):\n        print('read', flush=True)\n        return bytes(4096)\n"
               "store = DirStore(os.fsencode(sys.argv[1]))\nstore.put(b'x', Endless())\n")
    with subprocess.Popen([sys.executable, "-c", program, store.url], stdout=subprocess.PIPE,
                          cwd=REPOSITORY) as process:
        assert process.stdout is not None
        for _ in range(20):
            process.stdout.readline()
        process.kill()
    assert os.listdir(store.url) == []


@pytest.mark.parametrize("replace", [False, True])
def test_where_files_without_names_are_not_known(store: Store, monkeypatch: pytest.MonkeyPatch, replace: bool) -> None:
    real = os.open

    def no_tmpfile(path: bytes, flags: int, *args: int, **more: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", no_tmpfile)
    store.put(b"old", io.BytesIO(b"old"))
    with store.batch():
        for n in range(20):
            store.put(b"%d" % n, io.BytesIO(b"x"), replace=replace)
        assert all(os.fsencode(name) == b"old" or os.fsencode(name).startswith(PART) for name in os.listdir(store.url))
        assert len(list(store.list(b""))) == 21
        with pytest.raises(StoreError):
            store.put(b"old", io.BytesIO(b"new"))
    assert sorted(os.listdir(store.url)) == sorted([*map(str, range(20)), "old"])
    assert read(store, b"old") == b"old"
