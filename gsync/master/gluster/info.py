"""What GlusterFS says of a volume of its own: its bricks, the sets they form, its options; and how options are set.

Asked is the `gluster` command, for XML. Facts of the formats: GlusterFS's cli-xml-output.c, as of version 10.
"""

from __future__ import annotations

import os
import re
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from gsync.base.errors import UsageError
from gsync.base.glusterfs import running
from gsync.base.model import NS

# What a volume must have set so that its changes are recorded.
CHANGELOG = "changelog.changelog"
NEEDED = {CHANGELOG: "on", "geo-replication.indexing": "on"}
# What the options that are of interest begin with.
GFID2PATH = "storage.gfid2path"
_CONCERN = (GFID2PATH, "changelog.", "geo-replication.", "features.shard", "disperse.eager-lock")
_ON = ("on", "yes", "true", "enable", "1")
ROLLOVER = 15.0                                          # s: GlusterFS's default of changelog.rollover-time
EAGER_LOCK = 1.0                                         # s: of disperse.eager-lock-timeout
WRITERS_APART = 3600 * NS                                # by so much may the clocks of a volume's clients be behind
WORKDIR = "/var/lib/glusterd"
_RESTORED = "restored_from_snap="
_PATIENCE = 60.0                                         # s
_PATIENCE_STATUS = 10.0
_PATIENCE_HEAL = 10.0                                    # s: with very much to heal it takes longer


@dataclass(frozen=True)
class BrickAt:
    """A brick of a GlusterFS volume. number: its place in the volume; node: uuid of its host; subvolume: which set of
    copies (or of fragments) it belongs to."""

    number: int
    node: str
    host: str
    path: str
    subvolume: int
    arbiter: bool = False

    def __str__(self) -> str:
        return f"{self.host}:{self.path}"


@dataclass(frozen=True)
class GlusterInfo:
    """A volume as `gluster volume info` tells it. kind: Replicate, Distributed-Disperse, …; host: whose glusterd is
    asked and mounts are made from; redundant: whether a brick may be away while its set goes on without it; fragments:
    of a dispersed volume, how many bricks of a set are needed, else 1; revision: other than before when sets of bricks
    have been removed and others added, though there be as many; "" until then. restored: the snapshot (uuid) that the
    volume was set back to, "" if it never was."""

    name: str
    volume_id: str
    kind: str
    started: bool
    redundant: bool
    fragments: int
    bricks: tuple[BrickAt, ...]
    options: Mapping[str, str]
    host: str = "localhost"
    revision: str = ""
    restored: str = ""

    @property
    def subvolumes(self) -> int:
        return 1 + max(brick.subvolume for brick in self.bricks)

    @property
    def rollover(self) -> float:
        """Seconds after which a brick closes a changelog."""
        return float(self.options.get("changelog.rollover-time", ROLLOVER))

    @property
    def settles(self) -> float:
        """Seconds after a change from which on everyone sees it. The client that writes to a file of a dispersed volume
        tells the bricks its new length when it has done nothing more to it for some time, or closes it."""
        return float(self.options.get("disperse.eager-lock-timeout", EAGER_LOCK)) + 1 if self.fragments > 1 else 0.0

    def away(self, running: Container[str]) -> list[BrickAt]:
        """The bricks that are not `running` (host:path), of those sets of which too few are."""
        missing = []
        for number in range(self.subvolumes):
            mine = [brick for brick in self.bricks if brick.subvolume == number]
            if sum(str(brick) in running and not brick.arbiter for brick in mine) < self.fragments:
                missing += [brick for brick in mine if str(brick) not in running]
        return missing

    @property
    def sharded(self) -> bool:
        """Whether long files are kept in pieces."""
        return self.options.get("features.shard", "off") in _ON

    def lacks(self) -> dict[str, str]:
        """The options that have to be set, with the values they need."""
        lacking = {name: value for name, value in NEEDED.items() if self.options.get(name, "off") not in _ON}
        if self.sharded and self.options.get(GFID2PATH, "on") not in _ON:
            lacking[GFID2PATH] = "on"  # else a piece of a file does not tell whose it is
        return lacking

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "id": self.volume_id, "kind": self.kind, "redundant": self.redundant,
                "fragments": self.fragments, "host": self.host, "options": dict(self.options),
                "revision": self.revision, "restored": self.restored,
                "bricks": [[b.number, b.node, b.host, b.path, b.subvolume, b.arbiter] for b in self.bricks]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GlusterInfo:
        """KeyError, TypeError, ValueError for what to_json did not make."""
        return cls(str(values["name"]), str(values["id"]), str(values["kind"]), True, bool(values["redundant"]),
                   int(values["fragments"]),
                   tuple(BrickAt(int(n), str(node), str(host), str(path), int(sub), bool(arbiter))
                         for n, node, host, path, sub, arbiter in values["bricks"]),
                   {str(k): str(v) for k, v in values["options"].items()}, str(values["host"]),
                   str(values.get("revision", "")), str(values.get("restored", "")))


def read_info(name: str, host: str = "localhost") -> GlusterInfo:
    """Ask glusterd on `host`. UsageError if there is no such volume, no gluster, or no answer."""
    root = _gluster(host, "volume", "info", name)
    volume = root.find("volInfo/volumes/volume")
    if volume is None:
        raise UsageError(f"GlusterFS volume {name}: there is none; gluster volume list shows them")
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
    """Of the volume, from glusterd's own files on its bricks. It numbers bricks as they come: one that replaces another
    takes its number over, and those that stay when others are removed keep theirs. "" where no glusterd of the volume
    runs: nor do workers there. UsageError if it cannot be told."""
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
    """From which snapshot a volume was restored last, from glusterd's own file about it; "" for none. The gluster
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
    """Whether all bricks of this set run, and none of them lacks anything that another one has, at this moment.
    UsageError if that cannot be told."""
    root = _gluster(info.host, "volume", "heal", info.name, "info", patience=_PATIENCE_HEAL)
    found = {brick.findtext("name"): (brick.findtext("status"), brick.findtext("numberOfEntries"))
             for brick in root.iter("brick")}
    return len(found) == len(info.bricks) and all(
        found.get(str(brick)) == ("Connected", "0") for brick in info.bricks if brick.subvolume == subvolume)


def away(info: GlusterInfo) -> list[BrickAt]:
    """The bricks that do not run, or cannot be reached, of those sets that are away because of it; none if glusterd
    does not tell."""
    try:
        return info.away(running(_gluster(info.host, "volume", "status", info.name, patience=_PATIENCE_STATUS)))
    except UsageError:
        return []


def set_options(info: GlusterInfo, options: Mapping[str, str]) -> None:
    """UsageError with what gluster says if it refuses."""
    for name, value in options.items():
        _gluster(info.host, "volume", "set", info.name, name, value)


def node_uuid() -> str | None:
    """By which glusterd knows this node; None where there is none."""
    try:
        with open(os.path.join(WORKDIR, "glusterd.info"), encoding="ascii") as file:
            return next((line[5:].strip() for line in file if line.startswith("UUID=")), None)
    except OSError:
        return None


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
