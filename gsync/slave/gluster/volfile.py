"""What glusterd says about a volume, and the client graph that the agent uses. The graph is the volume's own without
the translators that cache or delay: writes reach the bricks, and reads come from them.

Format of a volfile: GlusterFS, doc/developer-guide (`volume NAME`, `type`, `option KEY VALUE`, `subvolumes A B`,
`end-volume`; the last volume is the top). Standard library only, Python 3.9.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from gsync.base.errors import SlaveError, Transient
from gsync.base.glusterfs import EVERYWHERE, WHOLE_OR_NOTHING, running

_CLI_TIMEOUT = 60  # seconds
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# These cache, reorder, or only count.
_LEFT_OUT = ("performance/", "debug/io-stats", "meta")
_OPTIONS: dict[str, dict[str, str]] = {
    # Otherwise they write a file's length to the bricks a second later, and never if this process exits before.
    "cluster/disperse": {"eager-lock": "off", "other-eager-lock": "off"},
    "cluster/distribute": EVERYWHERE}
_WORKDIR = "/var/lib/glusterd"


class BrickAddress(NamedTuple):
    host: str
    path: str


class Translator(NamedTuple):
    name: str
    type: str
    options: dict[str, str]
    subvolumes: list[str]


class VolumeSite(NamedTuple):
    """A usable volume: its id (UUID), its client graph, its bricks, and a fingerprint that tells glusterd's file of
    that moment from a later one."""

    name: str
    id: str
    graph: list[Translator]
    bricks: list[BrickAddress]
    seen: tuple[int, int] | None

    @property
    def sharded(self) -> bool:
        """Whether long files are stored in pieces."""
        return any(t.type == "features/shard" for t in self.graph)

    def text(self, lasting: bool) -> str:
        """The volfile of the lean graph, with access by gfid on top. lasting: the process exits once a subvolume is
        unreachable; taking a graph down inside the process makes all of them unreachable, too."""
        more = {"cluster/distribute": WHOLE_OR_NOTHING} if lasting else {}
        return written(lean(self.graph, self.name, more))

    def check(self) -> None:
        """Raise Transient once the volume has been changed: a client that does not know a brick misses the files
        there."""
        now = _seen(self.name)
        if None not in (now, self.seen) and now != self.seen:
            raise Transient(f"the bricks or the options of the GlusterFS volume {self.name} were changed")

    @property
    def subvolumes(self) -> int:
        """The number of subvolumes that files are distributed over."""
        return max((len(t.subvolumes) for t in self.graph if t.type == "cluster/distribute"), default=1)

    def local_bricks(self) -> list[str] | None:
        """The folders of all bricks, if all of them are on this host and belong to this volume; else None."""
        paths = []
        for brick in self.bricks:
            if not _is_local(brick.host) or not _is_brick(brick.path, self.id):
                return None
            paths.append(brick.path)
        return paths


def program(name: str) -> str | None:
    """The path of a GlusterFS program, or None."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":" + _PATH)


def find(volume: str) -> VolumeSite:
    """Ask this host's glusterd. SlaveError if the volume cannot be used, Transient if that may pass."""
    if not _NAME.fullmatch(volume):
        raise SlaveError(f"{volume!r} is not the name of a GlusterFS volume")
    if os.geteuid() != 0:
        raise SlaveError("a GlusterFS volume as slave needs root on its host: log in there as root")
    cli = program("gluster")
    if cli is None:
        raise SlaveError("GlusterFS is not installed there: no gluster command; name a host of the volume's pool")
    seen = _seen(volume)
    info = ET.fromstring(_run([cli, "--mode=script", "--xml", "volume", "info", volume]))
    if info.findtext("opRet") != "0":
        why = (info.findtext("opErrstr") or "gluster gives no reason").strip()
        if "does not exist" in why:
            raise SlaveError(f"no such GlusterFS volume there: {volume}; see gluster volume list")
        raise Transient(f"gluster volume info {volume}: {why}")
    found = info.find("volInfo/volumes/volume")
    if found is None:
        raise SlaveError(f"no such GlusterFS volume there: {volume}; see gluster volume list")
    state = found.findtext("statusStr")
    if state != "Started":
        raise SlaveError(f"the GlusterFS volume {volume} is not started ({state}): gluster volume start {volume}")
    graph = parsed(_run([cli, "--mode=script", "system::", "getspec", volume]).decode("utf-8", "surrogateescape"))
    if not graph:
        raise Transient(f"glusterd gives no volfile of {volume}: gluster system:: getspec {volume}")
    bricks = [BrickAddress(t.options.get("remote-host", ""), t.options.get("remote-subvolume", ""))
              for t in graph if t.type == "protocol/client"]
    return VolumeSite(volume, str(found.findtext("id")), graph, bricks, seen)


