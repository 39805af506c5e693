"""The spare link to a session's slave: a link that is ready before it is needed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gsync.base.errors import GsyncError
from gsync.base.log import get_logger
from gsync.link.link import Link, parse_slave
from gsync.link.local import LocalLink
from gsync.link.ssh import SshLink
from gsync.service.sshoptions import ssh_options
from gsync.session.session import Session

_log = get_logger(__name__)

RETRY_PAUSE = 5.0  # seconds between two tries of a passive worker to reach the slave


def link_to(session: Session) -> Link:
    """A new link to the session's slave; SlaveError or Transient if it cannot be made."""
    slave = parse_slave(session.slave)
    if slave.host is None:
        return LocalLink(slave)
    options = session.options
    return SshLink(replace(slave, port=options.ssh_port or slave.port), ssh_options(options, session.key),
                   Path(session.own, "ssh.json"))


class Spare:
    """A link to the slave that is made while the worker does something else: loads its code, or waits for a takeover.

    A thread makes it: ssh takes its whole connection-timeout to find out that a slave does not answer, and a worker
    that waits for a takeover looks at the lease several times a second.
    """

    def __init__(self, make: Callable[[], Link], pause: float = RETRY_PAUSE,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._pause, self._clock = pause, clock
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._thread: threading.Thread | None = None
        self._error: GsyncError | None = None
        self._wanted = True
        self._try_again = 0.0

    def prepare(self) -> None:
        """Begin to make a link if there is none; returns at once."""
        with self._lock:
            if self._error is not None:
                _log.warning("slave is unreachable, will retry", error=self._error)
                self._error = None
            if self._link is not None and not self._link.alive():
                self._link.close()
                self._link = None
            if self._link is not None or self._thread is not None or self._clock() < self._try_again:
                return
            self._wanted = True
            # A daemon: nobody waits for it at the end, and ssh exits by itself once its maker is gone.
            self._thread = threading.Thread(target=self._run, name="spare link", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        link: Link | None = None
        error: GsyncError | None = None
        try:
            link = self._make()
        except GsyncError as exc:
            error = exc
        with self._lock:
            self._thread, self._error = None, error
            self._try_again = 0.0 if link is not None else self._clock() + self._pause
            if self._wanted:
                self._link, link = link, None
        if link is not None:
            link.close()

    def take(self, wait: bool = False) -> Link | None:
        """The link, if there is one that is alive; the caller owns it from then on. wait: wait for a link in the making
        instead of giving it up; GsyncError then tells why it could not be made."""
        thread = self._thread
        if wait and thread is not None:
            thread.join()
        with self._lock:
            link, self._link = self._link, None
            error, self._error = self._error, None
            self._wanted = False
        if wait and error is not None:
            raise error
        if link is not None and not link.alive():
            link.close()
            return None
        return link

    def close(self) -> None:
        if (link := self.take()) is not None:
            link.close()
