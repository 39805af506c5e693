"""A plain tree as master, a GlusterFS volume as slave, over ssh: hybrid, history and live, and what breaks."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from lab.gluster.churn import Churn
from lab.gluster.slavehost import SlaveHost, slave_host
from lab.hosts import sshd_on, wait_until
from lab.place import Place
from lab.trees import compare
from tests.gluster.test_master import change_older, changes
from tests.gluster.test_sequences import all_of_them

pytestmark = [pytest.mark.gluster, pytest.mark.root]


def another_agent_works(host: SlaveHost, before: int) -> bool:
    return host.lock_holder("killed") != before


class FarPlace(Place):
    """A master on another host than the volume's."""

    def __init__(self, folder: Path, host: SlaveHost, volume: str, shape: str, ssh_config: Path,
                 brick: Path | None = None) -> None:
        folder.mkdir()
        self.host, self.volume, self.shape = host, volume, shape
        self.mount = host.volume(volume, shape, brick)
        super().__init__(folder, slave_arg=f"s::{volume}", args=("--ssh-config", ssh_config))

    def argv(self, *args: object) -> list[str]:
        return self.host.far.argv(*super().argv(*args))

    def differences(self) -> list[str]:
        if self.shape == "shard":
            self.host.mount_anew(self.volume)
        return compare(self.master, self.mount)

    def equal(self) -> bool:
        try:
            return not self.differences()
        except OSError:  # it changes while it is compared
            return False


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlaveHost]:
    with slave_host(tmp_path_factory.mktemp("slave")) as made:
        yield made


@pytest.fixture(scope="module")
def ssh_config(host: SlaveHost) -> Iterator[Path]:
    with sshd_on(host.node, host.folder / "sshd") as config:
        yield config


@pytest.mark.parametrize("shape", ["one", "dist", "rep", "disp", "shard"])
def test_every_crawl(host: SlaveHost, ssh_config: Path, tmp_path: Path, shape: str) -> None:
    place = FarPlace(tmp_path / "p", host, f"all-{shape}", shape, ssh_config)
    changes(place.master, "hybrid")
    place.once()
    assert place.differences() == []
    changes(place.master, "history")
    change_older(place.master, "hybrid")
    place.once()
    assert place.differences() == []
    with place.follow():
        changes(place.master, "live")
        change_older(place.master, "history")
        wait_until("the volume is equal", place.equal)
    run = place.once()
    assert place.sent(run)[0] == 0
    assert place.differences() == []


def test_sequences_that_broke_others(host: SlaveHost, ssh_config: Path, tmp_path: Path) -> None:
    place = FarPlace(tmp_path / "p", host, "sequences", "dist", ssh_config)
    with place.follow():
        all_of_them(place.master / "live")
        wait_until("the volume is equal", place.equal, 120)
    all_of_them(place.master / "history")
    place.once()
    assert place.differences() == []


def test_killed_in_the_middle_it_goes_on(host: SlaveHost, ssh_config: Path, tmp_path: Path) -> None:
    place = FarPlace(tmp_path / "p", host, "killed", "dist", ssh_config)
    for d in range(20):
        (place.master / f"d{d}").mkdir()
        for f in range(40):
            (place.master / f"d{d}" / f"f{f}").write_bytes(os.urandom(2000))
    with place.follow():
        for moves in range(4):
            before = host.lock_holder("killed")
            host.kill(before)
            os.rename(place.master / f"d{moves}", place.master / f"moved{moves}")
            (place.master / f"moved{moves}" / "f1").write_bytes(b"new")
            wait_until("another agent works", partial(another_agent_works, host, before))
        wait_until("the volume is equal", place.equal)
    assert place.differences() == []


