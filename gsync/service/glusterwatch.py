"""Notices changed bricks or options of a GlusterFS volume, and rewrites volume.json.

Workers watch that file and exit when it changes; the monitor then starts the workers that the new bricks need.
"""

from __future__ import annotations

import os
import threading
from dataclasses import replace

from gsync.base.errors import GsyncError
from gsync.base.log import get_logger
from gsync.master.gluster.info import read_info
from gsync.session.control import Print, file_print
from gsync.state.gluster import WORKDIR
from gsync.state.home import Home, Volume

_log = get_logger(__name__)


class GlusterWatch:
    """For the monitor, which calls `look` repeatedly with every GlusterFS volume."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._seen: dict[str, Print] = {}
        self._threads: dict[str, threading.Thread] = {}

    def look(self, volume: Volume) -> None:
        """Returns at once: a thread asks glusterd, and only after glusterd's own file about the volume has changed."""
        assert volume.gluster is not None
        thread = self._threads.get(volume.name)
        if thread is not None and thread.is_alive():
            return
        seen = file_print(os.path.join(WORKDIR, "vols", volume.gluster.name, "info"))
        if seen is None or seen == self._seen.get(volume.name):
            return
        self._seen[volume.name] = seen
        # A daemon: a glusterd that does not answer must not keep the monitor from exiting.
        thread = self._threads[volume.name] = threading.Thread(target=self._ask, args=(volume,), name="gluster",
                                                               daemon=True)
        thread.start()

    def _ask(self, volume: Volume) -> None:
        assert volume.gluster is not None
        try:
            info = read_info(volume.gluster.name, volume.gluster.host)
            if info.volume_id == volume.uuid and info.to_json() != volume.gluster.to_json():
                _log.info("GlusterFS volume has changed", volume=volume.name, bricks=len(info.bricks))
                self._home.keep(replace(volume, gluster=info))
        except (GsyncError, OSError) as exc:
            _log.warning("cannot get information about the GlusterFS volume", volume=volume.name, error=exc)
            self._seen.pop(volume.name, None)  # so the next look asks again
