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

    def full(*_: Any) -> None:
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
