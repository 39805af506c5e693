"""The gsync command in this process: arguments, one line per error, exit codes, JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gsync.base.errors import Faulty, GsyncError, LockedError, SlaveError, Transient, UsageError
from gsync.base.process import Lock
from gsync.cli import run
from gsync.cli.output import json_ready, print_error
from gsync.session.options import Options
from gsync.session.session import Session, SessionHome
from gsync.state.home import Home
from lab.cli import Cli

NS = 1_000_000_000


class TestEndings:
    @pytest.mark.parametrize(
        ("args", "complaint"),
        [
            (["nonsense"], "No such command"),
            (["run"], "Missing argument 'MASTER'"),
            (["run", "/m"], "Missing argument 'SLAVE'"),
            (["run", "/m", "/s", "--nonsense"], "No such option"),
            (["run", "/m", "/s", "--sync-jobs", "many"], "--sync-jobs"),
            (["run", "/m", "/s", "--sync-jobs", "99"], "sync-jobs: 99"),
            (["run", "/m", "/s", "--sync-method", "cp"], "sync-method: 'cp'"),
            (["run", "/m", "/s", "--bwlimit", "fast"], "bandwidth-limit: 'fast': 'fast' is not a rate"),
            (["run", "/m", "/s", "--exclude", "!"], "not a pattern: '!'"),
            (["run", "/m", "/s", "--exclude-from", "/nowhere"], "--exclude-from /nowhere: No such file"),
            (["run", "/m", "/s", "--log-level", "loud"], "log-level: 'LOUD'"),
            (["run", "/m", "/s", "--detector", "crystal-ball"], "change-detector: 'crystal-ball'"),
            (["run", "/m", "/s", "--set", "nice"], "--set nice: expected OPTION=VALUE"),
            (["run", "/m", "/s", "--set", "tar-command=x"], "tar-command: gsync does not have this option of"),
            (["run", "/m", "/s", "--delete-retention", "x"], "delete-retention: 'x': not a duration"),
            (["run", "/m", "/s", "--delete-retention", "7"], "delete-retention: '7': give the unit of 7: s, m"),
            (["run", "/no/such/master", "/s"], "master /no/such/master: no such directory"),
            (["run", "/etc/passwd", "/s"], "master /etc/passwd: Not a directory"),
            (["run", "/usr", "host:relative"], "the path must begin with /"),
            (["run", "/usr", "ssh://host"], "not of the form"),
            (["run", "/usr", "/usr/copy"], "lies inside the master"),
            (["run", "/usr/lib", "/usr"], "lies inside the slave"),
            (["run", "/usr", "/", "--accept-host-key", "SHA256:x"], "lies inside the slave"),
            (["run", "/usr", "/nowhere", "--accept-host-key", "SHA256:x"], "is on this host"),
            (["status", "nobody"], "no such session: nobody"),
            (["status", "../x"], "session '../x': a name is made of"),
            (["volume", "info", "nothing"], "no such volume: nothing"),
            (["volume", "add", "a/b", "/usr"], "volume 'a/b': a name is made of"),
            (["volume", "add", "x", "/no/such"], "No such file or directory"),
            (["recorder", "run", "nothing"], "no such volume: nothing"),
            (["recorder", "status", "nothing"], "no such volume: nothing"),
        ],
    )
    def test_bad_usage_is_one_line_and_2(self, cli: Cli, args: list[str], complaint: str) -> None:
        assert complaint in cli.fails(*args, code=2)

    @pytest.mark.parametrize(
        ("error", "code"),
        [(UsageError, 2), (LockedError, 3), (SlaveError, 4), (Transient, 4), (Faulty, 5), (GsyncError, 5),
         (ValueError, 5), (OSError, 5)],
    )
    def test_every_error_has_its_exit_code_and_one_line(
            self, cli: Cli, monkeypatch: pytest.MonkeyPatch, error: type[Exception], code: int) -> None:
        def fail(self: Home) -> None:
            raise error("what\nhappened")

        monkeypatch.setattr(Home, "list", fail)
        assert "what happened" in cli.fails("volume", "list", code=code)

    def test_a_traceback_is_shown_on_request_only(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(self: Home) -> None:
            raise ValueError("a bug")

        monkeypatch.setattr(Home, "list", fail)
        assert cli.fails("volume", "list", code=5) == "internal error: ValueError: a bug (GSYNC_DEBUG=1 shows where)"
        monkeypatch.setenv("GSYNC_DEBUG", "1")
        cli("volume", "list", code=5)
        assert "Traceback" in cli.err

    def test_an_error_line_stays_one_line_whatever_it_quotes(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_error("a\nb \udcff \r é")
        assert capsys.readouterr().err.count("\n") == 1

    def test_help_and_version_are_no_errors(self, cli: Cli) -> None:
        assert "Usage: gsync" in cli("--help")
        assert "--dry-run" in cli("run", "--help")
        assert cli("--version").startswith("gsync ")


class TestRunArguments:
    @pytest.fixture
    def supervised(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Session, dict[str, Any]]]:
        """What would be run; nothing is."""
        calls: list[tuple[Session, dict[str, Any]]] = []

        def supervise(session: Session, given: dict[str, Any], volume: Any, home: Any, **more: Any) -> int:
            calls.append((session, {"given": given, **more}))
            return 0

        monkeypatch.setattr(run, "_supervise", supervise)
        return calls

    def test_options_hold_for_this_run(
            self, cli: Cli, tree: Path, tmp_path: Path, supervised: list[tuple[Session, dict[str, Any]]],
            monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "patterns").write_bytes(b"# a comment\n\n*.tmp\n\xff*\n")
        cli("run", str(tree), "me@host:/copy/", "--once", "--exclude", "*.o", "--exclude", "!keep.o",
            "--exclude-from", "patterns", "--adopt", "--sync-method", "rsync", "--sync-jobs", "4", "--bwlimit", "10M",
            "--delete-retention", "1.5d", "--ssh-config", "cfg", "--ssh-port", "2222", "--detector", "inotify",
            "--log-level", "DEBUG", "--set", "nice=7")
        (session, more), = supervised
        given = json.loads(json.dumps(more.pop("given")))  # as the worker gets them
        assert more == {"once": True, "json": False}
        options = SessionHome(cli.home).get(session.name, given).options
        assert options == session.options
        assert options.exclude == ("*.tmp", "\udcff*", "*.o", "!keep.o")
        assert (options.change_detector, options.nice) == ("inotify", 7)
        assert (options.adopt, options.sync_method, options.sync_jobs) == (True, "rsync", 4)
        assert (options.bandwidth_limit, options.delete_retention) == ("10M", 129600)
        assert (options.ssh_config, options.ssh_port, options.log_level) == (str(tmp_path / "cfg"), 2222, "DEBUG")
        assert session.slave == "me@host:/copy"
        assert [each.options for each in SessionHome(cli.home).list()] == [Options()]

    def test_options_go_above_the_settings_of_files(
            self, cli: Cli, tree: Path, tmp_path: Path, supervised: list[tuple[Session, dict[str, Any]]]) -> None:
        copy = str(tmp_path / "copy")
        cli("config", "--site", "set", "sync-jobs", "3")
        cli("config", "--site", "adopt", "yes")
        cli("run", str(tree), copy)
        cli("config", "set", "exclude", "*.o", "*.tmp")
        cli("config", "nice", "3")
        cli("run", str(tree), copy, "--sync-jobs", "4", "--delete-retention", "12h")
        first, second = (session.options for session, _ in supervised)
        assert (first.sync_jobs, first.adopt, first.exclude) == (3, True, ())
        assert (second.sync_jobs, second.adopt, second.exclude, second.nice) == (4, True, ("*.o", "*.tmp"), 3)
        assert second.delete_retention == 43200

    def test_the_same_places_are_the_same_session_with_the_new_options(
            self, cli: Cli, tree: Path, tmp_path: Path, supervised: list[tuple[Session, dict[str, Any]]],
            monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tree)
        cli("run", str(tree), str(tmp_path / "copy"), "--exclude", "x")
        cli("run", ".", "../copy/")
        first, second = (session for session, _ in supervised)
        assert first.name == second.name
        assert (first.options.exclude, second.options.exclude) == (("x",), ())
        assert [session.name for session in SessionHome(cli.home).list()] == [second.name]

    def test_names_that_begin_with_a_dash_or_are_no_text(
            self, cli: Cli, tmp_path: Path, supervised: list[tuple[Session, dict[str, Any]]],
            monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        os.mkdir(b"-\xff\n")
        cli("run", "--", "-\udcff\n", "-slave\udcfe")
        (session, _), = supervised
        assert session.slave == f"{tmp_path}/-slave\udcfe"
        assert cli.home.get(session.volume).path == f"{tmp_path}/-\udcff\n"

    def test_a_second_run_is_refused_with_the_pid_of_the_first(self, cli: Cli, tree: Path, tmp_path: Path,
                                                               supervised: list[Any]) -> None:
        cli("run", str(tree), str(tmp_path / "copy"))
        session = supervised[0][0]
        with Lock(session.run_lock, "test"):
            line = cli.fails("run", str(tree), str(tmp_path / "copy"), "--exclude", "y", code=3)
        assert line == f"session {session.name} is running already, pid {os.getpid()}"
        assert SessionHome(cli.home).get(session.name).options.exclude == ()

    def test_with_json_an_error_is_an_event_too(self, cli: Cli) -> None:
        event = json.loads(cli("run", "/no/such", "/copy", "--json", code=2))
        assert event.pop("time").endswith("Z")
        assert event == {"event": "error", "message": "master /no/such: no such directory", "exit_code": 2}
        assert cli.err == "gsync: master /no/such: no such directory\n"

    def test_state_says_where_the_state_is(self, cli: Cli, tree: Path, tmp_path: Path, supervised: list[Any]) -> None:
        other = tmp_path / "other"
        cli("run", str(tree), str(tmp_path / "copy"), "--state", str(other))
        assert not os.path.exists(cli.home.path)
        reports = json.loads(cli("status", "--json", "--state", str(other)))
        assert [report["slave"] for report in reports] == [str(tmp_path / "copy")]


class TestVolume:
    def test_add_list_info_remove(self, cli: Cli, tree: Path) -> None:
        assert json.loads(cli("volume", "list", "--json")) == []
        cli("volume", "add", "photos", str(tree))
        (listed,) = json.loads(cli("volume", "list", "--json"))
        assert (listed["name"], listed["path"], listed["kind"]) == ("photos", str(tree), "posix")
        assert listed["recorder"]["state"] == "Stopped"
        assert json.loads(cli("volume", "info", "photos", "--json")) == listed
        assert str(tree) in cli("volume", "info", "photos")
        assert "photos" in cli("volume", "list")
        assert "already exists" in cli.fails("volume", "add", "photos", "/usr", code=2)
        assert "not removed" in cli.fails("volume", "remove", "photos", code=2)
        cli("volume", "remove", "photos", "--yes")
        assert cli.home.list() == []
        assert tree.is_dir()

    def test_a_path_that_is_no_text_comes_with_its_bytes(self, cli: Cli, tmp_path: Path) -> None:
        os.mkdir(os.fsencode(tmp_path) + b"/\xff")
        cli("volume", "add", "odd", f"{tmp_path}/\udcff")
        (listed,) = json.loads(cli("volume", "list", "--json"))
        assert set(listed["path"]) == {"path", "path_b64"}
        assert "\\xff" in cli("volume", "list")

    def test_recorder_status(self, cli: Cli, tree: Path) -> None:
        cli("volume", "add", "photos", str(tree))
        assert json.loads(cli("recorder", "status", "--json")) == [
            {"volume": "photos", "state": "Stopped", "reason": "", "last_changelog": None, "runway_seconds": None}]
        assert "photos" in cli("recorder", "status", "photos")


def test_json_of_texts_that_are_not_utf_8() -> None:
    assert json_ready({"a": ["é", "x\udcff"], "n": None}) == {
        "a": ["é", {"path": "x\ufffd", "path_b64": "eP8="}], "n": None}
