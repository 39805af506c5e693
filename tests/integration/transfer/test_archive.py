"""`gsync archive` from create to delete, on every kind of vault: everything comes back, nothing is lost on the way."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsync.base.errors import LockedError
from gsync.transfer.archive.batches import Killed
from gsync.transfer.archive.disk import DiskTree, TreeError
from gsync.transfer.archive.inventory import Inventory
from gsync.transfer.archive.manifest import ManifestEntry
from gsync.transfer.archive.outcome import Verify
from gsync.transfer.kinds import HANDLERS
from gsync.transfer.queue.orders import Orders
from gsync.transfer.queue.requests import TransferState
from gsync.transfer.queue.worker import QueueWorker
from gsync.transfer.stores.store import Category, Store, StoreError
from lab import REPOSITORY
from lab.archives import KINDS, Here, Place, changes, damage, small_tree
from lab.trees import make_everything, rsync_diff

PRIVILEGED = os.geteuid() == 0


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path, request.param)
    yield place
    place.close()


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.close()


def test_everything_comes_back_from_the_vault(place: Place, tmp_path: Path) -> None:
    """Put, purged, got back: nothing differs, and rsync finds nothing to do; every command as its user types it."""
    make_everything(place.tree, 5, privileged=PRIVILEGED)
    before = place.seen()
    copy = tmp_path / "copy"
    subprocess.run(["rsync", "-aHAXS", "--modify-window=-1", "--exclude=/deep", f"{place.tree}/", copy], check=True)
    assert "would archive" in place.run("create", "--vault", place.vault, "--dry-run")
    assert place.markers == []
    place.create()
    assert place.markers == [".archive.init"]
    assert changes(before, place.seen()) == []
    place.run("put")
    assert place.markers == [".archive.put.done"]
    would = json.loads(place.run("purge", "--dry-run", "--json"))
    assert would["entries"] == json.loads(place.run("purge", "--json"))["entries"]
    assert sorted(os.listdir(place.tree)) == [".archive.log", ".archive.purge.done"]
    place.run("get", "--verify", "full")
    assert place.markers == [".archive.get.done"]
    assert changes(before, place.seen()) == []
    assert rsync_diff(copy, place.tree, exclude=("/deep", "/.archive.*")) == []
    assert place.status()["frozen"] is PRIVILEGED
    place.run("purge", "--verify", "size")
    place.run("get")
    assert "not deleted" in place.run("delete", code=2)
    assert "would delete from the vault" in place.run("delete", "--dry-run")
    place.run("delete", "--yes")
    assert changes(before, place.seen()) == []
    assert not [name for name in os.listdir(place.tree) if name.startswith(".archive")]
    assert json.loads(place.run("list", "--json")) == []
    assert not [path for path in place.vault_dir.rglob("*") if b"at the root" in os.fsencode(path.name)]


@pytest.mark.parametrize("content", ["nothing", "directories", "a symlink", "an empty file"])
def test_eos_item_4_trees_without_content_are_archived(place: Place, content: str) -> None:
    """EOS crashes on directories alone, is silent about an empty tree, and refuses empty files and symlinks."""
    if content == "directories":
        (place.tree / "a/b").mkdir(parents=True)
    elif content == "a symlink":
        (place.tree / "l").symlink_to("nowhere")
    elif content == "an empty file":
        (place.tree / "e").touch()
    before = place.seen()
    with Here(place) as here:
        here.create()
        for step in (here.do.put, here.do.purge, here.do.get):
            step(here.root)
    assert changes(before, place.seen()) == []


# nothing is lost

def put(place: Place) -> None:
    small_tree(place)
    with Here(place) as here:
        here.create()
        here.do.put(here.root)


def refused(place: Place, says: str, verify: Verify = Verify.CHECKSUM) -> dict[str, str]:
    """A purge is refused, and has removed nothing; what status would list."""
    before = place.seen()
    with Here(place, verify) as here:
        with pytest.raises(Exception, match="not purged, nothing was removed"):
            here.do.purge(here.root)
        assert changes(before, place.seen()) == []
        assert says in " ".join(here.failed.values()), here.failed
        return here.failed


def test_a_purge_is_refused_while_a_member_is_damaged(place: Place) -> None:
    """And put --retry puts the good one there again; then it goes."""
    put(place)
    damage(place, b"second")
    failed = refused(place, "")
    assert list(failed) == ["d/e/g"]
    assert place.markers == [".archive.put.err"]
    with Here(place) as here:
        with pytest.raises(Exception, match="put --retry"):
            here.do.purge(here.root)
        here.do.put(here.root, retry=True)
        here.do.purge(here.root)
        assert here.state == "purge done"


def test_eos_item_1_nothing_counts_as_safe_because_time_has_passed(place: Place) -> None:
    """EOS takes a file for being on tape after a pause, or when its size is right: put is done, and purge loses it.
    Here `durable` is asked of the store, for each entry, by put and by purge."""
    small_tree(place)

    class OnDiskOnly:
        """A vault whose tape has not taken this one yet."""

        def __init__(self, store: Store) -> None:
            self._store = store

        def __getattr__(self, name: str) -> object:
            return getattr(self._store, name)

        def durable(self, path: bytes) -> bool:
            return not path.endswith(b"/g") and self._store.durable(path)

    with Here(place, around=OnDiskOnly) as here:  # type: ignore[arg-type]
        here.create()
        with pytest.raises(Exception, match="d/e/g: is not durable in the vault"):
            here.do.put(here.root)
        assert here.state == "put failed"
        with pytest.raises(Exception, match="cannot purge"):
            here.do.purge(here.root)
    with Here(place) as here:
        here.do.put(here.root, retry=True)
    with Here(place, around=OnDiskOnly) as here:  # type: ignore[arg-type]
        with pytest.raises(Exception, match="nothing was removed"):
            here.do.purge(here.root)
        assert here.failed == {"d/e/g": "is not durable in the vault"}
    assert (place.tree / "d/e/g").exists()


def test_a_purge_is_refused_when_the_disk_holds_something_else(place: Place) -> None:
    put(place)
    place.close()  # as root: chattr -i, then go on as if nobody were looking
    st = (place.tree / "d/e/g").stat()
    (place.tree / "d/e/g").write_text("changed" * 1000)
    os.utime(place.tree / "d/e/g", ns=(st.st_atime_ns, st.st_mtime_ns))
    (place.tree / "d/new").write_text("not archived")
    failed = refused(place, "is not in the archive")
    assert failed == {"d/e/g": "changed after it was archived: has another checksum", "d/new": "is not in the archive"}


def test_a_purge_without_reading_needs_an_earlier_reading(place: Place) -> None:
    small_tree(place)
    with Here(place, Verify.SIZE) as here:
        here.create()
        here.do.put(here.root)
        with pytest.raises(Exception, match="never read back"):
            here.do.purge(here.root)
    assert (place.tree / "d/f").exists()


def test_a_file_that_changes_after_the_freeze_is_not_put(place: Place) -> None:
    small_tree(place)
    with Here(place) as here:
        here.create()
        place.close()
        (place.tree / "d/e/g").write_text("other\n" * 1000)
        with pytest.raises(TreeError, match="d/e/g: changed after the archive was created"):
            here.do.put(here.root)
        assert here.state == "put failed"


def test_what_the_vault_cannot_give_is_named_and_the_rest_comes_back(place: Place) -> None:
    small_tree(place)
    (place.tree / "other").write_text("third")
    before = place.seen()
    with Here(place) as here:
        here.create()
        here.do.put(here.root)
        here.do.purge(here.root)
    place.run("get", "--dry-run")
    heal = damage(place, b"second")
    assert "d/e/g" in place.run("get", "--dry-run", code=1)
    assert place.markers == [".archive.purge.done"]
    out = place.run("get", code=1)
    assert "1 entries could not be restored" in out
    status = place.status()
    assert [entry["path"] for entry in status["failed_entries"]] == ["d/e/g"]
    assert status["state"] == "get failed"
    assert place.markers == [".archive.get.err"]
    assert set(before) - set(place.seen()) == {b"d/e/g"}
    assert "get --retry" in place.run("get", code=2)
    heal()
    place.run("get", "--retry")
    assert changes(before, place.seen()) == []


# going on

def test_eos_item_3_a_retry_never_removes_what_is_good(place: Place) -> None:
    """EOS takes a directory's wrong attributes for a transfer error and deletes the subtree. Here only attributes are
    set again, and one bad file is fetched again: the inodes of all others stay."""
    small_tree(place)
    before = place.seen()
    with Here(place) as here:
        here.create()
        here.do.put(here.root)
        here.do.purge(here.root)
        here.do.get(here.root)
        here.archives.change(here.archives.the(here.root), done=0)  # as if it had been killed at its very end
    place.close()
    os.chmod(place.tree / "d", 0o700)
    os.utime(place.tree / "d/e", ns=(5, 5))
    os.setxattr(place.tree / "empty dir", "user.more", b"x")
    (place.tree / "d/e/g").write_text("torn")
    (place.tree / "mine").write_text("of the user")
    inodes = {path: (place.tree / os.fsdecode(path)).lstat().st_ino for path in before if path != b"d/e/g"}
    with Here(place) as here:
        here.do.get(here.root, retry=True)
    assert (place.tree / "mine").read_text() == "of the user"
    place.close()
    (place.tree / "mine").unlink()
    os.utime(place.tree, ns=(before[b"."].atime_ns, before[b"."].mtime_ns))
    assert changes(before, place.seen()) == []
    assert {path: (place.tree / os.fsdecode(path)).lstat().st_ino for path in inodes} == inodes


class Flaky:
    """A store whose puts fail so often, and that counts them."""

    def __init__(self, store: Store, failures: int, category: Category) -> None:
        self._store, self.left, self._category = store, failures, category
        self.puts: list[bytes] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def put(self, path: bytes, *args: object, **more: object) -> object:
        self.puts.append(path.rpartition(b"/")[2])
        if self.left and path.endswith(b"/g"):
            self.left -= 1
            raise StoreError("the robot arm is busy", self._category)
        return self._store.put(path, *args, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("category", [Category.TRANSIENT, Category.STORE_DOWN])
def test_eos_item_6_only_what_failed_is_copied_again(place: Place, category: Category) -> None:
    """EOS copies the whole batch again, at once."""
    small_tree(place)
    stores: list[Flaky] = []

    def flaky(store: Store) -> Store:
        stores.append(Flaky(store, 2, category))
        return stores[-1]  # type: ignore[return-value]

    with Here(place, batch=100, around=flaky) as here:
        here.create()
        here.do.put(here.root)
        assert here.state == "put done"
    puts = stores[-1].puts
    assert puts.count(b"g") == 3
    assert puts.count(b"f") + puts.count(b"hard") == puts.count(b"empty") == 1


@pytest.mark.root
def test_a_device_that_cannot_be_made_is_named_and_the_rest_comes_back(tape: Place) -> None:
    small_tree(tape)
    os.mknod(tape.tree / "d/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    before = tape.seen()
    with Here(tape) as here:
        here.create()
        here.do.put(here.root)
        here.do.purge(here.root)
    done = subprocess.run(["setpriv", "--bounding-set=-mknod", *tape.argv("get")], cwd=REPOSITORY, text=True,
                          capture_output=True, check=False)
    assert (done.returncode, "1 entries could not be restored" in done.stderr) == (1, True), done
    assert before.keys() - tape.seen().keys() == {b"d/null"}
    with Here(tape) as here:
        assert here.failed == {"d/null": "Operation not permitted"}
        here.do.get(here.root, retry=True)
    assert changes(before, tape.seen()) == []


@pytest.mark.root
@pytest.mark.parametrize("kind", KINDS)
def test_a_user_without_privileges(kind: str) -> None:
    """Nothing is frozen, directories that he may not write to are his all the same, a purge that stopped goes on."""
    with tempfile.TemporaryDirectory() as name:  # pytest keeps its own folders to one user
        os.chown(name, 65534, 65534)

        def life() -> None:
            place = Place(Path(name), kind)
            small_tree(place)
            (place.tree / "d/e/g").chmod(0o400)
            (place.tree / "d/e").chmod(0o555)
            (place.tree / "d").chmod(0o500)
            before = place.seen()
            removed: list[bytes] = []
            real = DiskTree.remove

            def remove(self: DiskTree, entry: ManifestEntry) -> None:
                removed.append(entry.path)
                if len(removed) == 3:
                    raise TreeError(entry.path, "killed here")
                real(self, entry)

            with Here(place) as here:
                here.create()
                here.do.put(here.root)
                DiskTree.remove = remove  # type: ignore[method-assign]
                with pytest.raises(TreeError):
                    here.do.purge(here.root)
                here.do.purge(here.root, retry=True)
                assert place.seen().keys() == {b"."}
                here.do.get(here.root)
            assert changes(before, place.seen()) == []

        as_nobody(life)


def as_nobody(act: Callable[[], None]) -> None:
    """In a process of its own, without privileges. Forked: nobody may not be allowed to start this interpreter."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: else /proc/self is root's
            act()
            os._exit(0)
        except Exception:  # noqa: BLE001 - pytest's own are exceptions too
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_after_the_last_try_it_has_failed_and_retry_goes_on(place: Place) -> None:
    small_tree(place)
    with Here(place, around=lambda store: Flaky(store, 99, Category.TRANSIENT)) as here:  # type: ignore
        here.create()
        with pytest.raises(StoreError, match="robot"):
            here.do.put(here.root)
        assert here.state == "put failed"
    assert place.status()["reason"] == "the robot arm is busy"
    with Here(place) as here:
        here.do.put(here.root, retry=True)
        here.do.purge(here.root)


