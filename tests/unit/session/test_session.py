"""Sessions and their settings: what is kept, what is refused, and what a session is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gsync.base.errors import UsageError
from gsync.session.session import SessionHome, default_session_name, readable_name
from gsync.state.home import Home, check_name


def test_a_saved_session_is_read_back_equal(tmp_path: Path) -> None:
    home = SessionHome(Home(str(tmp_path)))
    session = home.find_or_new("photos", "/copies/\udcff")
    home.save(session)
    assert home.get(session.name) == session
    assert home.list() == [session]
    assert home.find_or_new("photos", "/copies/\udcff") == session
    assert home.find_or_new("photos", "/copies/other").name != session.name


def test_a_session_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such session: nobody"):
        SessionHome(Home(str(tmp_path))).get("nobody")
    assert SessionHome(Home(str(tmp_path))).list() == []


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 99}', '{"format": 1, "volume": "v"}'])
def test_a_damaged_session_file_is_named(tmp_path: Path, content: str) -> None:
    home = SessionHome(Home(str(tmp_path)))
    session = home.find_or_new("photos", "/copy")
    home.save(session)
    path = Path(session.folder, "session.json")
    path.write_text(content)
    with pytest.raises(UsageError, match=str(path)):
        home.get(session.name)


def test_default_names_are_readable_stable_and_different_for_different_pairs() -> None:
    name = default_session_name("photos-1a2b3c4d", "ssh://me@backup1:2222/data/copies")
    assert name.startswith("photos-to-backup1-copies-")
    assert name == default_session_name("photos-1a2b3c4d", "ssh://me@backup1:2222/data/copies")
    assert default_session_name("photos", "ssh://backup1/data").startswith("photos-to-backup1-data-")
    slaves = ["/copies", "backup1:/copies", "backup2:/copies", "me@backup1:/copies", "/co pies", "/", "h:/\udcff\n-x"]
    names = [default_session_name(master, slave) for master in ("photos", "photos-1a2b3c4d") for slave in slaves]
    assert len(set(names)) == len(names)
    for each in names:
        check_name("session", each)


def test_a_readable_name_is_always_a_name() -> None:
    for text in ["", "...", "-", "ünïcode", "a" * 300, "\udcff", "a/b\nc"]:
        check_name("volume", readable_name(text, unique=text))


def test_session_files_lie_in_its_folder(tmp_path: Path) -> None:
    session = SessionHome(Home(str(tmp_path))).find_or_new("v", "/s")
    assert session.folder == os.path.join(tmp_path, "sessions", session.name)
    paths = [session.changelog_db, session.ledger_db, session.worker_status, session.worker_lock, session.run_lock,
             session.log]
    assert all(os.path.dirname(path) == session.folder for path in paths)
    assert len(set(paths)) == len(paths)
