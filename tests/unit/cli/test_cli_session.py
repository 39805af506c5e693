"""start, stop, pause and resume where they make no sense; logs over rotations."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.base.process import Lock
from gsync.cli.logs import read
from gsync.cli.main import call
from gsync.service.monitor import monitor_lock
from gsync.session.control import Wanted, read_wanted, write_wanted
from gsync.session.session import Session, SessionHome
from gsync.state.home import Home


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """A session "s" on a node whose monitor is there, and does nothing."""
    home = Home(str(tmp_path / "home"))
    monkeypatch.setenv("GSYNC_HOME", home.path)
    monkeypatch.setenv("GSYNC_SYSTEM_CONF", str(tmp_path / "none"))
    (tmp_path / "master").mkdir()
    home.add("v", str(tmp_path / "master"))
    sessions = SessionHome(home)
    session = sessions.find_or_new("v", "/slave", "s")
    sessions.save(session)
    with monitor_lock(home):
        yield session


@pytest.mark.parametrize(("now", "command", "says"), [
    (Wanted.PAUSED, "start", "session s: cannot start: it is paused; use gsync resume s"),
    (Wanted.STARTED, "resume", "session s: cannot resume: it is not paused"),
    (Wanted.STOPPED, "resume", "session s: cannot resume: it is stopped; use gsync start s"),
    (Wanted.CREATED, "resume s", "session s: cannot resume: it was never started; use gsync start s"),
    (Wanted.CREATED, "pause", "session s: cannot pause: it is not started; use gsync start s"),
    (Wanted.STOPPED, "pause", "session s: cannot pause: it is not started; use gsync start s"),
    (Wanted.CREATED, "start nobody", "no such session: nobody; `gsync status` lists them"),
    (Wanted.STARTED, "stop s --all", "stop: give either --all or names of sessions"),
])
def test_what_makes_no_sense_is_told_in_one_line_and_changes_nothing(
        session: Session, capsys: pytest.CaptureFixture[str], now: Wanted, command: str, says: str) -> None:
    if now is not Wanted.CREATED:
        write_wanted(session, now)
    assert call(command.split()) == 2
    assert capsys.readouterr().err == f"gsync: {says}\n"
    assert read_wanted(session) is now


@pytest.mark.parametrize(("now", "command", "then"), [
    (Wanted.CREATED, "start", Wanted.STARTED), (Wanted.STOPPED, "start", Wanted.STARTED),
    (Wanted.STARTED, "start s", Wanted.STARTED), (Wanted.STARTED, "pause", Wanted.PAUSED),
    (Wanted.PAUSED, "pause", Wanted.PAUSED), (Wanted.PAUSED, "resume", Wanted.STARTED),
    (Wanted.PAUSED, "stop", Wanted.STOPPED), (Wanted.STARTED, "stop --all", Wanted.STOPPED),
    (Wanted.STARTED, "resume --all", Wanted.STARTED), (Wanted.STOPPED, "pause --all", Wanted.STOPPED),
    (Wanted.CREATED, "stop", Wanted.CREATED),
])
def test_the_order_is_written_down(session: Session, now: Wanted, command: str, then: Wanted) -> None:
    if now is not Wanted.CREATED:
        write_wanted(session, now)
    assert call([*command.split(), "--no-wait"]) == 0
    assert read_wanted(session) is then


def test_an_order_that_is_damaged_is_given_anew(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    Path(session.wanted).write_text("{")
    assert call(["pause", "--no-wait"]) == 2
    assert "damaged" in capsys.readouterr().err
    assert call(["start", "--no-wait"]) == 0
    assert read_wanted(session) is Wanted.STARTED


def test_several_sessions_are_ordered_and_what_is_wrong_with_one_is_told(
        session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["start", "nobody", "s", "--no-wait", "--json"]) == 2
    out, err = capsys.readouterr()
    assert err == "gsync: no such session: nobody; `gsync status` lists them\n"
    assert [(r["name"], r["state"]) for r in json.loads(out)] == [("nobody", None), ("s", "Started")]
    assert read_wanted(session) is Wanted.STARTED


@pytest.mark.parametrize("verb", ["start", "stop", "pause", "resume"])
def test_a_session_that_gsync_run_runs_takes_no_orders(
        session: Session, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with Lock(session.run_lock, "it"):
        assert call([verb]) == 3
        assert f"`gsync run` is running it, pid {os.getpid()}; stop that first" in capsys.readouterr().err
        assert call([verb, "--all"]) == 0
    assert read_wanted(session) is Wanted.CREATED


def test_gsync_run_leaves_a_started_session_alone(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    volume = Home(os.environ["GSYNC_HOME"]).get("v")
    write_wanted(session, Wanted.STARTED)
    assert call(["run", volume.path, "/slave"]) == 3
    assert "session s is started and run by the monitor; stop it first with gsync stop s" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- logs

def text(*lines: int) -> bytes:
    return b"".join(b"line %d\n" % line for line in lines)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 6, 100])
def test_the_last_lines_are_shown_over_rotations(tmp_path: Path, count: int) -> None:
    (tmp_path / "log").write_bytes(text(5, 6))
    (tmp_path / "log.1").write_bytes(text(3, 4))
    (tmp_path / "log.2").write_bytes(text(1, 2))
    assert b"".join(read(str(tmp_path / "log"), count, False)) == text(*range(1, 7)[6 - min(count, 6):])


def test_lines_longer_than_a_block_are_whole(tmp_path: Path) -> None:
    lines = [bytes([c]) * 100_000 + b"\n" for c in b"abc"]
    (tmp_path / "log").write_bytes(b"".join(lines))
    assert b"".join(read(str(tmp_path / "log"), 2, False)) == lines[1] + lines[2]


def test_following_loses_nothing_when_the_log_is_rotated_twice(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(text(1, 2))
    pieces = read(str(log), 1, True)
    assert next(pieces) == text(2)
    with open(log, "ab") as file:
        file.write(text(3))
    assert next(pieces) == text(3)
    with open(log, "ab") as file:
        file.write(text(4))
    log.rename(tmp_path / "log.2")
    (tmp_path / "log.1").write_bytes(text(5))
    log.write_bytes(text(6))
    got = b""
    while not got.endswith(text(6)):
        got += next(pieces)
    assert got == text(4, 5, 6)
    pieces.close()  # type: ignore[attr-defined]


def test_no_log_is_told(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["logs"]) == 2
    assert f"session s has no log yet ({session.log})" in capsys.readouterr().err
    assert call(["logs", "s", "--monitor"]) == 2
