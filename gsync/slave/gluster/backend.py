"""Which way to a volume is taken: libgfapi where this host has it, else an aux-gfid mount. Standard library only."""

from __future__ import annotations

import signal

from gsync.base.errors import Transient
from gsync.slave.gluster import volfile
from gsync.slave.gluster.volume import GlusterVolume


def open_volume(site: volfile.VolumeSite) -> GlusterVolume:
    """SlaveError if there is no way, Transient if it does not lead there just now. From the main thread, in which
    Transient is raised too, whatever it does, once a part of the volume is away: libgfapi sends SIGTERM (gclient), and
    a mount is gone then."""
    from gsync.slave.gluster import auxmount, gfapi

    lib = gfapi.library()
    if lib is None:
        return auxmount.AuxMount(site)

    def end(signum: int, frame: object) -> None:
        raise Transient(f"a part of the GlusterFS volume {site.name} is unreachable (or the agent was told to exit)")

    signal.signal(signal.SIGTERM, end)
    return gfapi.GfapiVolume(site, lib)
