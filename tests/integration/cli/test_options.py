"""Options that a run is given, and what becomes of it at the slave: each one does what its help says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsync.recorder.status import RecorderPort
from gsync.session.config import set_value
from gsync.state.home import Home
from gsync.sync.engine import Flow
from gsync.sync.postbox import FileRequest, Result
from gsync.sync.rsync import RsyncEngine, RsyncSettings
from gsync.sync.timetable import Timetable
from lab.engines import World, content, local
from lab.place import Place
from lab.sshd import HOST, Sshd
from lab.trees import MIB, acl, compare, wait_until_equal

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    assert place.processes() == []


def options(**values: object) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name.replace('_', '-')}={value}")]


def wrapper(path: Path, program: str, before: str = "") -> Path:
    """A program that notes how it is called, one line each in <path>.calls, then is `program`."""
    path.write_text(f'#!/bin/sh\necho "$@" >> "{path}.calls"\n{before}\nexec {program} "$@"\n')
    path.chmod(0o755)
    return path


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def state_of(pid: int) -> str:
    """R, S, T … as ps has it; "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def calls(path: Path) -> list[str]:
    return Path(f"{path}.calls").read_text().splitlines()


class TestFiles:
    def test_settings_of_the_session_and_the_node_hold_for_a_run(self, place: Place) -> None:
        for name in ("a.o", "b.tmp", "c"):
            (place.master / name).write_text(name)
        place.gsync("config", "--site", "set", "exclude", "*.o")
        place.once()
        assert sorted(path.name for path in place.slave.iterdir()) == [".gsync", "b.tmp", "c"]
        place.gsync("config", "set", "exclude", "*.tmp")
        (place.master / "d.tmp").touch()
        place.once()
        assert sorted(path.name for path in place.slave.iterdir()) == [".gsync", "a.o", "b.tmp", "c"]

    def test_a_wrong_setting_ends_a_run_naming_file_and_option(self, place: Place) -> None:
        place.once()
        config = next(place.home.glob("sessions/*/session.json")).with_name("gsync.conf")
        config.write_text("[gsync]\nsync-jobs = many\n")
        assert place.once(code=2).stderr.splitlines()[-1].startswith(f"gsync: {config}: sync-jobs: 'many'")
        set_value(str(config), "sync-jobs", "1")
        place.once()


class TestWhatIsReplicated:
    @pytest.mark.parametrize(("engine", "xattrs", "acls"), [
        ("tarssh", False, True), ("tarssh", True, False), ("rsync", False, False)])
    def test_xattrs_and_acls_only_where_wanted_and_the_slaves_own_stay(
            self, place: Place, engine: str, xattrs: bool, acls: bool) -> None:
        args = [*options(sync_xattrs=xattrs, sync_acls=acls), "--sync-method", engine]
        file, copy = place.master / "d" / "f", place.slave / "d" / "f"
        file.parent.mkdir()
        file.write_text("data")
        for path in (file, file.parent):
            os.setxattr(path, "user.master", b"m")
            os.setxattr(path, "system.posix_acl_access", acl({1234: 7}))
        place.once(*args)
        wanted = {name for name, on in (("user.master", xattrs), ("system.posix_acl_access", acls)) if on}
        assert set(os.listxattr(copy)) == set(os.listxattr(copy.parent)) == wanted
        os.setxattr(copy, "user.slave", b"s")
        os.setxattr(copy, "system.posix_acl_access", acl({4321: 4}))
        file.write_text("more data")
        os.utime(file, ns=(1, 1))
        place.once(*args)
        assert copy.read_text() == "more data"
        assert copy.stat().st_mtime_ns == 1
        assert ("user.slave" in os.listxattr(copy)) is not xattrs
        assert (os.getxattr(copy, "system.posix_acl_access") == os.getxattr(file, "system.posix_acl_access")) is acls

    def test_ignore_deletes_keeps_names_but_renames_and_replaces(self, place: Place) -> None:
        for name in ("gone", "moved", "replaced", "dir/gone", "dir/stays", "tree/a/b"):
            path = place.master / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        args = options(ignore_deletes="true")
        place.once(*args)
        for name in ("gone", "dir/gone", "tree/a/b"):
            (place.master / name).unlink()
        (place.master / "tree" / "a").rmdir()
        (place.master / "moved").rename(place.master / "dir" / "here")
        (place.master / "new").write_text("replaces")
        (place.master / "new").rename(place.master / "replaced")
        place.once(*args)
        there = sorted(str(path.relative_to(place.slave)) for path in place.slave.rglob("*")
                       if ".gsync" not in path.parts and path.is_file())
        assert there == ["dir/gone", "dir/here", "dir/stays", "gone", "replaced", "tree/a/b"]
        assert (place.slave / "replaced").read_text() == "replaces"
        (place.master / "dir" / "stays").unlink()
        place.once()
        assert not (place.slave / "dir" / "stays").exists()

    @pytest.mark.parametrize("retries", [0, 3])
    def test_max_sync_retries_counts_the_tries_within_a_batch(self, place: Place, retries: int) -> None:
        place.once()
        (place.master / "f").write_text("data")
        failing = place.folder / "failing-rsync"
        failing.write_text(
            '#!/bin/sh\ncase "$*" in *--help*) exit 0;; esac\ntr "\\0" "\\n" > /dev/null\n'
            f'echo run >> {failing}.calls\n'
            f'echo "rsync: [receiver] failed: Input/output error (5)" >&2; exit 23\n')
        failing.chmod(0o755)
        place.once("--sync-method", "rsync", *options(rsync_command=failing, max_sync_retries=retries), code=1)
        assert len(calls(failing)) == retries + 1
        assert len(place.gsync("failures", "list").stdout.splitlines()) >= 2


