"""Several slaves of one volume, a slave that is itself a master, and sessions that are deleted and made again."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsync.base.model import ROOT_GFID
from gsync.changelog.retention import purge
from gsync.cli import main
from gsync.session.report import BrickReport, Reports, monitor_pid
from gsync.session.session import SessionHome
from gsync.state.home import Home
from lab.place import Place
from lab.trees import Churn, compare, wait_until_equal

pytestmark = pytest.mark.slow

PATIENCE = 90.0
NS = 1_000_000_000


class Site:
    """A volume "v" (the folder `master`), sessions by name, and the monitor that `gsync start` starts."""

    def __init__(self, folder: Path, detector: str = "inotify") -> None:
        folder.mkdir(exist_ok=True)
        self.place = Place(folder)
        self.home = Home(str(self.place.home))
        self.master = self.place.master
        self._monitor: subprocess.Popen[bytes] | None = None
        Path(self.home.path).mkdir(exist_ok=True)
        Path(self.home.path, "gsync.conf").write_text(f"[gsync]\nchange-detector = {detector}\n")

    def start(self, *args: object) -> None:
        """`gsync start`, with a monitor that is a child of ours."""
        if self._monitor is None:
            self._monitor = subprocess.Popen(self.place.argv("monitor"), env=self.place.env, stdin=subprocess.DEVNULL,
                                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self.wait(lambda: monitor_pid(self.home))
        self.gsync("start", *args)

    def gsync(self, *args: object, code: int = 0) -> str:
        """What the command says on stdout and stderr. In this process: starting one takes longer than what it does."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            ended = main.call([*map(str, args), "--state", self.home.path])
        assert ended == code, said.getvalue() + self.place.log()
        return said.getvalue()

    def create(self, name: str, *args: object) -> Path:
        """A session; the folder that is its slave."""
        slave = self.place.folder / name
        slave.mkdir(exist_ok=True)
        if self.home.at_path(str(self.master)) is None:
            self.gsync("volume", "add", "v", self.master)
        self.gsync("create", "v", slave, "--name", name, *args)
        return slave

    def brick(self, session: str) -> BrickReport:
        """The part of its worker."""
        return Reports(self.home).of(SessionHome(self.home).get(session)).bricks[0]

    def wait(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"it did not come\n{self.place.log()}\n{self.place.processes()}"
            time.sleep(0.1)

    def in_step(self, session: str, slave: Path) -> None:
        """Wait until it is."""
        self.gsync("checkpoint", session, "now")
        self.gsync("checkpoint", session, "wait", "--timeout", int(PATIENCE))
        assert compare(self.master, slave) == []

    def session_log(self, session: str) -> str:
        return Path(self.home.path, "sessions", session, "log").read_text()

    def stime(self, session: str) -> int:
        """What the recorder knows of it, ns."""
        return int(Path(self.home.get("v").needed, session).read_text())

    def end(self) -> None:
        """End what works here, monitor and recorder included."""
        self.gsync("stop", "--all")
        self.kill(signal.SIGTERM)
        self.wait(lambda: not self.place.processes())

    def kill(self, number: signal.Signals) -> None:
        for role in ("monitor", "recorder", "worker"):
            for pid in self.place.pids(role):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        if self._monitor is not None:
            self._monitor.wait(PATIENCE)
            self._monitor = None


@contextlib.contextmanager
def site_at(folder: Path, detector: str = "inotify") -> Iterator[Site]:
    site = Site(folder, detector)
    try:
        yield site
        site.end()
    finally:
        site.kill(signal.SIGKILL)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_at(tmp_path) as site:
        yield site


def test_a_slow_and_a_stopped_slave_do_not_hold_up_the_other(site: Site) -> None:
    fast, slow, late = site.create("fast"), site.create("slow", "-o", "bandwidth-limit=256K"), site.create("late")
    (site.master / "first").write_text("1")
    site.start("--all")
    for name, slave in (("fast", fast), ("slow", slow), ("late", late)):
        site.in_step(name, slave)
    assert len(site.place.pids("recorder")) == 1
    site.gsync("stop", "late")

    (site.master / "large").write_bytes(os.urandom(1 << 20))  # four seconds for the slow one
    (site.master / "sub").mkdir()
    (site.master / "sub" / "small").write_text("2")
    site.in_step("fast", fast)
    assert compare(site.master, slow) != []
    assert wait_until_equal(site.master, slow, PATIENCE) == []

    # What the stopped one needs is kept, however old.
    assert site.home.get("v").needed_from() == site.stime("late") < site.stime("fast")
    (site.master / "first").unlink()
    (site.master / "sub").rename(site.master / "sub2")
    site.in_step("fast", fast)
    site.in_step("slow", slow)
    site.end()
    brick = site.home.get("v").brick()
    purged = purge(os.fsencode(brick.changelogs), time.time_ns() // NS + 10**6, 0, 0, site.home.get("v").needed_from())
    assert purged.needed > 0
    site.start("--all")
    site.in_step("late", late)
    assert "hybrid crawl" not in site.session_log("late").rpartition("now=Stopped")[2]

    # A session that is deleted neither disturbs the others nor holds changelogs back.
    site.gsync("stop", "late")
    worker = site.brick("fast").pid
    site.gsync("delete", "late", "--yes")
    assert late.joinpath("sub2", "small").exists()
    (site.master / "last").write_text("3")
    site.in_step("fast", fast)
    site.in_step("slow", slow)
    assert site.brick("fast").pid == worker
    assert site.home.get("v").needed_from() == min(site.stime("fast"), site.stime("slow"))


def test_a_session_that_is_deleted_and_made_again_goes_on(site: Site) -> None:
    slave = site.create("one", "-o", "max-delete=2")
    for number in range(20):
        (site.master / f"file{number}").write_bytes(b"x" * 1000)
    site.start()
    site.in_step("one", slave)
    for number in range(5):
        (site.master / f"file{number}").unlink()
    site.wait(lambda: site.brick("one").held == 5)
    assert "is Started; stop it first with gsync stop one" in site.gsync("delete", "--yes", code=3)
    site.gsync("stop")
    epoch = site.brick("one").epoch
    site.gsync("delete", "--yes")
    assert site.gsync("status", "--json") == "[]\n"

    (site.master / "new").write_text("new")
    (site.master / "file7").rename(site.master / "renamed")
    site.create("again", "-o", "max-delete=2")  # another name, and a folder beside that is not used
    site.gsync("delete", "--yes")
    site.gsync("create", "v", slave, "--name", "again", "-o", "max-delete=2")
    held = {f"file{number}" for number in range(5)}
    assert {each["path"] for each in json.loads(site.gsync("hold", "--json"))} == held
    site.start()
    site.gsync("checkpoint", "now")
    site.gsync("checkpoint", "wait", "--timeout", int(PATIENCE))
    # The old name of what was renamed may come with an earlier batch than the new one.
    assert {each["path"] for each in json.loads(site.gsync("hold", "--json"))} - {"file7"} == held
    assert (slave / "new").exists()
    assert (slave / "renamed").exists()
    assert site.brick("again").epoch > epoch
    site.wait(lambda: "batch synced" in site.session_log("again"))  # said after the checkpoint is reached
    log = site.session_log("again")
    assert "crawl=History" in log
    assert sum(map(int, re.findall(r"batch synced .*? files=(\d+)", log))) == 1  # the rename sent nothing
    assert (slave / "file0").exists()
    site.gsync("hold", "approve", "--yes")
    assert wait_until_equal(site.master, slave, PATIENCE) == []


def test_after_a_reset_everything_is_compared_and_nothing_sent_again(site: Site) -> None:
    slave = site.create("one")
    for number in range(20):
        (site.master / f"file{number}").write_bytes(b"x" * 1000)
    site.start()
    site.in_step("one", slave)
    site.gsync("stop")
    (slave / "file3").write_bytes(b"y" * 1000)  # by somebody who should not have
    site.gsync("delete", "--reset-sync-time", "--yes")
    site.gsync("create", "v", slave, "--name", "one")
    assert site.brick("one").stime is None
    site.start()
    assert wait_until_equal(site.master, slave, PATIENCE) == []
    site.in_step("one", slave)
    log = site.session_log("one")
    assert re.search(r"hybrid crawl done .*? files=1 ", log), log


@pytest.mark.parametrize("detector", ["inotify", pytest.param("fanotify", marks=pytest.mark.root)])
def test_cascade(tmp_path: Path, detector: str) -> None:
    """a is the slave of the master and the master of b: what the agent does in a is seen and passed on."""
    with site_at(tmp_path / "first") as first, site_at(tmp_path / "second", detector) as second:
        middle = first.create("middle")
        first.master.joinpath("sub").mkdir()
        first.master.joinpath("sub", "file").write_text("1")
        first.start()
        first.in_step("middle", middle)
        second.master = middle
        end = second.create("end")
        second.start()
        second.in_step("end", end)
        first.master.joinpath("churn").mkdir()
        with Churn(first.master / "churn", 7, os.geteuid() == 0, max_entries=200) as churn:
            for _ in range(300):
                churn.step()
        # Renames over files, of folders, and of files that grow, as the agent makes them.
        first.master.joinpath("sub").rename(first.master / "moved")
        first.master.joinpath("new").write_text("2")
        first.master.joinpath("new").rename(first.master / "moved" / "file")
        first.in_step("middle", middle)
        second.in_step("end", end)
        assert compare(first.master, end) == []
        assert second.brick("end").failures == 0
        # What the first agent keeps for itself is none of the second's business.
        middle.joinpath(".gsync", "trash", "note").write_text("x")
        first.master.joinpath("last").write_text("3")
        assert wait_until_equal(first.master, end, PATIENCE) == []
        assert not end.joinpath(".gsync", "trash", "note").exists()
        with contextlib.closing(sqlite3.connect(second.home.get("v").brick().namespace)) as index:
            names = {row[0] for row in index.execute("SELECT bname FROM entries WHERE pargfid=?", (ROOT_GFID,))}
        assert b"moved" in names
        assert b".gsync" not in names
