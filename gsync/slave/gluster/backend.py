"""Which way to a volume is taken: libgfapi where this host has it, else an aux-gfid mount. Standard library only."""

from __future__ import annotations

from gsync.slave.gluster import volfile
from gsync.slave.gluster.volume import Volume


def open_volume(site: volfile.Site) -> Volume:
    """SlaveError if there is no way, Transient if it does not lead there just now."""
    from gsync.slave.gluster import auxmount, gfapi

    lib = gfapi.library()
    return auxmount.AuxMount(site) if lib is None else gfapi.GfapiVolume(site, lib)
