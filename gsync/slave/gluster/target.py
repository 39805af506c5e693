"""A GlusterFS volume as the slave: takes it for a session and prepares it (see gsync/slave/target.py).

One connection at a time works in the volume, through whichever host it comes (invariant 9). Its pass is a file in
.gsync/passes of the volume; a younger hello removes it. On one host the locks of gsync/slave/fence.py work as for a
directory, in /run/gsync: displaced processes are killed. Processes on another host cannot be killed. There, each looks
at its pass before a change unless it has looked within the last half second, and the younger hello waits longer than
that. So an older connection can still complete only the one call that is on its way to the bricks at that moment. That
call changes a name that the older connection noted as touched before, and the younger one looks at that name again.
Standard library only, Python 3.9.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gsync
from gsync.base import rpc
from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.durable import replace_file
from gsync.base.errors import SlaveError, Transient
from gsync.base.model import NS, ROOT_GFID, STATE_DIR, Gfid
from gsync.link.protocol import RESERVED, Caps, Fenced, stream_of
from gsync.link.survey import Survey
from gsync.slave import fence
from gsync.slave.directory.identity import ACL_OF_A_PROBE
from gsync.slave.gluster import limbo, state, syncpoints, volfile
from gsync.slave.gluster.backend import open_volume
from gsync.slave.gluster.operations import VolumeOperations
from gsync.slave.gluster.volume import ACLS, GlusterVolume, Space
from gsync.slave.limbo import LIMBO_NEW, LIMBO_OLD
from gsync.slave.outcome import Step, succeeds
from gsync.slave.target import Asked, Opened, Whereabouts

PASSES: Gfid = RESERVED + b"passes\0\0\0\0"
_IDENTITY: Gfid = RESERVED + b"identity\0\0"
_PROBE: Gfid = RESERVED + b"probe\0\0\0\0\0"
_FORMAT = 1
_RUN = b"/run/gsync"
_LOOK_EVERY = 0.5  # seconds for which a look at the pass stays valid
_GRACE = 1.5       # seconds that a younger connection gives an older one's processes on another host
_LOW = 64 << 20    # bytes free below which a volume counts as full

# The folders of .gsync, each after its parent.
_FOLDERS: list[tuple[Gfid, bytes, Gfid]] = [
    (ROOT_GFID, STATE_DIR, limbo.STATE), (limbo.STATE, b"limbo", limbo.LIMBO),
    (limbo.LIMBO, b"new", LIMBO_NEW), (limbo.LIMBO, b"old", LIMBO_OLD),
    (limbo.LIMBO, b"del", limbo.LIMBO_DEL), (limbo.STATE, b"trash", limbo.TRASH),
    (limbo.STATE, b"passes", PASSES), (limbo.STATE, b"state", state.FOLDER),
    (limbo.STATE, b"sync", syncpoints.FOLDER)]


def run_folder(volume_id: str) -> int:
    """A descriptor of this host's folder with the volume's locks; only root may enter it."""
    path = os.path.join(_RUN, b"volume-" + volume_id.encode())
    for folder, mode in ((_RUN, 0o755), (path, 0o700), (os.path.join(path, b"passes"), 0o700)):
        with suppress(FileExistsError):
            os.mkdir(folder, mode)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    st = os.fstat(fd)
    if st.st_uid != os.geteuid() or st.st_mode & 0o022:
        os.close(fd)
        raise SlaveError(f"{os.fsdecode(path)} does not belong to root alone: somebody else created it; remove it")
    return fd


def keep_site(site: volfile.VolumeSite) -> None:
    """Keep the site for this connection's receivers: asking glusterd costs as much as a hundred small files. Only root
    can read it, since it may contain the pool's key."""
    path = os.path.join(_RUN, b"site-" + site.name.encode())
    replace_file(path, json.dumps(site).encode("ascii"), durable=False)


def kept_site(name: str) -> volfile.VolumeSite:
    """The site that the agent found when it took the volume."""
    try:
        with open(os.path.join(_RUN, b"site-" + name.encode()), encoding="ascii") as file:
            name, uuid, graph, bricks, seen = json.load(file)
    except (OSError, ValueError):
        return volfile.find(name)
    return volfile.VolumeSite(name, uuid, [volfile.Translator(*each) for each in graph],
                        [volfile.BrickAddress(*each) for each in bricks], seen and (seen[0], seen[1]))


