"""What is offered for a line, as bash asks for it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from gsync.session.session import SessionHome
from gsync.state.home import Home
from gsync.transfer import Client
from gsync.transfer.archive.rows import Archives
from gsync.transfer.queue.transfers import Transfers
from lab.cli import Cli


class Shell:
    """Asks as bash's completion script does."""

    def __init__(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        self._cli, self._monkeypatch = cli, monkeypatch

    def __call__(self, *words: str) -> list[str]:
        with self._monkeypatch.context() as patch:
            patch.setenv("_GSYNC_COMPLETE", "complete_bash")
            patch.setenv("COMP_WORDS", "\n".join(["gsync", *words]))
            patch.setenv("COMP_CWORD", str(len(words)))
            return [line for line in self._cli().split("\n") if line]


@pytest.fixture
def shell(cli: Cli, tree: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Two sessions of one volume."""
    cli.home.add("photos", str(tree))
    sessions = SessionHome(cli.home)
    for name in ("alpha", "beta"):
        sessions.save(sessions.find_or_new("photos", f"h:/{name}", name))
    os.mkdir(os.path.join(cli.home.path, "sessions", "unfinished"))
    with Client(cli.home.path) as client:
        for name in ("east", "west"):
            client.stores.add(name, str(tree))
    monkeypatch.setenv("GSYNC_SYSTEM_CONF", "/nonexistent")
    return Shell(cli, monkeypatch)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["che"], {"checkpoint"}),
        (["sta"], {"start", "status"}),
        (["ar"], {"archive"}),
        (["archive", "pu"], {"put", "purge"}),
        (["archive", "put", "x", "--ver"], {"--verify"}),
        (["archive", "put", "x", "--verify", "s"], {"size"}),
        (["backup", "x", "y", "--by", ""], {"mtime", "ctime"}),
        (["status", ""], {"alpha", "beta"}),
        (["status", "a"], {"alpha"}),
        (["status", "--ch"], {"--check"}),
        (["delete", "b"], {"beta"}),
        (["start", "alpha", ""], {"beta"}),
        (["logs", ""], {"alpha", "beta"}),
        (["create", "ph"], {"photos"}),
        (["run", "ph"], {"photos"}),
        (["run", "photos", ""], set()),
        (["volume", "in"], {"info"}),
        (["volume", "info", ""], {"photos"}),
        (["recorder", "status", "p"], {"photos"}),
        (["failures", ""], {"alpha", "beta", "list", "retry", "drop"}),
        (["failures", "alpha", ""], {"list", "retry", "drop"}),
        (["failures", "alpha", "list", ""], set()),
        (["hold", "beta", "a"], {"approve"}),
        (["checkpoint", "w"], {"wait"}),
        (["config", "alpha", "g"], {"get"}),
        (["config", "beta", "set", "sync-m"], {"sync-method"}),
        (["config", "set", "sync-method", ""], {"auto", "rsync", "tarssh"}),
        (["config", "get", "sync-method", ""], set()),
        (["create", "photos", "h:/x", "-o", "sync-me"], {"sync-method="}),
        (["send", "f", "--to", ""], {"east", "west"}),
        (["send", "f", "--to", "east,"], {"east,west"}),
        (["send", "f", "--failover", "w"], {"west"}),
        (["send", "f", "--register", "d"], {"default"}),
        (["publish", "o"], {"once"}),
    ],
)
def test_offers(shell: Shell, words: list[str], offered: set[str]) -> None:
    assert set(shell(*words)) == offered


def test_directories_that_are_archived(shell: Shell, cli: Cli) -> None:
    transfers = Transfers(cli.home.path)
    archives = Archives(transfers, cli.home.path)
    for root in (b"/data/a", b"/data/b", b"/other"):
        archives.add("archive", root, "tar:///v", archives.place_of(root), "create")
    transfers.close()
    assert shell("archive", "get", "/d") == ["/data/a", "/data/b"]
    assert shell("archive", "kill", "/o") == ["/other"]


def test_another_state_folder(shell: Shell, tree: Path, tmp_path: Path) -> None:
    home = Home(str(tmp_path / "other"))
    home.add("films", str(tree))
    assert shell("volume", "info", "--state", home.path, "") == ["films"]


def test_sessions_of_the_meta_volume(shell: Shell, cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "meta" / "geo-rep" / "sessions" / "gamma"
    folder.mkdir(parents=True)
    (folder / "session.json").write_text("{}")
    Path(cli.home.path, "gsync.conf").write_text(
        f"[gsync]\nuse-meta-volume = true\nmeta-volume-mnt = {tmp_path}/meta\n")
    assert shell("status", "") == ["alpha", "beta", "gamma"]
    assert shell("status", "g") == ["gamma"]


def test_a_state_folder_that_cannot_be_read_offers_nothing(shell: Shell, cli: Cli) -> None:
    shutil.rmtree(cli.home.path)
    Path(cli.home.path).write_text("")
    assert shell("status", "") == []
