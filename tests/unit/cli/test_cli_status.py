"""`gsync status` in this process: what it makes of the files that it finds."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gsync.base.process import Lock, start_time
from gsync.recorder.status import RecorderStatus
from gsync.recorder.status import write_status as write_recorder_status
from gsync.session import config
from gsync.session.control import Wanted, write_wanted
from gsync.session.session import Session, SessionHome
from gsync.session.status import WorkerStatus
from lab.cli import Cli

NS = 1_000_000_000


@pytest.fixture
def session(cli: Cli, tree: Path) -> Session:
    sessions = SessionHome(cli.home)
    session = sessions.find_or_new(cli.home.add("photos", str(tree)).name, "h:/copy")
    sessions.save(session)
    return session


def working(**more: Any) -> WorkerStatus:
    """What a worker in this process would say."""
    return replace(WorkerStatus(
        pid=os.getpid(), started=start_time(os.getpid()), state="Active", crawl="Changelog",
        stime=1_700_000_000 * NS + 123_456_789, entry_stime=1_700_000_000 * NS, last_synced=1_700_000_000 * NS,
        lag_seconds=0.25, pending={"entry": 1, "data": 2, "meta": 3}, failures=4, held=5,
        rate={"files": 6.0, "bytes": 7.0}, eta_seconds=8.0, epoch=9), **more)


def well(**more: Any) -> WorkerStatus:
    """What one would say that has nothing to complain of."""
    now = time.time_ns()
    return working(**{"stime": now, "last_synced": now, "failures": 0, "held": 0, "updated": now, **more})


class TestStatus:
    def report(self, cli: Cli) -> dict[str, Any]:
        (report,) = json.loads(cli("status", "--json"))
        assert set(report) == {"name", "master", "slave", "state", "monitor", "bricks"}
        (brick,) = report["bricks"]
        assert set(brick) == {
            "node", "path", "subvolume", "state", "reason", "crawl", "stime", "entry_stime", "last_synced",
            "lag_seconds", "pending", "failures", "held", "left_out", "checkpoint", "rate", "eta_seconds", "recorder",
            "epoch", "pid", "updated", "stale"}
        return {**brick, "session": report["state"]}

    def test_nothing_yet(self, cli: Cli) -> None:
        assert "no sessions in" in cli("status")
        assert json.loads(cli("status", "--json")) == []

    def test_a_session_that_never_ran(self, cli: Cli, session: Session) -> None:
        report = self.report(cli)
        assert (report["session"], report["state"], report["stime"]) == ("Created", "Stopped", None)

    def test_a_session_at_work(self, cli: Cli, session: Session) -> None:
        working().write(session.worker_status)
        with Lock(session.run_lock, "test"):
            report = self.report(cli)
        assert (report["session"], report["state"], report["crawl"]) == ("Started", "Active", "Changelog")
        assert report["stime"] == "2023-11-14T22:13:20.123456Z"
        assert report["last_synced"] == "2023-11-14T22:13:20.000000Z"
        assert (report["lag_seconds"], report["eta_seconds"], report["epoch"]) == (0.25, 8.0, 9)
        assert report["pending"] == {"entry": 1, "data": 2, "meta": 3}
        assert (report["failures"], report["held"], report["pid"]) == (4, 5, os.getpid())
        assert report["recorder"]["state"] == "Stopped"
        assert report["recorder"]["runway_seconds"] == 0.0
        assert report["stale"] is False

    def test_what_a_dead_worker_said_is_not_believed(self, cli: Cli, session: Session) -> None:
        working().write(session.worker_status)
        stale = json.loads(Path(session.worker_status).read_text())
        stale["started"] += 1  # another process has that pid now
        Path(session.worker_status).write_text(json.dumps(stale))
        report = self.report(cli)
        assert (report["session"], report["state"], report["crawl"]) == ("Stopped", "Stopped", "N/A")
        assert (report["lag_seconds"], report["eta_seconds"], report["pid"]) == (None, None, None)
        assert (report["failures"], report["stime"]) == (4, "2023-11-14T22:13:20.123456Z")
        assert report["stale"] is True
        with Lock(session.run_lock, "test"):
            assert self.report(cli)["state"] == "Initializing"

    def test_what_the_supervisor_noted_is_shown(self, cli: Cli, session: Session) -> None:
        WorkerStatus(state="Faulty", reason="no space left").write(session.worker_status)
        with Lock(session.run_lock, "test"):
            report = self.report(cli)
        assert (report["state"], report["reason"], report["pid"]) == ("Faulty", "no space left", None)

    def test_tables_on_a_pipe_are_complete(self, cli: Cli, session: Session) -> None:
        working().write(session.worker_status)
        with Lock(session.run_lock, "test"):
            plain, detail = cli("status"), cli("status", "--detail")
        assert session.name in plain
        assert len(plain.splitlines()) == len(detail.splitlines()) == 5
        name = session.name
        assert plain.splitlines()[3:] == [f"{name}: to list the failures: gsync failures {name} list",
                                          f"{name}: deletes wait for approval: gsync hold {name} show"]
        for word in ("photos", "h:/copy", "Active", "Changelog", "2023-11-14 22:13:20"):
            assert word in plain
        for heading in ("LAG", "ENTRY", "DATA", "META", "FAILURES", "HELD", "RECORDER"):
            assert heading in detail

    def test_a_reason_is_a_line_below_the_table(self, cli: Cli, session: Session) -> None:
        WorkerStatus(state="Faulty", reason="no space left").write(session.worker_status)
        with Lock(session.run_lock, "test"):
            assert cli("status").splitlines()[2:][1:] == [f"{session.name}: no space left"]

    def test_a_session_whose_volume_was_removed_is_shown_all_the_same(self, cli: Cli, session: Session) -> None:
        cli.home.remove("photos")
        report = self.report(cli)
        assert (report["path"], report["recorder"]["state"]) == (None, "Stopped")
        assert report["reason"].startswith("no such volume: photos")
        assert session.name in cli("status")

    def test_a_session_that_is_damaged_does_not_hide_the_others(self, cli: Cli, session: Session) -> None:
        other = SessionHome(cli.home).find_or_new("photos", "h:/other", "zzz")
        SessionHome(cli.home).save(other)
        Path(session.folder, "session.json").write_text("{")
        first, second = json.loads(cli("status", "--json"))
        assert (first["name"], second["name"]) == (session.name, "zzz")
        assert (first["bricks"][0]["state"], second["state"]) == ("Faulty", "Created")
        assert "damaged" in first["bricks"][0]["reason"]
        assert "damaged" in cli("status")

    def test_a_damaged_status_file_is_no_error(self, cli: Cli, session: Session) -> None:
        Path(session.worker_status).write_text("{")
        assert self.report(cli)["session"] == "Created"

    def test_what_the_admin_wants_is_the_state(self, cli: Cli, session: Session) -> None:
        for wanted in Wanted:
            write_wanted(session, wanted)
            assert self.report(cli)["session"] == wanted.value
        with Lock(session.run_lock, "test"):
            assert self.report(cli)["session"] == "Started"

    def test_started_without_a_monitor_says_what_is_missing(self, cli: Cli, session: Session) -> None:
        write_wanted(session, Wanted.STARTED)
        WorkerStatus(state="Active").write(session.worker_status)
        report = self.report(cli)
        assert (report["session"], report["state"]) == ("Started", "Stopped")
        assert "no monitor is running on this node" in report["reason"]
        with Lock(os.path.join(cli.home.path, "monitor.lock"), "test"):
            assert self.report(cli)["state"] == "Active"

    def test_a_damaged_wanted_file_is_shown(self, cli: Cli, session: Session) -> None:
        Path(session.wanted).write_text("{")
        assert "damaged" in self.report(cli)["reason"]


class TestTwoNodes:
    """Another node's worker is known by the file that it keeps on the meta volume."""

    @pytest.fixture
    def session(self, cli: Cli, tree: Path, tmp_path: Path) -> Session:
        for name, value in [("use-meta-volume", "true"), ("meta-volume-mnt", str(tmp_path / "meta"))]:
            config.set_value(config.node_path(cli.home.path), name, value)
        sessions = SessionHome(cli.home)
        session = sessions.find_or_new(cli.home.add("photos", str(tree)).name, "h:/copy")
        sessions.save(session)
        write_wanted(session, Wanted.STARTED)
        Path(session.statuses).mkdir()
        return session

    @staticmethod
    def bricks(cli: Cli) -> list[dict[str, Any]]:
        (report,) = json.loads(cli("status", "--json"))
        bricks: list[dict[str, Any]] = report["bricks"]
        return bricks

    def test_there_is_a_row_for_each(self, cli: Cli, session: Session, tree: Path) -> None:
        well(state="Passive").write(session.worker_status)
        well(pid=1, started=1, path="/srv/photos", recorder={"state": "Recording", "reason": "", "last_changelog": None,
                                                             "runway_seconds": 9.0}
             ).write(os.path.join(session.statuses, "other"))
        here, there = self.bricks(cli)
        assert (here["node"], here["path"], here["state"]) == (os.uname().nodename, str(tree), "Passive")
        assert (there["node"], there["path"], there["state"]) == ("other", "/srv/photos", "Active")
        assert there["recorder"]["runway_seconds"] == 9.0
        assert len(cli("status").splitlines()) == 4

    def test_its_own_file_there_is_not_taken_for_another_node(self, cli: Cli, session: Session) -> None:
        well().write(os.path.join(session.statuses, os.uname().nodename))
        assert len(self.bricks(cli)) == 1

    def test_one_that_is_not_heard_of_is_not_believed(self, cli: Cli, session: Session) -> None:
        well(updated=time.time_ns() - 60 * NS).write(os.path.join(session.statuses, "other"))
        _, there = self.bricks(cli)
        assert (there["state"], there["stale"], there["lag_seconds"]) == ("Stopped", True, None)
        assert "no word from node other for 6" in there["reason"]
        assert cli("status", "--check", code=2).startswith("CRITICAL - ")

    def test_without_the_meta_volume_it_is_critical_and_cannot_be_deleted(self, cli: Cli, session: Session,
                                                                          tmp_path: Path) -> None:
        (tmp_path / "meta").rename(tmp_path / "away")
        (here,) = self.bricks(cli)
        assert "mount the meta volume" in here["reason"]
        assert cli("status", "--check", code=2).startswith("CRITICAL")
        assert "mount the meta volume" in cli.fails("delete", "--yes", code=2)

    def test_the_youngest_epoch_is_the_active_one(self, cli: Cli, session: Session) -> None:
        well(epoch=4).write(session.worker_status)  # frozen, as far as it can be seen
        well(epoch=5).write(os.path.join(session.statuses, "other"))
        here, there = self.bricks(cli)
        assert (here["state"], here["reason"]) == ("Passive", "node other has taken over")
        assert (there["state"], there["reason"]) == ("Active", "")

    def test_one_of_them_active_is_enough(self, cli: Cli, session: Session) -> None:
        well(state="Passive").write(session.worker_status)
        for state, code, text in [("Active", 0, "OK"), ("Passive", 2, "no worker is Active")]:
            well(state=state, recorder={"state": "Recording", "reason": "", "last_changelog": None,
                                        "runway_seconds": 1e6}).write(os.path.join(session.statuses, "other"))
            with recording(cli):
                assert text in cli("status", "--check", code=code)


