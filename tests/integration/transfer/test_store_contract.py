"""What every kind of store promises: one contract, run on each of them."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from gsync.transfer.queue.registry import open_store
from gsync.transfer.stores.store import Category, Item, Store, StoreError
from gsync.transfer.stores.vaultfiles import make_vault
from lab.sshd import HOST, Sshd
from lab.tape import Tape

HOSTILE = [b"plain", b"new\nline", b"c\rr", b"\xff\xfe", b"-dash", b"%41", b"a b*?\"'", "ü".encode(), b"n" * 255]
FILE = Item(b"", stat.S_IFREG, 0, 1_600_000_000_123_456_789, 0, 0o640, os.geteuid(), os.getegid())


class World:
    """A place where stores can be made, and opened again as another process would."""

    def __init__(self, kind: str, folder: Path, stack: ExitStack, sshd: Sshd | None = None) -> None:
        self.kind = kind
        self._folder, self._stack = folder, stack
        self.root = folder / "root"
        self.root.mkdir()
        self.url, self.options = str(self.root), dict[str, str]()
        if kind in ("tar", "tape"):
            make_vault(str(self.root))
            self.url = f"tar://{self.root}"
        if kind == "tape":
            self.options = Tape(folder / "tape").options
        if sshd is not None:
            self.url = f"{HOST}:{self.root}"
            self.options = {"ssh-config": str(sshd.client_config)}
        if kind == "gluster":  # the volume that tests/gluster/test_store.py has made
            volume = os.environ["GSYNC_TEST_VOLUME"]
            whole = open_store(volume)
            whole.mkdir(os.fsencode(f"{folder.parent.name}-{folder.name}"))
            whole.close()
            self.url = f"{volume}/{folder.parent.name}-{folder.name}"

    def open(self) -> Store:
        store = open_store(self.url, "s", self.options)
        self._stack.callback(store.close)
        return store


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("sshd")) as sshd:
        yield sshd


@pytest.fixture(params=["dir", "tar", "tape", "ssh", pytest.param("gluster", marks=pytest.mark.gluster)])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        server = request.getfixturevalue("sshd") if request.param == "ssh" else None
        yield World(request.param, tmp_path, stack, server)


@pytest.fixture
def store(world: World) -> Store:
    return world.open()


def put(store: Store, path: bytes, data: bytes = b"data", **how: object) -> None:
    store.put(path, io.BytesIO(data), **how)  # type: ignore[arg-type]


def get(store: Store, path: bytes) -> bytes:
    out = io.BytesIO()
    content = store.get(path, out)
    assert content.size == len(out.getvalue())
    assert content.sha256 == hashlib.sha256(out.getvalue()).hexdigest()
    return out.getvalue()


def refused(call: Callable[[], object], category: Category, number: int | None = None) -> None:
    with pytest.raises(StoreError) as caught:
        call()
    assert caught.value.category is category
    assert number in (None, caught.value.errno)
    assert "store s" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 1000, (1 << 20) + 1, 5 << 20])
def test_what_is_put_comes_back(world: World, size: int) -> None:
    data = os.urandom(size)
    content = world.open().put(b"d/e/f", io.BytesIO(data))
    assert (content.size, content.sha256) == (size, hashlib.sha256(data).hexdigest())
    again = world.open()
    assert get(again, b"d/e/f") == data
    assert again.checksum(b"d/e/f") == content.sha256
    assert again.checksum(b"d/e/f", "adler32") == f"{zlib.adler32(data):08x}"
    assert again.checksum(b"d/e/f", "md5") == hashlib.md5(data).hexdigest()
    assert again.durable(b"d/e/f")
    assert not again.durable(b"d/e/g")


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name(store: Store, name: bytes) -> None:
    put(store, name + b"/" + name, name)
    assert get(store, name + b"/" + name) == name
    assert [item.path for item in store.list(name)] == [name + b"/" + name]
    store.delete(name + b"/" + name)
    store.delete(name)
    assert store.stat(name) is None


@pytest.mark.parametrize("path", [b"/etc", b"..", b"../x", b"a/../../x", b"a//b", b".", b"a/.", b"a\0b", b"a/"])
def test_a_path_that_is_none_is_refused(store: Store, path: bytes) -> None:
    for call in (lambda: put(store, path), lambda: store.stat(path), lambda: store.delete(path),
                 lambda: list(store.list(path)), lambda: get(store, path), lambda: store.mkdir(path),
                 lambda: store.checksum(path)):
        refused(call, Category.PERMANENT, errno.EINVAL)


def test_an_entry_is_not_replaced_unless_it_is_said(store: Store) -> None:
    put(store, b"x", b"old")
    refused(lambda: put(store, b"x", b"new"), Category.PERMANENT, errno.EEXIST)
    assert get(store, b"x") == b"old"
    put(store, b"x", b"new", replace=True)
    assert get(store, b"x") == b"new"
    assert [item.path for item in store.list(b"")] == [b"x"]


def test_attributes(world: World) -> None:
    item = Item(b"", stat.S_IFREG, 4, 1_600_000_000_123_456_789, 0, 0o640, 1234 if os.geteuid() == 0 else os.geteuid(),
                os.getegid(), None, ((b"user.\xff\xfe", b"odd"), (b"user.colour", b"red\0\xff")))
    put(world.open(), b"d/x", item=item)
    seen = world.open().stat(b"d/x")
    assert seen is not None
    assert (seen.path, seen.kind, seen.size, seen.mtime, seen.mode, seen.uid, seen.gid) == (
        b"d/x", stat.S_IFREG, 4, item.mtime, 0o640, item.uid, item.gid)
    assert sorted(seen.xattrs or ()) == sorted(item.xattrs or ())
    store = world.open()
    store.set_attrs(b"d/x", Item(b"", stat.S_IFREG, 0, 5_000_000_000, 0, 0o600, item.uid, item.gid, xattrs=()))
    seen = world.open().stat(b"d/x")
    assert seen is not None
    assert (seen.mtime, seen.mode, seen.xattrs) == (5_000_000_000, 0o600, ())


def test_directories_and_links(world: World) -> None:
    store = world.open()
    store.mkdir(b"empty", Item(b"", stat.S_IFDIR, 0, 7_000_000_000, 0, 0o750, os.geteuid(), os.getegid()))
    store.mkdir(b"empty")
    store.symlink(b"l", Item(b"", stat.S_IFLNK, 0, 8_000_000_000, 0, 0o777, os.geteuid(), os.getegid(),
                             b"not/../there\n"))
    put(store, b"first")
    store.link(b"d/second", b"first")
    again = world.open()
    empty, link = again.stat(b"empty"), again.stat(b"l")
    assert empty is not None
    assert link is not None
    assert (empty.kind, empty.mode, empty.mtime) == (stat.S_IFDIR, 0o750, 7_000_000_000)
    assert (link.kind, link.target, link.mtime) == (stat.S_IFLNK, b"not/../there\n", 8_000_000_000)
    assert get(again, b"d/second") == b"data"
    store.link(b"d/second", b"first")
    assert [item.path for item in again.list(b"")] == [b"d", b"empty", b"first", b"l"]
    assert list(again.list(b"empty")) == []


def test_what_is_not_there(store: Store) -> None:
    assert store.stat(b"x") is None
    assert store.stat(b"x/y") is None
    put(store, b"f")
    assert store.stat(b"f/y") is None
    store.delete(b"x")
    store.delete(b"x/y")
    for call in (lambda: get(store, b"x"), lambda: store.checksum(b"x"), lambda: list(store.list(b"x")),
                 lambda: store.move(b"x", b"y"), lambda: store.set_attrs(b"x", FILE)):
        refused(call, Category.PERMANENT, errno.ENOENT)
    root = store.stat(b"")
    assert root is not None
    assert root.is_dir


def test_move(store: Store) -> None:
    put(store, b"d/x", b"1")
    put(store, b"y", b"2")
    refused(lambda: store.move(b"d/x", b"y"), Category.PERMANENT, errno.EEXIST)
    store.move(b"d/x", b"e/z")
    assert get(store, b"e/z") == b"1"
    assert store.stat(b"d/x") is None
    store.move(b"e", b"f")
    assert get(store, b"f/z") == b"1"


def test_a_directory_that_is_not_empty_stays(store: Store) -> None:
    put(store, b"d/x")
    refused(lambda: store.delete(b"d"), Category.PERMANENT)
    assert get(store, b"d/x") == b"data"


class Breaks(io.RawIOBase):
    """A source that fails after a while."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int = -1) -> bytes:
        if not self._data:
            raise StoreError("store source: gone", Category.STORE_DOWN)
        piece, self._data = self._data[:1000], self._data[1000:]
        return piece


