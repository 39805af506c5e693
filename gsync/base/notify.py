"""Tells systemd that a service is ready, alive, and what it does (sd_notify(3), without its library).

Does nothing unless systemd started the process and asked for it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress


class Notifier:
    """One per process. Removes systemd's variables from `environ`, since they do not concern children.

    `alive` is cheap to call often. Call it where a loop has come round, never from a thread or timer that would
    continue if the loop hung.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        address = environ.pop("NOTIFY_SOCKET", "")
        interval, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._every: float | None = None  # seconds between two signs of life
        if interval.isdigit() and pid in ("", str(os.getpid())):
            self._every = int(interval) / 1e6 / 4
        self._fed = float("-inf")
        self._said = ""

    def ready(self) -> None:
        self._send("READY=1")

    def alive(self) -> None:
        now = self._clock()
        if self._every is not None and now - self._fed >= self._every:
            self._fed = now
            self._send("WATCHDOG=1")

    def says(self, text: str) -> None:
        """One line for `systemctl status`."""
        if text != self._said:
            self._said = text
            self._send("STATUS=" + text.replace("\n", " "))

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.connect(self._address)  # a service that nobody listens to goes on all the same
            out.send(message.encode("utf-8", "backslashreplace"))