def test_a_create_that_fails_is_undone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tree(place)
    before = place.seen()
    real = Inventory.entries

    def torn(self: Inventory, *args: object, **more: object) -> Iterator[object]:
        yield from itertools.islice(real(self, *args, **more), 6)  # type: ignore[arg-type]
        raise TreeError(b"d/x", "cannot be read")

    with Here(place) as here:
        with monkeypatch.context() as patch:
            patch.setattr(Inventory, "entries", torn)
            with pytest.raises(TreeError):
                here.create()
        assert here.state == "none"
        assert changes(before, place.seen()) == []
        (place.tree / "d/f").write_text("writable again")
        assert sorted(os.listdir(place.tree)) == ["d", "empty", "empty dir", "hard", "link"]
        here.create()


@pytest.mark.parametrize("where", ["below", "above"])
def test_nested_archives_are_refused(place: Place, where: str) -> None:
    small_tree(place)
    with Here(place) as here:
        here.create()
        other = place.tree / "d" if where == "below" else place.tree.parent
        with pytest.raises(Exception, match="cannot be nested"):
            here.do.create(os.fsencode(os.path.realpath(other)), place.vault)


@pytest.mark.parametrize("name", [".archive.manifest", ".archive.more"])
def test_a_name_that_the_vault_needs_is_refused(tape: Place, name: str) -> None:
    (tape.tree / name).touch()
    with Here(tape) as here, pytest.raises(TreeError, match="uses in the vault"):
        here.create()


