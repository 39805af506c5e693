"""A vault: what a kill leaves, what is damaged, what other programs read, what commands keep."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gsync.base.errors import UsageError
from gsync.transfer.stores.store import Category, Item, StoreError
from gsync.transfer.stores.vault import VaultStore
from gsync.transfer.stores.vaultfiles import make_vault
from lab import REPOSITORY as ROOT
from lab.tape import Tape


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "vault"
    path.mkdir()
    make_vault(str(path))
    return path


def opened(root: Path, **options: str) -> VaultStore:
    return VaultStore(os.fsencode(root), "v", options={k.replace("_", "-"): v for k, v in options.items()})


def read(vault: VaultStore, path: bytes) -> bytes:
    out = io.BytesIO()
    vault.get(path, out)
    return out.getvalue()


def fill(vault: VaultStore, *names: bytes) -> None:
    with vault.batch():
        for name in names:
            vault.put(name, io.BytesIO(b"content of " + name))


def tars(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("0*"))


def test_an_xattr_whose_name_is_no_text_is_kept(root: Path) -> None:
    item = Item(b"a", stat.S_IFREG, xattrs=((b"user.\xff", b"1"), (b"user.b", b"\xff")))
    opened(root).put(b"a", io.BytesIO(b"x"), item)
    found = opened(root).stat(b"a")
    assert found is not None
    assert found.xattrs == item.xattrs


def test_threads_do_not_sweep_each_others_unfinished_tars(root: Path) -> None:
    vault = opened(root)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: fill(vault, b"%d" % n), range(60)))
    assert len([item for item in vault.list(b"") if item.is_file]) == 60


def test_a_batch_is_one_tar_and_one_index(root: Path) -> None:
    fill(opened(root), b"a", b"d/b")
    assert tars(root) == ["00000001.tar", "00000001.tar.idx"]
    lines = [json.loads(line) for line in (root / "00000001.tar.idx").read_text().splitlines()]
    member = next(line for line in lines if line.get("path") == "d/b")
    data = (root / "00000001.tar").read_bytes()
    assert data[member["offset"]:][:member["size"]] == b"content of d/b"


def test_another_tar_reads_it_whole(root: Path, tmp_path: Path) -> None:
    vault = opened(root)
    names = [b"new\nline", b"\xff\xfe", b"-dash", b"n" * 255, b"/".join([b"deep" * 20] * 5)]
    item = Item(b"", stat.S_IFREG, mtime=1_600_000_000_123_456_789, mode=0o640, uid=os.geteuid(), gid=os.getegid())
    with vault.batch():
        for name in names:
            vault.put(b"d/" + name, io.BytesIO(b"content of " + name), item)
        vault.symlink(b"l", Item(b"l", stat.S_IFLNK, target=b"to/nowhere"))
        vault.mkdir(b"empty")
        vault.link(b"second", b"d/-dash")
    out = tmp_path / "out"
    out.mkdir()
    done = subprocess.run(["tar", "-x", "-f", root / "00000001.tar", "-C", out], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in names:
        path = os.path.join(os.fsencode(out), b"d", name)
        with open(path, "rb") as file:
            assert file.read() == b"content of " + name
        assert os.stat(path).st_mtime_ns == item.mtime
    assert os.readlink(out / "l") == "to/nowhere"
    assert (out / "empty").is_dir()
    assert os.path.samefile(out / "second", out / "d" / "-dash")


def test_a_corrupted_member_is_found_and_the_others_are_not_hurt(root: Path) -> None:
    vault = opened(root)
    fill(vault, b"a", b"b")
    with open(root / "00000001.tar", "r+b") as file:
        file.seek(file.read().index(b"content of a") + 3)
        file.write(b"X")
    for call in (lambda: read(vault, b"a"), lambda: vault.checksum(b"a"), lambda: vault.checksum(b"a", "md5")):
        with pytest.raises(StoreError, match=r"is corrupt: in 00000001\.tar") as caught:
            call()
        assert caught.value.category is Category.CORRUPT
    assert read(vault, b"b") == b"content of b"


def test_a_tar_that_is_cut_short_or_gone_is_not_durable(root: Path) -> None:
    vault = opened(root)
    fill(vault, b"a")
    fill(vault, b"b")
    os.truncate(root / "00000001.tar", 700)
    os.unlink(root / "00000002.tar")
    for name in (b"a", b"b"):
        assert not vault.durable(name)
        with pytest.raises(StoreError) as caught:
            vault.checksum(name)
        assert caught.value.category is Category.CORRUPT


def test_a_damaged_index_is_told(root: Path) -> None:
    fill(opened(root), b"a")
    index = root / "00000001.tar.idx"
    index.write_bytes(index.read_bytes().replace(b'"mode": ', b'"mode":  '))
    os.unlink(root / "catalog.db")
    with pytest.raises(StoreError, match=r"index 00000001\.tar\.idx is damaged") as caught:
        opened(root)
    assert caught.value.category is Category.CORRUPT


def test_an_index_that_is_gone_is_told(root: Path) -> None:
    fill(opened(root), b"a")
    os.unlink(root / "00000001.tar.idx")
    with pytest.raises(StoreError, match="is missing"):
        opened(root)


@pytest.mark.parametrize("damage", ["gone", "garbage"])
def test_the_catalog_is_made_anew(root: Path, damage: str) -> None:
    vault = opened(root)
    fill(vault, b"a", b"d/b", b"c")
    vault.move(b"d", b"e")
    vault.delete(b"c")
    vault.set_attrs(b"a", Item(b"a", stat.S_IFREG, mode=0o600, mtime=5))
    vault.close()
    for end in ("-wal", "-shm"):
        (root / f"catalog.db{end}").unlink(missing_ok=True)
    if damage == "gone":
        (root / "catalog.db").unlink()
    else:
        (root / "catalog.db").write_bytes(b"garbage" * 1000)
    again = opened(root)
    assert [item.path for item in again.list(b"")] == [b"a", b"e"]
    assert read(again, b"e/b") == b"content of d/b"
    seen = again.stat(b"a")
    assert seen is not None
    assert (seen.mode, seen.mtime) == (0o600, 5)


def test_a_tar_goes_when_nothing_in_it_is_wanted_any_more(root: Path) -> None:
    vault = opened(root)
    fill(vault, b"a", b"b")
    fill(vault, b"c")
    vault.delete(b"a")
    assert "00000001.tar" in tars(root)
    vault.delete(b"b")
    assert "00000001.tar" not in tars(root)
    assert read(opened(root), b"c") == b"content of c"


def test_a_large_batch_is_several_tars(root: Path) -> None:
    vault = opened(root, tar_size="10K")
    with vault.batch():
        for n in range(20):
            vault.put(b"%d" % n, io.BytesIO(bytes(3000)))
    assert len(tars(root)) > 4
    assert all(vault.durable(b"%d" % n) for n in range(20))


def test_of_two_processes_that_put_the_same_path_one_is_refused(root: Path) -> None:
    one, two = opened(root), opened(root)
    with pytest.raises(StoreError) as caught, one.batch():
        one.put(b"d/x", io.BytesIO(b"one"))
        two.put(b"d/x", io.BytesIO(b"two"))
        two.put(b"d/y", io.BytesIO(b"more"))
    assert caught.value.errno == errno.EEXIST
    assert read(one, b"d/x") == b"two"
    fill(one, b"d/z")
    assert read(two, b"d/z") == b"content of d/z"
    assert list(root.glob(".part*")) == []


def test_an_unmounted_or_foreign_directory_is_no_vault(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        VaultStore(os.fsencode(tmp_path))
    assert caught.value.category is Category.STORE_DOWN
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="neither an empty directory nor a vault"):
        make_vault(str(tmp_path))


# killed at any step

_VICTIM = """
import io, os, signal, sys
from gsync.transfer.stores import vault
step, root = int(sys.argv[1]), sys.argv[2]
calls = 0
def counted(function):
    def call(*args, **more):
        global calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **more)
    return call
