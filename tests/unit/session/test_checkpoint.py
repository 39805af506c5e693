"""Checkpoints: what may be said for a time, what the files say, and the command on them."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import pytest

from gsync.base.errors import UsageError
from gsync.base.process import Lock, start_time
from gsync.cli.checkpoint import parse
from gsync.session import checkpoint
from gsync.session.checkpoint import Checkpoint
from gsync.session.session import Session, SessionHome
from gsync.session.status import WorkerStatus
from lab.cli import Cli

NS = 1_000_000_000
NOON = int(datetime(2026, 11, 23, 12, 0, tzinfo=UTC).timestamp()) * NS


@pytest.fixture
def session(cli: Cli, tree: Path) -> Session:
    sessions = SessionHome(cli.home)
    session = sessions.find_or_new(cli.home.add("photos", str(tree)).name, "h:/copy")
    sessions.save(session)
    return session


def working(session: Session, stime: int | None) -> None:
    """worker.status, as a worker in this process would have it."""
    WorkerStatus(pid=os.getpid(), started=start_time(os.getpid()), state="Active", stime=stime).write(
        session.worker_status)


@pytest.mark.parametrize(
    ("words", "parsed"),
    [
        (["now"], (None, "set", 7)), (["s", "now"], ("s", "set", 7)), (["status"], (None, "status", None)),
        (["s", "wait"], ("s", "wait", None)), (["s", "2026-11-23T12:00:00Z"], ("s", "set", NOON)),
        (["s", "2026-11-23", "12:00Z"], ("s", "set", NOON)), (["2026-11-23", "12:00Z"], (None, "set", NOON)),
    ],
)
def test_words(words: list[str], parsed: Any) -> None:
    assert parse(words, 7) == parsed


@pytest.mark.parametrize("words", [[], ["s"], ["s", "soon"], ["s", "wait", "long"], ["a", "b", "now"]])
def test_other_words_are_refused_with_the_forms(words: list[str]) -> None:
    with pytest.raises(UsageError, match="give status, wait, or a time: now, RFC 3339"):
        parse(words, 7)


class TestFiles:
    def test_it_is_passed_once_and_that_is_kept(self, tmp_path: Path) -> None:
        path = str(tmp_path / "checkpoint")
        checkpoint = Checkpoint(path)
        assert (checkpoint.wanted(), checkpoint.progress(9), checkpoint.passed(9)) == (None, None, False)
        Checkpoint(path).set(5)
        assert not checkpoint.passed(None)
        assert not checkpoint.passed(4)
        standing = checkpoint.progress(4)
        assert standing is not None
        assert (standing.reached, standing.reached_at) == (False, None)
        assert checkpoint.passed(5)
        assert not checkpoint.passed(6)
        assert not Checkpoint(path).passed(6)  # the next worker
        standing = checkpoint.progress(None)
        assert standing is not None
        assert standing.reached
        assert standing.reached_at is not None

    def test_a_new_one_is_not_reached_because_the_old_one_was(self, tmp_path: Path) -> None:
        checkpoint = Checkpoint(str(tmp_path / "checkpoint"))
        checkpoint.set(5)
        checkpoint.passed(5)
        Checkpoint(str(tmp_path / "checkpoint")).set(9)
        standing = checkpoint.progress(5)
        assert standing is not None
        assert not standing.reached
        assert checkpoint.passed(9)

    def test_what_was_past_when_it_was_set_is_reached_then(self, tmp_path: Path) -> None:
        checkpoint = Checkpoint(str(tmp_path / "checkpoint"))
        checkpoint.set(5, stime=6)
        standing = checkpoint.progress(None)
        assert standing is not None
        assert standing.reached

    def test_a_damaged_file_stops_the_command_but_no_worker(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoint").write_text("{")
        checkpoint = Checkpoint(str(tmp_path / "checkpoint"))
        assert checkpoint.wanted() is None
        assert not checkpoint.passed(5)
        with pytest.raises(UsageError, match="set the checkpoint again"):
            checkpoint.time()
        checkpoint.set(5)
        assert checkpoint.time() == 5


class TestCommand:
    def test_set_status_and_reached(self, cli: Cli, session: Session) -> None:
        working(session, 5 * NS)
        assert "no checkpoint is set" in cli.fails("checkpoint", "status", code=2)
        shown = json.loads(cli("checkpoint", "10", "--json"))
        assert (shown["time"], shown["reached"], shown["reached_at"]) == ("1970-01-01T00:00:10.000000Z", False, None)
        assert json.loads(cli("status", "--json"))[0]["bricks"][0]["checkpoint"] == {
            "time": "1970-01-01T00:00:10.000000Z", "reached": False, "reached_at": None}
        Checkpoint(session.checkpoint).passed(10 * NS)
        shown = json.loads(cli("checkpoint", session.name, "status", "--json"))
        assert shown["reached"]
        assert shown["reached_at"].endswith("Z")
        assert "1970-01-01 00:00:10 reached" in cli("status", "--detail")
        assert "yes" in cli("checkpoint", "status")

    def test_wait_ends_with_1_at_the_timeout_and_says_where_it_stands(self, cli: Cli, session: Session) -> None:
        working(session, 5 * NS)
        cli("checkpoint", "now")
        assert "1970-01-01 00:00:05" in cli("checkpoint", "wait", "--timeout", "0", code=1)
        assert "is not reached before it is started" not in cli.err
        with Lock(session.run_lock, "test"):
            cli("checkpoint", "wait", "--timeout", "0", code=1)
            assert cli.err == ""

    def test_wait_says_that_a_session_that_rests_gets_nowhere(self, cli: Cli, session: Session) -> None:
        cli("checkpoint", "now")
        cli("checkpoint", "wait", "--timeout", "0.3", code=1)
        assert cli.err == (f"gsync: session {session.name} is Created; it reaches the checkpoint only when it is "
                           "started\n")

    def test_wait_ends_when_it_is_reached(self, cli: Cli, session: Session) -> None:
        cli("checkpoint", "now")
        timer = threading.Timer(0.5, Checkpoint(session.checkpoint).passed, [time.time_ns()])
        timer.start()
        assert "yes" in cli("checkpoint", "wait", "--timeout", "60")
        timer.join()

    def test_options_that_do_not_go_together(self, cli: Cli) -> None:
        assert "--timeout: it needs wait" in cli.fails("checkpoint", "now", "--timeout", "3", code=2)


def test_a_file_that_cannot_be_read_just_now_is_no_end_of_the_command(cli: Cli, session: Session) -> None:
    """As while a meta volume hangs."""
    Checkpoint(session.checkpoint).set(NOON)
    os.mkdir(session.checkpoint_reached)
    assert json.loads(cli("checkpoint", "status", "--json"))["reached"] is False


def test_a_file_that_another_node_replaces_is_read_again(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Checkpoint(session.checkpoint)
    held.set(NOON)
    stale = iter([OSError(errno.ESTALE, "stale")])

    def replaced_meanwhile(path: str, encoding: str) -> TextIO:
        for exc in stale:
            raise exc
        return Path(path).open(encoding=encoding)

    monkeypatch.setattr(checkpoint, "open", replaced_meanwhile, raising=False)
    assert held.time() == NOON
