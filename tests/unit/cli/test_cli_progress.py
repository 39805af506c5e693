"""What a run shows: the live line, log lines once per change, JSON events."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gsync.base.logfile import LogFile
from gsync.cli.progress import RunView, Totals, progress_line
from gsync.service.kept import Ending
from gsync.session.status import WorkerStatus

ACTIVE = WorkerStatus(pid=10, started=1, state="Active", crawl="Hybrid", phase="syncing", files_done=1500,
                      bytes_done=3 << 20, files_total=4000, bytes_total=8 << 20,
                      rate={"files": 250.0, "bytes": 524288.0}, eta_seconds=10.0)


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (WorkerStatus(), "connecting"),
        (WorkerStatus(state="Faulty", reason="slave h:/s: no space"), "Faulty: slave h:/s: no space"),
        (ACTIVE, "syncing · 1,500 of 4,000 files · 3.0 MiB of 8.0 MiB · 250 files/s · 512 KiB/s · 10.0 s left"),
        (replace(ACTIVE, files_total=None, bytes_total=None, eta_seconds=None, phase="crawling"),
         "crawling · 1,500 files · 3.0 MiB · 250 files/s · 512 KiB/s"),
        (replace(ACTIVE, in_step=True, lag_seconds=0.31), "in sync · 1,500 files · 3.0 MiB · lag 0.3 s"),
        (replace(ACTIVE, in_step=True, failures=3, held=2), "in sync · 1,500 files · 3.0 MiB · 3 failures · 2 held"),
    ],
)
def test_the_live_line(status: WorkerStatus, line: str) -> None:
    assert progress_line(status, status.files_done, status.bytes_done) == line


def test_the_live_line_counts_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress_line(ACTIVE, 2000, 4 << 20).startswith("syncing · 2,000 of 4,500 files · 4.0 MiB of 9.0 MiB")


def test_totals_add_up_over_workers() -> None:
    totals = Totals()
    assert totals.take([WorkerStatus()]) == (0, 0)
    assert totals.take([WorkerStatus(pid=1, files_done=5, bytes_done=50)]) == (5, 50)
    assert totals.take([WorkerStatus(pid=1, files_done=7, bytes_done=70)]) == (7, 70)
    assert totals.take([WorkerStatus(state="Faulty", files_done=7, bytes_done=70)]) == (7, 70)  # noted, none runs
    assert totals.take([WorkerStatus(pid=2, files_done=1, bytes_done=10)]) == (8, 80)
    assert totals.take([WorkerStatus(pid=2, files_done=1, bytes_done=10),
                        WorkerStatus(pid=3, files_done=2, bytes_done=20)]) == (10, 100)


def test_several_workers_amount_to_the_worst_of_them() -> None:
    behind = replace(ACTIVE, in_step=False, crawl="History", phase="syncing", stime=5, lag_seconds=9.0, failures=1)
    both = WorkerStatus.of_all([replace(ACTIVE, in_step=True, stime=7, lag_seconds=1.0), behind])
    assert (both.state, both.crawl, both.phase, both.in_step) == ("Active", "History", "syncing", False)
    assert (both.stime, both.lag_seconds, both.failures) == (5, 9.0, 1)
    broken = WorkerStatus.of_all([ACTIVE, WorkerStatus(state="Faulty", reason="brick b does not run")])
    assert (broken.state, broken.reason, broken.stime) == ("Faulty", "brick b does not run", None)


class Watched:
    """A view with its log lines and events."""

    def __init__(self, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], *, json: bool) -> None:
        self.kept: list[str] = []
        self.view = RunView("s", self.kept.append, json=json, live=None)
        self._caplog, self._capsys = caplog, capsys

    def lines(self) -> list[str]:
        lines = [record.getMessage() for record in self._caplog.records]
        self._caplog.clear()
        return lines

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._capsys.readouterr().out.splitlines()]


@pytest.fixture(autouse=True)
def log_lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("gsync"), "propagate", True)
    caplog.set_level(logging.INFO, "gsync")


def test_a_log_line_per_change_and_no_more(
        caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    watched = Watched(caplog, capsys, json=False)
    for status in (WorkerStatus(), WorkerStatus(), ACTIVE, replace(ACTIVE, files_done=1600)):
        watched.view.tick([status])
    assert watched.lines() == ["worker state=Initializing", "worker state=Active crawl=Hybrid"]
    in_step = replace(ACTIVE, in_step=True, files_done=4000)
    for status in (in_step, replace(in_step, in_step=False), in_step):
        watched.view.tick([status])
    (line,) = watched.lines()
    assert line.startswith("in sync files=4000 bytes=3145728 took=")
    watched.view.ended("worker", Ending(-9, "worker was killed by SIGKILL"), 0.5)
    watched.view.tick([WorkerStatus(state="Faulty", reason="worker was killed by SIGKILL")])
    assert watched.lines() == [
        "worker exited reason='worker was killed by SIGKILL' restart_in=0.500",
        "worker state=Faulty reason='worker was killed by SIGKILL'"]
    text = watched.view.finish([replace(in_step, failures=2)], 1)
    assert watched.lines()[0].startswith("done files=4000 bytes=3145728 failures=2 held=0 stime=None took=")
    assert "4,000 files, 3.0 MiB in " in text
    assert "2 failures, 0 held: see gsync failures and gsync hold" in text
    assert watched.events() == []


def test_the_same_as_events(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    watched = Watched(caplog, capsys, json=True)
    watched.view.tick([ACTIVE])
    state, progress = watched.events()
    assert (state["event"], state["session"], state["state"], state["crawl"]) == ("state", "s", "Active", "Hybrid")
    assert progress["event"] == "progress"
    assert (progress["files"], progress["files_total"], progress["phase"]) == (1500, 4000, "syncing")
    assert (progress["rate"], progress["eta_seconds"], progress["in_step"]) == (ACTIVE.rate, 10.0, False)
    watched.view.tick([ACTIVE])
    watched.view.tick([replace(ACTIVE, files_done=1501)])  # too soon
    assert watched.events() == []
    watched.view.ended("worker", Ending(4, "lost"), 2.0)
    watched.view.finish([ACTIVE], 0)
    restart, done = watched.events()
    assert (restart["event"], restart["child"], restart["reason"]) == ("restart", "worker", "lost")
    assert (done["event"], done["exit_code"], done["files"], done["bytes"]) == ("done", 0, 1500, 3 << 20)
    assert all(event["time"].endswith("Z") for event in (state, progress, restart, done))


def test_lines_of_children_go_to_the_log_only(
        caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    watched = Watched(caplog, capsys, json=False)
    watched.view.heard("worker", "2026 INFO batch synced")
    assert watched.kept == ["2026 INFO batch synced"]
    assert watched.lines() == []
    assert capsys.readouterr() == ("", "")


def test_the_log_file_takes_records_and_lines_and_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    logfile = LogFile(str(path), logging.Formatter("%(levelname)s %(message)s"))
    logfile.line("a line with %s and \udcff")
    logfile.handle(logging.LogRecord("gsync.x", logging.INFO, "", 0, "event %s", ("é",), None))
    assert path.read_text() == "a line with %s and \\udcff\nINFO event é\n"
    logfile.maxBytes = 100
    for number in range(100):
        logfile.line(f"{number:40}")
    logfile.close()
    assert len(list(tmp_path.iterdir())) == 6
    assert max(each.stat().st_size for each in tmp_path.iterdir()) <= 100
