"""`gsync run` as its users run it: real processes, a local slave or one over ssh."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.place import PATIENCE, Place
from lab.sshd import HOST, Sshd
from lab.trees import compare, wait_until_equal

pytestmark = pytest.mark.slow



@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    assert place.processes() == []


def fill(master: Path) -> None:
    """A git checkout with history."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(master)]
    subprocess.run([*git, "init", "-q"], check=True)
    for number in range(3):
        for name in range(20):
            path = master / f"dir{name % 4}" / f"file{name}"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{number} {name}\n" * 100)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "-m", str(number)], check=True)


class TestOnce:
    def test_mirrors_a_git_checkout_and_then_only_the_difference(self, place: Place) -> None:
        fill(place.master)
        files, _ = place.sent(place.once())
        assert files >= 20
        assert compare(place.master, place.slave) == []
        assert place.sent(place.once()) == (0, 0)
        (place.master / "dir1").rename(place.master / "renamed")
        (place.master / "dir2" / "file2").unlink()
        (place.master / "new").write_bytes(b"x" * 1000)
        assert place.sent(place.once())[0] == 1
        assert compare(place.master, place.slave) == []

    def test_says_little_when_nobody_looks(self, place: Place) -> None:
        fill(place.master)
        done = place.once()
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert 2 <= len(lines) <= 8
        assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z INFO gsync\.run ", line) for line in lines)
        assert sum(" in sync " in line for line in lines) == 1
        assert " hybrid crawl " in place.log()  # the workers' own lines are there

    def test_json_events(self, place: Place) -> None:
        fill(place.master)
        events = [json.loads(line) for line in place.once("--json").stdout.splitlines()]
        kinds = [event["event"] for event in events]
        assert kinds[-1] == "done"
        assert {"state", "in step", "done"} <= set(kinds)
        assert (events[-1]["exit_code"], events[-1]["failures"]) == (0, 0)
        assert events[-1]["files"] >= 20

    def test_filters(self, place: Place) -> None:
        for name in ("a.o", "keep.o", "sub/b.o", "sub/c", "build/x"):
            path = place.master / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(name)
        place.once("--exclude", "*.o", "--exclude", "!keep.o", "--exclude", "/build/")
        there = {str(path.relative_to(place.slave)) for path in place.slave.rglob("*")
                 if not path.is_relative_to(place.slave / ".gsync")}
        assert there == {"keep.o", "sub", "sub/c"}

    def test_the_state_folder_in_the_master_is_left_out(self, place: Place) -> None:
        fill(place.master)
        place.once("--state", place.master / "state")
        assert not (place.slave / "state").exists()
        assert (place.slave / "dir0").exists()


class TestDryRun:
    def test_says_what_would_be_done_and_does_nothing(self, place: Place) -> None:
        fill(place.master)
        first = place.gsync("run", place.master, place.slave, "--dry-run").stdout
        assert "dir0/file0" in first
        assert os.listdir(place.slave) == []
        place.once()
        (place.master / "new\nline").write_text("x" * 2048)
        (place.master / "dir1" / "file1").unlink()
        before = compare(place.master, place.slave)
        text = place.gsync("run", place.master, place.slave, "--dry-run").stdout
        assert "send          2.0 KiB  new\\nline\n" in text
        lines = place.gsync("run", place.master, place.slave, "--dry-run", "--json").stdout.splitlines()
        planned = [json.loads(line) for line in lines]
        assert {"action": "send", "path": "new\nline", "bytes": 2048} in planned
        assert {"action": "delete", "path": "dir1/file1", "bytes": 0} in planned
        assert compare(place.master, place.slave) == before

    def test_what_only_moved_is_one_rename(self, place: Place) -> None:
        fill(place.master)
        (place.master / "one").write_text("linked")
        os.link(place.master / "one", place.master / "two")
        place.once()
        (place.master / "dir0").rename(place.master / "dir1" / "renamed")
        (place.master / "dir2" / "file2").rename(place.master / "t")         # a swap, which leaves no name over
        (place.master / "dir2" / "file6").rename(place.master / "dir2" / "file2")
        (place.master / "t").rename(place.master / "dir2" / "file6")
        (place.master / "one").unlink()
        os.link(place.master / "dir3" / "file3", place.master / "dir3" / "second")
        argv = ("run", place.master, place.slave, "--dry-run")
        planned = [json.loads(line) for line in place.gsync(*argv, "--json").stdout.splitlines()]
        told = {(line["action"], line.get("from"), line["path"]) for line in planned
                if not line["path"].startswith(".git") and line["action"] != "update"}
        assert told == {
            ("rename", "dir0", "dir1/renamed"), ("rename", "dir2/file2", "dir2/file6"),
            ("rename", "dir2/file6", "dir2/file2"), ("delete", None, "one"), ("make", None, "dir3/second")}
        assert "dir0 → dir1/renamed\n" in place.gsync(*argv).stdout

    def test_refuses_what_a_run_would_refuse(self, place: Place) -> None:
        (place.slave / "foreign").touch()
        done = place.gsync("run", place.master, place.slave, "--dry-run", code=4)
        assert "neither empty nor a gsync slave" in done.stderr
        assert done.stderr.count("\n") == 1
        place.gsync("run", place.master, place.slave, "--dry-run", "--adopt")
        assert os.listdir(place.slave) == ["foreign"]

    def test_beside_a_run_is_refused(self, place: Place) -> None:
        with place.follow() as run:
            done = place.gsync("run", place.master, place.slave, "--dry-run", code=3)
            assert f"pid {run.pid}" in done.stderr


