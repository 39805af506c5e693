"""Small files are replaced whole; directories are made once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gsync.base import durable


@pytest.fixture
def path(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path / "file")


def test_a_file_is_replaced_with_its_mode(path: bytes) -> None:
    durable.replace_file(path, b"one, and longer")
    durable.replace_file(path, b"two")
    with open(path, "rb") as file:
        assert file.read() == b"two"
    assert os.stat(path).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["fsync", "rename"])
def test_a_failure_leaves_the_old_contents(path: bytes, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    durable.replace_file(path, b"one")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, name, full)
        with pytest.raises(OSError, match="No space"):
            durable.replace_file(path, b"two")
    with open(path, "rb") as file:
        assert file.read() == b"one"
    durable.replace_file(path, b"three")
    with open(path, "rb") as file:
        assert file.read() == b"three"


def test_a_file_beside_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    durable.replace_file(b"relative", b"one")
    durable.make_dirs(b"a/b")
    assert (tmp_path / "relative").read_bytes() == b"one"
    assert (tmp_path / "a" / "b").is_dir()


def test_directories_are_made_down_to_the_last(tmp_path: Path) -> None:
    deep = os.fsencode(tmp_path / "a" / "b\n" / "c")
    durable.make_dirs(deep)
    durable.make_dirs(deep)
    assert os.stat(deep).st_mode & 0o777 == 0o700


def test_a_file_in_the_way_is_an_error(path: bytes) -> None:
    durable.replace_file(path, b"")
    with pytest.raises(FileExistsError):
        durable.make_dirs(path)
    with pytest.raises(FileExistsError):
        durable.make_dirs(path + b"/below")


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666])
def test_the_mode_is_the_one_given_whatever_the_umask(path: bytes, mode: int) -> None:
    before = os.umask(0o022)
    try:
        durable.replace_file(path, b"", mode)
    finally:
        os.umask(before)
    assert os.stat(path).st_mode & 0o777 == mode


def test_a_link_at_the_path_is_replaced_and_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    (tmp_path / "file").symlink_to(target)
    durable.replace_file(str(tmp_path / "file"), b"new")
    assert (target.read_text(), (tmp_path / "file").is_symlink()) == ("kept", False)


def test_what_lies_where_temporary_files_might_is_left_alone(path: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda size: bytes(size))
    temporary = os.path.join(os.path.dirname(path), b".file.0000000000000000.new")
    os.symlink(b"elsewhere", temporary)
    with pytest.raises(FileExistsError):
        durable.replace_file(path, b"new")
    assert os.readlink(temporary) == b"elsewhere"
    assert not os.path.exists(os.path.join(os.path.dirname(path), b"elsewhere"))


@pytest.mark.parametrize("name", ["fchmod", "fsync", "rename"])
def test_a_failure_leaves_no_temporary_file(path: bytes, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, name, full)
        with pytest.raises(OSError, match="No space"):
            durable.replace_file(path, b"one", 0o644)
    assert os.listdir(os.path.dirname(path)) == []


def test_a_file_of_a_directory_that_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        durable.replace_file("file", b"one", dir_fd=fd)
    finally:
        os.close(fd)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file"]


def test_what_need_not_be_durable_waits_for_no_disk(path: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(_: int) -> None:
        raise AssertionError("fsync")

    monkeypatch.setattr(os, "fsync", waits)
    durable.replace_file(path, b"status", durable=False)
    with open(path, "rb") as file:
        assert file.read() == b"status"
