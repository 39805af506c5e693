"""Which file a setting comes from, at the real places of the files: a file system in memory has them all."""

from __future__ import annotations

import os

import pytest
from pyfakefs.fake_filesystem import FakeFilesystem

from gsync.base.errors import UsageError
from gsync.session import config

HOME, SESSION = "/var/lib/gsync", "/var/lib/gsync/sessions/s/gsync.conf"


@pytest.fixture(autouse=True)
def places(fs: FakeFilesystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GSYNC_SYSTEM_CONF", raising=False)
    fs.create_file("/var/lib/gsync/sessions/s/session.json", contents="{}")


def put(fs: FakeFilesystem, path: str, text: str) -> None:
    fs.create_file(path, contents=f"[gsync]\n{text}\n")


def settings() -> dict[str, tuple[object, str]]:
    found = config.read_layers([*config.site_paths(HOME), SESSION])
    return {name: (setting.value, setting.where) for name, setting in found.items()}


def test_without_any_file_all_is_default() -> None:
    assert settings() == {}


def test_the_session_wins_over_the_node_and_the_node_over_etc(fs: FakeFilesystem) -> None:
    put(fs, "/etc/gsync/gsync.conf", "sync-jobs = 1\nmax-delete = 10\nssh-port = 2201")
    put(fs, "/var/lib/gsync/gsync.conf", "sync-jobs = 2\nmax-delete = 20")
    put(fs, SESSION, "sync-jobs = 3")
    assert settings() == {"sync_jobs": (3, SESSION), "max_delete": (20, "/var/lib/gsync/gsync.conf"),
                          "ssh_port": (2201, "/etc/gsync/gsync.conf")}


def test_what_is_of_the_node_is_refused_in_a_session_and_the_file_is_named(fs: FakeFilesystem) -> None:
    put(fs, SESSION, "use-meta-volume = true")
    with pytest.raises(UsageError, match=SESSION):
        settings()


def test_a_wrong_value_names_the_file_that_it_stands_in(fs: FakeFilesystem) -> None:
    put(fs, "/etc/gsync/gsync.conf", "sync-jobs = many")
    with pytest.raises(UsageError, match=r"/etc/gsync/gsync\.conf.*sync-jobs"):
        settings()


def test_a_change_leaves_the_other_files_alone(fs: FakeFilesystem) -> None:
    put(fs, "/var/lib/gsync/gsync.conf", "sync-jobs = 2")
    config.set_value(SESSION, "sync-jobs", "5")
    assert settings()["sync_jobs"] == (5, SESSION)
    config.reset_value(SESSION, "sync-jobs")
    assert settings()["sync_jobs"] == (2, "/var/lib/gsync/gsync.conf")
    assert sorted(os.listdir("/var/lib/gsync/sessions/s")) == ["gsync.conf", "session.json"]
