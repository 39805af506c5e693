"""What goes wrong around a run: each time one clear line, the exit code that the command line promises, and no harm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.images import FsImage
from lab.place import PATIENCE, Place
from lab.sshd import HOST, Sshd
from lab.trees import compare, make_everything, wait_until_equal
from tests.fault.test_kill_steps import touched

MIB = 1 << 20


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    assert place.pids("run") + place.pids("worker") + place.pids("agent") + place.pids("receiver") == []


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "sshd") as sshd:
        yield sshd


def over(place: Place, sshd: Sshd) -> Place:
    """The place with its slave over ssh."""
    place.slave_arg, place.args = f"{HOST}:{place.slave}", ("--ssh-config", sshd.client_config)
    return place


def fill(place: Place) -> None:
    for n in range(30):
        path = place.master / f"dir{n % 3}" / f"file{n}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{n}\n" * 100)


def line_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that says what is wrong."""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("gsync: ")]
    assert "Traceback" not in done.stderr
    return line


def wait(condition: Callable[[], bool], say: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, say()
        time.sleep(0.05)


def all_there(place: Place) -> bool:
    return set(os.listdir(place.master)) <= set(os.listdir(place.slave))


def epoch_in_use(place: Place, after: int = 0) -> int:
    """Wait until an epoch (each connection has its own) after that one is active and data travels, or has all
    arrived."""
    def in_use(status: dict[str, Any]) -> bool:
        return status.get("state") == "Active" and status["epoch"] > after and (
            any((place.slave / ".gsync/limbo/new").iterdir()) or all_there(place))

    wait(lambda: in_use(place.worker_status()), place.log)
    return int(place.worker_status()["epoch"])


@pytest.mark.root
class TestSlaveFileSystem:
    def test_full_at_the_first_crawl(self, place: Place) -> None:
        fill(place)
        (place.master / "big").write_bytes(os.urandom(12 * MIB))
        with FsImage(place.folder / "small", 8 * MIB, "tmpfs") as image:
            place.slave = image.path
            place.slave_arg = str(image.path)
            assert "No space left on device" in line_of(place.once(code=4))
            subprocess.run(["mount", "-o", "remount,size=64m", image.path], check=True)
            place.once()
            assert compare(place.master, place.slave) == []

    def test_full_while_following(self, place: Place) -> None:
        fill(place)
        with FsImage(place.folder / "small", 8 * MIB, "tmpfs") as image:
            place.slave = image.path
            place.slave_arg = str(image.path)
            with place.follow():
                (place.folder / "big").write_bytes(os.urandom(12 * MIB))
                (place.folder / "big").rename(place.master / "big")  # else a part of it may come, which has room
                wait(lambda: place.worker_status()["state"] == "Faulty", place.log)
                assert "No space left" in place.worker_status()["reason"]
                assert not (place.slave / "big").exists()
                subprocess.run(["mount", "-o", "remount,size=64m", image.path], check=True)
                assert wait_until_equal(place.master, place.slave, PATIENCE) == [], place.log()

    def test_read_only(self, place: Place) -> None:
        fill(place)
        with FsImage(place.folder / "image", 32 * MIB) as image:
            (image.path / "slave").mkdir()
            place.slave = image.path / "slave"
            place.slave_arg = str(place.slave)
            image.remount(read_only=True)
            line = line_of(place.once(code=4)).lower()
            assert "read-only" in line
            image.remount(read_only=False)
            place.once()
            image.remount(read_only=True)
            (place.master / "later").touch()
            assert "read-only" in line_of(place.once(code=4)).lower()
            image.remount(read_only=False)
            place.once()
            assert compare(place.master, place.slave) == []

    def test_one_that_lacks_xattrs_and_handles(self, place: Place) -> None:
        """ramfs keeps no ACLs, no xattrs of users and root and no birth times, and does not say how much is free."""
        make_everything(place.master, 4, privileged=True)
        (place.folder / "mnt").mkdir()
        subprocess.run(["mount", "-t", "ramfs", "none", place.folder / "mnt"], check=True)
        try:
            place.slave = place.folder / "mnt" / "slave"
            place.slave.mkdir()
            place.slave_arg = str(place.slave)
            done = place.once()
            assert "the slave cannot store xattrs, acls" in done.stderr
            lost = place.report()["bricks"][0]["left_out"]
            assert lost["xattrs"] > 0
            assert [x for x in compare(place.master, place.slave) if ": xattr " not in x and ": mode " not in x] == []
            created = place.gsync("create", place.master, place.folder / "mnt" / "other", "--name", "other")
            assert "ramfs has no stable inode numbers" in created.stdout + created.stderr
        finally:
            subprocess.run(["umount", place.folder / "mnt"], check=True)


    def test_one_that_does_not_tell_case_and_knows_files_and_folders_only(self, place: Place) -> None:
        """exFAT, the file system of memory sticks. What it cannot hold is in the ledger, the rest arrives. Between the
        runs its inodes get other numbers, and each other's."""
        fill(place)
        for name in ("Case", "dir0/Also", "q?", "rename me", "dir2/twin", "dir2/TWIN"):
            (place.master / name).write_text(name)
        (place.master / "link").symlink_to("Case")
        os.link(place.master / "rename me", place.master / "second name")
        with FsImage(place.folder / "stick", 64 * MIB, "exfat") as image:
            place.slave = image.path / "slave"
            place.slave.mkdir()
            place.slave_arg = str(place.slave)
            assert "names that differ only in case" in place.once(code=1).stderr
            failed = failures(place)
            assert {name.lower() for name in failed} in ({"q?", "link", name, "dir2/twin"}
                                                         for name in ("rename me", "second name"))
            (twin,) = failed & {"dir2/twin", "dir2/TWIN"}
            assert (place.slave / twin.swapcase().replace("DIR", "dir")).read_text() != twin
            (place.master / twin).unlink()
            forget_inodes()
            for name in ("case", "dir0/also"):
                (place.master / name).write_text(name)
            (place.master / "second name").unlink()
            place.gsync("failures", "retry")
            place.once(code=1)
            assert failures(place) == {"q?", "link", "case", "dir0/also"}
            image.unplug()
            assert (place.slave / "Case").read_text() == "Case"
            for name in ("Case", "q?", "link", "dir0/also"):
                (place.master / name).unlink()
            (place.master / "rename me").rename(place.master / "Rename Me")
            (place.master / "dir1").rename(place.master / "DIR1")
            moved = place.once(code=1)  # removals come last, when the other spelling has been refused once more
            assert place.sent(moved)[0] == 0
            place.gsync("failures", "retry")
            image.unplug()
            forget_inodes()
            assert place.sent(place.once())[0] == 1  # "case", which can come now
            assert failures(place) == set()
            assert names_and_contents(place.slave) == names_and_contents(place.master)

    def test_one_that_makes_up_inode_numbers_is_pulled_out_in_a_batch(self, place: Place) -> None:
        """What is there by then is compared, not believed, and not sent again."""
        for n in range(200):
            (place.master / f"file{n:03}").write_text(f"{n}\n" * 100)
        with FsImage(place.folder / "stick", 64 * MIB, "exfat") as image:
            place.slave = image.path / "slave"
            place.slave.mkdir()
            place.slave_arg = str(place.slave)
            place.once()
            for n in range(0, 200, 2):  # each has the name of the next one then
                (place.master / f"file{n:03}").replace(place.master / "other")
                (place.master / f"file{n + 1:03}").replace(place.master / f"file{n:03}")
                (place.master / "other").replace(place.master / f"file{n + 1:03}")
            (place.master / "dir").mkdir()
            (place.master / "dir" / "new").write_text("new")
            with place.running():
                wait(lambda: touched(place), place.log)
                roles = ("run", "agent", "worker", "receiver", "recorder")
                wait(lambda: not any(place.kill(role) for role in roles), place.log)
            image.unplug()
            place.once()
            assert names_and_contents(place.slave) == names_and_contents(place.master)


class TestMasterFileSystem:
    @pytest.mark.root
    def test_one_that_makes_up_inode_numbers(self, place: Place) -> None:
        with FsImage(place.folder / "stick", 64 * MIB, "exfat") as image:
            for command in (("run", image.path, place.slave, "--once"), ("volume", "add", "stick", image.path),
                            ("create", image.path, place.slave)):
                assert "cannot be a master: its file system keeps no inode numbers" in line_of(
                    place.gsync(*command, code=2))


def forget_inodes() -> None:
    """Have the kernel forget all that it need not know."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2")


def names_and_contents(root: Path) -> dict[str, bytes | None]:
    paths = {str(path.relative_to(root)): path for path in root.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in paths.items()
            if not name.startswith(".gsync")}


def failures(place: Place) -> set[str]:
    return {failure["path"] for failure in json.loads(place.gsync("failures", "list", "--json").stdout)}


class TestSlaveHost:
    def test_it_goes_away_and_comes_back(self, place: Place, sshd: Sshd) -> None:
        fill(place)
        with over(place, sshd).follow():
            sshd.stop()
            (place.master / "meanwhile").write_text("meanwhile")
            (place.master / "dir0").rename(place.master / "renamed")
            wait(lambda: place.worker_status()["state"] == "Faulty", place.log)
            assert str(place.slave) in place.worker_status()["reason"]
            sshd.start()
            assert wait_until_equal(place.master, place.slave, PATIENCE) == [], place.log()
            place.wait_for(lambda brick: brick["state"] == "Active" and brick["reason"] == "")

    def test_the_line_is_cut_while_data_travels(self, place: Place, sshd: Sshd) -> None:
        for n in range(8):
            (place.master / f"{n}").write_bytes(os.urandom(MIB))
        over(place, sshd).args += ("--bwlimit", "4M")
        with place.running():
            first = epoch_in_use(place)
            assert not all_there(place)
            sshd.drop_connections()
            epoch_in_use(place, after=first)
            sshd.drop_connections()
            assert wait_until_equal(place.master, place.slave, PATIENCE) == [], place.log()

    def test_it_is_this_very_host_and_one_tree_lies_in_the_other(self, place: Place, sshd: Sshd) -> None:
        over(place, sshd)
        (place.master / "in").mkdir()
        (place.folder / "way").symlink_to(place.master)
        for master, slave, words in ((place.master, place.folder / "way" / "in", "lies in it"),
                                     (place.master, place.master / "new", "lies in it"),
                                     (place.master, place.master, "is the master itself"),
                                     (place.master / "in", place.master, "the master lies in it")):
            line = line_of(place.gsync("run", master, f"{HOST}:{slave}", "--once", *place.args, code=4))
            assert str(slave) in line
            assert words in line
        place.gsync("run", place.master, f"{HOST}:{place.master}/in", "--dry-run", *place.args, code=4)
        assert os.listdir(place.master) == ["in"]
        assert os.listdir(place.master / "in") == []

    def test_not_there(self, place: Place, sshd: Sshd) -> None:
        sshd.stop()
        assert str(place.slave) in line_of(over(place, sshd).once(code=4))

    def test_no_permission(self, place: Place, sshd: Sshd) -> None:
        (sshd.dir / "authorized_keys").write_text("")
        assert "Permission denied" in line_of(over(place, sshd).once(code=4))

    def test_changed_host_key(self, place: Place, sshd: Sshd) -> None:
        other = place.folder / "other"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
        kind, key, *_ = other.with_suffix(".pub").read_text().split()
        sshd.known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {kind} {key}\n")
        assert "host key has CHANGED" in line_of(over(place, sshd).once(code=4))

    def test_without_python(self, place: Place) -> None:
        with Sshd(place.folder / "sshd", forced_command=str(without(place, "python"))) as sshd:
            line = line_of(over(place, sshd).once(code=4))
            assert "needs Python 3.9 or newer" in line
            assert "install python3" in line

    def test_without_rsync(self, place: Place) -> None:
        fill(place)
        with Sshd(place.folder / "sshd", forced_command=str(without(place, "rsync"))) as sshd:
            assert "needs rsync" in line_of(over(place, sshd).once("--sync-method", "rsync", code=4))
            place.once()  # auto does without
            assert compare(place.master, place.slave) == []


def without(place: Place, program: str) -> Path:
    """A command for sshd that gives the shell a PATH on which everything but this program is found."""
    folder = place.folder / f"without {program}".replace(" ", "-")
    folder.mkdir()
    for source in ("/usr/bin", "/bin"):
        for path in Path(source).iterdir():
            if not path.name.startswith(program) and not (folder / path.name).is_symlink():
                (folder / path.name).symlink_to(path)
    script = place.folder / "shell"
    script.write_text(f'#!/bin/sh\nPATH={folder}\nexport PATH\nexec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n')
    script.chmod(0o755)
    return script


class TestSlaveFolder:
    def test_a_copy_made_by_rsync_is_adopted_and_only_differences_are_sent(self, place: Place) -> None:
        fill(place)
        subprocess.run(["rsync", "-a", f"{place.master}/", f"{place.slave}/"], check=True)
        (place.slave / "stale").mkdir()
        (place.slave / "stale" / "file").touch()
        (place.slave / "dir0" / "file3").write_text("other")
        (place.slave / "dir1" / "file4").unlink()
        assert "--adopt" in line_of(place.once(code=4))
        files, size = place.sent(place.once("--adopt"))
        assert files == 2
        assert size < 5000
        assert compare(place.master, place.slave) == []

    def test_slave_in_master_and_master_in_slave(self, place: Place) -> None:
        (place.master / "in").mkdir()
        for master, slave in ((place.master, place.master / "in"), (place.master / "in", place.master),
                              (place.master, place.master)):
            done = place.gsync("run", master, slave, "--once", code=2)
            assert str(slave) in line_of(done)

    def test_master_missing_or_no_directory(self, place: Place) -> None:
        (place.folder / "file").touch()
        for master in (place.folder / "nowhere", place.folder / "file"):
            assert str(master) in line_of(place.gsync("run", master, place.slave, "--once", code=2))

    def test_what_takes_the_slave_away_while_following(self, place: Place) -> None:
        fill(place)
        with place.follow():
            shutil.move(place.slave, place.folder / "elsewhere")
            (place.master / "new").touch()
            place.kill("agent")
            wait(lambda: place.worker_status()["state"] == "Faulty", place.log)
            assert str(place.slave) in place.worker_status()["reason"]
            shutil.move(place.folder / "elsewhere", place.slave)
            assert wait_until_equal(place.master, place.slave, PATIENCE) == [], place.log()