class TestTheWay:
    def test_rsync_command_and_options_and_what_it_says_of_itself(self, place: Place) -> None:
        (place.master / "f").write_bytes(os.urandom(MIB))
        rsync = wrapper(place.folder / "my rsync", "rsync")
        place.once("--sync-method", "rsync", *options(
            rsync_command=rsync, rsync_options="--checksum-choice=md5 --fsync", log_rsync_performance="yes"))
        assert compare(place.master, place.slave) == []
        runs = [call for call in calls(rsync) if "--inplace" in call]
        assert runs
        assert all(" --checksum-choice=md5 --fsync " in call for call in runs)
        logged = re.search(r" rsync files=1 size=(\d+) literal=(\d+) matched=0 sent=(\d+) received=\d+", place.log())
        assert logged is not None
        assert int(logged[1]) == int(logged[2]) == MIB < int(logged[3])

    def test_ssh_command_port_options_and_timeouts(self, place: Place) -> None:
        (place.master / "f").write_text("data")
        ssh = wrapper(place.folder / "my-ssh", "ssh")
        with Sshd(place.folder / "sshd") as sshd:
            args = [place.master, f"127.0.0.1:{place.slave}", "--once", "--ssh-port", sshd.port,
                    "--ssh-config", "/dev/null"]
            plain = place.gsync("run", *args, code=4)
            assert "--accept-host-key SHA256:" in plain.stderr
            place.gsync("run", *args, *options(
                ssh_command=ssh, connection_timeout="17s", compression="on",
                ssh_options=f"-i '{sshd.identity}' -oUserKnownHostsFile={sshd.known_hosts}"))
        assert compare(place.master, place.slave) == []
        connections = [call for call in calls(ssh) if " -M " in call]
        assert connections
        for word in (f"-p{sshd.port}", "-oConnectTimeout=17", "-oCompression=yes", f"-oIdentityFile={sshd.identity}"):
            assert all(word in call for call in connections), word

    def test_rsync_goes_over_the_connection_of_the_ssh_command(self, place: Place) -> None:
        (place.master / "f").write_text("data")
        ssh = wrapper(place.folder / "my-ssh", "ssh")
        with Sshd(place.folder / "sshd") as sshd:
            place.gsync("run", place.master, f"{HOST}:{place.slave}", "--once", "--ssh-config", sshd.client_config,
                        "--sync-method", "rsync", *options(ssh_command=ssh))
        assert compare(place.master, place.slave) == []
        assert any("--rsync" in call or "rsync --server" in call for call in calls(ssh))

    def test_bandwidth_limit(self, place: Place) -> None:
        """What rsync is told; that the other engine keeps to the same Flow is tests/unit/test_flow.py's."""
        rsync = wrapper(place.folder / "my-rsync", "rsync")
        for limit, told in (("1M", 512), ("100M; 00:00-12:00 2M; 12:00-24:00 2M", 1024)):
            (place.master / "f").write_text(limit)
            place.once("--sync-method", "rsync", *options(bandwidth_limit=limit, sync_jobs=2, rsync_command=rsync))
            assert f" --bwlimit={told} " in [call for call in calls(rsync) if "--inplace" in call][-1]
        assert compare(place.master, place.slave) == []