def test_a_brick_that_dies_and_comes_back(host: SlaveHost, ssh_config: Path, tmp_path: Path) -> None:
    """Healing is GlusterFS's business: 10.3 was seen not to heal all that an ordinary mount did meanwhile either. What
    it makes anew inherits the default ACL of its folder and keeps it: so there are none here."""
    place = FarPlace(tmp_path / "p", host, "healed", "rep", ssh_config)
    changes(place.master, "a", inherited=False)
    place.once()
    with place.follow():
        host.kill(host.brick_pid("healed", 0))
        changes(place.master, "b", inherited=False)
        change_older(place.master, "a")
        wait_until("the volume is equal with one brick", place.equal)
        host.node.gluster("volume", "start", "healed", "force")
        changes(place.master, "c", inherited=False)
        change_older(place.master, "b")
        wait_until("the volume is equal with both", place.equal)
    assert place.differences() == []


def test_a_part_of_the_volume_is_away(host: SlaveHost, ssh_config: Path, tmp_path: Path) -> None:
    """Nothing is done to the rest of it meanwhile, and nothing is forgotten."""
    place = FarPlace(tmp_path / "p", host, "parted", "dist", ssh_config)
    for n in range(40):
        (place.master / f"file{n}").write_text(f"{n}")
    with place.follow():
        wait_until("the volume is equal", place.equal)
        host.kill(host.brick_pid("parted", 1))
        for n in range(0, 40, 4):
            (place.master / f"file{n}").unlink()
            (place.master / f"file{n + 1}").rename(place.master / f"moved{n}")
            (place.master / f"file{n + 2}").write_text("changed")
            (place.master / f"new{n}").write_text("new")
        # The client that was there exits without a word of which; the next try names it.
        away = f"{host.node.bricks}/parted-1"
        reason = place.wait_for(lambda brick: away in (brick["reason"] or ""))["reason"]
        assert "a part of the GlusterFS volume parted is unreachable" in reason
        host.node.gluster("volume", "start", "parted", "force")
        wait_until("it has gone on", place.equal)
    assert place.differences() == []


def test_bricks_are_added_while_files_come(host: SlaveHost, ssh_config: Path, tmp_path: Path) -> None:
    place = FarPlace(tmp_path / "p", host, "grown", "dist", ssh_config)
    changes(place.master, "first")
    with place.follow():
        wait_until("the volume is equal", place.equal)
        with Churn(place.master / "churn"):
            host.node.gluster("volume", "add-brick", "grown", f"{host.node.address}:{host.node.bricks}/grown-2",
                              "force")
            host.node.gluster("volume", "rebalance", "grown", "start", "force")
            change_older(place.master, "first")
            wait_until("files have moved", lambda: "completed" in host.node.gluster(
                "volume", "rebalance", "grown", "status"))
        wait_until("the volume is equal again", place.equal, 120)
    assert place.differences() == []
    assert any((host.node.bricks / "grown-2").rglob("file*"))


def test_the_volume_is_set_back(host: SlaveHost, ssh_config: Path, tmp_path: Path) -> None:
    """As by `gluster snapshot restore`: what is noted in it of how far it is goes back with it."""
    place = FarPlace(tmp_path / "p", host, "back", "dist", ssh_config)

    def copy(source: str, target: str) -> None:
        host.node.gluster("volume", "stop", "back")
        for n in range(2):
            brick = host.node.bricks / f"back-{n}"
            shutil.rmtree(f"{brick}{target}", ignore_errors=True)
            subprocess.run(["cp", "-a", f"{brick}{source}", f"{brick}{target}"], check=True)
        host.node.gluster("volume", "start", "back")
        host.mount_anew("back")

    changes(place.master, "first")
    place.once()
    copy("", "-snapshot")
    changes(place.master, "second")
    change_older(place.master, "first")
    place.once()
    shutil.rmtree(place.master / "second")
    with place.follow():
        wait_until("the volume is equal", place.equal)
        copy("-snapshot", "")
        changes(place.master, "third")
        wait_until("the volume is equal again", place.equal)
    place.once()
    assert place.differences() == []


