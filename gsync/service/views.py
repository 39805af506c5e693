"""All sessions of this node as their files now describe them: the monitor's view.

Promise: unchanged files are not read again; a session whose files cannot be read stays as it was.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from gsync.base.errors import GsyncError
from gsync.base.log import get_logger
from gsync.session import config
from gsync.session.control import Print, Wanted, file_print, read_wanted
from gsync.session.metavolume import mount_at
from gsync.session.options import Options
from gsync.session.session import Session, SessionHome
from gsync.state.home import Home

_log = get_logger(__name__)

ANSWER = 1.0            # s that the meta volume has to answer


@dataclass(frozen=True)
class View:
    """A session as its files describe it. prints: of all these files."""

    session: Session
    wanted: Wanted
    prints: tuple[Print, ...]


class Sessions:
    """All sessions of this node. A session whose files cannot be read stays as it was, and `broken` tells why. mounted:
    returns the mount at a path, None for nothing."""

    def __init__(self, home: Home, mounted: Callable[[str], object | None] = mount_at) -> None:
        self._home = home
        self._mounted = mounted
        self._sessions = SessionHome(home)
        self._site_prints: tuple[Print, ...] = ()
        self._probe: threading.Thread | None = None
        self.site = Options()               # the settings of this node
        self.views: dict[str, View] = {}
        self.broken: dict[str, str] = {}    # reasons by name; "": for all

    def look(self) -> None:
        """Look at all files; read those that have changed."""
        before, self.broken = self.broken, {}
        try:
            prints = tuple(file_print(path) for path in config.site_paths(self._home.path))
            if prints != self._site_prints:
                sessions = SessionHome(self._home)
                self.site = sessions.site
                self._sessions, self._site_prints = sessions, prints
            absent = self._absent()
            if absent:
                names = {*self.views, *_names(os.path.join(self._home.path, "sessions"))}
            else:
                names = set(self._sessions.names())
            found = {name: self._view(name, prints, absent) for name in sorted(names)}
            self.views = {name: view for name, view in found.items() if view is not None}
        except (GsyncError, OSError) as exc:
            self.broken[""] = str(exc)
        for name, reason in self.broken.items():
            if before.get(name) != reason:
                _log.error("session cannot be read, left as it was", session=name or "all", reason=reason)

    def _view(self, name: str, site: tuple[Print, ...], absent: str) -> View | None:
        known = self.views.get(name)
        try:
            if known is not None:
                if known.session.on_meta_volume and absent:
                    self.broken[name] = absent
                    return known
                if site + _prints(known.session) == known.prints:
                    return known
            session = self._sessions.find(name)
            if session is None:
                return None
            if session.on_meta_volume and absent:
                self.broken[name] = absent
                return None
            prints = site + _prints(session)  # taken before reading: a change meanwhile is seen the next time
            session = self._sessions.find(name)
            return None if session is None else View(session, read_wanted(session), prints)
        except (GsyncError, OSError) as exc:
            self.broken[name] = str(exc)
            return known

    def _absent(self) -> str:
        """Why the meta volume is unusable; "" if it is usable, or if there is none. A thread asks it: a dead mount must
        not keep the monitor from looking after the other sessions."""
        if not self.site.use_meta_volume:
            return ""
        place = self.site.meta_volume_mnt
        if self._mounted(place) is None:
            return f"meta volume {place} is not mounted"
        if self._probe is None or not self._probe.is_alive():
            self._probe = threading.Thread(target=_touch, args=(place,), name="meta volume", daemon=True)
            self._probe.start()
        self._probe.join(ANSWER)
        return f"meta volume {place} does not answer" if self._probe.is_alive() else ""


def _touch(path: str) -> None:
    with suppress(OSError):
        os.statvfs(path)


def _names(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except FileNotFoundError:
        return []


def _prints(session: Session) -> tuple[Print, ...]:
    return tuple(file_print(path) for path in (os.path.join(session.folder, "session.json"),
                                               os.path.join(session.shared, "session.json"),
                                               session.config, session.wanted))
