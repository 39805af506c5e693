"""GlusterFS's own geo-replication on a test site, from mvol to a volume of s1: gsync takes over from it, and is
measured against it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab.gluster.cluster import MASTER, SLAVE, Cluster, Node
from lab.hosts import wait_until

PATIENCE = 120.0
# Today's rsync finds nothing below a detached mount: gsyncd then leaves every file empty.
_CONFIG = {"use_meta_volume": "true", "secondary_access_mount": "true", "access_mount": "true", "sync_method": "tarssh"}


class GeoRep:
    """The session, created with pushed keys; the slave node's sshd must accept root's keys."""

    def __init__(self, site: Cluster, volume: str = SLAVE) -> None:
        self._site, self._volume = site, volume
        self.node, self._slave = site.nodes[0], site["s1"]
        self._was_started = False
        for node in site.nodes:
            _make_key(node, self._slave)
        self.node.gluster("system::", "execute", "gsec_create")
        self._say("create", "push-pem", "force")
        wait_until("the keys are pushed", lambda: "features.read-only: on" in self._slave.gluster(
            "volume", "info", volume))
        for name, value in _CONFIG.items():
            self._say("config", name, value)

    def _say(self, *words: str) -> str:
        return self.node.gluster("volume", "geo-replication", MASTER, f"{self._slave.address}::{self._volume}", *words)

    def start(self) -> None:
        """Start it and wait until one worker of each set is active. At its very first start it may never hear of a
        changelog after its first crawl, so it is started twice."""
        self._start()
        if not self._was_started:
            self._was_started = True
            wait_until("gsyncd has crawled", lambda: "Changelog Crawl" in self.status(), PATIENCE)
            self.stop()
            self._start()

    def _start(self) -> None:
        self._say("start")
        wait_until("gsyncd is active", lambda: " Active " in self.status(), PATIENCE)

    def stop(self) -> None:
        self._say("stop", "force")
        wait_until("gsyncd has ended", lambda: not self._runs(), PATIENCE)

    def _runs(self) -> bool:
        return any(subprocess.run(node.argv("pgrep", "-f", "gsyncd.py (monitor|worker|agent)"), check=False,
                                  stdout=subprocess.DEVNULL).returncode == 0 for node in self._site.nodes)

    def status(self) -> str:
        return self._say("status")

    def log(self) -> str:
        paths = [path for node in self._site.nodes
                 for path in node.path("/var/log/glusterfs/geo-replication").rglob("gsyncd.log")]
        return "".join(path.read_text(errors="replace") for path in paths)


def _make_key(node: Node, slave: Node) -> None:
    node.run("sh", "-c", "mkdir -p -m 700 /root/.ssh; cd /root/.ssh; "
             "[ -e id_ed25519 ] || ssh-keygen -q -t ed25519 -N '' -f id_ed25519; "
             "printf 'StrictHostKeyChecking no\\nLogLevel ERROR\\n' > config")
    keys = slave.path("/root/.ssh/authorized_keys")
    slave.run("mkdir", "-p", "-m", "700", "/root/.ssh")
    with Path(keys).open("a") as file:
        file.write(node.path("/root/.ssh/id_ed25519.pub").read_text())
