"""State directories and databases of other versions: older ones are brought up, newer ones refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gsync.base.errors import GsyncError, LockedError, SlaveError, UsageError
from gsync.base.namespace import Namespace
from gsync.base.process import Lock
from gsync.cli import main
from gsync.engine.ledger import Failure, Ledger
from gsync.engine.worklist import ChangelogDB
from gsync.session.options import Options
from gsync.session.session import SessionHome
from gsync.slave.directory.index import SlaveIndex
from gsync.state import format as folder_format
from gsync.state.home import Home
from lab import REPOSITORY

OPTIONS_OF_1 = {
    "sync_method": "rsync", "sync_jobs": 2, "exclude": ["*.o", "!keep.o", "; odd", "# comment", "\udcff*"],
    "bandwidth_limit": 10485760, "delete_retention": 129600, "max_delete": 0, "adopt": True, "slave_timeout": 120,
    "ssh_config": "/home/me/my config", "ssh_port": 2222, "compression": False, "changelog_batch_size": 727040,
    "log_level": "INFO"}
DEFAULTS_OF_1 = {
    "sync_method": "auto", "sync_jobs": 2, "exclude": [], "bandwidth_limit": 0, "delete_retention": 0, "max_delete": 0,
    "adopt": False, "slave_timeout": 120, "ssh_config": "", "ssh_port": 0, "compression": False,
    "changelog_batch_size": 727040, "log_level": "INFO"}


def make_1(path: Path, *names: str) -> None:
    """A state directory as format 1 had it."""
    for name in names:
        folder = path / "sessions" / name
        folder.mkdir(parents=True)
        values = {"format": 1, "name": name, "volume": "photos", "slave": f"host:/{name}", "created": 17,
                  "options": OPTIONS_OF_1}
        (folder / "session.json").write_text(json.dumps(values, indent=1) + "\n")
        (folder / "epoch").write_text("5\n")
    (path / "volumes").mkdir(parents=True)


def files(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


@pytest.fixture
def migrated(tmp_path: Path) -> dict[str, bytes]:
    """The files that an undisturbed migration leaves."""
    make_1(tmp_path / "model", "one", "two")
    folder_format.check(str(tmp_path / "model"))
    return files(tmp_path / "model")


class TestFolder:
    def test_options_of_format_1_become_the_sessions_settings(self, tmp_path: Path) -> None:
        make_1(tmp_path, "one")
        session = SessionHome(Home(str(tmp_path))).get("one")
        assert session.options == Options(
            sync_method="rsync", exclude=("*.o", "!keep.o", "[;] odd", "\udcff*"), bandwidth_limit="10485760",
            delete_retention=129600, adopt=True, ssh_config="/home/me/my config", ssh_port=2222)
        assert (session.volume, session.slave, session.created) == ("photos", "host:/one", 17)
        assert b"sync-jobs" not in Path(session.config).read_bytes()
        assert (tmp_path / "format").read_text() == "2\n"
        before = files(tmp_path)
        Home(str(tmp_path))
        assert files(tmp_path) == before

    def test_a_session_with_the_defaults_gets_no_settings(self, tmp_path: Path) -> None:
        make_1(tmp_path, "one")
        path = tmp_path / "sessions" / "one" / "session.json"
        values = json.loads(path.read_text())
        values["options"] = DEFAULTS_OF_1
        path.write_text(json.dumps(values))
        session = SessionHome(Home(str(tmp_path))).get("one")
        assert session.options == Options()
        assert not Path(session.config).exists()

    def test_a_new_folder_is_marked_when_something_is_put_into_it(self, tmp_path: Path) -> None:
        home = Home(str(tmp_path / "home"))
        assert not os.path.lexists(home.path)
        (tmp_path / "tree").mkdir()
        home.add("photos", str(tmp_path / "tree"))
        assert (tmp_path / "home" / "format").read_text() == "2\n"

    def test_killed_before_any_step_the_next_start_does_it_again(
            self, tmp_path: Path, migrated: dict[str, bytes]) -> None:
        class Killed(BaseException):
            pass

        steps: list[str] = []
        folder = tmp_path / "counted"
        make_1(folder, "one", "two")
        folder_format.check(str(folder), steps.append)
        assert steps == ["settings", "session", "settings", "session", "format"]
        for number in range(len(steps)):
            folder = tmp_path / str(number)
            make_1(folder, "one", "two")
            left = [number]

            def step(name: str, left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed

            with pytest.raises(Killed):
                folder_format.check(str(folder), step)
            assert not (folder / "format").exists()
            folder_format.check(str(folder))
            assert files(folder) == migrated

    def test_a_process_that_is_killed_in_it_leaves_a_folder_that_the_next_one_migrates(
            self, tmp_path: Path, migrated: dict[str, bytes]) -> None:
        folder = tmp_path / "killed"
        script = ("import os, signal, sys\nfrom gsync.state import format\n"
                  "left = int(sys.argv[2])\n"
                  "def step(name):\n    global left\n    left -= 1\n"
                  "    if left < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
                  "format.check(sys.argv[1], step)\n")
        for number in range(5):
            make_1(folder, "one", "two")
            done = subprocess.run([sys.executable, "-c", script, folder, str(number)], check=False, timeout=60,
                                  env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
            assert done.returncode == -9
            assert {each.name for each in SessionHome(Home(str(folder))).list()} == {"one", "two"}
            assert files(folder) == migrated
            shutil.rmtree(folder)

    def test_two_that_start_at_once_migrate_once(self, tmp_path: Path, migrated: dict[str, bytes]) -> None:
        folder = tmp_path / "shared"
        make_1(folder, "one", "two")
        reached, go = threading.Event(), threading.Event()
        steps: list[str] = []

        def slow(name: str) -> None:
            steps.append(name)
            reached.set()
            assert go.wait(60)

        first = threading.Thread(target=folder_format.check, args=(str(folder), slow))
        second = threading.Thread(target=folder_format.check, args=(str(folder), slow))
        first.start()
        assert reached.wait(60)
        second.start()
        go.set()
        first.join(60)
        second.join(60)
        assert len(steps) == 5
        assert files(folder) == migrated

    def test_a_running_session_is_not_pulled_away(self, tmp_path: Path) -> None:
        make_1(tmp_path, "one", "two")
        before = files(tmp_path)
        with Lock(str(tmp_path / "sessions" / "two" / "run.lock"), "test"), \
                pytest.raises(LockedError, match=f"session two: runs with an older gsync, pid {os.getpid()}"):
            Home(str(tmp_path))
        after = files(tmp_path)
        assert {name: after[name] for name in before} == before

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [("3\n", "format 3 was made by a newer gsync; this one supports formats up to 2"),
         ("two\n", "format: damaged"), ("", "format: damaged")])
    def test_a_newer_or_damaged_folder_is_refused_in_one_line(
            self, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, complaint: str) -> None:
        (tmp_path / "format").write_text(content)
        assert main.call(["status", "--state", str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert complaint in err
        assert err.count("\n") == 1

    def test_a_file_in_its_place_is_said(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").touch()
        assert main.call(["status", "--state", str(tmp_path / "file")]) == 2
        assert "Not a directory" in capsys.readouterr().err

    def test_a_damaged_session_of_format_1_is_named(self, tmp_path: Path) -> None:
        make_1(tmp_path, "one")
        (tmp_path / "sessions" / "one" / "session.json").write_text("{")
        with pytest.raises(UsageError, match=r"one/session\.json: damaged"):
            Home(str(tmp_path))

    @pytest.mark.root
    def test_a_folder_that_cannot_be_read_or_written_is_said_in_one_line(
            self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        make_1(tmp_path / "old", "one")
        (tmp_path / "tree").mkdir()
        unshare = ["unshare", "--mount", "sh", "-c"]
        mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        (tmp_path / "new").mkdir()
        for name, args in (("old", ["status"]), ("new", ["volume", "add", "photos", str(tmp_path / "tree")])):
            done = subprocess.run(
                [*unshare, mount, tmp_path / name, sys.executable, "-P", "-m", "gsync", *args, "--state",
                 tmp_path / name],
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
                check=False, timeout=60)
            assert done.returncode == 2, done.stderr
            assert done.stderr.startswith(f"gsync: state directory {tmp_path / name}: ")
            assert "Read-only file system" in done.stderr
            assert done.stderr.count("\n") == 1

    @pytest.mark.root
    def test_what_cannot_be_written_later_is_one_line_too(self, tmp_path: Path) -> None:
        home = Home(str(tmp_path / "home"))
        (tmp_path / "tree").mkdir()
        home.add("photos", str(tmp_path / "tree"))
        SessionHome(home).save(SessionHome(home).find_or_new("photos", str(tmp_path / "copy")))
        mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        for args in (["run", "photos", tmp_path / "copy", "--once"], ["config", "nice", "3"]):
            done = subprocess.run(
                ["unshare", "--mount", "sh", "-c", mount, home.path, sys.executable, "-P", "-m", "gsync", *args,
                 "--state", home.path], env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 2, done.stderr
            assert done.stderr.startswith(f"gsync: {home.path}/sessions/")
            assert done.stderr.endswith(": Read-only file system\n")
            assert done.stderr.count("\n") == 1


def ledger_of_1(path: str) -> None:
    """A ledger as it was before it carried a version."""
    ledger = Ledger(path)
    ledger.record(Failure("data", b"g" * 16, None, b"a/b", 5, "input/output error"))
    ledger.close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=0")
    db.close()


class TestDatabases:
    @pytest.mark.parametrize(
        ("make", "error"),
        [(Ledger, UsageError), (ChangelogDB, UsageError), (Namespace, UsageError), (SlaveIndex, SlaveError)])
    def test_a_newer_one_is_refused_and_left_as_it_is(
            self, tmp_path: Path, make: Callable[[str], object], error: type[GsyncError]) -> None:
        path = str(tmp_path / "a.db")
        db = sqlite3.connect(path)
        db.execute("PRAGMA user_version=99")
        db.execute("CREATE TABLE of_the_future (a)")
        db.commit()
        db.close()
        with pytest.raises(error, match=r"a\.db: format 99 was written by a newer gsync"):
            make(path)
        db = sqlite3.connect(path)
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("of_the_future",)]
        db.close()

    @pytest.mark.parametrize("make", [Ledger, ChangelogDB, Namespace, SlaveIndex])
    def test_each_says_its_version(self, tmp_path: Path, make: Callable[[str], Ledger]) -> None:
        path = str(tmp_path / "a.db")
        for _ in range(2):
            make(path).close()
            db = sqlite3.connect(path)
            assert db.execute("PRAGMA user_version").fetchone() == (1,)
            db.close()

    def test_a_ledger_without_a_version_keeps_its_rows(self, tmp_path: Path) -> None:
        path = str(tmp_path / "ledger.db")
        ledger_of_1(path)
        ledger = Ledger(path)
        assert [failure.path for failure in ledger.all()] == [b"a/b"]
        ledger.close()
