"""Sessions and their settings: what is kept, what is refused, and what a session is called."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from gsync.errors import UsageError
from gsync.session.options import Options
from gsync.session.session import SessionHome, default_session_name, readable_name
from gsync.volume.home import Home, check_name


def test_a_saved_session_is_read_back_equal(tmp_path: Path) -> None:
    home = SessionHome(Home(str(tmp_path)))
    options = Options(sync_method="rsync", exclude=("*.o", "!keep.o"), bandwidth_limit=10 << 20)
    session = dataclasses.replace(home.find_or_new("photos", "/copies/\udcff"), options=options)
    home.save(session)
    assert home.get(session.name) == session
    assert home.list() == [session]
    assert home.find_or_new("photos", "/copies/\udcff") == session
    assert home.find_or_new("photos", "/copies/other").name != session.name


def test_a_session_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="session nobody: there is none"):
        SessionHome(Home(str(tmp_path))).get("nobody")
    assert SessionHome(Home(str(tmp_path))).list() == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sync_jobs": 99}, "sync_jobs: 99"),
        ({"sync_jobs": "many"}, "sync_jobs: 'many'"),
        ({"sync_metod": "rsync"}, "sync_metod: there is no such option"),
        ({"sync_method": "cp"}, "sync_method: 'cp'"),
        ({"exclude": ["ok", "!"]}, "exclude"),
        ({"bandwidth_limit": "fast"}, "bandwidth_limit: 'fast': not a rate"),
        ({"ssh_port": 70000}, "ssh_port: 70000"),
        ({"delete_retention": -1}, "delete_retention: -1"),
    ],
)
def test_a_bad_setting_is_refused_with_file_and_key(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    home = SessionHome(Home(str(tmp_path)))
    session = home.find_or_new("photos", "/copy")
    home.save(session)
    path = Path(session.folder, "session.json")
    values = json.loads(path.read_text())
    values["options"].update(change)
    path.write_text(json.dumps(values))
    with pytest.raises(UsageError) as caught:
        home.get(session.name)
    assert str(path) in str(caught.value)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 99}', '{"format": 1, "volume": "v"}'])
def test_a_damaged_session_file_is_named(tmp_path: Path, content: str) -> None:
    home = SessionHome(Home(str(tmp_path)))
    session = home.find_or_new("photos", "/copy")
    home.save(session)
    path = Path(session.folder, "session.json")
    path.write_text(content)
    with pytest.raises(UsageError, match=str(path)):
        home.get(session.name)


@pytest.mark.parametrize(
    ("text", "rate"),
    [("500K", 512000), ("10M", 10485760), ("1.5G", 1610612736), ("7", 7), ("2 MiB/s", 2097152), (9, 9)],
)
def test_a_rate_may_have_a_unit(text: object, rate: int) -> None:
    assert Options.of({"bandwidth_limit": text}, "here").bandwidth_limit == rate


def test_every_option_has_a_help_and_a_default_that_passes_its_check() -> None:
    assert Options.of(dataclasses.asdict(Options()), "defaults") == Options()
    for name, field in Options.__pydantic_fields__.items():
        assert field.description, name


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