def make_folders(volume: GlusterVolume) -> None:
    """Make .gsync and its folders where they are missing."""
    for pargfid, bname, gfid in _FOLDERS:
        if volume.node(gfid) is None:
            with suppress(FileExistsError):  # made by another host that is starting now
                volume.make(pargfid, bname, gfid, stat.S_IFDIR | 0o700)
            for acl in ACLS:  # ACLs are inherited: everything made below would get them
                with suppress(OSError):
                    volume.remove_xattr(gfid, acl)


class VolumePass:
    """One connection's right to work in the volume, checked on this host and in the volume."""

    def __init__(self, volume: GlusterVolume, site: volfile.VolumeSite, local: fence.Pass, name: bytes) -> None:
        self._volume, self._site, self._local, self._name = volume, site, local, name
        self._stream = stream_of(os.fsdecode(name).partition("-")[2])
        self._looked = time.monotonic()

    @property
    def valid(self) -> bool:
        return self._local.valid and self._volume.at(PASSES, self._name) is not None

    def check(self) -> None:
        """Raise Fenced once a younger connection has said hello, Transient once the volume is no longer the one
        opened."""
        self._local.check()
        self._site.check()
        self._looked = time.monotonic()
        if self._volume.at(PASSES, self._name) is None:
            raise fence.fenced(self._local.epoch, passes(self._volume, self._stream))

    def look(self) -> None:
        """Call before each change: `check`, unless the last one is recent (add-brick alone moves nothing)."""
        if time.monotonic() - self._looked > _LOOK_EVERY:
            self.check()

    def close(self) -> None:
        self._local.close()


def pass_name(epoch: int, ticket: str) -> bytes:
    return f"{epoch:020d}-{ticket}".encode()


def passes(volume: GlusterVolume, stream: str) -> dict[str, int]:
    """The existing passes of a stream, with their epochs."""
    found = {}
    for bname, _ in volume.names(PASSES):
        name = os.fsdecode(bname)
        epoch, _, ticket = name.partition("-")
        with suppress(ValueError):
            if epoch.isdigit() and stream_of(ticket) == stream:
                found[name] = int(epoch)
    return found


def show(volume: GlusterVolume, site: volfile.VolumeSite, local: fence.Pass, epoch: int, ticket: str) -> VolumePass:
    """The pass of the connection that a receiver belongs to; Fenced if it is no longer valid, or never was."""
    own = VolumePass(volume, site, local, pass_name(epoch, ticket))
    own.check()
    return own


