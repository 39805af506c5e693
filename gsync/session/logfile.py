"""A session's log: the lines of its supervisor and of its children in one file, which does not grow without bound.

Only the supervisor writes it; the children write to their stderr, which it reads.
"""

from __future__ import annotations

import logging
import logging.handlers

LARGEST = 10 << 20
KEPT = 5


class LogFile(logging.handlers.RotatingFileHandler):
    """A logging handler that also takes lines that are complete already."""

    def __init__(self, path: str, formatter: logging.Formatter | None) -> None:
        super().__init__(path, maxBytes=LARGEST, backupCount=KEPT, encoding="utf-8", errors="backslashreplace")
        self._lines = formatter or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage() if record.name == "" else self._lines.format(record)

    def line(self, text: str) -> None:
        self.handle(logging.makeLogRecord({"name": "", "msg": text, "levelno": logging.INFO}))


def log_to(path: str) -> None:
    """What gsync logs in this process goes to the file instead of stderr."""
    root = logging.getLogger("gsync")
    root.handlers[:] = [LogFile(path, root.handlers[0].formatter)]