def test_full_bricks(host: SlaveHost, ssh_config: Path, tmp_path: Path) -> None:
    """It is said, nothing is half there, and it goes on by itself."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(300 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    disk = host.node.bricks / "full"
    disk.mkdir()
    host.node.run("mount", "-o", "loop", image, disk)
    place = FarPlace(tmp_path / "p", host, "full", "one", ssh_config, disk / "brick")
    changes(place.master, "a")
    with place.follow():
        host.node.run("fallocate", "-l", "200M", disk / "filler")
        changes(place.master, "b")
        (tmp_path / "big").write_bytes(os.urandom(120 << 20))
        (tmp_path / "big").rename(place.master / "big")
        reason = place.wait_for(lambda brick: brick["state"] == "Faulty")["reason"]
        assert "No space left" in reason or "is full" in reason
        assert not (place.mount / "big").exists()
        host.node.run("rm", disk / "filler")
        wait_until("it has gone on", place.equal, 120)


def test_deleted_files_lie_in_the_trash_of_the_volume(host: SlaveHost, ssh_config: Path, tmp_path: Path) -> None:
    place = FarPlace(tmp_path / "p", host, "trash", "dist", ssh_config)
    (place.master / "d" / "e").mkdir(parents=True)
    (place.master / "d" / "e" / "f").write_bytes(b"below")
    (place.master / "file").write_bytes(b"kept")
    place.once("--delete-retention", "1d")
    shutil.rmtree(place.master / "d")
    (place.master / "file").unlink()
    place.once("--delete-retention", "1d")
    assert place.differences() == []
    day, = (place.mount / ".gsync" / "trash").iterdir()
    assert {path.name.partition(".")[0]: path for path in day.iterdir()}.keys() == {"d", "file"}
    assert sorted(path.read_bytes() for path in day.rglob("*") if path.is_file()) == [b"below", b"kept"]


def test_a_foreign_volume_is_taken_over(host: SlaveHost, ssh_config: Path, tmp_path: Path) -> None:
    """The gfids there are others, so all of it is replaced, and only when that is asked for."""
    place = FarPlace(tmp_path / "p", host, "taken", "dist", ssh_config)
    changes(place.master, "a")
    shutil.copytree(place.master / "a" / "moved", place.mount / "a" / "moved")
    (place.mount / "foreign").write_bytes(b"x")
    assert "it is neither empty nor a gsync slave" in place.once(code=4).stderr
    place.once("--adopt")
    assert place.differences() == []


def test_what_cannot_be_a_slave_is_said_in_one_line(host: SlaveHost, ssh_config: Path, tmp_path: Path) -> None:
    place = FarPlace(tmp_path / "p", host, "stopped", "one", ssh_config)
    host.node.run("umount", "/mnt/stopped")
    host.node.gluster("volume", "stop", "stopped")

    def said(slave: str, *more: object) -> str:
        done = subprocess.run(place.argv("run", place.master, slave, "--once", "--ssh-config", ssh_config, *more),
                              env=place.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert done.returncode == 4
        return done.stderr.strip().splitlines()[-1]

    assert "the GlusterFS volume stopped is not started (Stopped): gluster volume start stopped" in said("s::stopped")
    assert "no such GlusterFS volume there: never; see gluster volume list" in said("s::never")
    host.volume("foreign")
    host.node.path("/mnt/foreign/file").touch()
    assert "it is neither empty nor a gsync slave: use an empty volume" in said("s::foreign")
    host.volume("norsync")
    created = subprocess.run(place.argv("create", place.master, "s::norsync", "-o", f"ssh-config={ssh_config}", "-o",
                                        "sync-method=rsync"), env=place.env, stdin=subprocess.DEVNULL,
                             capture_output=True, text=True, check=False)
    assert created.returncode == 2
    assert "sync-method rsync cannot write to a GlusterFS volume" in created.stderr
    assert "sync-method rsync cannot write to a GlusterFS volume" in said("s::norsync", "--sync-method", "rsync")
    created = subprocess.run(place.argv("create", place.master, "s::neither", "-o", f"ssh-config={ssh_config}"),
                             env=place.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert created.returncode == 4
    assert "no such GlusterFS volume there: neither" in created.stdout + created.stderr
    host.volume("named")
    place.gsync("create", place.master, "s::named", "--name", "named", "-o", f"ssh-config={ssh_config}")
    assert "s::named" in place.gsync("status").stdout
