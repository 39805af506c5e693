"""Asks GlusterFS about a volume, by `gluster --xml`: bricks, options, unreachable subvolumes; and sets options.

Facts of the formats: GlusterFS's cli-xml-output.c, as of version 10.
"""

from __future__ import annotations

import os
import re
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b

from gsync.base.errors import UsageError
from gsync.base.glusterfs import running
from gsync.base.model import NS
from gsync.state.gluster import GFID2PATH, WORKDIR, BrickAt, GlusterInfo

# Prefixes of the options that matter here.
_CONCERN = (GFID2PATH, "changelog.", "geo-replication.", "features.shard", "disperse.eager-lock")
WRITERS_APART = 3600 * NS                                # how far the clocks of a volume's clients may be behind
_RESTORED = "restored_from_snap="
_PATIENCE = 60.0                                         # s
_PATIENCE_STATUS = 10.0
_PATIENCE_HEAL = 10.0                                    # s: takes longer when there is much to heal


def read_info(name: str, host: str = "localhost") -> GlusterInfo:
    """Ask glusterd on `host`. UsageError if there is no such volume, no gluster, or no answer."""
    root = _gluster(host, "volume", "info", name)
    volume = root.find("volInfo/volumes/volume")
    if volume is None:
        raise UsageError(f"no such GlusterFS volume: {name}; gluster volume list shows them")
    info = parse_info(volume, host)
    return replace(info, revision=revision(info), restored=restored(name))


def parse_info(volume: ET.Element, host: str = "localhost") -> GlusterInfo:
    """The <volume> element of `gluster --xml volume info`."""
    def number(tag: str) -> int:
        return int(volume.findtext(tag) or 0)

    copies, fragments = number("replicaCount"), number("disperseCount")
    size = fragments or max(copies, 1)
    bricks = []
    for n, brick in enumerate(volume.iter("brick")):
        where, _, path = str(brick.findtext("name")).partition(":/")
        bricks.append(BrickAt(n, str(brick.findtext("hostUuid")), where, "/" + path, n // size,
                              brick.findtext("isArbiter") == "1"))
    options = {name: str(o.findtext("value")) for o in volume.iter("option")
               if (name := str(o.findtext("name"))).startswith(_CONCERN)}
    return GlusterInfo(str(volume.findtext("name")), str(volume.findtext("id")), str(volume.findtext("typeStr")),
                       volume.findtext("statusStr") == "Started", size > 1,
                       fragments - number("redundancyCount") if fragments else 1, tuple(bricks), options, host)


def revision(info: GlusterInfo) -> str:
    """The volume's revision, from glusterd's own files on its bricks. glusterd numbers bricks in the order they come: a
    replacement takes over the number, and bricks that stay when others are removed keep theirs. "" where no glusterd of
    the volume runs: no workers run there either. UsageError if it cannot be told."""
    folder = os.path.join(WORKDIR, "vols", info.name, "bricks")
    if not os.path.isdir(folder):
        return ""
    size = len(info.bricks) // info.subvolumes
    numbers = [_brick_number(os.path.join(folder, f"{brick.host}:{brick.path.replace('/', '-')}"))
               for brick in info.bricks[::size]]
    if numbers == [n * size for n in range(info.subvolumes)]:
        return ""
    return blake2b(repr(numbers).encode("ascii"), digest_size=4).hexdigest()


def restored(name: str) -> str:
    """The snapshot from which a volume was last restored, from glusterd's own file about it; "" if none. The gluster
    command does not tell."""
    try:
        with open(os.path.join(WORKDIR, "vols", name, "info"), encoding="utf-8", errors="surrogateescape") as file:
            found = next((line[len(_RESTORED):].strip() for line in file if line.startswith(_RESTORED)), "")
    except OSError:
        return ""
    return found if found.strip("0-") else ""


def _brick_number(path: str) -> int:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            found = re.search(r"^brick-id=.*-client-(\d+)$", file.read(), re.MULTILINE)
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}") from None
    if found is None:
        raise UsageError(f"{path}: does not tell the number of the brick")
    return int(found[1])


def nothing_to_heal(info: GlusterInfo, subvolume: int) -> bool:
    """Whether, at this moment, all bricks of this set run and none lacks anything that another one has. UsageError if
    that cannot be told."""
    root = _gluster(info.host, "volume", "heal", info.name, "info", patience=_PATIENCE_HEAL)
    found = {brick.findtext("name"): (brick.findtext("status"), brick.findtext("numberOfEntries"))
             for brick in root.iter("brick")}
    return len(found) == len(info.bricks) and all(
        found.get(str(brick)) == ("Connected", "0") for brick in info.bricks if brick.subvolume == subvolume)


def away(info: GlusterInfo) -> list[BrickAt]:
    """Of the sets that are unreachable: the bricks that cause it, because they do not run or cannot be reached. Empty
    if glusterd does not tell."""
    try:
        return info.away(running(_gluster(info.host, "volume", "status", info.name, patience=_PATIENCE_STATUS)))
    except UsageError:
        return []


def set_options(info: GlusterInfo, options: Mapping[str, str]) -> None:
    """Set options; UsageError with gluster's message if it refuses."""
    for name, value in options.items():
        _gluster(info.host, "volume", "set", info.name, name, value)


def _gluster(host: str, *words: str, patience: float = _PATIENCE) -> ET.Element:
    """The <cliOutput> of a gluster command."""
    argv = ["gluster", "--mode=script", "--xml", *([] if host == "localhost" else [f"--remote-host={host}"]), *words]
    what = f"gluster {' '.join(words)}"
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=patience, check=False)
    except FileNotFoundError:
        raise UsageError(f"{what}: gluster is not installed on this node; a master volume is added on the nodes that "
                         "have its bricks") from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"{what}: glusterd on {host} does not answer") from None
    try:
        root = ET.fromstring(done.stdout)
    except ET.ParseError:
        said: Sequence[bytes] = (done.stderr or done.stdout).strip().splitlines() or [b"no answer"]
        raise UsageError(f"{what}: {said[-1].decode(errors='replace')}") from None
    if root.findtext("opRet") != "0":
        raise UsageError(f"{what}: {root.findtext('opErrstr') or 'refused'}")
    return root
