"""Stores on directories of a GlusterFS volume, with the client of a node: their contract, archives, backups."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lab import REPOSITORY as ROOT
from lab.gluster.cluster import SLAVE, cluster

pytestmark = [pytest.mark.gluster, pytest.mark.root]


def test_a_volume_keeps_the_contract_and_nothing_of_the_mounts_is_left(tmp_path: Path) -> None:
    with cluster(tmp_path) as site:
        node = site["s1"]
        mounts = node.run("cat", "/proc/self/mounts")
        done = subprocess.run(
            node.argv("env", f"--chdir={ROOT}", f"GSYNC_TEST_VOLUME=gluster://{node.address}/{SLAVE}", sys.executable,
                      "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gluster", "-k", "gluster",
                      f"--basetemp={tmp_path / 'contract'}", "tests/integration/test_store_contract.py",
                      "tests/integration/test_archive_far.py"),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        print(done.stdout[-3000:])
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert " passed" in done.stdout
        assert node.run("cat", "/proc/self/mounts") == mounts
        clients = subprocess.run(["pgrep", "-f", f"volfile-id={SLAVE} .*/dev/stderr"], capture_output=True, check=False)
        assert clients.stdout == b""
