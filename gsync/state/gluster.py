"""A GlusterFS volume as gsync keeps it in volume.json: its bricks, the sets they form, the options of interest.

Promise: what `to_json` makes, `from_json` reads, also that of an older gsync. Not here: asking GlusterFS
(master.gluster.info).
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

# What a volume must have set so that its changes are recorded.
CHANGELOG = "changelog.changelog"
NEEDED = {CHANGELOG: "on", "geo-replication.indexing": "on"}
GFID2PATH = "storage.gfid2path"
ROLLOVER = 15.0     # s: GlusterFS's default of changelog.rollover-time
EAGER_LOCK = 1.0    # s: of disperse.eager-lock-timeout
WORKDIR = "/var/lib/glusterd"
_ON = ("on", "yes", "true", "enable", "1")


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


def node_uuid() -> str | None:
    """By which glusterd knows this node; None where there is none."""
    try:
        with open(os.path.join(WORKDIR, "glusterd.info"), encoding="ascii") as file:
            return next((line[5:].strip() for line in file if line.startswith("UUID=")), None)
    except OSError:
        return None
