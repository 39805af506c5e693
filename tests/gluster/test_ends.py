"""Both ends in any combination: volume to volume, over from GlusterFS's own geo-replication, away from GlusterFS."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from lab.gluster.cluster import MASTER, SHAPES, SLAVE, Cluster, Node, cluster
from lab.gluster.georep import GeoRep
from lab.gluster.site import IGNORED, PATIENCE, GlusterSite, GsyncNode, gluster_site
from lab.hosts import sshd_on, wait_until
from lab.pages import DOCS, blocks
from lab.place import Place
from lab.trees import compare
from tests.gluster.test_master import all_crawls, change_older, changes

pytestmark = [pytest.mark.gluster, pytest.mark.root]


@pytest.mark.parametrize(("shape", "slave"), [
    ("replica 2", "one brick"), ("distribute 2 x replica 2", "replica 2"), ("disperse 3", "distribute 2")])
def test_volume_to_volume(tmp_path: Path, shape: str, slave: str) -> None:
    """The slave volume is read-only to others, as GlusterFS's own geo-replication leaves it."""
    with gluster_site(tmp_path, shape, slave=slave) as site:
        site.cluster["s1"].gluster("volume", "set", SLAVE, "features.read-only", "on")
        all_crawls(site)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def same_contents(site: Cluster, part: str) -> bool:
    try:
        return contents(site.slave / part) == contents(site.master / part)
    except OSError:  # it changes while it is read
        return False


def plain(root: Path, tag: str) -> None:
    """Names that gsyncd does not choke on."""
    top = root / tag
    (top / "a" / "b").mkdir(parents=True)
    for n in range(20):
        (top / "a" / f"f{n}").write_bytes(os.urandom(n * 500))
    (top / "hard").hardlink_to(top / "a" / "f1")
    (top / "a" / "f2").rename(top / "renamed")
    (top / "a" / "f3").unlink()


def test_over_from_gsyncd_and_back(tmp_path: Path) -> None:
    """gsyncd is only given what was done while it did not run: it finds that when it starts, of what is done later it
    does not always hear (tests/gluster/georep)."""
    with cluster(tmp_path) as made, sshd_on(made["s1"], tmp_path / "sshd") as config:
        gsyncd = GeoRep(made)
        plain(made.master, "theirs")
        gsyncd.start()
        wait_until("gsyncd has brought it", lambda: same_contents(made, "theirs"), PATIENCE)
        gsyncd.stop()

        plain(made.master, "between")
        (made.master / "theirs" / "a").rename(made.master / "theirs" / "c")
        with closing(GlusterSite(tmp_path, made, config, create=["--from-gsyncd"], to_volume=True)) as site:
            assert re.search(r"info: brick \S+: the slave holds everything up to \S+Z.*; replication resumes from "
                             r"there", site.created)
            site.start()
            site.reach("what gsyncd had not got to")
            plain(made.master, "ours")
            (made.master / "between" / "a" / "f5").write_bytes(b"changed")
            site.reach("live")
            assert site.no_failures()
            logs = "".join(node.log() for node in site.nodes)
            assert "crawl=History" in logs
            assert "crawl=Hybrid" not in logs
            for part in ("between", "ours"):
                assert not compare(made.master / part, made.slave / part)
            assert same_contents(made, "theirs")
            site.stop()
        stimes = [int.from_bytes(os.getxattr(brick, name)[:4]) for _, brick in made.bricks()
                  for name in os.listxattr(brick) if name.endswith(".stime")]

        plain(made.master, "theirs again")
        gsyncd.start()
        wait_until("gsyncd goes on", lambda: same_contents(made, "theirs again"), PATIENCE)
        gsyncd.stop()
        log = gsyncd.log()
        assert any(f"starting history crawl [{{turns=1}}, {{stime=({stime}, " in log for stime in stimes), log[-3000:]


def test_run_in_the_foreground(tmp_path: Path) -> None:
    """Two subvolumes, each with a brick on both nodes: one node's run does all, to a tree and to a volume."""
    (tmp_path / "copy").mkdir()
    with cluster(tmp_path, "distribute 2 x replica 2") as made, sshd_on(made["s1"], tmp_path / "sshd") as config:
        node = GsyncNode(tmp_path / "gsync", made.nodes[0], config)
        node.gsync("volume", "add", "--gluster", MASTER)
        node.master = Path(MASTER)
        for slave, arg in ((tmp_path / "copy", f"s1:{tmp_path / 'copy'}"), (made.slave, f"s1::{SLAVE}")):
            node.slave_arg, tag = arg, slave.name
            changes(made.master, f"{tag}-hybrid")
            planned = node.once("--dry-run").stdout
            assert "total: " in planned
            assert f"{tag}-hybrid/a/empty" in planned or f"{tag}-hybrid/empty" in planned
            assert node.sent(node.once())[1] >= 300_000  # the longest file of it
            assert compare(made.master, slave, IGNORED) == []
            changes(made.master, f"{tag}-history")
            change_older(made.master, f"{tag}-hybrid")
            node.once()
            assert compare(made.master, slave, IGNORED) == []
            with node.running() as run:
                changes(made.master, f"{tag}-live")
                change_older(made.master, f"{tag}-history")
                wait_until("it follows", partial(equal, made.master, slave), 120)
                for pid in node.pids("run"):
                    os.kill(pid, signal.SIGINT)
                assert run.wait(60) == 0
            assert "crawl=Hybrid" not in node.once().stderr

        # A copy with the right gfids that is nobody's: what differs is replaced, what does not is not sent.
        node.gsync("delete", "--all", "--yes")
        shutil.rmtree(made.slave / ".gsync")
        (made.slave / f"{SLAVE}-hybrid" / "renamed").write_bytes(b"changed at the copy")
        (made.slave / f"{SLAVE}-history" / "renamed").unlink()
        (made.slave / "foreign").mkdir()
        assert "it is neither empty nor a gsync slave" in node.once(code=4).stderr
        files, _ = node.sent(node.once("--adopt"))
        assert 2 <= files <= 4
        assert compare(made.master, made.slave, IGNORED) == []

        made.make("apart", SHAPES["distribute 2"])
        node.gsync("volume", "add", "--gluster", "apart")
        node.master = Path("apart")
        said = node.once(code=2).stderr
        assert "its changes are not recorded; run gluster volume set apart changelog.changelog on; gluster" in said
        for option in ("changelog.changelog", "geo-replication.indexing"):
            made.nodes[0].gluster("volume", "set", "apart", option, "on")
        said = node.once(code=2).stderr
        assert "no brick on this node has the data of brick" in said


