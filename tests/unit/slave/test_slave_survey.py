"""What the agent tells of a directory before it is a slave; it leaves no trace there."""

from __future__ import annotations

import ctypes
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gsync.base.errors import SlaveError
from gsync.link.survey import Survey
from gsync.slave.directory.identity import take
from gsync.slave.directory.survey import survey

NOBODY = 65534


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory that every user may reach."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "slave")
        path.mkdir()
        yield path


def stamps(folder: Path) -> list[Any]:
    st = folder.stat()
    return [sorted(folder.rglob("*")), st.st_mtime_ns, st.st_ctime_ns, st.st_mode]


def as_nobody(path: Path) -> Survey:
    """The survey by a process without privileges."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: else /proc/self is root's
            os.write(writer, json.dumps(survey(bytes(path), "v", False).to_json()).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as file:
        answer = file.read()
    assert os.waitpid(pid, 0)[1] == 0
    return Survey.from_json(json.loads(answer))


@pytest.mark.parametrize("state", ["missing", "empty", "ours", "refused", "foreign"])
def test_states_and_nothing_is_changed(root: Path, state: str) -> None:
    path = root / "new" if state == "missing" else root
    if state == "ours":
        take(bytes(root), "v", "name", adopt=False, epoch=1, ticket="0" * 16).close()
    elif state in ("refused", "foreign"):
        (root / "file").touch()
    before = stamps(root)
    found = survey(bytes(path), "v", state == "foreign")
    assert found.state == state
    assert bool(found.problems) == (state == "refused")
    assert stamps(root) == before
    assert Survey.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert found.free > 0


def test_a_folder_whose_parent_is_missing_is_refused(root: Path) -> None:
    with pytest.raises(SlaveError, match="no such directory"):
        survey(bytes(root / "a" / "b"), "v", False)
    (root / "file").touch()
    with pytest.raises(SlaveError, match="is not a directory"):
        survey(bytes(root / "file"), "v", False)


def test_who_works_there_is_said(root: Path) -> None:
    taken = take(bytes(root), "v", "name", adopt=False, session="s1", epoch=1, ticket="0" * 16)
    assert survey(bytes(root), "v", False).busy == "s1"
    taken.close()
    assert survey(bytes(root), "v", False).busy == ""


def test_the_slave_of_another_volume(root: Path) -> None:
    take(bytes(root), "other", "films", adopt=False, epoch=1, ticket="0" * 16).close()
    found = survey(bytes(root), "v", adopt=True)
    assert found.state == "refused"
    assert found.problems == ["it is the slave of another volume, films (other)"]


@pytest.mark.root
class TestAnotherAccount:
    def test_may_not_write(self, root: Path) -> None:
        found = as_nobody(root)
        assert found.problems == [f"{root} cannot be written to by uid {NOBODY} (it belongs to uid 0, mode 0755): "
                                  "chown it, or log in there as another user"]
        assert as_nobody(root / "new").problems[0].startswith(f"the folder above {root}/new cannot be written to")

    def test_may_write_but_not_do_everything(self, root: Path) -> None:
        os.chown(root, NOBODY, NOBODY)
        found = as_nobody(root)
        assert found.problems == []
        assert found.uid == NOBODY
        assert {"owner", "device nodes", "privileged xattrs"} <= set(found.lacks)
        assert "hard links" not in found.lacks

    def test_may_write_by_its_group(self, root: Path) -> None:
        os.chown(root, 0, NOBODY)
        root.chmod(0o775)
        assert as_nobody(root).problems == []

    def test_its_own_directory_without_rights_will_do(self, root: Path) -> None:
        os.chown(root, NOBODY, NOBODY)
        root.chmod(0o555)
        assert as_nobody(root).problems == []
