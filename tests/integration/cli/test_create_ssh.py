"""`gsync create` with a slave over ssh, by the real sshd."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.session.session import SessionHome
from lab.cli import Cli
from lab.sshd import HOST, Sshd


@pytest.fixture
def cli(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("GSYNC_SYSTEM_CONF", "/nonexistent")
    (tmp_path / "tree").mkdir()
    (tmp_path / "copy").mkdir()
    return cli


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "sshd", known=False) as sshd:
        yield sshd


def args(tmp_path: Path, sshd: Sshd, *more: str, folder: str = "copy") -> list[str]:
    return ["create", str(tmp_path / "tree"), f"{HOST}:{tmp_path}/{folder}", "-o", f"ssh-config={sshd.client_config}",
            *more]


def test_from_an_unknown_host_key_to_a_session(cli: Cli, sshd: Sshd, tmp_path: Path) -> None:
    cli(*args(tmp_path, sshd), code=4)
    found = re.search(r"error: slave .*: host key is not known; compare (SHA256:\S+) with the host, then run again "
                      r"with --accept-host-key SHA256", cli.err)
    assert found
    assert SessionHome(cli.home).list() == []
    assert cli.home.list() == []
    assert "not accepted" in cli.fails(*args(tmp_path, sshd, "--accept-host-key", "SHA256:other"), code=4)

    cli(*args(tmp_path, sshd, "--accept-host-key", found[1], "--push-agent"))
    agent = sshd.home / ".local/share/gsync/agent.pyz"
    assert cli.err == f"info: slave {HOST}:{tmp_path}/copy: the agent is installed as {agent}\n"
    assert agent.is_file()
    (session,) = SessionHome(cli.home).list()
    assert session.options.ssh_config == str(sshd.client_config)
    assert os.listdir(tmp_path / "copy") == []


def test_what_is_wrong_there_is_said_at_once(cli: Cli, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                             ) -> None:
    sshd.learn_host_key()
    (tmp_path / "copy" / "foreign").touch()
    answer = json.loads(cli(*args(tmp_path, sshd, "-o", "sync-method=rsync", "--json"), code=4))
    assert [finding["level"] for finding in answer["findings"]] == ["error"]
    answer = json.loads(cli(*args(tmp_path, sshd, "--json", folder="a/b"), code=4))
    assert "no such directory" in answer["findings"][0]["text"]
    assert cli.home.list() == []


def test_a_host_that_does_not_answer_can_be_forced(cli: Cli, sshd: Sshd, tmp_path: Path) -> None:
    sshd.stop()
    cli(*args(tmp_path, sshd), code=4)
    assert "Connection refused" in cli.err
    assert "--force creates it anyway" in cli.err
    cli(*args(tmp_path, sshd, "--force"))
    assert "Connection refused" in cli.err
    (session,) = SessionHome(cli.home).list()
    assert cli.home.get(session.volume).path == str(tmp_path / "tree")