class VolumeTarget:
    """A Target. step: told of every point at which a crash may follow."""

    def __init__(self, name: str, step: Step = lambda name: None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._name = name
        self._step = step
        self._clock = clock
        self._site: volfile.VolumeSite | None = None
        self._reached: GlusterVolume | None = None
        self._state: state.VolumeState | None = None
        self._lock_fds: list[int] = []
        self._pass: VolumePass | None = None
        self.operations: VolumeOperations | None = None

    @property
    def taken(self) -> bool:
        return self._pass is not None

    @property
    def valid(self) -> bool:
        return self._pass is not None and self._pass.valid

    @property
    def _volume(self) -> GlusterVolume:
        """The volume, opened when first needed."""
        if self._reached is None:
            site = self._site = volfile.find(self._name)
            try:
                self._reached = open_volume(site)
            except Transient as exc:
                missing = volfile.away(site)
                if not missing:
                    raise
                raise Transient(f"a part of the GlusterFS volume {site.name} is unreachable: {', '.join(missing)}"
                                ) from exc
        return self._reached

    # before the volume is taken

    def _inspect(self, volume: str, adopt: bool) -> tuple[dict[str, Any] | None, bool]:
        """The identity written in the volume, if any, and whether it is empty; SlaveError if it cannot be this master's
        slave."""
        known = self._identity()
        if known is not None and known.get("volume") != volume:
            raise SlaveError(f"it is the slave of another volume, {known.get('volume_name')} ({known.get('volume')})")
        empty = all(bname == STATE_DIR for bname, _ in self._volume.names(ROOT_GFID))
        if known is None and not empty and not adopt:
            raise SlaveError("it is neither empty nor a gsync slave: use an empty volume, or --adopt to take over a "
                             "volume that GlusterFS replicated to (files whose gfids are not the master's are "
                             "replaced)")
        return known, empty

    def _identity(self) -> dict[str, Any] | None:
        there = self._volume.at(ROOT_GFID, STATE_DIR)
        if there is None or self._volume.node(_IDENTITY) is None:
            if there is not None and there.gfid != limbo.STATE:
                raise SlaveError(f"{os.fsdecode(STATE_DIR)} in it was not created by gsync: remove it")
            return None
        file = self._volume.open(_IDENTITY)
        try:
            known = json.loads(file.pread(1 << 16, 0))
            form = int(known["format"])
        except (ValueError, KeyError, TypeError) as exc:
            raise SlaveError(f"{os.fsdecode(STATE_DIR)}/identity is damaged: {exc}") from exc
        finally:
            file.close()
        if form > _FORMAT:
            raise SlaveError(f"its state has format {form}, written by a newer gsync: upgrade gsync here")
        return dict(known)

    def look(self, volume: str, adopt: bool, make: bool, master: Whereabouts) -> bool:
        return self._inspect(volume, adopt)[0] is not None

    def survey(self, volume: str, adopt: bool, master: Whereabouts) -> Survey:
        reached = self._volume
        kind, problems = "refused", []
        try:
            known, empty = self._inspect(volume, adopt)
            kind = "ours" if known is not None else "empty" if empty else "foreign"
        except SlaveError as exc:
            problems.append(str(exc))
        space = reached.space()
        if full := _full(self._name, space):
            problems.append(full)
        return Survey(rpc.PROTOCOL, gsync.__version__, platform.python_version(), os.geteuid(), self._clock.now(),
                      kind, problems, self._busy(), space.free, space.inodes, "glusterfs", [], reached.id)

    def _busy(self) -> str:
        """The session that works there now through this host, "" if none does."""
        with suppress(OSError):
            fd = os.open(os.path.join(_RUN, b"volume-" + self._volume.id.encode()), os.O_RDONLY | os.O_DIRECTORY)
            try:
                return fence.at_work(fd)
            finally:
                os.close(fd)
        return ""

    # taking the volume

    def open(self, asked: Asked) -> Opened:
        volume = self._volume
        known, empty = self._inspect(asked.volume, asked.adopt)
        if full := _full(self._name, volume.space()):
            raise SlaveError(full)
        make_folders(volume)
        ticket = asked.ticket or secrets.token_hex(8)
        self._pass = self._take(volume, asked.session, asked.epoch, ticket)
        assert self._site is not None
        keep_site(self._site)
        if known is None:
            self._write_identity(asked.volume, asked.volume_name)
        kept = self._state = state.VolumeState(volume, os.fsdecode(pass_name(asked.epoch, ticket)), stream_of(ticket))
        kept.check_epoch(asked.epoch)
        unclean = kept.fact("clean") == 0
        operations = VolumeOperations(volume, kept, asked.adopt, asked.delete_retention, self._step, self._pass.look,
                                 asked.leave, self._clock)
        kept.facts.update({kept.key("epoch"): asked.epoch, "clean": 0, "session": asked.session})
        kept.begin()
        operations.recover()
        kept.begin()
        kept.drop_others()
        caps = _probe(volume)
        fence.unlock(self._lock_fds[1])
        self.operations = operations
        return Opened(*kept.standing(), unclean, empty, volume.space().free, caps, volume.id)

    def _take(self, volume: GlusterVolume, session: str, epoch: int, ticket: str) -> VolumePass:
        """End an older connection's processes on this host, then revoke the other passes."""
        folder = run_folder(volume.id)
        stream = stream_of(ticket)
        try:
            lock_fd, receivers_fd = (fence.open_lock(folder, name) for name in (fence.AGENT_LOCK, fence.RECEIVERS_LOCK))
            self._lock_fds = [lock_fd, receivers_fd]
            fence.wait_for_others(lock_fd, session, stream)
            local = fence.announce(folder, epoch, ticket)
        finally:
            os.close(folder)
        fence.lock_agent(lock_fd, local, session, stream)
        assert self._site is not None
        own = VolumePass(volume, self._site, local, pass_name(epoch, ticket))
        others = passes(volume, stream)
        self._refuse_older(epoch, others)
        gfid = RESERVED + secrets.token_bytes(16 - len(RESERVED))
        with suppress(FileExistsError):
            volume.make(PASSES, pass_name(epoch, ticket), gfid, stat.S_IFREG | 0o600)
        others = passes(volume, stream)
        try:
            self._refuse_older(epoch, others)
        except Fenced:
            volume.unlink(PASSES, pass_name(epoch, ticket))
            raise
        volume.sync()  # ours before the others go: the highest epoch is never forgotten
        others.pop(os.fsdecode(pass_name(epoch, ticket)), None)
        for name in others:
            with suppress(FileNotFoundError):
                volume.unlink(PASSES, os.fsencode(name))
        fence.receivers_gone(lambda: fence.take_alone(receivers_fd), receivers_fd, local)
        if others and not _all_local(local, others):
            time.sleep(_GRACE)
        own.check()
        return own

    @staticmethod
    def _refuse_older(epoch: int, others: dict[str, int]) -> None:
        if any(other > epoch for other in others.values()):
            raise fence.fenced(epoch, others)

    def _write_identity(self, volume: str, volume_name: str) -> None:
        reached = self._volume
        if reached.node(_IDENTITY) is None:
            reached.make(limbo.STATE, b"identity", _IDENTITY, stat.S_IFREG | 0o600)
        identity = {"format": _FORMAT, "volume": volume, "volume_name": volume_name, "created":
                    self._clock.now() // NS}
        file = reached.open(_IDENTITY, write=True)
        try:
            file.pwrite(json.dumps(identity).encode() + b"\n", 0)
            file.sync()
        finally:
            file.close()

    # while the volume is taken

    def check(self) -> None:
        if self._pass is not None:
            self._pass.check()

    def sweep(self, goes_on: Callable[[], bool]) -> bool:
        return self.operations is None or self.operations.sweep(goes_on)

    def forget_stime(self) -> None:
        assert self._state is not None
        self._state.forget_stimes()
        self._state.write(durable=True)

    def goodbye(self) -> None:
        assert self._state is not None
        self._state.set_fact("clean", 1)
        self._state.write()

    def close(self) -> None:
        if self._state is not None:
            self._state.close()
        if self._reached is not None:
            self._reached.close()
        if self._pass is not None:
            self._pass.close()
        for fd in self._lock_fds:
            os.close(fd)


def _all_local(local: fence.Pass, others: dict[str, int]) -> bool:
    """Whether all displaced connections were on this host: then none of their processes are alive."""
    return all(local.displaced(name) for name in others)


def _full(name: str, space: Space) -> str:
    if space.free >= _LOW and space.inodes != 0:
        return ""
    return f"the GlusterFS volume {name} is full ({space.free} bytes free): make room, or add bricks"


def _probe(volume: GlusterVolume) -> Caps:
    """What the bricks can store, found by trying."""
    gfid = _PROBE
    with suppress(FileNotFoundError):
        volume.unlink(limbo.STATE, b"probe")
    volume.make(limbo.STATE, b"probe", gfid, stat.S_IFREG | 0o600)
    try:
        def keeps_ns() -> bool:
            volume.set_attrs(gfid, None, None, (NS + 987654321, NS + 123456789))
            node = volume.node(gfid)
            return node is not None and node.mtime == NS + 987654321

        return Caps(xattr=succeeds(lambda: volume.set_xattr(gfid, b"user.gsync", b"1")),
                    trusted=True,
                    acl=succeeds(lambda: volume.set_xattr(gfid, b"system.posix_acl_access", ACL_OF_A_PROBE)),
                    utime_ns=succeeds(keeps_ns))
    finally:
        volume.unlink(limbo.STATE, b"probe")
