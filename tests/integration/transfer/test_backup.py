"""`gsync backup`: best effort, in a window of time, and never silent about what it could not do."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.base.model import NS
from gsync.transfer.archive.backup import Backup, Window
from gsync.transfer.archive.batches import JobOptions
from gsync.transfer.archive.outcome import Incomplete, Verify
from gsync.transfer.archive.rows import Archive, Archives
from gsync.transfer.queue.registry import StorePath, Stores
from gsync.transfer.queue.retry import RetryPolicy
from gsync.transfer.queue.transfers import Transfers
from gsync.transfer.stores.store import Category, Store, StoreError
from gsync.transfer.stores.vaultfiles import make_vault
from lab.archives import Place, changes
from lab.cli import Cli
from lab.trees import make_everything, scan

STATE_FILES = (b".sys.b#.backup.file", b".sys.b#.backup.done", b".sys.b#.backup.err.0", b".sys.b#.backup.err.1")


EVERYTHING = Window()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path, "dir")
    (place.tree / "d").mkdir()
    (place.tree / "d/new").write_text("new")
    (place.tree / "d/old").write_text("old")
    os.utime(place.tree / "d/old", (1, time.time() - 3 * 86400))
    (place.tree / "link").symlink_to("d")
    os.setxattr(place.tree / "d/new", "user.keep", b"1")
    os.setxattr(place.tree / "d/new", "user.leave", b"1")
    return place


def backup(place: Place, to: str = "", around: type | None = None, window: Window = EVERYTHING,
           excluded: tuple[str, ...] = ()) -> Archive:
    transfers = Transfers(str(place.home))
    stores = Stores(transfers)

    def opened(name: str) -> Store:
        store = stores.get(name)
        return around(store) if around else store

    try:
        work = Backup(Archives(transfers, str(place.home)), opened,
                      JobOptions(2, 1, RetryPolicy(2, first_pause=0.001)), Verify.CHECKSUM)
        return work.run(os.fsencode(os.path.realpath(place.tree)), StorePath(to or place.vault, b"copy"), window,
                        excluded)
    finally:
        stores.close()
        transfers.close()


def copy_of(place: Place) -> Path:
    return place.vault_dir / "copy"


def state_files(place: Place) -> list[str]:
    return sorted(name for name in os.listdir(copy_of(place)) if name.startswith(".sys.b#"))


def test_everything_that_a_store_keeps_is_backed_up(place: Place) -> None:
    make_everything(place.tree / "all", 4, privileged=os.geteuid() == 0)
    backup(place)
    before, now = scan(place.tree), scan(copy_of(place), exclude=STATE_FILES)
    special = {path for path, entry in before.items() if entry.kind not in ("file", "directory", "symlink")}
    assert before.keys() - now.keys() == special
    left = [str(row) for row in changes({p: e for p, e in before.items() if p not in special}, now)]
    # a directory as a store keeps no holes, and no second name of a symlink
    assert [row for row in left if "sparse" not in row and "symlink too" not in row] == []
    assert state_files(place) == [".sys.b#.backup.done", ".sys.b#.backup.file"]


def test_to_a_vault(place: Place, tmp_path: Path) -> None:
    tape = tmp_path / "tape"
    tape.mkdir()
    make_vault(str(tape))
    for _ in range(2):
        assert backup(place, f"tar://{tape}").state == "backup done"


class Counting:
    """Says which files were sent."""

    sent: list[bytes] = []

    def __init__(self, store: Store) -> None:
        self._store = store
        type(self).sent = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def put(self, path: bytes, *args: object, **more: object) -> object:
        if b".sys.b#" not in path:
            self.sent.append(path.rpartition(b"/")[2])
        return self._store.put(path, *args, **more)  # type: ignore[arg-type]


def test_what_is_there_unchanged_is_not_sent_again(place: Place) -> None:
    backup(place, around=Counting)
    assert sorted(Counting.sent) == [b"new", b"old"]
    (place.tree / "d/old").write_text("changed")
    os.chmod(place.tree / "d/new", 0o600)
    (copy_of(place) / "of the destination").touch()
    backup(place, around=Counting)
    assert Counting.sent == [b"old"]
    assert (copy_of(place) / "d/old").read_text() == "changed"
    assert (copy_of(place) / "d/new").stat().st_mode & 0o777 == 0o600
    assert (copy_of(place) / "of the destination").exists()


@pytest.mark.parametrize(("window", "there"), [(Window(2 * 86400), ["new"]), (Window(4 * 86400), ["new", "old"]),
                                               (Window(2 * 86400, "ctime"), ["new", "old"])])
def test_a_window_of_time(place: Place, window: Window, there: list[str]) -> None:
    backup(place, window=window)
    assert sorted(os.listdir(copy_of(place) / "d")) == there


def test_eos_item_4_the_window_is_exact(tmp_path: Path) -> None:
    """EOS compares times as float32: off by two minutes. Here to the nanosecond."""
    began = 1_700_000_000 * NS + 5
    edge = began - 86400 * NS
    path = tmp_path / "f"
    path.touch()
    for ns, holds in ((edge, True), (edge - 1, False), (edge + 1, True)):
        os.utime(path, ns=(ns, ns))
        assert Window(86400).holds(path.stat(), began) is holds


def test_xattrs_are_left_out_that_nobody_wants(place: Place) -> None:
    backup(place, excluded=("user.leave",))
    assert os.listxattr(copy_of(place) / "d/new") == ["user.keep"]
    header = json.loads((copy_of(place) / ".sys.b#.backup.file").read_bytes().splitlines()[0])
    assert header["excl_xattr"] == ["user.leave"]


class Refuses(Counting):
    def put(self, path: bytes, *args: object, **more: object) -> object:
        if path.endswith(b"/new"):
            raise StoreError("no", Category.PERMANENT)
        return super().put(path, *args, **more)


def test_what_fails_is_named_and_holds_nothing_up(place: Place) -> None:
    with pytest.raises(Incomplete, match="1 entries"):
        backup(place, around=Refuses)
    assert os.listdir(copy_of(place) / "d") == ["old"]
    assert (copy_of(place) / "link").is_symlink()
    assert state_files(place) == [".sys.b#.backup.err.1", ".sys.b#.backup.file"]
    assert (copy_of(place) / ".sys.b#.backup.err.1").read_text() == "d/new: no\n"
    backup(place)
    assert state_files(place) == [".sys.b#.backup.done", ".sys.b#.backup.file"]


class Writes(Counting):
    """A file of the source changes while it is copied."""

    tree: Path

    def put(self, path: bytes, *args: object, **more: object) -> object:
        content = super().put(path, *args, **more)
        if path.endswith(b"/old"):
            (self.tree / "d/old").write_text("another")
        return content


def test_a_file_that_changes_meanwhile_counts_as_failed(place: Place) -> None:
    Writes.tree = place.tree
    with pytest.raises(Incomplete):
        backup(place, around=Writes)
    assert (copy_of(place) / ".sys.b#.backup.err.1").read_text() == "d/old: changed while it was copied\n"


class Kills(Counting):
    def put(self, path: bytes, *args: object, **more: object) -> object:
        if path.endswith(b"/old"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().put(path, *args, **more)


def test_eos_item_6_a_backup_that_was_killed_leaves_its_state(place: Place) -> None:
    """EOS's leaves no status file at all."""
    pid = os.fork()
    if pid == 0:
        try:
            backup(place, around=Kills)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert state_files(place) == [".sys.b#.backup.err.0"]
    backup(place)
    assert state_files(place) == [".sys.b#.backup.done", ".sys.b#.backup.file"]


