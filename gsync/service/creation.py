"""Creates a session: inspects both ends, then either reports all problems at once and refuses, or creates it.

Promise: a refused session leaves nothing behind, not even a volume; the slave is not changed. Not here: the checks
(preflight), and how their results are shown (cli).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from gsync.base.durable import replace_file
from gsync.base.errors import UsageError
from gsync.link.link import Slave
from gsync.master.gluster import info as gluster
from gsync.service import slave_host
from gsync.service.preflight import Finding, Level, Looked, preflight
from gsync.session import places
from gsync.session.session import Session, SessionHome
from gsync.session.sharedvolumes import keep_volume
from gsync.state.home import Home, Volume


@dataclass(frozen=True)
class CreateRequest:
    """The arguments of `gsync create`. settings: texts by option. force: ignore errors that allow it."""

    master: str
    slave: str
    name: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    from_gsyncd: bool = False
    accept_host_key: str | None = None
    push_agent: bool = False
    force: bool = False


@dataclass(frozen=True)
class Created:
    """The result. refusing: the findings that refuse the session. agent: where the agent was installed."""

    session: Session
    volume: Volume
    findings: list[Finding]
    agent: str = ""

    @property
    def refusing(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level is Level.ERROR]


class Preflight(Protocol):
    def __call__(self, session: Session, volume: Volume, home: Home, *, from_gsyncd: bool) -> Looked: ...


class SessionCreation:
    """Makes sessions in a state directory. confirm: asks the user a question."""

    def __init__(self, home: Home, confirm: Callable[[str], bool], preflight: Preflight = preflight) -> None:
        self._home = home
        self._sessions = SessionHome(home)
        self._confirm = confirm
        self._preflight = preflight

    def create(self, request: CreateRequest) -> Created:
        """UsageError if the request is invalid."""
        slave = places.slave_at(request.slave)
        volume, is_new = places.find_master(self._home, request.master)
        session = self._new(volume, slave, request)
        if request.accept_host_key is not None:
            slave_host.accept_host_key(slave, session.options, request.accept_host_key)
        looked = self._preflight(session, volume, self._home, from_gsyncd=request.from_gsyncd)
        found = Created(session, volume, [
            replace(each, level=Level.WARNING) if request.force and each.forcible else each
            for each in looked.findings])
        return found if found.refusing else self._make(found, slave, request, looked.slave_volume, is_new=is_new)

    def _new(self, volume: Volume, slave: Slave, request: CreateRequest) -> Session:
        text = places.slave_text(slave)
        there = next((s for s in self._sessions.list() if s.volume == volume.name and s.slave == text), None)
        if there is not None:
            raise UsageError(f"session {there.name} already has this master and slave; start it with gsync start "
                             f"{there.name}, change its settings with gsync config {there.name}")
        return self._sessions.find_or_new(volume.name, text, request.name, request.settings)

    def _make(self, found: Created, slave: Slave, request: CreateRequest, slave_volume: str, *, is_new: bool
              ) -> Created:
        session, volume, agent = found.session, found.volume, ""
        if volume.gluster is not None:
            volume = self._recording(volume)
        if request.push_agent:
            agent = slave_host.push_agent(slave, session.options)
        if is_new or (session.on_meta_volume and volume.gluster is None):
            keep_volume(self._home, volume)
        self._sessions.save(session, request.settings)
        if request.from_gsyncd:
            replace_file(session.gsyncd, slave_volume.encode("ascii") + b"\n")
        return replace(found, volume=volume, agent=agent)

    def _recording(self, volume: Volume) -> Volume:
        """Make sure that the bricks of a GlusterFS volume record, after asking the user; return the volume as it is
        then."""
        assert volume.gluster is not None
        info = gluster.read_info(volume.gluster.name, volume.gluster.host)
        if not info.started:
            raise UsageError(f"volume {volume.name} is not started; run gluster volume start {info.name}")
        lacks = info.lacks()
        if lacks:
            words = ", ".join(f"{name} {value}" for name, value in lacks.items())
            if not self._confirm(f"Set on volume {info.name}: {words}?"):
                raise UsageError(f"volume {volume.name}: its changes are not recorded without {words}; confirm, or use "
                                 "--yes to set these options")
            gluster.set_options(info, lacks)
            info = gluster.read_info(info.name, info.host)
        return self._home.keep(replace(volume, gluster=info))