# killing

def busy(place: Place, size: int = 48 << 20) -> None:
    """A tree whose put takes a while."""
    (place.tree / "big").write_bytes(os.urandom(1 << 20) * (size >> 20))
    for number in range(20):
        (place.tree / f"f{number}").write_text(str(number))


def wait_for(truth: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not truth():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_orphan_is_taken_up_by_retry(tape: Place, how: signal.Signals) -> None:
    """The database, `status` and the state file say that it failed; one that is stopped with notice says why."""
    busy(tape)
    before = tape.seen()
    tape.create()
    with tape.start("put", "--batch", "1") as process:
        wait_for(lambda: tape.markers == [".archive.put.err"])
        process.send_signal(how)
        process.communicate()
    assert process.returncode == -how or how is signal.SIGTERM
    status = tape.status()
    assert (status["state"], status["pid"]) == ("put failed", None)
    assert status["reason"] == ("its process died" if how is signal.SIGKILL else "interrupted")
    assert "resume it with gsync archive put --retry" in tape.run("put", code=2)
    tape.run("put", "--retry")
    tape.run("purge")
    tape.run("get")
    assert changes(before, tape.seen()) == []


def test_eos_item_5_one_job_per_directory_and_it_can_be_killed(tape: Place) -> None:
    """EOS's waiting jobs lie in memory, overwrite one another and cannot be killed."""
    small_tree(tape)
    tape.create()
    with Here(tape) as here:
        archive = here.archives.the(here.root)
        with here.archives.lock(archive, "put"):
            assert f"is running already, pid {os.getpid()}" in tape.run("put", code=3)
            row, = json.loads(tape.run("list", "--json"))
            assert row["pid"] == os.getpid()
            assert "has not exited yet" in tape.run("kill", archive.id[:12], "--timeout", "0.1", code=1)

    class KilledMeanwhile(Flaky):
        def put(self, path: bytes, *args: object, **more: object) -> object:
            if not self.puts:
                tape.run("kill", archive.id[:12], "--timeout", "0.1", code=1)
            return super().put(path, *args, **more)

    with (Here(tape, around=lambda store: KilledMeanwhile(store, 0, Category.TRANSIENT),  # type: ignore
               tell_every=0.0) as other,
          pytest.raises(Killed)):
        other.do.put(other.root)
    assert "no job is running" in tape.run("kill", str(tape.tree))
    with Here(tape) as here:
        assert here.state == "put failed"
        request = here.transfers.request(here.archives.the(here.root).request)
        assert request is not None
        assert request.state is TransferState.KILLED
        here.do.put(here.root, retry=True)


def test_the_queue_shows_each_job_as_a_request(place: Place) -> None:
    put(place)
    with Here(place) as here:
        requests = list(here.transfers.requests())
        assert [(r.kind, r.label, r.state) for r in requests] == [
            ("archive", f"{verb} {os.path.realpath(place.tree)}", TransferState.DONE) for verb in ("create", "put")]
        here.do.purge(here.root)
        with here.archives.lock(here.archives.the(here.root), "get"), pytest.raises(LockedError):
            here.do.get(here.root)


def test_queue_retry_goes_on_with_a_job_that_failed(tape: Place) -> None:
    small_tree(tape)
    with Here(tape, around=lambda store: Flaky(store, 99, Category.PERMANENT)) as here:  # type: ignore
        here.create()
        with pytest.raises(StoreError):
            here.do.put(here.root)
    with Here(tape) as here:
        request = here.archives.the(here.root).request
        assert Orders(here.transfers).retry(request=request) == 1
        QueueWorker(str(tape.home), handlers=HANDLERS, once=True).run()
        found = here.transfers.request(request)
        assert found is not None
        assert (here.state, found.state) == ("put done", TransferState.DONE)
        here.do.purge(here.root)


# what is lost is found again

@pytest.mark.parametrize("lost", ["the manifest", "everything here", "and the vault's manifest", "and all copies"])
def test_rebuild(place: Place, lost: str) -> None:
    """Hard links, those between symlinks too, a FIFO and holes are in the vault's second copy. Without that each name
    is a file of its own, and nothing is said to be there that is not."""
    small_tree(place)
    os.link(place.tree / "link", place.tree / "link too", follow_symlinks=False)
    os.mkfifo(place.tree / "pipe")
    with open(place.tree / "sparse", "wb") as file:
        file.truncate(1 << 20)
    before = place.seen()
    with Here(place) as here:
        here.create()
        here.do.put(here.root)
        here.do.purge(here.root)
        if lost == "the manifest":
            os.unlink(here.archives.manifest_path(here.archives.the(here.root)))
            with pytest.raises(Exception, match="archive rebuild"):
                here.do.get(here.root)
    if lost != "the manifest":
        shutil.rmtree(place.home)
        shutil.rmtree(place.tree)
        assert "no such directory" in place.run("get", code=2)
    if lost.startswith("and"):
        damage(place, b'{"gsync":"manifest"' if lost == "and all copies" else b'{"type":"directory"')
    vault = ["--vault", place.vault] if lost != "the manifest" else []
    assert "would rebuild an archive of 1" in place.run("rebuild", "--dry-run", *vault)
    assert lost == "the manifest" or not place.tree.exists()
    place.run("rebuild", *vault)
    assert place.markers == [".archive.purge.done"]
    place.run("get")
    now = place.seen()
    if lost == "and all copies":
        assert before.keys() - now.keys() == {b"pipe"}
        assert all(before[path].content == now[path].content for path in now)
        assert (now[b"d"].mtime_ns, now[b"d/e"].mode) == (before[b"d"].mtime_ns, before[b"d/e"].mode)
    else:
        assert changes(before, now) == []


def test_rebuild_of_a_tree_that_is_still_there_does_not_touch_it(place: Place) -> None:
    put(place)
    before = place.seen()
    shutil.rmtree(place.home)
    place.run("rebuild", "--vault", place.vault)
    assert place.status()["state"] == "get failed"
    place.run("get", "--retry")
    assert changes(before, place.seen()) == []
    place.run("purge")