def recording(cli: Cli) -> ExitStack:
    """A recorder that is there, as far as its files say."""
    brick = cli.home.get("photos").brick()
    os.makedirs(brick.folder, exist_ok=True)
    stack = ExitStack()
    stack.enter_context(Lock(brick.lock, "test"))
    write_recorder_status(brick.status, RecorderStatus(state="Recording", pid=os.getpid()))
    return stack


class TestCheck:
    @pytest.fixture
    def at_work(self, cli: Cli, session: Session) -> Iterator[Session]:
        """Started, with a recorder and `gsync run` in place."""
        with recording(cli), Lock(session.run_lock, "test"):
            yield session

    def test_in_order(self, cli: Cli, at_work: Session) -> None:
        well().write(at_work.worker_status)
        assert re.fullmatch(r"OK - no problems in 1 session \| lag=0\.2s;;300;0 failures=0;;;0 held=0;;;0 "
                            r"pending=6;;;0 "
                            r"runway=60\d{4}s;;;0\n", cli("status", "--check", "--max-lag", "300"))

    @pytest.mark.parametrize(
        ("more", "code", "text"),
        [
            ({"failures": 3}, 1, "WARNING - {name}: 3 failures |"),
            ({"held": 2}, 1, "WARNING - {name}: 2 deletes held |"),
            ({"lag_seconds": 301.0}, 2, "CRITICAL - {name}: lag is 301 s, more than 300 s |"),
            ({"state": "Faulty", "reason": "no | room\nleft"}, 2, "worker is Faulty: no / room left |"),
            ({"state": "Initializing"}, 1, "worker is Initializing"),
            ({"stime": None, "lag_seconds": None}, 2, "lag is unknown"),
            ({"stime": 1_700_000_000 * NS}, 1,
             "runway is short: changelogs that are still needed exceed changelog-retention in 0.0 s"),
            ({"failures": 3, "state": "Faulty"}, 2, "CRITICAL - {name}: worker is Faulty; {name}: 3 failures |"),
        ],
    )
    def test_what_a_person_should_know(self, cli: Cli, at_work: Session, more: dict[str, Any], code: int, text: str
                                       ) -> None:
        well(**more).write(at_work.worker_status)
        assert text.format(name=at_work.name) in cli("status", "--check", "--max-lag", "300", code=code)

    def test_a_worker_that_is_gone_lags_since_its_stime(self, cli: Cli, session: Session) -> None:
        write_wanted(session, Wanted.STARTED)
        well(stime=time.time_ns() - 500 * NS, started=1).write(session.worker_status)
        line = cli("status", "--check", "--max-lag", "300", code=2)
        assert "worker is not running: no monitor is running on this node" in line
        assert re.search(r"lag is 50\d s", line)

    def test_no_recorder(self, cli: Cli, session: Session) -> None:
        well().write(session.worker_status)
        with Lock(session.run_lock, "test"):
            assert "no recorder is running" in cli("status", "--check", code=1)

    @pytest.mark.parametrize("wanted", [Wanted.CREATED, Wanted.PAUSED, Wanted.STOPPED])
    def test_a_session_that_is_meant_to_rest_is_a_warning(self, cli: Cli, session: Session, wanted: Wanted) -> None:
        write_wanted(session, wanted)
        with recording(cli):
            assert cli("status", "--check", code=1).startswith(f"WARNING - {session.name}: is {wanted}")

    def test_the_worst_of_several_counts(self, cli: Cli, at_work: Session) -> None:
        well().write(at_work.worker_status)
        other = SessionHome(cli.home).find_or_new("photos", "h:/other", "other")
        SessionHome(cli.home).save(other)
        assert cli("status", "--check", code=1).startswith("WARNING - other: is Created")
        assert cli("status", at_work.name, "--check").startswith("OK")
        Path(other.folder, "session.json").write_text("{")
        assert "CRITICAL - other: worker is Faulty" in cli("status", "--check", code=2)

    def test_what_cannot_be_checked_is_unknown(self, cli: Cli) -> None:
        assert cli("status", "--check", code=3) == "UNKNOWN - there are no sessions\n"
        assert cli("status", "nobody", "--check", code=3).startswith("UNKNOWN - no such session: nobody")

    def test_options_that_do_not_go_together(self, cli: Cli) -> None:
        assert "it needs --check" in cli.fails("status", "--max-lag", "3", code=2)
        assert "can only be combined with --max-lag" in cli.fails("status", "--check", "--json", code=2)