def equal(master: Path, slave: Path) -> bool:
    try:
        return not compare(master, slave, IGNORED)
    except OSError:  # it changes while it is compared
        return False


class Outside(Place):
    """gsync on a host that has nothing of GlusterFS's to do."""

    def __init__(self, folder: Path, host: Node, ssh_config: Path) -> None:
        folder.mkdir()
        super().__init__(folder, args=("--ssh-config", ssh_config))
        self.host = host

    def argv(self, *args: object) -> list[str]:
        return self.host.argv(*super().argv(*args))


def test_any_node_of_the_slaves_pool_can_be_named(tmp_path: Path) -> None:
    """The third one has no brick of the volume; and of a dead one it is said."""
    with cluster(tmp_path, "arbiter") as made, ExitStack() as opened:
        config = tmp_path / "ssh_config"
        config.write_text("".join(opened.enter_context(sshd_on(node, tmp_path / f"sshd-{node.name}")).read_text()
                                  for node in made.nodes))
        made.make("copy", SHAPES["distribute 2"])
        mount = made.nodes[0].mount("copy", "/mnt/copy", "acl")
        place = Outside(tmp_path / "outside", made["s1"], config)
        for node in made.nodes:
            place.slave_arg = f"{node.name}::copy"
            (place.master / node.name).write_text(node.name)
            place.once()
            wait_until("everyone sees it", lambda: compare(place.master, mount) == [])
        node.run("kill", "-9", node.path("/run/glusterd.pid").read_text().strip())
        assert f"slave {node.name}::copy: glusterd does not answer there" in place.once(code=4).stderr


def documented(page: str) -> list[list[str]]:
    """The commands of the page's first block, as words."""
    block = next(block.text for block in blocks(DOCS / page) if block.kind == "console")
    return [words for line in block.splitlines() if (words := shlex.split(line, comments=True))]


@contextmanager
def writing(folder: Path) -> Iterator[list[int]]:
    """Someone makes, changes, renames and removes files there until the end of the block; how often so far."""
    stop, done = threading.Event(), [0]

    def work() -> None:
        for n in itertools.count():
            if stop.is_set():
                return
            top = folder / f"d{n % 7}"
            top.mkdir(exist_ok=True)
            (top / f"f{n}").write_bytes(os.urandom(n % 5000))
            (top / f"f{n}").rename(top / f"g{n}")
            if n >= 20:
                with (folder / f"d{(n - 10) % 7}" / f"g{n - 10}").open("ab") as file:
                    file.write(b"more")
                (folder / f"d{(n - 20) % 7}" / f"g{n - 20}").unlink()
            done[0] = n

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


def test_leaving_glusterfs_as_documented(tmp_path: Path) -> None:
    with gluster_site(tmp_path, "distribute 2 x replica 2") as site:
        changes(site.master, "before")
        site.start()
        with writing(site.master) as done:
            site.reach("what was there before")
            at_work = done[0]
            wait_until("it is written to while it is followed", lambda: done[0] > at_work + 50)
            site.reach("live")
        # Nobody writes any more.
        node, place = site.cluster.nodes[0], "/mnt/m"
        names = {"myvol": "mvol", "dr": "s", "/mnt/myvol/": f"{place}/", "/mnt/myvol": place,
                 "backup1:/data/myvol/": f"{site.slave_arg}/", "/data/myvol": str(site.slave)}
        said = {}
        for words in documented("use/leaving-glusterfs.md"):
            argv = [names.get(word, word) for word in words]
            if argv[0] == "gsync":
                said[argv[1]] = site.first.gsync(*argv[1:]).stdout
            else:
                rsh = f"RSYNC_RSH=ssh -F {tmp_path}/sshd/ssh_config"
                done_ = subprocess.run(node.argv("env", rsh, *argv), capture_output=True, text=True, check=False)
                assert (done_.returncode, done_.stderr) == (0, "")
                said[argv[0]] = done_.stdout
        assert said["rsync"] == ""
        assert said["failures"] == "s: no failures\n"
        assert compare(site.master, site.slave, IGNORED) == []