def _seen(volume: str) -> tuple[int, int] | None:
    """A fingerprint of glusterd's file about the volume; None where the file cannot be seen."""
    try:
        st = os.stat(os.path.join(_WORKDIR, "vols", volume, "info"))
    except OSError:
        return None
    return st.st_ino, st.st_mtime_ns


def away(site: VolumeSite) -> list[str]:
    """Of the subvolumes that are unreachable: the bricks that cause it, because they do not run or cannot be reached.
    Empty if glusterd does not tell."""
    try:
        status = ET.fromstring(_run([program("gluster") or "gluster", "--mode=script", "--xml", "volume", "status",
                                     site.name]))
    except (Transient, OSError, ET.ParseError):
        return []
    if status.findtext("opRet") != "0":
        return []
    runs = running(status)
    graph = {t.name: t for t in site.graph}
    missing: list[str] = []
    for part in next((t.subvolumes for t in site.graph if t.type == "cluster/distribute"), []):
        bricks = [f"{t.options.get('remote-host')}:{t.options.get('remote-subvolume')}" for t in _clients(graph, part)]
        stopped = [brick for brick in bricks if brick not in runs]
        if len(stopped) > int(graph[part].options.get("redundancy", len(bricks) - 1)):
            missing += stopped
    return missing


def _clients(graph: Mapping[str, Translator], name: str) -> Iterator[Translator]:
    """The translators below `name` that each lead to a brick."""
    translator = graph[name]
    if translator.type == "protocol/client":
        yield translator
    for below in translator.subvolumes:
        yield from _clients(graph, below)


def _run(argv: Sequence[str]) -> bytes:
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_CLI_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise Transient(f"glusterd does not answer there: {' '.join(argv[1:])}") from None
    if done.returncode and not done.stdout.strip().startswith(b"<?xml"):
        said = (done.stderr + done.stdout).decode("utf-8", "replace").strip().replace("\n", "; ")
        raise Transient(f"glusterd does not answer there: {said or ' '.join(argv[1:])}")
    return done.stdout


def parsed(text: str) -> list[Translator]:
    """The translators of a volfile, lowest first."""
    graph: list[Translator] = []
    for line in text.splitlines():
        words = line.split(None, 2)
        if not words:
            continue
        if words[0] == "volume":
            graph.append(Translator(words[1], "", {}, []))
        elif graph and words[0] == "type":
            graph[-1] = graph[-1]._replace(type=words[1])
        elif graph and words[0] == "option":
            graph[-1].options[words[1]] = words[2] if len(words) > 2 else ""
        elif graph and words[0] == "subvolumes":
            graph[-1].subvolumes.extend(line.split()[1:])
    return graph


def lean(graph: Sequence[Translator], volume: str, more: Mapping[str, Mapping[str, str]]) -> list[Translator]:
    """The graph without translators that cache or delay; those that distribute, replicate, disperse and shard stay.
    more: options by type."""
    instead: dict[str, str] = {}
    kept: list[Translator] = []
    for translator in graph:
        below = [instead.get(name, name) for name in translator.subvolumes]
        if translator.type.startswith(_LEFT_OUT) and len(below) == 1:
            instead[translator.name] = below[0]
        else:
            options = {**translator.options, **_OPTIONS.get(translator.type, {}), **more.get(translator.type, {})}
            kept.append(translator._replace(options=options, subvolumes=below))
    return [*kept, Translator(f"{volume}-gfid-access", "features/gfid-access", {}, [kept[-1].name])]


def written(graph: Sequence[Translator]) -> str:
    """The graph as a volfile."""
    lines = []
    for name, kind, options, subvolumes in graph:
        lines += [f"volume {name}", f"    type {kind}"]
        lines += [f"    option {key} {value}" for key, value in options.items()]
        lines += [f"    subvolumes {' '.join(subvolumes)}"] if subvolumes else []
        lines += ["end-volume", ""]
    return "\n".join(lines)


def _is_local(host: str) -> bool:
    """Whether this host has this address."""
    with suppress(OSError):
        for family, kind, proto, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, proto) as probe:
                probe.bind(address)
            return True
    return False


def _is_brick(path: str, volume_id: str) -> bool:
    """Whether this folder of this host is a brick of the volume."""
    try:
        return os.getxattr(path, "trusted.glusterfs.volume-id").hex() == volume_id.replace("-", "")
    except OSError:
        return False


