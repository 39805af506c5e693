"""What a worker takes from its own brick is what the volume says, also while the brick lags behind the others."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from gsync.base.model import ROOT_GFID, Name
from gsync.master.gluster.info import read_info
from gsync.master.gluster.mount import VolumeMount
from gsync.master.gluster.ownbrick import ENOUGH, OwnBrick
from gsync.master.gluster.tree import GlusterTree
from lab import REPOSITORY
from lab.gluster.cluster import MASTER, Cluster, cluster
from lab.hosts import wait_until

pytestmark = [pytest.mark.gluster, pytest.mark.root]

FILES = 2 * ENOUGH


def main(number: int, place: str) -> None:
    """On a node: what the tree says of everything in the folder `d`, with the help of this brick and without."""
    info = read_info(MASTER)
    brick = OwnBrick(os.fsencode(info.bricks[number].path), info, number)
    mount = VolumeMount(info, place)
    bulk = VolumeMount(info, place + "-bulk", contents=True)
    tree = GlusterTree(root := mount.open(), info, brick, bulk)
    d = tree.resolve([(ROOT_GFID, b"d")])[0].gfid
    folder = os.open(f"/proc/self/fd/{root}/d", os.O_RDONLY)
    names: list[Name] = [(d, b"%s%d" % (kind, n)) for kind in (b"f", b"g") for n in range(FILES)]
    through = [str((r.name[1], r.verdict.value, r.gfid.hex())) for r in (tree.look(folder, b"d/", n) for n in names)]
    assert not brick.believed(0)
    asked = [str((r.name[1], r.verdict.value, r.gfid.hex())) for r in tree.resolve(names)]
    print(json.dumps({"asked": asked, "through": through, "believed": brick.believed(0)}))
    tree.close()
    mount.close()


def ask(site: Cluster, number: int, folder: Path) -> bool:
    """Whether the brick was believed; what was said is the same as through the mount alone."""
    node = site.bricks()[number][0]
    said = json.loads(node.run("env", f"PYTHONPATH={REPOSITORY}", sys.executable, __file__, number,
                               folder / f"mount-{number}"))
    assert said["asked"] == said["through"]
    assert sum("present" in each for each in said["asked"]) == FILES - 1
    return bool(said["believed"])


def fill(site: Cluster) -> Path:
    folder = site.master / "d"
    folder.mkdir()
    for n in range(FILES):
        (folder / f"f{n}").write_text(str(n))
    return folder


def change(folder: Path, start: int) -> None:
    for n in range(start, start + 20):
        os.rename(folder / f"f{n}", folder / f"g{n}")
    os.rename(folder / f"f{start + 21}", folder / f"f{start + 20}")
    (folder / f"f{start + 21}").touch()
    (folder / f"f{start + 22}").unlink()
    (folder / f"f{start + 22}").mkdir()


def test_a_brick_that_lags_behind_is_not_believed(tmp_path: Path) -> None:
    with cluster(tmp_path, options={"cluster.self-heal-daemon": "off"}) as site:
        folder = fill(site)
        (folder / "f199").unlink()
        assert ask(site, 0, tmp_path)
        node, brick = site.bricks()[0]
        site.kill_brick(node, brick)
        wait_until("the brick has ended", lambda: not site.brick_pid(node, brick))
        change(folder, 0)
        site.start_bricks()
        wait_until("the brick runs", lambda: site.brick_pid(node, brick))
        assert not ask(site, 0, tmp_path)
        assert not ask(site, 1, tmp_path)
        site.nodes[0].gluster("volume", "set", MASTER, "cluster.self-heal-daemon", "on")
        wait_until("the brick is healed", site.healed, 120)
        change(folder, 50)
        assert ask(site, 0, tmp_path)
        assert ask(site, 1, tmp_path)


def test_a_file_of_another_subvolume_is_not_taken_for_gone(tmp_path: Path) -> None:
    with cluster(tmp_path, "distribute 2") as site:
        folder = fill(site)
        (folder / "f199").unlink()
        change(folder, 0)  # files whose new name belongs to the other brick leave a pointer there
        assert ask(site, 0, tmp_path)
        assert ask(site, 1, tmp_path)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
