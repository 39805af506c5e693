"""Which way to a volume is taken: libgfapi where this host has it, else an aux-gfid mount. Standard library only."""

from __future__ import annotations

import os

from gsync.errors import SlaveError
from gsync.slave.gluster import volfile
from gsync.slave.gluster.volume import Volume

ENVIRONMENT = "GSYNC_GLUSTER"  # "mount" or "gfapi": this way and no other; for hosts whose libgfapi makes trouble


def open_volume(site: volfile.Site) -> Volume:
    """SlaveError if there is no way, Transient if it does not lead there just now."""
    from gsync.slave.gluster import auxmount, gfapi

    wanted = os.environ.get(ENVIRONMENT, "")
    lib = gfapi.library() if wanted != "mount" else None
    if lib is not None:
        return gfapi.GfapiVolume(site, lib)
    if wanted == "gfapi":
        raise SlaveError("there is no libgfapi on that host that gsync can use: install it (libgfapi0, glusterfs-api)")
    return auxmount.AuxMount(site)
