"""A session's log under `gsync run`: the lines of its supervisor and of its children in one file, rotated.

Only the supervisor writes it; the children write to their stderr, which it reads. A worker that a monitor keeps writes
the log itself. Apart from base.log, because importing logging.handlers takes too long for every command.
"""

from __future__ import annotations

import logging
import logging.handlers

from gsync.base import log


class LogFile(logging.handlers.RotatingFileHandler):
    """A logging handler that also takes lines that are complete already."""

    def __init__(self, path: str, formatter: logging.Formatter | None) -> None:
        super().__init__(path, maxBytes=log.LARGEST, backupCount=log.KEPT, encoding="utf-8", errors="backslashreplace")
        self._lines = formatter or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage() if record.name == "" else self._lines.format(record)

    def line(self, text: str) -> None:
        self.handle(logging.makeLogRecord({"name": "", "msg": text, "levelno": logging.INFO}))
