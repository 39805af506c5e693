"""Makes a slave forget its sync time: the next worker then compares everything."""

from __future__ import annotations

from contextlib import closing

from gsync.base.errors import LockedError
from gsync.link.client import SlaveClient
from gsync.service.failover import lease_of
from gsync.service.spare import link_to
from gsync.session.session import Session
from gsync.state.home import Home


def forget_stime(session: Session, home: Home) -> None:
    """For a session without a running worker. Does nothing if the slave was never reached. GsyncError if the slave is
    unreachable or refuses."""
    volume = home.get(session.volume)
    with closing(link_to(session)) as link, closing(SlaveClient(link, session.options.slave_timeout)) as client:
        if not client.look(volume.uuid, adopt=True, make=True):
            return
        lease = lease_of(session, home)
        epoch = lease.take()
        if epoch is None:
            raise LockedError(f"session {session.name} is active on another node")
        try:
            client.hello(volume.uuid, volume.name, session.name, epoch)
            client.forget_stime()
        finally:
            lease.release()
