"""Both ends in any combination: volume to volume, over from GlusterFS's own geo-replication, away from GlusterFS."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gluster.cluster import SLAVE
from tests.gluster.site import gluster_site
from tests.gluster.test_master import all_crawls

pytestmark = [pytest.mark.gluster, pytest.mark.root]


@pytest.mark.parametrize(("shape", "slave"), [
    ("replica 2", "one brick"), ("distribute 2 x replica 2", "replica 2"), ("disperse 3", "distribute 2")])
def test_volume_to_volume(tmp_path: Path, shape: str, slave: str) -> None:
    """The slave volume is read-only to others, as GlusterFS's own geo-replication leaves it."""
    with gluster_site(tmp_path, shape, slave=slave) as site:
        site.cluster["s1"].gluster("volume", "set", SLAVE, "features.read-only", "on")
        all_crawls(site)
