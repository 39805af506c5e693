"""gsync config: what is shown, set, refused, and said about what runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gsync.base.errors import UsageError
from gsync.base.process import Lock
from gsync.cli import main
from gsync.cli.config import parse
from gsync.session.control import Wanted, write_wanted
from gsync.session.options import Options, table
from gsync.session.session import Session, SessionHome
from gsync.state.home import Home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = Home(str(tmp_path / "home"))
    monkeypatch.setenv("GSYNC_HOME", home.path)
    monkeypatch.setenv("GSYNC_SYSTEM_CONF", str(tmp_path / "system.conf"))
    return home


@pytest.fixture
def session(home: Home, tmp_path: Path) -> Session:
    (tmp_path / "tree").mkdir()
    home.add("photos", str(tmp_path / "tree"))
    sessions = SessionHome(home)
    session = sessions.find_or_new("photos", "h:/copy")
    sessions.save(session)
    return session


@pytest.fixture
def cli(home: Home, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*args: str, code: int = 0) -> str:
        """What the command prints; its one line on stderr where the code says that it fails."""
        capsys.readouterr()
        assert main.call(["config", *args]) == code
        out, err = capsys.readouterr()
        if code:
            assert out == ""
            assert err.count("\n") == 1
            return err.removeprefix("gsync: ").rstrip("\n")
        assert err == ""
        return out

    return call


Cli = Callable[..., str]


@pytest.mark.parametrize(
    ("words", "parsed"),
    [
        ([], (None, "list", [])),
        (["s"], ("s", "list", [])),
        (["list"], (None, "list", [])),
        (["s", "list"], ("s", "list", [])),
        (["sync_jobs"], (None, "get", ["sync_jobs"])),
        (["get", "sync-jobs"], (None, "get", ["sync-jobs"])),
        (["s", "sync-jobs"], ("s", "get", ["sync-jobs"])),
        (["sync-jobs", "3"], (None, "set", ["sync-jobs", "3"])),
        (["s", "sync-jobs", "3"], ("s", "set", ["sync-jobs", "3"])),
        (["s", "set", "sync-jobs", "list"], ("s", "set", ["sync-jobs", "list"])),
        (["s", "reset", "sync-jobs"], ("s", "reset", ["sync-jobs"])),
        (["s", "tar-command", "tar"], ("s", "set", ["tar-command", "tar"])),
        (["help"], (None, "help", [])),
        (["help", "exclude"], (None, "help", ["exclude"])),
        (["set", "no-such-thing", "3"], (None, "set", ["no-such-thing", "3"])),
    ])
def test_session_and_verb_may_be_left_out(words: list[str], parsed: tuple[str | None, str, list[str]]) -> None:
    assert parse(words) == parsed


@pytest.mark.parametrize("words", [["get"], ["s", "reset"], ["set"], ["s", "set", "nice"], ["s", "no-such", "3"],
                                   ["s", "no-such"]])
def test_what_is_missing_or_unknown_is_said(words: list[str]) -> None:
    with pytest.raises(UsageError, match="config"):
        parse(words)


class TestSetAndGet:
    def test_a_value_goes_through_all_verbs(self, cli: Cli, session: Session) -> None:
        assert cli("get", "sync-jobs") == "2\n"
        assert "sync-jobs: 4" in cli(session.name, "set", "sync-jobs", "4")
        assert Path(session.config).read_text() == "[gsync]\nsync-jobs = 4\n"
        assert cli(session.name, "sync_jobs") == "4\n"
        assert SessionHome(Home()).get(session.name).options == Options(sync_jobs=4)
        assert "sync-jobs: 2  [default]" in cli("reset", "sync-jobs")
        assert cli("get", "sync-jobs") == "2\n"

    def test_the_layers_and_where_a_value_is_from(self, cli: Cli, session: Session, home: Home, tmp_path: Path) -> None:
        (tmp_path / "system.conf").write_text("[gsync]\nnice = 3\nsync-jobs = 3\n")
        cli("--site", "set", "sync-jobs", "4")
        cli("set", "compression", "true")
        listed = {row["option"]: row for row in json.loads(cli("list", "--json"))}
        assert listed["nice"] == {
            "option": "nice", "value": "3", "from": str(tmp_path / "system.conf"), "default": "0"}
        assert (listed["sync-jobs"]["value"], listed["sync-jobs"]["from"]) == ("4", f"{home.path}/gsync.conf")
        assert (listed["compression"]["value"], listed["compression"]["from"]) == ("true", session.config)
        assert (listed["exclude"]["value"], listed["exclude"]["from"]) == ("", "default")
        site = {row["option"]: row["value"] for row in json.loads(cli("--site", "--json"))}
        assert (site["sync-jobs"], site["compression"]) == ("4", "false")
        assert set(site) == set(table())
        assert "rollover-time" in site
        assert "rollover-time" not in listed

    def test_the_list_is_a_table(self, cli: Cli, session: Session) -> None:
        lines = cli().splitlines()
        assert lines[0].split() == ["OPTION", "VALUE", "FROM", "DEFAULT"]
        assert any(line.split() == ["sync-method", "auto", "default", "auto"] for line in lines)

    def test_several_patterns_are_several_values(self, cli: Cli, session: Session) -> None:
        cli("set", "exclude", "*.o", "!keep.o", "a b")
        assert cli("get", "exclude") == "*.o\n!keep.o\na b\n"

    def test_values_that_begin_with_a_dash(self, cli: Cli, session: Session) -> None:
        cli("set", "rsync-options", "--partial", "--block-size=4096")
        cli("set", "ssh-options", "-i", "/key", "-oKexAlgorithms=x", "--yes")
        options = SessionHome(Home()).get(session.name).options
        assert (options.rsync_options, options.ssh_options) == (
            "--partial --block-size=4096", "-i /key -oKexAlgorithms=x")

    @pytest.mark.parametrize(
        ("args", "complaint"),
        [
            (["set", "sync-jobs", "99"], "sync-jobs: '99': should be less than or equal to 16"),
            (["set", "sync-jobs", "3", "4"], "config set sync-jobs: unexpected argument: 4"),
            (["set", "sync-jops", "3"], "sync-jops: no such option; did you mean sync-jobs?"),
            (["set", "gluster-params", "x"], "gluster-params: gsync does not have this option of GlusterFS: gsync"),
            (["set", "rollover-time", "5s"], "use gsync config --site set rollover-time VALUE"),
            (["set", "ignore-deletes", "true"], "config set ignore-deletes: not set; files deleted"),
            (["get", "nice", "3"], "config get: unexpected argument: 3"),
            (["reset", "nice", "3"], "config reset: unexpected argument: 3"),
        ])
    def test_what_is_wrong_is_refused_and_nothing_written(
            self, cli: Cli, session: Session, args: list[str], complaint: str) -> None:
        assert complaint in cli(*args, code=2)
        assert not Path(session.config).exists()

    def test_with_yes_nothing_is_asked(self, cli: Cli, session: Session) -> None:
        cli("set", "ignore-deletes", "true", "--yes")
        assert cli("get", "ignore-deletes") == "true\n"
        cli("set", "ignore-deletes", "false")
        assert cli("get", "ignore-deletes") == "false\n"

    def test_a_wrong_file_is_named_and_can_be_mended(self, cli: Cli, session: Session) -> None:
        Path(session.config).write_text("[gsync]\nsync-jobs = 99\n")
        assert cli("get", "nice", code=2).startswith(f"{session.config}: sync-jobs: '99'")
        cli(session.name, "reset", "sync-jobs")
        assert cli("get", "sync-jobs") == "2\n"

    def test_of_several_sessions_one_must_be_named(self, cli: Cli, session: Session) -> None:
        other = SessionHome(Home()).find_or_new("photos", "h:/other")
        SessionHome(Home()).save(other)
        assert "name a session: " in cli("set", "nice", "3", code=2)
        cli(other.name, "set", "nice", "3")
        assert (cli(session.name, "get", "nice"), cli(other.name, "get", "nice")) == ("0\n", "3\n")


class TestConsequences:
    def test_it_is_said_what_a_change_does(self, cli: Cli, session: Session) -> None:
        assert "takes effect when the session is started" in cli("set", "nice", "1")
        write_wanted(session, Wanted.STARTED)
        assert "the worker restarts with it" in cli("set", "nice", "2")
        with Lock(session.run_lock, "test"):
            assert "`gsync run` uses it after a restart" in cli("set", "nice", "3")
        assert "a running monitor restarts its recorders with it" in cli("--site", "set", "rollover-time", "5s")

    def test_json_says_all_of_it(self, cli: Cli, session: Session) -> None:
        assert json.loads(cli("set", "nice", "1", "--json")) == {
            "option": "nice", "value": "1", "from": session.config, "default": "0", "file": session.config,
            "restarts": ["worker"], "effect": "takes effect when the session is started"}


class TestHelp:
    def test_help_needs_no_session(self, cli: Cli) -> None:
        text = cli("help")
        assert all(name in text for name in table())
        assert {row["option"] for row in json.loads(cli("help", "--json"))} == set(table())

    def test_help_of_one_option(self, cli: Cli) -> None:
        assert cli("help", "secondary_timeout").splitlines() == [
            "slave-timeout", f"help: {table()['slave-timeout'].about.help}",
            "takes: a duration such as 30s, 5m, 12h or 7d, 5s to 1d", "default: 2m", "scope: session",
            "restarts: worker", "other name: secondary-timeout"]
        assert "scope: node (set with --site)" in cli("help", "rollover-time")
