"""Bricks, nodes, daemons and mounts that go away while a GlusterFS volume is replicated: it recovers alone."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from lab.gluster.churn import Churn
from lab.gluster.cluster import META
from lab.gluster.site import IGNORED, PATIENCE, GlusterSite, gluster_site
from lab.trees import compare
from tests.gluster.test_master import change_older, changes

pytestmark = [pytest.mark.gluster, pytest.mark.root]


def active(site: GlusterSite) -> int:
    """The number of the brick whose worker is active (there is one subvolume), once there is one."""
    found: list[int] = []

    def one() -> bool:
        found[:] = [n for n, brick in enumerate(site.report()) if brick["state"] == "Active"]
        return len(found) == 1

    site.wait("one worker is active", one)
    return found[0]


def test_brick_node_daemon_and_mount_go_away(tmp_path: Path) -> None:
    with gluster_site(tmp_path, "replica 2") as site:
        changes(site.master, "first", inherited=False)
        site.start()
        site.settle("at first")

        # the mount of the active worker
        number = active(site)
        clients = site.clients(number)
        assert clients
        for pid in clients:
            os.kill(pid, signal.SIGKILL)
        changes(site.master, "mount", inherited=False)
        site.settle("after the mount was killed")

        # the brick of the active worker
        number = active(site)
        node, brick = site.cluster.bricks()[number]
        site.cluster.kill_brick(node, brick)
        changes(site.master, "brick", inherited=False)
        change_older(site.master, "first")
        site.wait("the worker of the dead brick says why it does nothing",
                  lambda: "does not run" in site.report()[number]["reason"])
        site.wait("the other one has taken over", lambda: site.report()[1 - number]["state"] == "Active")
        site.settle("without the brick")
        site.cluster.start_bricks()
        site.wait("healed", site.cluster.healed)
        site.wait("all are well", lambda: {brick["state"] for brick in site.report()} == {"Active", "Passive"})

        # now that one
        node, brick = site.cluster.bricks()[1 - number]
        site.cluster.kill_brick(node, brick)
        changes(site.master, "other", inherited=False)
        change_older(site.master, "mount")
        site.wait("the first one has taken over again", lambda: site.report()[number]["state"] == "Active")
        site.settle("without the other brick")
        site.cluster.start_bricks()
        site.wait("healed", site.cluster.healed)

        # glusterd
        for each in site.cluster.nodes:
            pid = int(each.path("/run/glusterd.pid").read_text())
            each.run("kill", "-9", pid)
        changes(site.master, "glusterd", inherited=False)
        for each in site.cluster.nodes:
            each.run("glusterd", "--pid-file=/run/glusterd.pid")
        site.settle("after glusterd was started again")

        # a worker, in the middle of it
        changes(site.master, "worker", inherited=False)
        for gsync in site.nodes:
            gsync.kill("worker")
        site.settle("after the workers were killed")
        assert site.no_failures()


@pytest.mark.parametrize("shape", ["replica 3", "arbiter"])
def test_a_node_is_cut_off_while_all_is_renamed(tmp_path: Path, shape: str) -> None:
    """Self-heal in a volume with an arbiter sets mtimes back to when the files were made (GlusterFS 10.3), and the
    arbiter's brick does not record that: there mtimes tell nothing once it has healed."""
    with gluster_site(tmp_path, shape, options={"network.ping-timeout": "8"}) as site:
        site.cluster.nodes[0].gluster("volume", "set", META, "network.ping-timeout", "8")
        changes(site.master, "first", inherited=False)
        site.start()
        site.settle("at first")
        number = active(site)
        node = site.cluster.bricks()[number][0]
        other = next(each for each in site.nodes if each.host is not node)
        master = other.host.mount("mvol", "/mnt/other", "acl")
        site.watch_from(other, master)
        with Churn(master / "storm"):
            site.cluster.hosts.cut(node.name)
            changes(master, "cut", inherited=False)
            change_older(master, "first")
            site.wait("status says which node is silent",
                      lambda: "no word from node" in site.report()[number]["reason"])
            site.wait("another one has taken over", lambda: active(site) != number)
        site.settle("without the node")
        with Churn(master / "second storm"):
            site.cluster.hosts.heal(node.name)
            changes(master, "healed", inherited=False)
            change_older(master, "cut")
        # Ordered again and again: what does not know the node again when it is ordered waits for ten minutes.
        site.wait("healed", lambda: site.cluster.heal(other.host) and site.cluster.healed(), 2 * PATIENCE)
        site.reach("with the node again")
        found = compare(master, site.slave, IGNORED)
        assert [line for line in found if shape != "arbiter" or ": mtime_ns " not in line] == []
        site.wait("all are well", lambda: sorted(brick["state"] for brick in site.report()) ==
                  ["Active", "Passive", "Passive"])
        assert site.no_failures()


def test_nothing_is_left_of_a_worker_that_is_killed(tmp_path: Path) -> None:
    with gluster_site(tmp_path, "one brick") as site:
        site.start()
        site.settle("at first")
        clients = site.clients(0)
        assert clients
        site.close()
        site.wait("its mount has ended", lambda: not site.clients(0))
        assert "/mount " not in subprocess.run(["cat", "/proc/self/mountinfo"], capture_output=True, text=True,
                                               check=True).stdout


def test_a_part_of_the_volume_that_is_away_is_not_taken_for_deleted(tmp_path: Path) -> None:
    with gluster_site(tmp_path, "distribute 2") as site:
        (site.master / "dir").mkdir()
        for n in range(40):
            (site.master / "dir" / f"file{n}").write_text(str(n))
        site.start()
        site.settle("at first")
        names = sorted(os.listdir(site.slave / "dir"))
        node, brick = site.cluster.bricks()[1]
        site.cluster.kill_brick(node, brick)
        reached = 0
        for n in range(40):
            try:
                (site.master / "dir" / f"file{n}").write_text("changed")
                reached += 1
            except OSError:
                pass
        assert 0 < reached < 40
        site.wait("it says why it waits", lambda: f"a part of it is unreachable: {node.address}:{brick}" in str(
            site.report()))
        assert sorted(os.listdir(site.slave / "dir")) == names
        site.stop()
        site.set_back(10**18)        # so that the whole volume is to be walked
        site.go_on()
        site.wait("it says why it waits", lambda: "a part of it is unreachable" in str(site.report()))
        assert sorted(os.listdir(site.slave / "dir")) == names
        site.cluster.start_bricks()
        site.settle("with the other part again")
        site.stop()
        for n in range(0, 40, 2):    # many of these are where their new names do not lead
            os.rename(site.master / "dir" / f"file{n}", site.master / "dir" / f"moved{n}")
            (site.master / "dir" / f"moved{n}").write_text("moved")
        names = sorted(os.listdir(site.slave / "dir"))
        site.cluster.kill_brick(node, brick)
        site.go_on()
        site.wait("it says why it waits", lambda: "a part of it is unreachable" in str(site.report()))
        assert sorted(os.listdir(site.slave / "dir")) == names
        site.cluster.start_bricks()
        site.settle("with all that was recorded before")
        assert site.no_failures()