class TestRefused:
    def test_unknown_host_key(self, place: Place) -> None:
        with Sshd(place.folder / "sshd", known=False) as sshd:
            args = ("run", place.master, f"{HOST}:{place.slave}", "--once", "--ssh-config", sshd.client_config)
            line = place.gsync(*args, code=4).stderr.splitlines()[-1]
            fingerprint = re.search(r"SHA256:\S+[A-Za-z0-9+/]", line)
            assert fingerprint is not None, line
            place.gsync(*args, "--accept-host-key", "SHA256:nonsense", code=4)
            place.gsync(*args, "--accept-host-key", fingerprint[0])
            place.gsync(*args)

    def test_slave_not_empty_and_not_ours_unless_adopted(self, place: Place) -> None:
        fill(place.master)
        subprocess.run(["cp", "-a", f"{place.master}/.", place.slave], check=True)
        (place.slave / "stale").touch()
        done = place.once(code=4)
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("gsync: ")]
        assert "neither empty nor a gsync slave" in line
        assert "--adopt" in line
        assert place.sent(place.once("--adopt")) == (0, 0)
        assert compare(place.master, place.slave) == []

    @pytest.mark.parametrize("how", ["--once", "--dry-run"])
    def test_slave_whose_parent_is_missing(self, place: Place, how: str) -> None:
        missing = place.gsync("run", place.master, place.folder / "no" / "where", how, code=4)
        assert f"no such directory: {place.folder}/no/where" in missing.stderr

    def test_a_missing_slave_is_made_by_a_run_and_by_no_dry_run(self, place: Place) -> None:
        place.gsync("run", place.master, place.folder / "new", "--dry-run")
        assert not (place.folder / "new").exists()
        place.gsync("run", place.master, place.folder / "new", "--once")
        assert compare(place.master, place.folder / "new") == []

    def test_slave_of_another_volume(self, place: Place) -> None:
        place.once()
        (place.folder / "other").mkdir()
        other = place.gsync("run", place.folder / "other", place.slave, "--once", "--adopt", code=4)
        assert "slave of another volume" in other.stderr

    def test_a_recorder_that_cannot_start_ends_the_run(self, place: Place) -> None:
        place.once()
        (index,) = place.home.glob("volumes/*/bricks/0/namespace.db")
        with contextlib.closing(sqlite3.connect(index)) as db:
            db.execute("PRAGMA user_version=99")
        assert place.once(code=2).stderr.splitlines()[-1].startswith(
            f"gsync: {index}: format 99 was written by a newer gsync")

    @pytest.mark.root
    def test_master_that_lost_its_mount(self, place: Place) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "none", place.master], check=True)
        try:
            (place.master / "precious").touch()
            place.once()
        finally:
            subprocess.run(["umount", place.master], check=True)
        assert "nothing was recorded as deleted" in place.once(code=2).stderr
        assert (place.slave / "precious").exists()

    def test_second_run_with_the_pid_of_the_first(self, place: Place) -> None:
        with place.follow() as first:
            done = place.once(code=3)
            assert done.stderr.endswith(f" is running already, pid {first.pid}\n")
            assert done.stderr.count("\n") == 1


