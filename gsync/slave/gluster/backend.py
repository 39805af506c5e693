"""Chooses how a volume is reached: by libgfapi if this host has it, else by an aux-gfid mount. Standard library
only."""

from __future__ import annotations

import signal

from gsync.base.errors import Transient
from gsync.slave.gluster import volfile
from gsync.slave.gluster.volume import GlusterVolume


def open_volume(site: volfile.VolumeSite) -> GlusterVolume:
    """SlaveError if the volume cannot be reached at all, Transient if not just now. Call it from the main thread. Once
    a subvolume is unreachable, Transient is raised there whatever it is doing: libgfapi sends SIGTERM (gclient), and a
    mount disappears."""
    from gsync.slave.gluster import auxmount, gfapi

    lib = gfapi.library()
    if lib is None:
        return auxmount.AuxMount(site)

    def end(signum: int, frame: object) -> None:
        raise Transient(f"a part of the GlusterFS volume {site.name} is unreachable (or the agent was told to exit)")

    signal.signal(signal.SIGTERM, end)
    return gfapi.GfapiVolume(site, lib)
