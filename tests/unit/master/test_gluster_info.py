"""What `gluster --xml volume info` says, and what is made of it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from gsync.base.errors import UsageError
from gsync.master.gluster import info as gluster
from gsync.master.gluster.info import parse_info
from gsync.state.gluster import GlusterInfo
from gsync.state.home import Home

ID = "221a4c6d-c5a5-4c24-991a-19163e218c6a"


def info(bricks: int, *, replica: int = 1, arbiter: int = 0, disperse: int = 0, options: str = "") -> GlusterInfo:
    listed = "".join(
        f"<brick uuid='u'>m{n}:/b{n}<name>m{n}:/b{n}</name><hostUuid>node{n}</hostUuid>"
        f"<isArbiter>{int(bool(arbiter) and n % replica == replica - 1)}</isArbiter></brick>" for n in range(bricks))
    return parse_info(ET.fromstring(
        f"<volume><name>v</name><id>{ID}</id><statusStr>Started</statusStr><typeStr>T</typeStr>"
        f"<replicaCount>{replica}</replicaCount><arbiterCount>{arbiter}</arbiterCount>"
        f"<disperseCount>{disperse}</disperseCount><redundancyCount>{int(bool(disperse))}</redundancyCount><bricks>{listed}</bricks><options>{options}</options></volume>"))


@pytest.mark.parametrize(("found", "subvolumes", "redundant"), [
    (info(1), [0], False),
    (info(3), [0, 1, 2], False),
    (info(2, replica=2), [0, 0], True),
    (info(4, replica=2), [0, 0, 1, 1], True),
    (info(3, replica=3, arbiter=1), [0, 0, 0], True),
    (info(6, disperse=3), [0, 0, 0, 1, 1, 1], True),
])
def test_which_bricks_form_a_set(found: GlusterInfo, subvolumes: list[int], redundant: bool) -> None:
    assert [brick.subvolume for brick in found.bricks] == subvolumes
    assert found.subvolumes == len(set(subvolumes)) and found.redundant is redundant
    assert GlusterInfo.from_json(found.to_json()) == found
    later = replace(found, revision="1a2b3c4d", restored="55555555-5555-5555-5555-555555555555")
    assert GlusterInfo.from_json(later.to_json()) == later


def test_the_arbiter_and_the_places_are_known() -> None:
    found = info(3, replica=3, arbiter=1)
    assert [brick.arbiter for brick in found.bricks] == [False, False, True]
    assert [str(brick) for brick in found.bricks] == ["m0:/b0", "m1:/b1", "m2:/b2"]


@pytest.mark.parametrize(("found", "gone", "away"), [
    (info(2), [1], [1]),
    (info(4, replica=2), [0, 3], []),
    (info(4, replica=2), [0, 2, 3], [2, 3]),
    (info(3, replica=3, arbiter=1), [0, 1], [0, 1]),       # an arbiter has no contents
    (info(3, disperse=3), [2], []),
    (info(3, disperse=3), [1, 2], [1, 2]),
])
def test_what_cannot_be_read_without_the_bricks_that_are_gone(found: GlusterInfo, gone: list[int], away: list[int]
                                                               ) -> None:
    running = {str(brick) for brick in found.bricks if brick.number not in gone}
    assert [brick.number for brick in found.away(running)] == away


def test_options_that_are_needed() -> None:
    option = "<option><name>{}</name><value>{}</value></option>".format
    assert info(1).lacks() == {"changelog.changelog": "on", "geo-replication.indexing": "on"}
    some = info(1, options=option("changelog.changelog", "enable") + option("geo-replication.indexing", "off")
                + option("changelog.rollover-time", "4") + option("nfs.disable", "on"))
    assert some.lacks() == {"geo-replication.indexing": "on"}
    assert some.rollover == 4 and info(1).rollover == 15
    assert "nfs.disable" not in some.options


def test_a_volume_is_kept_with_what_is_known_of_it(tmp_path: Path) -> None:
    home = Home(str(tmp_path / "home"))
    kept = home.keep(home.new_gluster("v", info(2, replica=2)))
    assert home.get("v") == kept and kept.uuid == ID and kept.kind == "gluster"
    assert kept.brick(1).changelogs == "/b1/.glusterfs/changelogs"
    with pytest.raises(UsageError, match="is volume v already"):
        home.new_gluster("w", info(2, replica=2))


@pytest.mark.parametrize(("numbers", "found", "as_at_first"), [
    ([0, 1, 2, 3], info(4, replica=2), True),
    ([0, 1], info(2), True),
    ([1, 2], info(2), False),                   # the first one was removed, another one added
    ([0, 1, 4, 5], info(4, replica=2), False),
    ([1], info(1), False),
    ([0, 1, 2], info(3, replica=3), True),
])
def test_sets_of_bricks_that_have_come_instead_of_others_are_told(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: list[int], found: GlusterInfo, as_at_first: bool
) -> None:
    monkeypatch.setattr(gluster, "WORKDIR", str(tmp_path))
    folder = tmp_path / "vols" / "v" / "bricks"
    folder.mkdir(parents=True)
    for brick, number in zip(found.bricks, numbers, strict=True):
        (folder / f"{brick.host}:-b{brick.number}").write_text(f"hostname=m\nbrick-id=former-client-{number}\nx=0\n")
    assert (gluster.revision(found) == "") is as_at_first
    (folder / "m0:-b0").unlink()
    with pytest.raises(UsageError, match="m0:-b0: No such file"):
        gluster.revision(found)


def test_a_volume_of_which_no_glusterd_runs_here_has_no_revision(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gluster, "WORKDIR", str(tmp_path))
    assert gluster.revision(info(2)) == ""
