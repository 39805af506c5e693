"""`gsync archive` and `gsync backup` to a directory of another host, and of a GlusterFS volume (tests/gluster)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.transfer.archive.backup import Backup, Window
from gsync.transfer.archive.batches import JobOptions
from gsync.transfer.queue.registry import StorePath, open_store
from gsync.transfer.queue.retry import RetryPolicy
from gsync.transfer.stores.store import Store
from lab.archives import Here, Place, changes, small_tree
from lab.sshd import HOST, Sshd
from lab.trees import scan


def a_tree(place: Place) -> None:
    small_tree(place)
    os.mkfifo(place.tree / "d/pipe")
    os.link(place.tree / "link", place.tree / "d/link too", follow_symlinks=False)
    with open(os.path.join(os.fsencode(place.tree), b"d/n\xff\n"), "wb") as file:
        file.write(os.urandom(3 << 20))


@pytest.fixture(params=["ssh", pytest.param("gluster", marks=pytest.mark.gluster)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Its vault is the store "far"."""
    place = Place(tmp_path, "dir")
    options = {}
    if request.param == "ssh":
        server = request.getfixturevalue("server")
        url, options = f"{HOST}:{place.vault_dir}", {"ssh-config": str(server.client_config)}
    else:  # the volume that tests/gluster/test_store.py has made
        url = f"{os.environ['GSYNC_TEST_VOLUME']}/{tmp_path.name}"
        whole = open_store(os.environ["GSYNC_TEST_VOLUME"])
        whole.mkdir(tmp_path.name.encode())
        whole.close()
    with Here(place) as here:
        here.stores.add("far", url, options)
    place.vault = "far"
    yield place
    place.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "sshd") as server:
        yield server


def test_everything_comes_back_from_there(place: Place) -> None:
    a_tree(place)
    before = place.seen()
    with Here(place, jobs=2) as here:
        here.create()
        here.do.put(here.root)
        here.do.purge(here.root)
        assert place.seen().keys() == {b"."}
        os.unlink(here.archives.manifest_path(here.archives.the(here.root)))
        here.do.rebuild(here.root, "far")
        here.do.get(here.root)
        assert changes(before, place.seen()) == []
        here.do.delete(here.root)
        assert list(here.stores.get("far").list(b"archives")) == []
    assert changes(before, place.seen()) == []


def test_a_backup_there_sends_what_has_changed(place: Place) -> None:
    a_tree(place)
    sent: list[bytes] = []

    class Counting:
        def __init__(self, store: Store) -> None:
            self._store = store

        def __getattr__(self, name: str) -> object:
            return getattr(self._store, name)

        def put(self, path: bytes, *args: object, **more: object) -> object:
            sent.extend([path] if b".sys.b#" not in path else [])
            return self._store.put(path, *args, **more)  # type: ignore[arg-type]

    with Here(place) as here:
        work = Backup(here.archives, lambda name: Counting(here.stores.get(name)),  # type: ignore[arg-type,return-value]
                      JobOptions(3, 2, RetryPolicy(2, first_pause=0.001)))
        assert work.run(here.root, StorePath("far", b"copy"), Window()).state == "backup done"
        everything = len(sent)
        (place.tree / "one more").write_text("more")
        work.run(here.root, StorePath("far", b"copy"), Window())
        assert (everything, sent[everything:]) == (4, [b"copy/one more"])
        shutil.rmtree(place.tree / "d")
        assert work.run(here.root, StorePath("far", b"copy"), Window()).state == "backup done"
        assert here.stores.get("far").stat(b"copy/d/e/g") is not None  # nothing is deleted there


@pytest.mark.soak
def test_a_link_that_breaks_is_made_again(server: Sshd, tmp_path: Path) -> None:
    """Twice while everything is put, and while it comes back."""
    place = Place(tmp_path, "dir")
    for number in range(9):
        (place.tree / f"f{number}").write_bytes(os.urandom(1 << 20))
    before, calls = scan(place.tree), 0

    class Broken:
        def __init__(self, store: Store) -> None:
            self._store = store

        def __getattr__(self, name: str) -> object:
            nonlocal calls
            if name in ("put", "get"):
                calls += 1
                if calls in (2, 7, 18, 20):
                    server.drop_connections()
            return getattr(self._store, name)

    try:
        with Here(place, batch=4, retries=5, around=Broken) as here:  # type: ignore[arg-type]
            here.stores.add("far", f"{HOST}:{place.vault_dir}", {"ssh-config": str(server.client_config)})
            place.vault = "far"
            here.create()
            here.do.put(here.root)
            here.do.purge(here.root)
            here.do.get(here.root)
            assert here.state == "get done"
        assert calls > 20
        assert changes(before, place.seen()) == []
    finally:
        place.close()