def test_a_source_that_breaks_leaves_nothing_and_the_store_goes_on(world: World) -> None:
    store = world.open()
    with pytest.raises(StoreError, match="store source: gone"):
        store.put(b"x", cast(BinaryIO, Breaks(b"z" * 5000)))
    assert store.stat(b"x") is None
    put(store, b"x", b"fine")
    assert get(world.open(), b"x") == b"fine"
    assert [item.path for item in world.open().list(b"")] == [b"x"]


def test_a_batch(world: World) -> None:
    store = world.open()
    with store.batch():
        for n in range(600):
            put(store, b"d%d/f%d" % (n % 7, n), b"%d" % n)
        store.mkdir(b"empty")
        store.symlink(b"l", Item(b"", stat.S_IFLNK, 0, 0, 0, 0o777, os.geteuid(), os.getegid(), b"t"))
        refused(lambda: put(store, b"d0/f0"), Category.PERMANENT, errno.EEXIST)
    again = world.open()
    assert sum(1 for d in range(7) for _ in again.list(b"d%d" % d)) == 600
    assert get(again, b"d3/f3") == b"3"
    assert all(again.durable(b"d%d/f%d" % (n % 7, n)) for n in range(600))


def test_within_a_batch_one_sees_what_was_put(store: Store) -> None:
    with store.batch():
        put(store, b"x", b"12345")
        seen = store.stat(b"x")
        assert seen is not None
        assert seen.size == 5
        assert get(store, b"x") == b"12345"
        refused(lambda: put(store, b"x"), Category.PERMANENT, errno.EEXIST)


def test_a_batch_that_breaks_hurts_nothing_older(world: World) -> None:
    store = world.open()
    put(store, b"old", b"1")
    with pytest.raises(RuntimeError), store.batch():
        put(store, b"new", b"2")
        raise RuntimeError
    put(store, b"newer", b"3")
    again = world.open()
    assert get(again, b"old") == b"1"
    assert get(again, b"newer") == b"3"


def test_probe_and_free(store: Store) -> None:
    store.probe()
    free = store.free()
    assert free is None or free > 0