class TestRsyncUnderWay:
    """What changes while rsync runs, in an engine with a clock of the test's own."""

    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[World]:
        with World(tmp_path, local(tmp_path / "slave"), "tarssh") as world:
            yield world

    def move(self, world: World, flow: Flow, rsync: Path, meanwhile: Callable[[], object]) -> None:
        """Send 8 MiB with rsync; `meanwhile` is called once it runs."""
        gfid = world.source.add(b"f", os.urandom(8 * MIB))
        assert world.fill(b"f", gfid) == "new"
        engine = RsyncEngine(world.link, world.client, world.source, world.epoch, flow, RsyncSettings(str(rsync)))
        results: list[Result] = []
        mover = threading.Thread(target=engine.move, args=([FileRequest(gfid, "N", bytes(16), b"", 0)], results.extend))
        mover.start()
        wait_for(lambda: Path(f"{rsync}.calls").exists() and any("--inplace" in call for call in calls(rsync)))
        meanwhile()
        mover.join(60)
        assert not mover.is_alive()
        engine.close()
        assert [result.errno for result in results] == [0]
        assert world.fill(b"f", gfid) == "ok"
        assert content(world.copy(b"f")) == content(os.path.join(world.source.folder, b"f"))

    def test_it_begins_again_when_the_rate_changes(self, world: World, tmp_path: Path) -> None:
        now = [time.strptime("12:30", "%H:%M")]
        flow = Flow(Timetable.parse("0; 12:00-13:00 1K"), local=lambda: now[0])
        rsync = wrapper(tmp_path / "rsync", "rsync")
        self.move(world, flow, rsync, lambda: now.__setitem__(0, time.strptime("13:00", "%H:%M")))
        first, *_, last = [call for call in calls(rsync) if "--inplace" in call]
        assert "--bwlimit=1 " in first  # with this it would take two hours
        assert "--bwlimit" not in last

    def test_it_stands_still_in_a_pause(self, world: World, tmp_path: Path) -> None:
        paused = threading.Event()
        rsync = wrapper(tmp_path / "rsync", "rsync", f"echo $$ > {tmp_path}/pid")

        def pause() -> None:
            pid = int((tmp_path / "pid").read_text())
            wait_for(lambda: state_of(pid) == "T")
            paused.clear()

        paused.set()
        self.move(world, Flow(paused=paused.is_set, rate=4 * MIB), rsync, pause)


class TestTheWorker:
    def test_nice_and_ionice(self, place: Place) -> None:
        with place.follow(*options(nice=7, ionice="best-effort:6")):
            (worker,) = place.pids("worker")
            pids = [worker, *place.pids("agent"), *place.pids("receiver")]
            assert len(pids) >= 3
            base = os.getpriority(os.PRIO_PROCESS, 0)
            for pid in pids:
                assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, base + 7)
                said = subprocess.run(["ionice", "-p", str(pid)], capture_output=True, text=True, check=True).stdout
                assert said.strip() == "best-effort: prio 6"
            (recorder,) = place.pids("recorder")
            assert os.getpriority(os.PRIO_PROCESS, recorder) == base

    def test_log_level(self, place: Place) -> None:
        place.once("--log-level", "DEBUG")
        quiet = len(place.log())
        assert " INFO " in place.log()
        place.once("--log-level", "ERROR")
        assert " gsync.engine.worker " not in place.log()[quiet:]

    def test_changelog_batch_size(self, place: Place) -> None:
        place.once()
        (volume,) = Home(str(place.home)).list()
        port = RecorderPort(volume.brick(), timeout=60)
        recorder = subprocess.Popen(place.argv("recorder", "run", volume.name), env=place.env,
                                    stderr=subprocess.DEVNULL)
        try:
            for number in range(4):
                (place.master / str(number)).touch()
                port.wait_complete(time.time_ns())
            place.once(*options(changelog_batch_size=1))
            batches = re.findall(r" batch synced changelogs=(\d+)", place.log())
            assert batches.count("1") >= 4
            assert set(batches) <= {"0", "1"}
        finally:
            recorder.send_signal(signal.SIGTERM)
            recorder.wait(60)

    def test_a_recorder_takes_the_nodes_settings(self, place: Place) -> None:
        place.gsync("config", "--site", "set", "change-detector", "inotify")
        place.gsync("config", "--site", "set", "rollover-time", "2s")
        place.gsync("config", "--site", "set", "changelog-retention", "2d")
        place.gsync("config", "--site", "set", "changelog-retention-size", "3M")
        place.gsync("config", "--site", "set", "changelog-archive-size", "0")
        with place.follow():
            (recorder,) = place.pids("recorder")
            words = Path(f"/proc/{recorder}/cmdline").read_text().split("\0")
            given = {name: words[words.index(name) + 1] for name in words if name.startswith("--")}
            assert given["--detector"] == "inotify"
            assert (given["--rollover"], given["--keep-seconds"]) == ("2.0", str(2 * 86400))
            assert (given["--keep-bytes"], given["--archive-bytes"]) == (str(3 * MIB), "0")
            (place.master / "f").touch()
            assert wait_until_equal(place.master, place.slave) == []