class TestFollow:
    def test_keeps_following(self, place: Place) -> None:
        fill(place.master)
        with place.follow():
            (place.master / "new").write_text("new")
            (place.master / "dir0").rename(place.master / "dir9")
            assert wait_until_equal(place.master, place.slave, PATIENCE) == []
            brick = place.wait_for(lambda brick: brick["crawl"] == "Changelog")
            assert (brick["reason"], brick["failures"], brick["recorder"]["state"]) == ("", 0, "Recording")
            assert brick["pid"] is not None
        report = place.report()
        assert (report["state"], report["bricks"][0]["pid"]) == ("Stopped", None)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_it_in_order_with_0(self, place: Place, number: signal.Signals) -> None:
        with place.follow() as process:
            process.send_signal(number)
            assert process.wait(PATIENCE) == 0
            assert process.stderr is not None
            assert b" done files=" in process.stderr.read()
        assert place.processes() == []

    def test_once_that_is_interrupted_ends_by_the_signal(self, place: Place) -> None:
        # No recorder can start while this one holds the lock, and it records nothing: never in step.
        with subprocess.Popen(place.argv("run", place.master, place.slave, "--once"), env=place.env,
                              stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            process.stderr.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) in (-signal.SIGINT, 0)  # 0: it was faster

    def test_a_killed_run_leaves_nothing_and_goes_on(self, place: Place) -> None:
        fill(place.master)
        with place.follow() as process:
            process.kill()
            process.wait()
            end = time.monotonic() + PATIENCE
            while place.processes() and time.monotonic() < end:
                time.sleep(0.1)
            assert place.processes() == []
        (place.master / "later").write_text("later")
        place.once()
        assert compare(place.master, place.slave) == []

    def test_killed_children_are_started_again(self, place: Place) -> None:
        with place.follow():
            worker = place.report()["bricks"][0]["pid"]
            os.kill(worker, signal.SIGKILL)
            place.wait_for(lambda brick: brick["state"] == "Active" and brick["pid"] not in (None, worker))
            (place.master / "new").write_text("new")
            assert wait_until_equal(place.master, place.slave, PATIENCE) == []

    def test_a_recorder_that_runs_already_is_used_and_left_running(self, place: Place) -> None:
        place.gsync("volume", "add", "photos", place.master)
        with subprocess.Popen(place.argv("recorder", "run", "photos"), env=place.env) as recorder:
            def state() -> str:
                return str(json.loads(place.gsync("recorder", "status", "--json").stdout)[0]["state"])
            try:
                end = time.monotonic() + PATIENCE
                while state() != "Recording" and time.monotonic() < end:
                    time.sleep(0.1)
                (place.master / "new").write_text("new")
                place.gsync("run", "photos", place.slave, "--once")
                assert compare(place.master, place.slave) == []
                assert recorder.poll() is None
                assert state() == "Recording"
            finally:
                recorder.terminate()
        assert recorder.returncode == 0


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execve(argv[0], argv, env)
        self.text = ""

    def read_until(self, wanted: str) -> str:
        end = time.monotonic() + PATIENCE
        while wanted not in self.text:
            assert time.monotonic() < end, self.text
            if select.select([self._fd], [], [], 1)[0]:
                self.text += os.read(self._fd, 65536).decode(errors="replace")
        return self.text

    def ctrl_c(self) -> int:
        os.write(self._fd, b"\x03")
        return self.end()

    def end(self) -> int:
        with contextlib.suppress(OSError):  # EIO: the end
            while data := os.read(self._fd, 65536):
                self.text += data.decode(errors="replace")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class TestTerminal:
    def test_run_shows_one_live_line_and_ends_with_a_summary(self, place: Place) -> None:
        fill(place.master)
        terminal = Terminal(place.argv("run", place.master, place.slave), place.env)
        terminal.read_until("in sync · ")
        (place.master / "new").write_text("new")
        terminal.read_until("lag ")
        assert terminal.ctrl_c() == 0
        assert " INFO " not in terminal.text
        assert "Traceback" not in terminal.text
        last = terminal.text.rstrip().splitlines()[-1]
        assert "the slave holds everything up to" in last

    def test_an_error_is_a_line_of_its_own(self, place: Place) -> None:
        (place.slave / "foreign").touch()
        terminal = Terminal(place.argv("run", place.master, place.slave), place.env)
        assert terminal.end() == 4
        assert "gsync: slave " in terminal.text.rstrip().splitlines()[-1]

    def test_status_watch(self, place: Place) -> None:
        with place.follow():
            terminal = Terminal(place.argv("status", "--watch", "--detail"), place.env)
            terminal.read_until("Active")
            assert terminal.ctrl_c() == 0
            assert "Traceback" not in terminal.text

    def test_status_watch_on_a_pipe_is_a_stream_of_documents(self, place: Place) -> None:
        place.once()
        argv = place.argv("status", "--watch", "--json")
        with subprocess.Popen(argv, env=place.env, stdout=subprocess.PIPE) as watch:
            assert watch.stdout is not None
            for _ in range(2):
                (report,) = json.loads(watch.stdout.readline())
                assert report["state"] == "Stopped"
            watch.send_signal(signal.SIGINT)
            assert watch.wait(PATIENCE) == 0