store = vault.VaultStore(os.fsencode(root), "v")
for name in ("fsync", "rename", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
with store.batch():
    for n in range(3):
        store.put(b"new/%d" % n, io.BytesIO(b"content of new/%d" % n))
print("done")
"""


@pytest.mark.slow
def test_killed_at_every_step_the_old_is_whole_and_the_new_all_or_nothing(root: Path) -> None:
    fill(opened(root), b"old")
    step = 0
    outcomes = set()
    while True:
        step += 1
        done = subprocess.run([sys.executable, "-c", _VICTIM, str(step), str(root)], cwd=ROOT, capture_output=True,
                              check=False)
        vault = opened(root)
        assert read(vault, b"old") == b"content of old"
        found = [item.path for item in vault.list(b"new")] if vault.stat(b"new") else []
        assert found in ([], [b"new/%d" % n for n in range(3)])
        for path in found:
            assert read(vault, path) == b"content of " + path
            assert vault.durable(path)
            vault.delete(path)
        if found:
            vault.delete(b"new")
        outcomes.add(bool(found))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert step > 6
    assert outcomes == {True, False}
    fill(vault, b"last")
    assert list(root.glob(".part*")) == []
    assert len(list(root.glob("*.tar"))) == 2  # what was never indexed has been written over


# commands

def test_commands_keep_the_tars_and_this_host_only_the_indexes(root: Path, tmp_path: Path) -> None:
    tape = Tape(tmp_path / "tape")
    vault = opened(root, **tape.options)
    fill(vault, b"a", b"b")
    assert tars(root) == ["00000001.tar.idx"]
    assert sorted(path.name for path in tape.folder.glob("0*")) == ["00000001.tar", "00000001.tar.idx"]
    assert vault.durable(b"a")
    assert read(vault, b"a") == b"content of a"
    assert read(vault, b"b") == b"content of b"
    assert [line.split()[0] for line in tape.log()].count("get") == 1
    os.unlink(tape.folder / "00000001.tar")
    assert not opened(root, **tape.options).durable(b"a")
    vault.close()
    assert list(root.glob(".staged*")) == []


def test_a_member_is_read_by_its_offset_alone_where_a_command_can(root: Path, tmp_path: Path) -> None:
    tape = Tape(tmp_path / "tape", ranges=True)
    vault = opened(root, **tape.options)
    fill(vault, b"a", b"b")
    assert read(vault, b"b") == b"content of b"
    assert tape.log()[-1].split()[0] == "read"
    assert not any(line.startswith("get") for line in tape.log())


def test_what_the_tape_did_not_take_is_not_in_the_vault(root: Path, tmp_path: Path) -> None:
    tape = Tape(tmp_path / "tape")
    vault = opened(root, **tape.options)
    fill(vault, b"a")
    (tape.folder / "down").touch()
    with pytest.raises(StoreError, match="HPSS is not available") as caught:
        fill(vault, b"b")
    assert caught.value.category is Category.TRANSIENT
    assert vault.stat(b"b") is None
    assert not vault.durable(b"a")
    (tape.folder / "down").unlink()
    fill(vault, b"b")
    assert read(vault, b"b") == b"content of b"
    assert list(root.glob(".part*")) == []


def test_desi_7_a_command_that_lies_about_its_success_is_found_out(root: Path, tmp_path: Path) -> None:
    """DESI's backup returned True when htar had failed."""
    tape = Tape(tmp_path / "tape")
    vault = opened(root, **{**tape.options, "put-command": "true {name}"})
    with pytest.raises(StoreError, match=r"succeeded, but 00000001\.tar has -1 bytes"):
        fill(vault, b"a")
    assert vault.stat(b"a") is None


def test_commands_that_are_missing_are_told(root: Path) -> None:
    with pytest.raises(UsageError, match="get-command, size-command, delete-command must be set as well"):
        opened(root, put_command="true")