# the command

@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    cli = Cli(tmp_path, capsys)
    monkeypatch.setenv("GSYNC_HOME", cli.home.path)
    yield cli


@pytest.mark.parametrize(("given", "seconds"), [("30s", 30), ("90m", 5400), ("12h", 43200), ("2d", 172800)])
def test_eos_item_2_the_options_are_read_as_they_are_meant(given: str, seconds: int) -> None:
    """EOS's are checked the wrong way round, and never seen to be, since they are forced."""
    assert Window.parse(given, "mtime") == Window(seconds, "mtime")
    assert Window.parse(None, "ctime") == Window(0, "ctime")


@pytest.mark.parametrize("args", [("--newer-than", "2"), ("--newer-than", "0d"), ("--newer-than", "1.5d"),
                                  ("--newer-than", "-1d"), ("--newer-than", "2d", "--by", "atime"),
                                  ("--verify", "much"), ("--jobs", "0")])
def test_eos_item_2_wrong_options_are_refused(cli: Cli, place: Place, args: tuple[str, ...]) -> None:
    cli.fails("backup", str(place.tree), str(place.vault_dir), *args, code=2)
    assert os.listdir(place.vault_dir) == []


def test_the_command(cli: Cli, place: Place) -> None:
    to = str(place.vault_dir / "x")
    assert "would check 4 entries" in cli("backup", str(place.tree), to, "--dry-run")
    done = json.loads(cli("backup", str(place.tree), to, "--json"))
    assert (done["state"], done["entries"]) == ("backup done", 4)
    assert "backup done" in cli("archive", "list")
    assert "backup done" in cli("archive", "status", done["id"][:12])
    assert "is inside the source" in cli.fails("backup", str(place.tree), str(place.tree / "d"), code=2)
    assert "no such directory" in cli.fails("backup", str(place.tree / "nothing"), to, code=2)
